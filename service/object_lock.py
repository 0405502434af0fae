"""How long archives are locked in a target that has Object Lock: for as long as retention may keep one. Pure.

A lock is set once, when an archive is written, and the rule that will keep it longest is not known then: today's
archive may become the one of its year. So each is locked for as long as the longest rule could keep any. What retention
would remove sooner stays until its lock ends, and is told as kept by the target. Whoever wants less gives
`object_lock_days`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

from service.errors import ConfigError
from service.finding import Finding
from service.retention import RetentionSettings
from service.schedule import ScheduleSettings, next_run, previous_run

MODE, DAYS = "object_lock_mode", "object_lock_days"
MOST_DAYS = 36_500
_DAY, _HOUR = timedelta(days=1), timedelta(hours=1)
_PERIODS = (
    ("keep_daily", "%Y-%m-%d", 1, "day"),
    ("keep_weekly", "%G-W%V", 7, "week"),
    ("keep_monthly", "%Y-%m", 31, "month"),
    ("keep_yearly", "%Y", 366, "year"),
)
_FROM = datetime(2024, 1, 1, tzinfo=UTC)
_LOOKED_AT_DAYS = 400
_LOOKED_AT_RUNS = 1000


@dataclass(frozen=True, slots=True)
class Horizon:
    """For how many days a policy may keep an archive; None when nothing tells. One reason for each rule."""

    days: int | None
    reasons: list[str]


def lock_horizon(policy: RetentionSettings | None, schedule: ScheduleSettings | None) -> Horizon:
    """Return how long the longest rule may keep an archive that is made now, when backups run as they should.

    Rules that count archives, days or months count only those with a backup, so the schedule says how long that takes.
    """
    if policy is None:
        return Horizon(None, ["there is no retention policy: every archive is kept for ever"])
    rhythm = None if schedule is None else _Rhythm(schedule)
    found: list[tuple[int, str]] = []
    unknown: list[str] = []
    if policy.keep_within is not None:
        found.append((policy.keep_within, f"keep_within: {_days(policy.keep_within)}"))
    for rule, form, period, called in _PERIODS:
        if (count := getattr(policy, rule)) is not None:
            days = count * period if rhythm is None else max(count * period, rhythm.days_for(count, form))
            found.append((days, f"{rule}: {count} {called}{'s' * (count > 1)}, {_days(days)}"))
    if policy.keep_last is not None and rhythm is not None:
        days = rhythm.days_for(policy.keep_last)
        found.append((days, f"keep_last: {policy.keep_last} runs of the schedule, {_days(days)}"))
    elif policy.keep_last is not None:
        unknown.append(f"keep_last: {policy.keep_last} archives, and no schedule tells how many days that is")
    longest = min(max((days for days, _ in found), default=0), MOST_DAYS)
    return Horizon(longest or None, [told for _, told in sorted(found, reverse=True)] + unknown)


class _Rhythm:
    """The runs of a schedule in 400 days (1,000 runs at most), by the clock on the wall."""

    def __init__(self, schedule: ScheduleSettings) -> None:
        zone = ZoneInfo(schedule.timezone)
        moment, self._runs = next_run(schedule, _FROM), list[datetime]()
        while moment < _FROM + _LOOKED_AT_DAYS * _DAY and len(self._runs) < _LOOKED_AT_RUNS:
            self._runs.append(_clock(moment, zone))
            moment = next_run(schedule, moment)
        self._cut_off = len(self._runs) == _LOOKED_AT_RUNS
        days = (_FROM + number * _DAY for number in range(_LOOKED_AT_DAYS))
        around = ((previous_run(schedule, day), next_run(schedule, day)) for day in days)
        gaps = [_clock(later, zone) - _clock(sooner, zone) for sooner, later in around]
        self._longest_gap = max(*gaps, *(later - sooner for sooner, later in pairwise(self._runs)))

    def days_for(self, count: int, form: str = "") -> int:
        """Return in how many days there are `count` more runs, or runs in as many more periods (by `form`)."""
        runs = list({run.strftime(form): run for run in reversed(self._runs)}.values())[::-1] if form else self._runs
        if count >= len(runs):
            return _whole_days(count * self._longest_gap)
        longest = max(later - sooner for sooner, later in zip(runs, runs[count:], strict=False))
        return _whole_days(longest + self._longest_gap if self._cut_off else longest)


def with_lock(
    options: Mapping[str, Any], policy: RetentionSettings | None, schedule: ScheduleSettings | None
) -> dict[str, Any]:
    """Return a target's options for writing archives: with the days of the lock when only its mode is given.

    Raises ConfigError when nothing tells how long that is.
    """
    if MODE not in options or options.get(DAYS) is not None:
        return dict(options)
    horizon = lock_horizon(policy, schedule)
    if horizon.days is None:
        raise ConfigError(
            f"{MODE} is set, and nothing says for how long: {'; '.join(horizon.reasons)}",
            hint=f"Give a retention policy (with a schedule, if it has keep_last alone), or storage_options: {DAYS}.",
        )
    return dict(options) | {DAYS: horizon.days}


def lock_told(
    options: Mapping[str, Any], policy: RetentionSettings | None, schedule: ScheduleSettings | None
) -> Finding | None:
    """Tell how long archives will be locked and why; None without a lock. Raises ConfigError as `with_lock`."""
    if MODE not in options:
        return None
    days, horizon = with_lock(options, policy, schedule)[DAYS], lock_horizon(policy, schedule)
    told = f"each archive is locked ({options[MODE]}) for {_days(days)}"
    reasons = "; ".join(horizon.reasons)
    if options.get(DAYS) is None:
        stay = "One that retention would remove sooner stays until its lock ends."
        return Finding("object lock", None, f"{told}, as long as retention may keep it ({reasons}). {stay}")
    if horizon.days is None:
        return Finding("object lock", None, f"{told}; {reasons}")
    if days < horizon.days:
        return Finding(
            "object lock",
            None,
            f"{told}, but retention may keep one for {_days(horizon.days)} ({reasons}): then it is not locked any more",
            f"Leave {DAYS} out to lock archives for as long as they may be kept.",
        )
    return Finding("object lock", None, f"{told}; retention keeps one for {_days(horizon.days)} at most ({reasons})")


def _whole_days(time: timedelta) -> int:
    """Return the days of a time, which may be an hour longer because a clock was set."""
    return max(1, math.ceil((time - _HOUR) / _DAY))


def _days(count: float) -> str:
    return "1 day" if count == 1 else f"{count:g} days"


def _clock(moment: datetime, zone: ZoneInfo) -> datetime:
    """Return what a clock on the wall shows: a day of 25 hours is a day."""
    return moment.astimezone(zone).replace(tzinfo=None)
