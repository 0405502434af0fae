"""How long archives are locked: never shorter than retention keeps one, and told with the reason."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.errors import ConfigError
from service.object_lock import Horizon, lock_horizon, lock_told, with_lock
from service.retention import Candidate, RetentionSettings, decide
from service.schedule import ScheduleSettings, next_run

DAILY = {"frequency": "daily", "at": "02:30", "timezone": "Europe/Berlin"}
WEEKDAYS = {"frequency": "cron", "cron": "0 8,18 * * 1-5", "timezone": "America/New_York"}
SUNDAYS = {"frequency": "weekly", "at": "02:30", "weekdays": ["sunday"]}
TWICE_A_WEEK = {"frequency": "weekly", "at": "23:59", "weekdays": ["monday", "thursday"]}
MONTHLY = {"frequency": "monthly", "at": "02:30", "day": 31}
BUSY = {"frequency": "cron", "cron": "*/15 * * * 1-5"}
COMPLIANCE = {"object_lock_mode": "COMPLIANCE"}


def policy(**rules: int) -> RetentionSettings:
    return RetentionSettings(**rules)


def schedule(given: dict[str, Any] | None) -> ScheduleSettings | None:
    return None if given is None else ScheduleSettings(**given)


@pytest.mark.parametrize(
    ("rules", "when", "days"),
    [
        ({"keep_within": 30}, None, 30),
        ({"keep_daily": 7}, None, 7),
        ({"keep_weekly": 4}, None, 28),
        ({"keep_monthly": 12}, None, 372),
        ({"keep_yearly": 3}, None, 1098),
        ({"keep_last": 10}, None, None),
        ({"keep_last": 10}, DAILY, 10),
        ({"keep_last": 10}, SUNDAYS, 70),
        ({"keep_last": 2}, MONTHLY, 62),
        ({"keep_last": 10}, WEEKDAYS, 7),
        ({"keep_daily": 7}, SUNDAYS, 49),
        ({"keep_daily": 5}, WEEKDAYS, 7),
        ({"keep_daily": 7, "keep_last": 100}, None, 7),
        ({"keep_daily": 7, "keep_weekly": 5, "keep_within": 10}, DAILY, 35),
        ({"keep_yearly": 1000}, DAILY, 36_500),
    ],
)
def test_the_longest_rule_counts(rules: dict[str, int], when: dict[str, Any] | None, days: int | None) -> None:
    horizon = lock_horizon(policy(**rules), schedule(when))
    assert horizon.days == days
    assert len(horizon.reasons) == len(rules)
    assert all(any(reason.startswith(f"{rule}: ") for reason in horizon.reasons) for rule in rules)


def test_without_a_policy_nothing_tells() -> None:
    horizon = lock_horizon(None, schedule(DAILY))
    assert horizon == Horizon(None, ["there is no retention policy: every archive is kept for ever"])


@pytest.mark.parametrize("when", [DAILY, WEEKDAYS, SUNDAYS, TWICE_A_WEEK, MONTHLY, BUSY])
@pytest.mark.parametrize(
    "rules",
    [
        {"keep_last": 3},
        {"keep_last": 40},
        {"keep_within": 9},
        {"keep_daily": 3},
        {"keep_weekly": 2},
        {"keep_monthly": 2},
        {"keep_daily": 2, "keep_weekly": 3, "keep_last": 4},
    ],
)
def test_no_archive_is_kept_longer_than_it_is_locked(rules: dict[str, int], when: dict[str, Any]) -> None:
    """Retention as it is carried out: after each backup, up to 300 of them."""
    kept_by, runs = policy(**rules), schedule(when)
    assert runs is not None
    horizon = lock_horizon(kept_by, runs)
    assert horizon.days is not None
    there: list[Candidate] = []
    moment, longest = datetime(2025, 2, 7, tzinfo=UTC), timedelta(0)
    end = moment + timedelta(days=1100)
    for seq in range(1, 300):
        moment = next_run(runs, moment)
        if moment > end:
            break
        just_before = moment - timedelta(seconds=1)
        decided = decide(there, kept_by, now=just_before, timezone=runs.timezone)
        keep = {verdict.name for verdict in decided if verdict.keep}
        there = [archive for archive in there if archive.name in keep]
        for archive in there[:-1]:  # the newest is kept in any case
            assert archive.created is not None
            longest = max(longest, just_before - archive.created)
        there.append(Candidate(name=f"{seq:04}", seq=seq, created=moment, verified=True))
    assert longest <= timedelta(days=horizon.days, hours=1)


def test_the_time_is_filled_in_only_where_a_lock_is_wished_and_no_time_given() -> None:
    kept_by, runs = policy(keep_last=3), schedule(DAILY)
    assert with_lock({"key": "x"}, kept_by, runs) == {"key": "x"}
    assert with_lock({**COMPLIANCE, "object_lock_days": 1}, kept_by, runs)["object_lock_days"] == 1
    given = dict(COMPLIANCE)
    assert with_lock(given, kept_by, runs) == {**COMPLIANCE, "object_lock_days": 3}
    assert given == COMPLIANCE


@pytest.mark.parametrize(("kept_by", "why"), [(None, "no retention policy"), ({"keep_last": 3}, "no schedule")])
def test_a_lock_without_a_time_is_refused(kept_by: dict[str, int] | None, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        with_lock(COMPLIANCE, None if kept_by is None else policy(**kept_by), None)
    assert "object_lock_days" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "is locked (COMPLIANCE) for 7 days, as long as retention may keep it (keep_daily: 7 days, 7 days)"),
        ({"object_lock_days": 3}, "for 3 days, but retention may keep one for 7 days"),
        ({"object_lock_days": 9}, "for 9 days; retention keeps one for 7 days at most"),
    ],
)
def test_how_long_and_why_is_told(options: dict[str, Any], told: str) -> None:
    finding = lock_told(COMPLIANCE | options, policy(keep_daily=7), schedule(DAILY))
    assert finding is not None and told in finding.message
    assert bool(finding.remedy) == ("but" in told)
    assert lock_told({}, policy(keep_daily=7), None) is None
