"""A round of the benchmarks on next to nothing: commands, measuring and tidying up work. No timing is looked at."""

from __future__ import annotations

from pathlib import Path

from benchmarks.commands import OURS, Way
from benchmarks.machine import Machines
from benchmarks.results import Results
from benchmarks.sections import Bench

# What `make bench` compares with needs packages that tests do not.
DUMP = Way(
    "dump",
    "pg_dump -Fc",
    'pg_dump -Fc -f "$OUT/dump" "$DB"',
    "dump",
    restore='createdb -T template0 "$RESTORED" && pg_restore -j2 --exit-on-error -d "$RESTORED" "$OUT/dump"',
)


def test_a_round_measures_backup_and_restore_and_leaves_the_server_as_it_was(workspace: Path) -> None:
    path = workspace / "performance.json"
    bench = Bench(
        machines=Machines(workspace / "data"), results=Results(cores=2), size=0.001, rounds=1, keep=True, growth=(),
        path=path,
    )  # fmt: skip
    with bench.machine("devices", 0.001) as machine:
        for way in (OURS, DUMP):
            bench.back_up(machine, way, "backup", 1)
            bench.restore(machine, way, "restore", 1)
        assert (
            machine.run('psql -AXtc "SELECT count(*) FROM pg_database" postgres', machine.environment("none")) == "6\n"
        )
    found = Results.load(path)
    assert [(run.way, run.direction) for run in found.runs] == [
        ("ours", "backup"),
        ("ours", "restore"),
        ("dump", "backup"),
        ("dump", "restore"),
    ]
    for run in found.runs:
        assert min(run.wall, run.client_cpu, run.peak_bytes, run.archive_bytes) > 0, run
    assert "read back" in found.of("backup", "ours")[0].stages
    assert found.datasets["devices-0.001"]["dump_bytes"] > 100_000
    with bench.machine("devices", 0.001) as again:
        assert again.database == machine.database, "what was made is used again"
