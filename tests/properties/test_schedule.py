"""In every time zone, whatever its clock does: each run that was asked for comes once, in order, when it should."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.schedule import ScheduleSettings, delay, next_run, preview, previous_run
from tests.scoreboard import counted

# Nothing here is timed: other work on the machine must not fail a test.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ZONES = sorted(available_timezones())
WEEKDAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
TICK = timedelta.resolution
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
BEGIN, END = datetime(2015, 1, 1, tzinfo=UTC), datetime(2031, 1, 1, tzinfo=UTC)

Transition = tuple[datetime, timedelta, timedelta]
"""The first instant of the new offset, the old offset, the new one."""


def offset(instant: datetime, zone: ZoneInfo) -> timedelta:
    found = instant.astimezone(zone).utcoffset()
    assert found is not None
    return found


def clock(instant: datetime, zone: ZoneInfo) -> datetime:
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)


@cache
def transitions(name: str) -> list[Transition]:
    """Return all from 2015 to 2030: where two looks, a week apart, differ, the minute is searched for."""
    zone, found = ZoneInfo(name), []
    looks = [BEGIN + n * 7 * DAY for n in range((END - BEGIN) // (7 * DAY) + 1)]
    offsets = [offset(look, zone) for look in looks]
    for low, old, new in zip(looks, offsets, offsets[1:], strict=False):
        if old != new:
            early, late = low, low + 7 * DAY
            while late - early > MINUTE:
                middle = early + (late - early) // MINUTE // 2 * MINUTE
                early, late = (middle, late) if offset(middle, zone) == old else (early, middle)
            found.append((late, old, new))
    return found


def runs_from(plan: ScheduleSettings, begin: datetime, end: datetime) -> list[datetime]:
    """Walk from run to run, from the first after `begin` to the last that is not after `end`."""
    found: list[datetime] = []
    while (due := next_run(plan, found[-1] if found else begin)) <= end:
        found.append(due)
    return found


def runs_back_from(plan: ScheduleSettings, end: datetime, begin: datetime) -> list[datetime]:
    """Walk the same runs backwards."""
    found: list[datetime] = []
    while (due := previous_run(plan, found[-1] - TICK if found else end)) > begin:
        found.append(due)
    return found[::-1]


def check_order(plan: ScheduleSettings, runs: list[datetime]) -> None:
    assert all(one < other for one, other in pairwise(runs))
    for one, other in pairwise(runs):
        assert next_run(plan, one) == next_run(plan, other - TICK) == other
        assert previous_run(plan, one) == previous_run(plan, other - TICK) == one
    assert all(run.tzinfo is UTC for run in runs)


@cache
def distinct_transitions() -> dict[Transition, str]:
    """Return all of all zones, each with one of its zones: nothing else of a zone makes a difference nearby."""
    found: dict[Transition, str] = {}
    for name in ZONES:
        for transition in transitions(name):
            found.setdefault(transition, name)
    return found


def test_every_transition_of_every_zone_leaves_one_daily_run_a_day(
    record_property: Callable[[str, object], None],
) -> None:
    assert len(distinct_transitions()) > 400
    for (instant, old, new), name in distinct_transitions().items():
        now = instant.replace(tzinfo=None)
        low, high = sorted((now + old, now + new))
        for local in (low - MINUTE, low, low + (high - low) // 2, high - MINUTE, high):
            plan = ScheduleSettings(frequency="daily", at=f"{local:%H:%M}", timezone=name)
            days = [local + n * DAY for n in range(-2, 3)]
            # The old offset holds before the instant, the new one from it on; what neither reaches is due at it.
            moments = [day - old if day - old < now else max(day - new, now) for day in days]
            expected = [moment.replace(tzinfo=UTC) for moment in moments]
            runs = runs_from(plan, expected[0] - TICK, expected[-1])
            assert runs == expected, (name, plan.at, instant)
            check_order(plan, runs)
    record_property(
        "counted",
        counted(
            5 * len(distinct_transitions()),
            f"{len(distinct_transitions())} distinct transitions of {len(ZONES)} time zones",
        ),
    )


@pytest.mark.parametrize(
    ("expression", "minutes", "hours"),
    [
        ("*/15 * * * *", {0, 15, 30, 45}, set(range(24))),
        ("17 * * * *", {17}, set(range(24))),
        ("*/7 0-3,21-23 * * *", set(range(0, 60, 7)), {0, 1, 2, 3, 21, 22, 23}),
    ],
)
def test_a_wildcard_follows_the_clock_through_every_kind_of_transition(
    expression: str, minutes: set[int], hours: set[int]
) -> None:
    kinds = {
        (instant.time(), old, new): (instant, name) for (instant, old, new), name in distinct_transitions().items()
    }
    assert len(kinds) > 60
    for instant, name in kinds.values():
        plan, zone = ScheduleSettings(frequency="cron", cron=expression, timezone=name), ZoneInfo(name)
        begin, end = instant - 3 * HOUR, instant + 4 * HOUR
        looks = [begin + n * MINUTE for n in range(1, (end - begin) // MINUTE + 1)]
        expected = [look for look in looks if (shown := clock(look, zone)).minute in minutes and shown.hour in hours]
        assert runs_from(plan, begin, end) == expected
        assert runs_back_from(plan, end, begin) == expected


# ---- all schedules, watched ------------------------------------------------------------------------------------------

zones = st.sampled_from(ZONES) | st.deferred(lambda: st.sampled_from(sorted(set(distinct_transitions().values()))))
"""All, and more often those whose clocks are set."""
times = st.times().map(lambda moment: f"{moment:%H:%M}")
some_weekdays = st.lists(st.sampled_from(WEEKDAYS), min_size=1, unique=True)


@st.composite
def cron_fields(draw: st.DrawFn, least: int, most: int) -> tuple[str, set[int]]:
    """Draw a field of a cron expression and what it means."""
    low, high = sorted((draw(st.integers(least, most)), draw(st.integers(least, most))))
    step = draw(st.integers(1, 7))
    return draw(
        st.sampled_from(
            [
                ("*", set(range(least, most + 1))),
                (f"*/{step}", set(range(least, most + 1, step))),
                (f"{low}", {low}),
                (f"{low},{high}", {low, high}),
                (f"{low}-{high}", set(range(low, high + 1))),
                (f"{low}-{high}/{step}" if high > low else f"{low}", set(range(low, high + 1, step))),
            ]
        )
    )


Asked = Callable[[datetime], bool]
"""Whether a schedule asks for a time of the clock."""


@st.composite
def plans(draw: st.DrawFn, zone: str) -> tuple[ScheduleSettings, Asked, bool]:
    """Draw a schedule, what it asks for, and whether that is what the clock shows (or its first showing)."""
    frequency = draw(st.sampled_from(["daily", "weekly", "monthly", "cron", "cron"]))
    keys: dict[str, Any] = {"frequency": frequency, "timezone": zone}
    if frequency == "cron":
        (minute, minutes), (hour, hours) = draw(cron_fields(0, 59)), draw(cron_fields(0, 23))
        weekdays = draw(st.just(set(range(1, 8))) | st.sets(st.integers(1, 7), min_size=1))
        plan = ScheduleSettings(**keys, cron=f"{minute} {hour} * * {','.join(map(str, weekdays))}")
        return (
            plan,
            lambda local: local.minute in minutes and local.hour in hours and local.isoweekday() in weekdays,
            "*" in minute + hour,
        )
    at = draw(times)
    if frequency == "weekly":
        keys["weekdays"] = draw(some_weekdays)
    if frequency == "monthly":
        keys["day"] = draw(st.integers(1, 31))

    def asked(local: datetime) -> bool:
        last = (local + DAY).day == 1
        return f"{local:%H:%M}" == at and (
            frequency == "daily"
            or (frequency == "weekly" and WEEKDAYS[local.weekday()] in keys["weekdays"])
            or (frequency == "monthly" and (local.day == keys["day"] or (last and local.day < keys["day"])))
        )

    return ScheduleSettings(**keys, at=at), asked, False


def watched(asked: Asked, zone: ZoneInfo, begin: datetime, end: datetime, *, as_shown: bool) -> Iterator[datetime]:
    """Watch the clock minute by minute, and yield when something is due: the meaning of a schedule, spelled out."""
    farthest = clock(begin, zone)
    for n in range(1, (end - begin) // MINUTE + 1):
        shown = clock(begin + n * MINUTE, zone)
        new = [farthest + m * MINUTE for m in range(1, (shown - farthest) // MINUTE + 1)]
        if asked(shown) if as_shown else any(asked(local) for local in new):
            yield begin + n * MINUTE
        farthest = max(farthest, shown)


@st.composite
def moments(draw: st.DrawFn, zone: str) -> datetime:
    """Draw a minute, more often than not close to a transition."""
    near = [instant for instant, _, _ in transitions(zone)]
    far = BEGIN + draw(st.integers(0, (END - BEGIN) // MINUTE)) * MINUTE
    anchor: datetime = draw(st.sampled_from([far, *near]))
    return anchor + draw(st.integers(-180, 180)) * MINUTE


@settings(UNHURRIED, max_examples=200)
@given(data=st.data(), zone=zones)
def test_runs_are_those_that_somebody_who_watches_the_clock_would_start(data: st.DataObject, zone: str) -> None:
    plan, asked, as_shown = data.draw(plans(zone))
    middle = data.draw(moments(zone))
    begin, end = middle - 30 * HOUR, middle + 30 * HOUR
    # The hours before `begin` tell how far the clock had come.
    watching = watched(asked, ZoneInfo(zone), begin - 4 * HOUR, end, as_shown=as_shown)
    expected = [run for run in watching if run > begin]
    if len(expected) > 200:
        begin, end = middle - 3 * HOUR, middle + 3 * HOUR
        expected = [run for run in expected if begin < run <= end]
    assert runs_from(plan, begin, end) == expected
    assert runs_back_from(plan, end, begin) == expected


@settings(UNHURRIED, max_examples=300)
@given(data=st.data(), zone=zones, moment=st.datetimes(datetime(1901, 1, 1), datetime(2120, 1, 1)))
def test_runs_are_in_one_order_from_both_sides_in_every_century(
    data: st.DataObject, zone: str, moment: datetime
) -> None:
    plan, _, _ = data.draw(plans(zone))
    after = moment.replace(tzinfo=UTC)
    runs = [previous_run(plan, after), next_run(plan, after)]
    assert runs[0] <= after < runs[1]
    assert next_run(plan, previous_run(plan, runs[0] - TICK)) == runs[0]
    check_order(plan, [*runs, next_run(plan, runs[1])])


@settings(UNHURRIED, max_examples=100)
@given(data=st.data(), zone=zones, at=times, day=st.integers(1, 28), weekdays=some_weekdays)
def test_a_fixed_cron_expression_is_the_schedule_it_spells(
    data: st.DataObject, zone: str, at: str, day: int, weekdays: list[str]
) -> None:
    hour, minute = at.split(":")
    names = ",".join(weekday[:3] for weekday in weekdays)
    spelled: list[tuple[dict[str, Any], str]] = [
        ({"frequency": "daily"}, "* * *"),
        ({"frequency": "weekly", "weekdays": weekdays}, f"* * {names}"),
        ({"frequency": "monthly", "day": day}, f"{day} * *"),
        ({"frequency": "monthly", "day": 31}, "L * *"),
    ]
    after = data.draw(moments(zone))
    for keys, days in spelled:
        plan = ScheduleSettings(**keys, at=at, timezone=zone)
        cron = ScheduleSettings(frequency="cron", cron=f"{int(minute)} {int(hour)} {days}", timezone=zone)
        assert next_run(plan, after) == next_run(cron, after)
        assert previous_run(plan, after) == previous_run(cron, after)


@settings(UNHURRIED, max_examples=100)
@given(data=st.data(), zone=zones, jitter=st.integers(0, 720), seed=st.text(max_size=20))
def test_jitter_never_makes_a_run_pass_the_next(data: st.DataObject, zone: str, jitter: int, seed: str) -> None:
    plan = data.draw(plans(zone))[0].model_copy(update={"jitter": jitter})
    after = data.draw(moments(zone))
    shown = preview(plan, after, 5, seed)
    assert all(one < other for one, other in pairwise([after, *shown]))
    due = previous_run(plan, after)
    all_runs = []
    for _ in range(7):
        put_off = delay(plan, due, seed)
        assert timedelta(0) <= put_off <= jitter * MINUTE
        assert due + put_off < next_run(plan, due)
        all_runs.append(due + put_off)
        due = next_run(plan, due)
    assert shown == [run for run in all_runs if run > after][:5]


@settings(UNHURRIED, max_examples=100)
@given(day=st.dates(date(1970, 1, 1), date(2100, 1, 1)), asked=st.integers(1, 31))
def test_a_monthly_schedule_runs_once_in_every_month(day: date, asked: int) -> None:
    plan = ScheduleSettings(frequency="monthly", at="12:00", day=asked)
    run = next_run(plan, datetime.combine(day.replace(day=1), time(), tzinfo=UTC) - TICK)
    assert (run.year, run.month) == (day.year, day.month)
    assert run.day == asked or (run.day < asked and (run + DAY).day == 1)
    following = next_run(plan, run)
    assert (following.year * 12 + following.month) - (run.year * 12 + run.month) == 1


@settings(UNHURRIED, max_examples=500)
@given(
    st.lists(st.text("0123456789*,-/#LW", min_size=1, max_size=6), min_size=5, max_size=5).map(" ".join)
    | st.text(max_size=30)
    | st.lists(
        st.sampled_from(["*", "0", "59", "*/7", "1-5", "L", "LW", "29", "30", "31", "2", "MON#5", "5L", "7", "FEB"]),
        min_size=5,
        max_size=5,
    ).map(" ".join)
)
def test_a_cron_expression_is_refused_or_has_runs(text: str) -> None:
    try:
        plan = ScheduleSettings(frequency="cron", cron=text, timezone="Europe/Berlin")
    except ValidationError:
        return
    due = next_run(plan, BEGIN)
    assert previous_run(plan, due) == due


@pytest.mark.parametrize("zone", ["Pacific/Apia", "Pacific/Kwajalein", "Pacific/Kiritimati", "Pacific/Fakaofo"])
def test_a_day_that_a_zone_left_out_is_made_up_for_at_the_first_instant_after_it(zone: str) -> None:
    found = ZoneInfo(zone)
    days = [date(1990, 1, 1) + n * DAY for n in range(365 * 23)]
    shown = {clock(datetime.combine(day, time(hour), tzinfo=UTC), found).date() for day in days for hour in (0, 12)}
    (missing,) = [day for day in days[2:-2] if day not in shown]
    plan = ScheduleSettings(frequency="daily", at="10:00", timezone=zone)
    runs = runs_from(
        plan,
        datetime.combine(missing - 2 * DAY, time(), tzinfo=found).astimezone(UTC),
        datetime.combine(missing + 2 * DAY, time(), tzinfo=found).astimezone(UTC),
    )
    assert [f"{clock(run, found) - datetime.combine(missing, time())}" for run in runs] == [
        "-2 days, 10:00:00",
        "-1 day, 10:00:00",
        "1 day, 0:00:00",
        "1 day, 10:00:00",
    ]
