"""How much of which part the tests have to run: `make coverage` tells it, and fails where it is less.

    python -m tests.coverage_bars [--show]

Reads what `coverage json` wrote. `--show` tells the numbers of a run of some tests, which can not reach the bars.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

MEASURED = Path(__file__).parents[1] / "build/coverage/coverage.json"

WHOLE = {
    "archive": ("service/archive/*", "service/pipeline/*"),
    "sealing": ("service/sealing/*",),
    "retention": ("service/retention.py", "service/prune.py"),
    "scheduler": ("service/schedul*.py", "service/clock_guard.py", "service/timeline.py"),
    "restore": (
        *(
            "service/restore*.py",
            "service/journal.py",
            "service/settle.py",
            "service/reset*.py",
            "service/recovery*.py",
        ),
        *(f"service/sources/{name}.py" for name in ("directories", "exchange", "extraction", "tar_reader")),
        *(f"service/sources/tree_{name}.py" for name in ("compare", "extract", "swap", "unpack")),
        *(
            f"service/sources/postgresql/{name}.py"
            for name in ("affected", "aside", "compare", "extract", "index_rights", "load", "materialized", "needed")
        ),
        *(
            f"service/sources/postgresql/{name}.py"
            for name in ("preflight", "restore", "roles", "room", "scratch", "settings", "side", "stage", "swap")
        ),
    ),
}
"""What undoes damage, or could do some: all of it is run."""

MOST = {
    "sources": ("service/sources/*",),
    "portal": ("service/portal/*",),
    "socket": ("service/api/*", "service/rpc/*"),
    "command line": ("service/cli/*",),
    "service": ("service/*",),
    "targets": ("storage_backends/*",),
}
"""All else. A file belongs to the first part that has it."""

BARS = dict.fromkeys(WHOLE, 100) | dict.fromkeys(MOST, 90)


@dataclass(slots=True)
class Counts:
    """Lines and branches of one part: how many there are, how many were run."""

    lines: int = 0
    lines_run: int = 0
    branches: int = 0
    branches_run: int = 0
    lacking: list[str] = field(default_factory=list)
    """Files of which something was not run."""

    def add(self, file: str, summary: dict[str, Any]) -> None:
        """Add what was measured of a file."""
        self.lines += summary["num_statements"]
        self.lines_run += summary["covered_lines"]
        self.branches += summary["num_branches"]
        self.branches_run += summary["covered_branches"]
        if summary["missing_lines"] or summary["missing_branches"]:
            self.lacking.append(file)

    def reaches(self, bar: int) -> bool:
        """Tell whether lines and branches each reach `bar` per cent."""
        return self.lines_run * 100 >= self.lines * bar and self.branches_run * 100 >= self.branches * bar


def part_of(file: str) -> str:
    """Return the part that a file belongs to."""
    return next(part for part, globs in (WHOLE | MOST).items() if any(fnmatchcase(file, glob) for glob in globs))


def counted(files: dict[str, Any]) -> dict[str, Counts]:
    """Add up the files of each part, in the order of the parts."""
    parts = {part: Counts() for part in BARS}
    for file, measured in files.items():
        parts[part_of(file)].add(file, measured["summary"])
    return parts


def below(parts: dict[str, Counts]) -> list[str]:
    """Say of each part that does not reach its bar what is missing."""
    return [
        f"{part} is below {BARS[part]} %: " + (", ".join(counts.lacking) if BARS[part] == 100 else percent(counts))
        for part, counts in parts.items()
        if not counts.reaches(BARS[part])
    ]


def percent(counts: Counts) -> str:
    """Return how much was run."""
    return (
        f"{_share(counts.lines_run, counts.lines)} of lines, {_share(counts.branches_run, counts.branches)} of branches"
    )


def _share(part: int, whole: int) -> str:
    """Return a percentage, cut off so that only all of it is 100."""
    return f"{part * 1000 // whole / 10:.1f} %" if whole else "-"


def table(parts: dict[str, Counts]) -> str:
    """Return the numbers as a table of Markdown."""
    rows = ["| Part | Lines | run | Branches | run |", "|---|---:|---:|---:|---:|"]
    rows += [
        f"| {part} | {counts.lines:,} | {_share(counts.lines_run, counts.lines)} | {counts.branches:,} |"
        f" {_share(counts.branches_run, counts.branches)} |"
        for part, counts in parts.items()
    ]
    return "\n".join(rows)


def main() -> int:
    """Tell the numbers; 1 when a bar is not reached."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--show", action="store_true", help="tell the numbers, hold no bars")
    show = options.parse_args().show
    parts = counted(json.loads(MEASURED.read_text())["files"])
    print(table(parts))
    found = [] if show else below(parts)
    for sentence in found:
        print(sentence)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
