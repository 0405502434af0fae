"""The table of docs/RELIABILITY.md, between its two marks; the text around it is written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from scoreboard.experiments import EXPERIMENTS, INVARIANTS, Experiment
from scoreboard.results import Result

BEGIN = "<!-- scoreboard: written by `make scoreboard` -->"
END = "<!-- end of scoreboard -->"
_MOST_TOLD = 3
_TRIED = (
    '"Tried" adds up what the tests count: faults that were met, mutants, made-up examples, cycles. A test that counts '
    "nothing is one. A planned fault that a run did not come to is none of them, and is told as not met."
)


def write(document: Path, results: Mapping[str, Result]) -> None:
    """Put the table of these results into the document. Raises ValueError when it has no marks."""
    document.write_text(filled(document.read_text(), results))


def filled(text: str, results: Mapping[str, Result]) -> str:
    """Return the document's text with the table of these results."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document lacks the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table(EXPERIMENTS, results)}\n\n{END}{after}"


def table(experiments: Sequence[Experiment], results: Mapping[str, Result]) -> str:
    """Return the table as Markdown, and what its columns mean."""
    lines = ["| | Experiment | Holds | Tried | What came of it | Seed | Took |", "|---|---|---|---:|---|---:|---:|"]
    for one in experiments:
        cells = [one.id, one.claim, one.holds or "", *_outcome(results.get(one.id))]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    held = "\n".join(f"* **{name}**: {what}" for name, what in INVARIANTS.items())
    return "\n".join(lines) + f'\n\n{_TRIED}\n\nWhat "holds" means:\n\n{held}'


def _outcome(result: Result | None) -> list[str]:
    if result is None:
        return ["", "not run yet", "", ""]
    said = [f"{number:,} {name.replace('_', ' ')}" for name, number in result.outcomes.items()]
    if not said:
        said = list(dict.fromkeys(result.told))[:_MOST_TOLD]
    verdict = "**0 failures**" if result.passed else f"**{len(result.failures) or 'no tests'} FAILED**"
    where = "" if result.tier == "nightly" else f" ({result.tier})"
    return [f"{result.tried:,}{where}", "; ".join([verdict, *said]), str(result.seed), _time(result.seconds)]


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
