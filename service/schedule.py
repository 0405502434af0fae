"""When backups are due: what a schedule may say, and its due times. No clock is read here.

A schedule speaks of a clock on a wall in some time zone; a due time is the first instant at which that clock shows what
was asked for, or later:

* A time that the clock skips (in spring) is due when it has skipped it, once. So a whole day that a zone leaves out
  (Samoa, 2011-12-30) is due at the first instant of the day after; when that day's own run is due at the same instant,
  the two are one.
* A time that the clock shows twice (in autumn) is due at the first of the two.
* A cron expression with a wildcard (`*`) in its minute or hour asks for what the clock shows instead: what is skipped
  is left out, what is shown twice is due twice, and once an hour stays once an hour.

cronsim is asked about times of the clock only: given a time zone, it returns times that are skipped, and loses runs
where a clock is set by half an hour.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from calendar import monthrange
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from itertools import count as numbers
from typing import Annotated, Literal, Self, get_args
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, Field, model_validator

from service.config_types import Settings, Word

Frequency = Literal["daily", "weekly", "monthly", "cron"]
Weekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]

_WEEKDAYS: tuple[Weekday, ...] = get_args(Weekday)
_KEYS: dict[Frequency, tuple[str, ...]] = {
    "daily": ("at",),
    "weekly": ("at", "weekdays"),
    "monthly": ("at", "day"),
    "cron": ("cron",),
}
_SECOND = timedelta(seconds=1)
_YEAR, _LOOKED_AT = timedelta(days=366), 400
_timezones = cache(available_timezones)  # reads every file of them: 20 ms


def _unique(weekdays: list[Weekday]) -> list[Weekday]:
    if len(set(weekdays)) < len(weekdays):
        raise ValueError("names a day more than once")
    return weekdays


def _cron_expression(text: str) -> str:
    if len(text.split()) != 5:
        raise ValueError("must have five fields: minute, hour, day of month, month, day of week")
    try:
        # cronsim looks fifty years ahead; 29 February on a given weekday comes at least every forty.
        never = next(CronSim(text, datetime(2000, 1, 1)), None) is None
    except CronSimError as exc:
        raise ValueError(f"is not a cron expression: {str(exc).lower()}") from exc
    if never:
        raise ValueError("never comes: there is no such day")
    return text


def is_timezone(name: str) -> bool:
    """Tell whether there is a time zone of this name."""
    return name in _timezones()


def _known_timezone(name: str) -> str:
    if not is_timezone(name):
        raise ValueError("is not a known time zone; give a name such as Europe/Berlin")
    return name


class ScheduleSettings(Settings):
    """When a backup is made by itself."""

    frequency: Frequency
    """How often. `daily` needs `at`; `weekly` needs `at` and `weekdays`; `monthly` needs `at` and `day`; `cron` needs
    `cron`."""
    at: Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")] | None = None
    """Time of day, such as "02:30". A time that the clock skips in spring is made up for right after; one that it shows
    twice in autumn is taken once."""
    weekdays: Annotated[list[Weekday], Field(min_length=1), AfterValidator(_unique)] | None = None
    """Days of the week for `weekly`."""
    day: Annotated[int, Field(ge=1, le=31)] | None = None
    """Day of the month for `monthly`. 29 to 31 mean the last day of a month that is shorter."""
    cron: Annotated[Word, AfterValidator(_cron_expression)] | None = None
    """Cron expression of five fields for `cron`, such as "30 2 * * 1-5". With a `*` in its minute or hour it follows
    what the clock shows, twice where it shows it twice; without, it is treated as `at` is."""
    timezone: Annotated[str, AfterValidator(_known_timezone)] = "UTC"
    """IANA time zone of the times above, such as Europe/Berlin."""
    jitter: Annotated[int, Field(ge=0, le=720)] = 0
    """Minutes by which a run may be put off, for many machines that share a network or a storage server. How much it is
    differs between machines and runs, but is fixed for a run, and always less than the time to the next."""
    catch_up: Annotated[int, Field(ge=0, le=168)] = 24
    """A run that was missed is made up for, once, when it was due within this many hours. 0: never."""

    @model_validator(mode="after")
    def _keys_of_the_frequency(self) -> Self:
        own = _KEYS[self.frequency]
        for name in ("at", "weekdays", "day", "cron"):
            given = getattr(self, name) is not None
            if name in own and not given:
                raise ValueError(f"{name} is required for frequency {self.frequency}")
            if given and name not in own:
                raise ValueError(f"{name} does not belong to frequency {self.frequency}, which has {' and '.join(own)}")
        return self


def next_run(schedule: ScheduleSettings, after: datetime) -> datetime:
    """Return the first due time (UTC) after `after`, without jitter. Raises ValueError when `after` is naive."""
    _require_aware(after)
    zone = ZoneInfo(schedule.timezone)
    found: list[datetime] = []
    locals_after = _locals_after(schedule, _clock(after, zone) - _repeated(after, zone))
    while True:
        due = _instants(schedule, next(locals_after), zone)
        found += (instant for instant in due if instant > after)
        if due and due[0] > after:
            return min(found)


def previous_run(schedule: ScheduleSettings, until: datetime) -> datetime:
    """Return the last due time (UTC) that is not after `until`, without jitter; quick however far back it is.

    A run was missed when this is later than the last due time that was dealt with. Raises ValueError when `until` is
    naive.
    """
    _require_aware(until)
    zone = ZoneInfo(schedule.timezone)
    found: list[datetime] = []
    locals_until = _locals_until(schedule, _clock(until, zone) + _repeated(until, zone))
    while True:
        due = _instants(schedule, next(locals_until), zone)
        found += (instant for instant in due if instant <= until)
        if due and due[-1] <= until:
            return max(found)


def delay(schedule: ScheduleSettings, due: datetime, seed: str) -> timedelta:
    """Return how long the run of `due` is put off: whole seconds from 0 to `jitter`, before the next due time.

    The same for the same `due` and `seed`, which tells installations apart. Raises ValueError when `due` is naive.
    """
    _require_aware(due)
    if not schedule.jitter:
        return timedelta(0)
    before_next = (next_run(schedule, due) - due - timedelta.resolution) // _SECOND
    digest = hashlib.sha256(f"{seed}\n{due.astimezone(UTC).isoformat()}".encode()).digest()
    return _SECOND * (int.from_bytes(digest) % (min(schedule.jitter * 60, before_next) + 1))


def longest_pause(schedule: ScheduleSettings, after: datetime) -> timedelta:
    """Return the longest time between two runs that follow each other in about a year from `after`, with jitter.

    Of a schedule that runs many times a day the next 400 runs are looked at. Raises ValueError when `after` is naive.
    """
    before, longest = previous_run(schedule, after), timedelta(0)
    for _ in range(_LOOKED_AT):
        due = next_run(schedule, before)
        longest, before = max(longest, due - before), due
        if due - after > _YEAR:
            break
    return longest + timedelta(minutes=schedule.jitter)


def preview(schedule: ScheduleSettings, after: datetime, count: int, seed: str) -> list[datetime]:
    """Return the next `count` runs (UTC) after `after` with jitter: also one that is already due but put off.

    Raises ValueError when `after` is naive.
    """
    due = previous_run(schedule, after)
    runs: list[datetime] = []
    while len(runs) < count:
        run = due + delay(schedule, due, seed)
        if run > after:
            runs.append(run)
        due = next_run(schedule, due)
    return runs


def _require_aware(moment: datetime) -> None:
    if moment.utcoffset() is None:
        raise ValueError("a time without a time zone was given")


def _clock(instant: datetime, zone: ZoneInfo) -> datetime:
    """Return what the clock shows at `instant`, as a naive time."""
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)


def _repeated(instant: datetime, zone: ZoneInfo) -> timedelta:
    """Return by how much the clock is set back around `instant`; 0 unless it shows this time twice."""
    local = instant.astimezone(zone)
    first, second = local.replace(fold=0).utcoffset(), local.replace(fold=1).utcoffset()
    assert first is not None and second is not None
    return first - second


def _instants(schedule: ScheduleSettings, local: datetime, zone: ZoneInfo) -> list[datetime]:
    """Return when the clock's time `local` is due, in order: once, or as often as it is shown.

    Later `local` never have earlier first (or earlier last) instants, which is what lets the searches end.
    """
    first, second = (local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    if schedule.cron and "*" in " ".join(schedule.cron.split()[:2]):
        return [instant for instant in sorted({first, second}) if _clock(instant, zone) == local]
    if first <= second:
        return [first]
    # Skipped: the two are read with the offsets before and after the transition, and lie on either side of it.
    seconds = (first - second) // _SECOND
    skipped = bisect_left(range(seconds), True, key=lambda s: _clock(second + s * _SECOND, zone) >= local)
    return [second + skipped * _SECOND]


def _locals_after(schedule: ScheduleSettings, start: datetime) -> Iterator[datetime]:
    """Yield the clock's times that the schedule asks for, upwards: all after `start`, and perhaps some before.

    It does not end before the calendar does (OverflowError): what never comes is refused as a schedule.
    """
    if schedule.cron:
        yield from CronSim(schedule.cron, start)
    else:
        yield from _times(schedule, (start.date() + timedelta(days=n) for n in numbers()))


def _locals_until(schedule: ScheduleSettings, start: datetime) -> Iterator[datetime]:
    """Yield the clock's times that the schedule asks for, downwards: all up to `start`, and perhaps some after."""
    if schedule.cron:
        yield from CronSim(schedule.cron, start + _SECOND, reverse=True)
    else:
        yield from _times(schedule, (start.date() - timedelta(days=n) for n in numbers()))


def _times(schedule: ScheduleSettings, days: Iterator[date]) -> Iterator[datetime]:
    assert schedule.at is not None
    at = time.fromisoformat(schedule.at)
    return (datetime.combine(day, at) for day in days if _asked_for(schedule, day))


def _asked_for(schedule: ScheduleSettings, day: date) -> bool:
    if schedule.weekdays:
        return _WEEKDAYS[day.weekday()] in schedule.weekdays
    if schedule.day:
        return day.day == min(schedule.day, monthrange(day.year, day.month)[1])
    return True
