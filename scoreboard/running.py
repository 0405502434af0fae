"""One experiment run: its tests by pytest in a process of their own, their counts read from the file they write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from scoreboard.experiments import Experiment
from scoreboard.results import Result

_PROJECT = Path(__file__).parent.parent
REPORT = "DEVICEON_BACKUP_SCOREBOARD"  # as tests.scoreboard has it
_ALL_PASSED, _SOME_FAILED = 0, 1
"""What pytest ends with when it has run all tests; with anything else it has not."""
LONGEST_SECONDS = 3 * 3600
"""An experiment that takes longer hangs; the soak has its hours besides."""


class NotRun(Exception):
    """The tests could not be started, or ended without a report."""


def run(one: Experiment, *, tier: str, seed: int, hours: float) -> Result:
    """Run all tests of an experiment; a failure ends none of the others. One that cannot be run has failed."""
    began = time.monotonic()
    try:
        reports = _reports(one, tier, seed, hours)
    except (NotRun, subprocess.SubprocessError) as problem:
        reports = [{"test": one.id, "outcome": "error", "why": f"it could not be run: {problem}", "counted": []}]
    return Result.of_reports(
        reports,
        id=one.id,
        tier=tier,
        seed=seed,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%MZ}",
        version=version(),
        seconds=round(time.monotonic() - began, 1),
    )


def _reports(one: Experiment, tier: str, seed: int, hours: float) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="scoreboard-") as directory:
        report = Path(directory) / "report.json"
        sizes = dict(one.nightly) if tier == "nightly" else {}
        if one.by_name_only:
            sizes["DEVICEON_BACKUP_SOAK_SECONDS"] = str(round(hours * 3600))
        environment = os.environ | sizes | {"DEVICEON_BACKUP_SEED": str(seed), REPORT: str(report)}
        done = subprocess.run(
            [*_command(one, tier, seed), f"--basetemp={directory}/tests"],
            cwd=_PROJECT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=LONGEST_SECONDS + (hours * 3600 if one.by_name_only else 0),
        )
        _leave_log(one, done.stdout)
        return _read(report, done.returncode, done.stdout)


def _read(report: Path, code: int, said: str) -> list[dict[str, Any]]:
    """Return the reports of all tests. Raises NotRun when not all were run to their end, as after Ctrl-C."""
    if code not in (_ALL_PASSED, _SOME_FAILED) or not report.exists():
        raise NotRun(f"pytest ended with {code}: {said[-2000:]}")
    told = json.loads(report.read_text())
    reports: list[dict[str, Any]] = told["tests"]
    if len(reports) != told["collected"]:
        raise NotRun(f"only {len(reports)} of {told['collected']} tests were run: {said[-2000:]}")
    return reports


def _command(one: Experiment, tier: str, seed: int) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--hypothesis-seed={seed}"]
    if tier == "nightly" or one.by_name_only:
        command += ["-o", "timeout=0"]
    if one.only:
        command += ["-k", one.only]
    return [*command, *(f"tests/{node}" for node in one.tests)]


def _leave_log(one: Experiment, said: str) -> None:
    """Leave what pytest said: a failure's whole story is there."""
    logs = _PROJECT / "build" / "scoreboard"
    logs.mkdir(parents=True, exist_ok=True)
    (logs / f"{one.id}.log").write_text(said)


@cache
def version() -> str:
    """Return the commit that is tried, with a + when files differ from it."""
    try:
        commit = _git("rev-parse", "--short=9", "HEAD")
        changed = _git("status", "--porcelain", "--", ".", ":!docs/reliability.json", ":!docs/RELIABILITY.md")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=_PROJECT, capture_output=True, text=True, check=True).stdout.strip()
