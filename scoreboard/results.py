"""What experiments came to: one result each, kept in a JSON file that several runs may add to at once."""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self


@dataclass(slots=True)
class Result:
    """One experiment, run once. `seconds` of wall time; `made` in UTC; `version` is the commit that was tried."""

    id: str
    tier: str
    seed: int
    made: str
    version: str
    seconds: float
    tests: int
    tried: int
    outcomes: dict[str, int] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    """Counts in words, of tests that have no outcomes to add up."""
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Tell whether every test of it ran and passed."""
        return not self.failures and self.tests > 0

    @classmethod
    def of_reports(cls, reports: list[dict[str, Any]], **known: Any) -> Self:
        """Add up what the tests of one experiment have reported (`tests.scoreboard`)."""
        outcomes: Counter[str] = Counter()
        told: list[str] = []
        tried = 0
        for report in reports:
            if not report["counted"]:
                tried += 1
            for value in report["counted"]:
                if isinstance(value, str):
                    tried += 1
                    told.append(value)
                    continue
                tried += value["tried"]
                outcomes.update(value["outcomes"])
                if value["told"]:
                    told.append(value["told"])
        failures = [f"{report['test']}: {report['why']}" for report in reports if report["outcome"] != "passed"]
        return cls(tests=len(reports), tried=tried, outcomes=dict(outcomes), told=told, failures=failures, **known)


def load(path: Path) -> dict[str, Result]:
    """Return what is kept, by the experiment's id; nothing when there is no file yet."""
    if not path.exists():
        return {}
    return {one["id"]: Result(**one) for one in json.loads(path.read_text())}


def keep(path: Path, result: Result) -> None:
    """Put one result in the place of the last one of its experiment; others may do the same meanwhile."""
    with _alone(path):
        kept = load(path) | {result.id: result}
        ordered = [asdict(kept[each]) for each in sorted(kept, key=number)]
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
        temporary.replace(path)


def number(identifier: str) -> int:
    """Return what experiments are ordered by."""
    return int(identifier[1:])


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
