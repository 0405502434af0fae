"""What tests counted: printed below the results, and written to a file for `make scoreboard`.

A test that tries many faults says how many with `record_property("counted", counted(...))`; other counts may be text.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import is_hypothesis_test

REPORT = "DEVICEON_BACKUP_SCOREBOARD"
"""The variable that names the file to write: how many tests there were to run, and what each counted and came to."""


def counted(
    tried: int, told: str = "", outcomes: Mapping[str, int] | None = None, *, seed: int | None = None, **more: int
) -> dict[str, Any]:
    """Return what `record_property("counted", ...)` takes: how many were tried, and what came of how many.

    `told` says it in words where numbers alone do not; `seed` makes the same ones again (`make scoreboard SEED=`).
    """
    return {
        "tried": tried,
        "told": told,
        "seed": seed,
        "outcomes": {name: n for name, n in {**(outcomes or {}), **more}.items() if n},
    }


def as_text(value: Any) -> str:
    """Say in one line what a test counted."""
    if not isinstance(value, dict):
        return str(value)
    outcomes = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in value["outcomes"].items())
    parts = [f"{value['tried']} tried", outcomes, value["told"]]
    seed = "" if value["seed"] is None else f" (seed {value['seed']})"
    return ": ".join(part for part in parts if part) + seed


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Count the examples that Hypothesis made up for a test that counts nothing itself."""
    handle = getattr(getattr(item, "obj", None), "hypothesis", None)
    if handle is None or not is_hypothesis_test(item.obj):  # type: ignore[attr-defined]
        return (yield)
    test, made = handle.inner_test, 0

    @functools.wraps(test)
    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal made
        made += 1
        return test(*args, **kwargs)

    handle.inner_test = counting
    try:
        result = yield
    finally:
        handle.inner_test = test
    if not any(name == "counted" for name, _ in item.user_properties):
        item.user_properties.append(("counted", counted(made)))
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the counts below the results, also those of parallel workers."""
    found = [
        (report.nodeid, value)
        for report in _reports(terminalreporter)
        for name, value in report.user_properties
        if name == "counted" and report.when == "call"
    ]
    if found:
        terminalreporter.section("counted faults")
        for line in sorted(f"{node.rpartition('::')[2]}: {as_text(value)}" for node, value in found):
            terminalreporter.write_line(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the file that is asked for."""
    if file := os.environ.get(REPORT):
        by_test: dict[str, list[pytest.TestReport]] = {}
        for report in _reports(session.config.pluginmanager.get_plugin("terminalreporter")):
            by_test.setdefault(report.nodeid, []).append(report)
        told = {"collected": session.testscollected, "tests": [_described(*reports) for reports in by_test.values()]}
        Path(file).write_text(json.dumps(told))


def _reports(terminalreporter: Any) -> list[pytest.TestReport]:
    """Return the reports of all calls, and of what failed before and after them."""
    return [
        report
        for outcome in ("passed", "failed", "error", "skipped")
        for report in terminalreporter.getreports(outcome)
        if hasattr(report, "user_properties")
    ]


def _described(*reports: pytest.TestReport) -> dict[str, Any]:
    """Describe one test by its reports: one, or two when its teardown failed; each has what the test counted."""
    bad = [report for report in reports if not report.passed]
    return {
        "test": reports[0].nodeid,
        "outcome": bad[0].outcome if bad else "passed",
        "why": "; ".join(_why(report) for report in bad)[:2000],
        "counted": [value for name, value in reports[0].user_properties if name == "counted"],
    }


def _why(report: pytest.TestReport) -> str:
    return str(getattr(getattr(report.longrepr, "reprcrash", None), "message", report.longrepr))
