"""The reliability scoreboard: named experiments, run by `make scoreboard`, their counts kept and published."""
