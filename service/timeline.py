"""The last days of backups, drills or self-tests at a glance: what became of each day. Pure.

A job that was due belongs to the day of its due time, however late it began; any other to the day it was asked for. Of
several tries for one due time the last one counts. Days are those of a time zone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from pydantic import ValidationError

from service.schedule import ScheduleSettings, next_run
from service.state import Gap, Stub

DayState = Literal["none", "succeeded", "partial", "failed", "missed", "cancelled", "running"]
"""`partial`: something of the day is well, and something is not. `none`: nothing was due, and nothing was asked for."""

MOST_JOBS = 20
MOST_MISSED = 100
"""Due times of one day that are counted as missed at most."""
_BAD = ("failed", "interrupted", "missed")


@dataclass(frozen=True, slots=True)
class Day:
    """What became of one day."""

    day: date
    state: DayState
    counts: dict[str, int] = field(default_factory=dict)
    """How many jobs ended in which state; `missed` counts due times that brought no job, `running` what has not
    ended."""
    jobs: list[str] = field(default_factory=list)
    """Ids of the day's jobs, the newest first; 20 at most."""


def days(stubs: Iterable[Stub], gaps: Iterable[Gap], *, now: datetime, count: int, timezone: str) -> list[Day]:
    """Return the last `count` days, the oldest first; the last one is that of `now`.

    A gap that ends after `now` is left out: the clock was wrong when it was told.
    """
    zone = ZoneInfo(timezone)
    today = now.astimezone(zone).date()
    dates = [today - timedelta(days=back) for back in reversed(range(count))]
    outcomes: dict[date, Counter[str]] = {each: Counter() for each in dates}
    jobs: dict[date, list[str]] = {each: [] for each in dates}
    served = set[datetime]()
    for stub in _last_tries(stubs):
        served |= {stub.at} if stub.due else set()
        day = stub.at.astimezone(zone).date()
        if day in outcomes:
            outcomes[day][_outcome(stub)] += 1
            jobs[day].append(stub.id)
    known = [(gap, schedule) for gap in gaps if gap.until <= now and (schedule := _schedule(gap)) is not None]
    for day in dates:
        begin, end = _begin(day, zone), _begin(day + timedelta(days=1), zone)
        if missed := _missed(known, served, begin, end):
            outcomes[day]["missed"] = len(missed)
    return [
        Day(day, _state(outcomes[day]), dict(sorted(outcomes[day].items())), jobs[day][::-1][:MOST_JOBS])
        for day in dates
    ]


def _last_tries(stubs: Iterable[Stub]) -> Sequence[Stub]:
    """Leave out what was tried again: of the jobs of one due time only the last stays."""
    found: dict[object, Stub] = {}
    for stub in stubs:
        key = stub.at if stub.due else stub.id
        found.pop(key, None)
        found[key] = stub
    return list(found.values())


def _outcome(stub: Stub) -> str:
    return "running" if stub.state in ("queued", "running", "verifying") else stub.state


def _begin(day: date, zone: ZoneInfo) -> datetime:
    return datetime.combine(day, time(), zone).astimezone(UTC)


def _missed(
    gaps: Iterable[tuple[Gap, ScheduleSettings]], served: Set[datetime], begin: datetime, end: datetime
) -> set[datetime]:
    """Return the due times of one day that brought no job, but no more than are counted."""
    missed = set[datetime]()
    for gap, schedule in gaps:
        for due in _due_times(gap, schedule, begin, end):
            if len(missed) == MOST_MISSED:
                return missed
            if due not in served:
                missed.add(due)
    return missed


def _due_times(gap: Gap, schedule: ScheduleSettings, begin: datetime, end: datetime) -> Iterator[datetime]:
    """Yield the due times of a gap from `begin` to before `end`."""
    due = max(gap.since, begin - timedelta(microseconds=1))
    while due < min(gap.until, end):
        due = next_run(schedule, due)
        if due < end and due <= gap.until:
            yield due


def _schedule(gap: Gap) -> ScheduleSettings | None:
    try:
        return ScheduleSettings.model_validate(dict(gap.schedule))
    except ValidationError:  # of another version
        return None


def _state(outcomes: Counter[str]) -> DayState:
    good, bad = outcomes["succeeded"], any(outcomes[name] for name in _BAD)
    if outcomes["partial"] or (good and bad):
        return "partial"
    if good:
        return "succeeded"
    if outcomes["running"]:
        return "running"
    if outcomes["failed"] or outcomes["interrupted"]:
        return "failed"
    if outcomes["missed"]:
        return "missed"
    return "cancelled" if outcomes["cancelled"] else "none"
