"""How long a restore will take: a range from what was done before, or nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from service.job import Job, JobKind
from service.restore_estimate import estimate


def job(kind: JobKind, **result: Any) -> Job:
    return Job(
        id="0", kind=kind, origin="socket", state="succeeded", created=datetime.now(UTC), params={}, result=result
    )


def test_nothing_done_before_gives_no_estimate() -> None:
    assert estimate(10**9, [], []) is None
    assert estimate(10**9, [job("restore")], [job("backup", raw_bytes=0, seconds=3.0)]) is None


def test_restores_count_more_than_backups_and_the_range_holds_what_was_seen() -> None:
    restores = [job("restore", raw_bytes=10**9, seconds=52.0), job("restore", raw_bytes=10**9, seconds=102.0)]
    found = estimate(2 * 10**9, restores, [job("backup", raw_bytes=10**9, seconds=4.0)])
    assert found is not None
    assert found.low < 100 and found.high > 200
    assert found.basis == "the last 2 restores here"


def test_backups_alone_give_a_wide_range() -> None:
    found = estimate(10**9, [], [job("backup", raw_bytes=10**9, seconds=12.0)])
    assert found is not None
    assert found.low <= 10 and found.high >= 50
    assert "no restore yet" in found.basis


def test_only_the_last_jobs_count() -> None:
    slow = [job("restore", raw_bytes=10**6, seconds=1000.0)] * 10
    quick = [job("restore", raw_bytes=10**9, seconds=12.0)] * 5
    found = estimate(10**9, [*quick, *slow], [])
    assert found is not None and found.high < 30
