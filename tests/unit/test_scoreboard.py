"""The scoreboard's pure parts: results added up and kept, the table, and a registry that names tests that there are."""

from __future__ import annotations

import json
import re
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from scoreboard import __main__ as program
from scoreboard import report, running
from scoreboard.experiments import EXPERIMENTS, INVARIANTS, by_id
from scoreboard.results import Result, keep, load
from tests import scoreboard
from tests.scoreboard import as_text, counted

ROOT = Path(__file__).parents[2]


def test_every_experiment_has_an_id_of_its_own_and_tests_that_there_are() -> None:
    assert len({one.id for one in EXPERIMENTS}) == len(EXPERIMENTS)
    for one in EXPERIMENTS:
        assert re.fullmatch(r"R[1-9][0-9]?", one.id)
        assert set(one.holds.split()) <= INVARIANTS.keys()
        texts = ""
        for node in one.tests:
            file, _, test = node.partition("::")
            text = (ROOT / "tests" / file).read_text()
            assert not test or f"def {test}(" in text, node
            texts += text
        for word in re.findall(r"[A-Za-z_]+", one.only):
            assert word in ("not", "and", "or") or word in texts, (one.id, word)


def test_every_size_is_read_by_a_test() -> None:
    told = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for one in EXPERIMENTS:
        for name in one.nightly:
            assert f'"{name}"' in told or f'"{name.removeprefix("DEVICEON_BACKUP_")}"' in told, name


def result(**change: Any) -> Result:
    known: dict[str, Any] = {
        "id": "R1", "tier": "nightly", "seed": 7, "made": "2026-11-28 20:00Z", "version": "abc", "seconds": 61.0
    }  # fmt: skip
    reports = [
        {"test": "a", "outcome": "passed", "why": "", "counted": [counted(3, killed=2, stored=1)]},
        {"test": "b", "outcome": "passed", "why": "", "counted": [counted(4, "in words", killed=4)]},
        {"test": "c", "outcome": "passed", "why": "", "counted": []},
    ]
    return Result.of_reports(change.pop("reports", reports), **known | change)


def test_counts_of_all_tests_are_added_up() -> None:
    added = result()
    assert (added.tests, added.tried, added.outcomes) == (3, 8, {"killed": 6, "stored": 1})
    assert added.told == ["in words"]
    assert added.passed


def test_a_test_that_failed_or_was_skipped_fails_its_experiment_and_so_does_having_none() -> None:
    for outcome in ("failed", "skipped"):
        failed = result(reports=[{"test": "a", "outcome": outcome, "why": "it broke", "counted": []}])
        assert not failed.passed
        assert failed.failures == ["a: it broke"]
    assert not result(reports=[]).passed


def test_results_are_kept_one_by_one_and_the_last_one_counts(tmp_path: Path) -> None:
    file = tmp_path / "kept" / "reliability.json"
    assert load(file) == {}
    for one in (result(id="R10"), result(id="R2"), result(id="R10", seed=8)):
        keep(file, one)
    assert [(one.id, one.seed) for one in load(file).values()] == [("R2", 7), ("R10", 8)]
    assert [path.name for path in file.parent.iterdir()] == ["reliability.json"]


def test_the_table_tells_counts_seeds_and_failures_and_leaves_the_text_around_it_alone() -> None:
    text = f"before\n{report.BEGIN}\nstale\n{report.END}\nafter\n"
    bad = result(id="R2", reports=[{"test": "a", "outcome": "failed", "why": "x", "counted": []}])
    filled = report.filled(text, {"R1": result(), "R2": bad})
    assert filled.startswith("before\n") and filled.endswith("\nafter\n") and "stale" not in filled
    assert "| 8 | **0 failures**; 6 killed; 1 stored | 7 | 61 s |" in filled
    assert "**1 FAILED**" in filled
    assert "not run yet" in filled
    assert report.filled(filled, {"R1": result(), "R2": bad}) == filled
    with pytest.raises(ValueError, match="marks"):
        report.filled("no marks", {})


def test_what_several_tests_tell_alike_is_said_once() -> None:
    reports = [
        {"test": test, "outcome": "passed", "why": "", "counted": [counted(3, words)]}
        for test, words in (("a", "4 tables"), ("b", "4 tables"), ("c", "5 rows"))
    ]
    text = report.filled(f"{report.BEGIN}{report.END}", {"R1": result(reports=reports)})
    assert "**0 failures**; 4 tables; 5 rows |" in text


def test_the_published_table_is_the_one_of_the_published_results() -> None:
    document = (ROOT / "docs/RELIABILITY.md").read_text()
    assert report.filled(document, load(ROOT / "docs/reliability.json")) == document, (
        "run `python -m scoreboard --report`"
    )


def test_counts_are_said_in_one_line() -> None:
    assert as_text(counted(3, "by dice", seed=5, killed=2, lost=0)) == "3 tried: 2 killed: by dice (seed 5)"
    assert as_text("text") == "text"


def test_experiments_are_found_by_their_id_in_any_case() -> None:
    assert by_id("r1") is by_id("R1")
    with pytest.raises(KeyError):
        by_id("R99")


def test_an_experiment_that_cannot_be_run_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_run(*_: object) -> list[dict[str, Any]]:
        raise running.NotRun("no pytest")

    monkeypatch.setattr(running, "_reports", not_run)
    failed = running.run(by_id("R1"), tier="ci", seed=1, hours=1)
    assert not failed.passed and "no pytest" in failed.failures[0]


COUNTING = """
import pytest
from tests.scoreboard import counted

@pytest.fixture
def torn_down():
    yield
    assert not "its teardown"

def test_that_counts(torn_down, record_property):
    record_property("counted", counted(5, killed=5))

def test_that_counts_nothing():
    pass
"""


def test_a_test_whose_teardown_fails_is_one_test_and_its_counts_are_added_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "test_made.py"
    file.write_text(COUNTING)
    options = ("-q", "-p", "tests.scoreboard", "-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={tmp_path}")
    monkeypatch.setattr(running, "_command", lambda *_: [sys.executable, "-m", "pytest", *options, str(file)])
    monkeypatch.setattr(running, "_leave_log", lambda *_: None)
    came_to = running.run(by_id("R1"), tier="ci", seed=1, hours=1)
    assert (came_to.tests, came_to.tried, came_to.outcomes) == (2, 6, {"killed": 5})
    (failure,) = came_to.failures
    assert "test_that_counts: " in failure and "its teardown" in failure


@pytest.mark.parametrize(("code", "reports"), [(2, 3), (3, 3), (4, 3), (5, 3), (-9, 3), (0, 2), (1, 2)])
def test_a_run_that_was_interrupted_or_left_tests_out_is_no_result(code: int, reports: int, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps({"collected": 3, "tests": [{}] * reports}))
    with pytest.raises(running.NotRun):
        running._read(file, code, "")


def test_resuming_leaves_out_what_passed_at_this_commit_and_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Namespace(only=["R1", "R2"], resume=True, tier="nightly")
    monkeypatch.setattr(program, "version", lambda: "abc")
    kept = {"R1": result(id="R1"), "R2": result(id="R2", version="before")}
    assert [one.id for one in program._chosen(options, kept)] == ["R2"]
    monkeypatch.setattr(program, "version", lambda: "abc+")
    with pytest.raises(SystemExit, match="commit first"):
        program._chosen(options, {"R1": result(id="R1", version="abc+")})


def test_the_runner_and_the_tests_mean_the_same_file() -> None:
    assert running.REPORT == scoreboard.REPORT
