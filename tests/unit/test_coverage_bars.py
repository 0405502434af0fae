"""The bars of `make coverage`: every file belongs to a part, and a part that lacks a branch is told."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.coverage_bars import BARS, MOST, WHOLE, Counts, below, counted, part_of, table

ROOT = Path(__file__).parents[2]
FILES = [
    str(path.relative_to(ROOT))
    for package in ("service", "storage_backends")
    for path in (ROOT / package).rglob("*.py")
]


def file(lines: int, lines_run: int, branches: int, branches_run: int) -> dict[str, dict[str, int]]:
    return {
        "summary": {
            "num_statements": lines,
            "covered_lines": lines_run,
            "missing_lines": lines - lines_run,
            "num_branches": branches,
            "covered_branches": branches_run,
            "missing_branches": branches - branches_run,
        }
    }


def test_every_file_that_is_shipped_belongs_to_a_part_and_every_glob_to_a_file() -> None:
    assert {part_of(name) for name in FILES} == set(BARS)
    for globs in (WHOLE | MOST).values():
        for glob in globs:
            assert any(fnmatchcase(name, glob) for name in FILES), glob


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("service/archive/zip64.py", "archive"),
        ("service/restore_pin.py", "restore"),
        ("service/sources/postgresql/swap.py", "restore"),
        ("service/sources/postgresql/dump.py", "sources"),
        ("service/portal/restore.py", "portal"),
        ("service/backup.py", "service"),
    ],
)
def test_a_file_belongs_to_the_most_special_part(name: str, part: str) -> None:
    assert part_of(name) == part


def test_one_branch_that_no_test_takes_is_told_with_its_file() -> None:
    parts = counted({"service/prune.py": file(50, 50, 20, 19), "service/retention.py": file(80, 80, 30, 30)})
    assert below(parts) == ["retention is below 100 %: service/prune.py"]
    assert "| retention | 130 | 100.0 % | 50 | 98.0 % |" in table(parts)


def test_nine_in_ten_are_enough_elsewhere_of_lines_and_of_branches_each() -> None:
    assert below(counted({"service/doctor.py": file(1000, 900, 10, 9)})) == []
    assert below(counted({"service/doctor.py": file(1000, 899, 10, 10)})) == [
        "service is below 90 %: 89.9 % of lines, 100.0 % of branches"
    ]
    assert below(counted({"service/doctor.py": file(1000, 1000, 10, 8)})) != []


def test_a_number_is_never_rounded_up_to_all() -> None:
    assert "| targets | 100,000 | 99.9 % | 0 | - |" in table({"targets": Counts(lines=100_000, lines_run=99_999)})
