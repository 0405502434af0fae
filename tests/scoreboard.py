"""Print what tests counted: a test that tries many faults says how many with `record_property("counted", text)`."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the counts below the results, also those of parallel workers."""
    lines = [
        f"{report.nodeid.rpartition('::')[2]}: {value}"
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        for name, value in report.user_properties
        if name == "counted" and report.when == "call"
    ]
    if lines:
        terminalreporter.section("counted faults")
        for line in sorted(lines):
            terminalreporter.write_line(line)
