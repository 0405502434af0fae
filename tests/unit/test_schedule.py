"""What a schedule may say, and its due times where clocks are known to be odd, worked out by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest
from pydantic import ValidationError

from service.schedule import ScheduleSettings, delay, longest_pause, next_run, preview, previous_run


def schedule(**keys: Any) -> ScheduleSettings:
    return ScheduleSettings.model_validate(keys)


def daily(at: str, zone: str, **keys: Any) -> ScheduleSettings:
    return schedule(frequency="daily", at=at, timezone=zone, **keys)


def cron(expression: str, zone: str = "UTC", **keys: Any) -> ScheduleSettings:
    return schedule(frequency="cron", cron=expression, timezone=zone, **keys)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def runs(plan: ScheduleSettings, after: str, count: int) -> list[str]:
    found, moment = [], utc(after)
    for _ in range(count):
        moment = next_run(plan, moment)
        found.append(f"{moment:%Y-%m-%d %H:%M}")
    return found


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "Field required"),
    ({"frequency": "hourly"}, "Input should be 'daily', 'weekly', 'monthly' or 'cron'"),
    ({"frequency": "daily"}, "at is required for frequency daily"),
    ({"frequency": "weekly", "at": "02:30"}, "weekdays is required for frequency weekly"),
    ({"frequency": "weekly", "weekdays": ["monday"]}, "at is required for frequency weekly"),
    ({"frequency": "monthly", "at": "02:30"}, "day is required for frequency monthly"),
    ({"frequency": "cron"}, "cron is required for frequency cron"),
    ({"frequency": "daily", "at": "02:30", "day": 1}, "day does not belong to frequency daily, which has at"),
    (
        {"frequency": "monthly", "at": "02:30", "day": 1, "weekdays": ["monday"]},
        "weekdays does not belong to frequency monthly, which has at and day",
    ),
    ({"frequency": "cron", "cron": "0 0 * * *", "at": "02:30"}, "at does not belong to frequency cron"),
    ({"frequency": "daily", "at": "02:30", "cron": "0 0 * * *"}, "cron does not belong to frequency daily"),
    ({"frequency": "daily", "at": "24:00"}, "should match pattern"),
    ({"frequency": "daily", "at": "2:30"}, "should match pattern"),
    ({"frequency": "daily", "at": "02:30\n"}, "should match pattern"),
    ({"frequency": "daily", "at": 150}, "valid string"),
    ({"frequency": "weekly", "at": "02:30", "weekdays": []}, "at least 1 item"),
    ({"frequency": "weekly", "at": "02:30", "weekdays": ["Monday"]}, "Input should be 'monday'"),
    ({"frequency": "weekly", "at": "02:30", "weekdays": ["friday", "friday"]}, "names a day more than once"),
    ({"frequency": "monthly", "at": "02:30", "day": 0}, "greater than or equal to 1"),
    ({"frequency": "monthly", "at": "02:30", "day": 32}, "less than or equal to 31"),
    ({"frequency": "cron", "cron": "@daily"}, "must have five fields: minute, hour, day of month, month, day of week"),
    ({"frequency": "cron", "cron": "0 0 0 * * *"}, "must have five fields"),
    ({"frequency": "cron", "cron": "60 0 * * *"}, "is not a cron expression: bad minute"),
    ({"frequency": "cron", "cron": "0 0 30 2 *"}, "is not a cron expression: bad day-of-month"),
    ({"frequency": "cron", "cron": "0 0 */31 * MON#2"}, "never comes: there is no such day"),
    ({"frequency": "daily", "at": "02:30", "timezone": "Mars/Olympus"}, "is not a known time zone"),
    ({"frequency": "daily", "at": "02:30", "timezone": "../../etc/passwd"}, "is not a known time zone"),
    ({"frequency": "daily", "at": "02:30", "timezone": "right/UTC"}, "is not a known time zone"),
    ({"frequency": "daily", "at": "02:30", "timezone": "Europe"}, "is not a known time zone"),
    ({"frequency": "daily", "at": "02:30", "jitter": 721}, "less than or equal to 720"),
    ({"frequency": "daily", "at": "02:30", "catch_up": -1}, "greater than or equal to 0"),
    ({"frequency": "daily", "at": "02:30", "hour": 2}, "Extra inputs are not permitted"),
]


@pytest.mark.parametrize(("keys", "words"), REFUSED)
def test_a_schedule_that_makes_no_sense_is_refused_in_plain_words(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        schedule(**keys)
    (problem,) = caught.value.errors()
    assert words in problem["msg"]


def test_the_defaults_are_utc_without_jitter_and_a_day_to_catch_up() -> None:
    plan = schedule(frequency="daily", at="02:30")
    assert (plan.timezone, plan.jitter, plan.catch_up) == ("UTC", 0, 24)


KNOWN: list[tuple[str, ScheduleSettings, str, list[str]]] = [
    (
        "Berlin skips 02:00 to 03:00",
        daily("02:30", "Europe/Berlin"),
        "2026-03-28 00:00",
        ["2026-03-28 01:30", "2026-03-29 01:00", "2026-03-30 00:30"],
    ),
    (
        "Berlin shows 02:00 to 03:00 twice",
        daily("02:30", "Europe/Berlin"),
        "2026-10-24 00:00",
        ["2026-10-24 00:30", "2026-10-25 00:30", "2026-10-26 01:30"],
    ),
    (
        "what begins when the clock has skipped is not moved",
        daily("03:00", "Europe/Berlin"),
        "2026-03-28 00:00",
        ["2026-03-28 02:00", "2026-03-29 01:00", "2026-03-30 01:00"],
    ),
    (
        "New York skips 02:00 to 03:00",
        daily("02:30", "America/New_York"),
        "2026-03-07 00:00",
        ["2026-03-07 07:30", "2026-03-08 07:00", "2026-03-09 06:30"],
    ),
    (
        "New York shows 01:00 to 02:00 twice",
        daily("01:30", "America/New_York"),
        "2026-10-31 00:00",
        ["2026-10-31 05:30", "2026-11-01 05:30", "2026-11-02 06:30"],
    ),
    (
        "Lord Howe skips half an hour",
        daily("02:10", "Australia/Lord_Howe"),
        "2026-10-02 12:00",
        ["2026-10-02 15:40", "2026-10-03 15:30", "2026-10-04 15:10"],
    ),
    (
        "Lord Howe shows half an hour twice",
        daily("01:45", "Australia/Lord_Howe"),
        "2026-04-03 12:00",
        ["2026-04-03 14:45", "2026-04-04 14:45", "2026-04-05 15:15"],
    ),
    (
        "Samoa leaves out a day: it is made up for at the first instant of the next",
        daily("10:00", "Pacific/Apia"),
        "2011-12-29 12:00",
        ["2011-12-29 20:00", "2011-12-30 10:00", "2011-12-30 20:00", "2011-12-31 20:00"],
    ),
    (
        "Samoa leaves out a day: at midnight its run and the next day's are one",
        daily("00:00", "Pacific/Apia"),
        "2011-12-29 00:00",
        ["2011-12-29 10:00", "2011-12-30 10:00", "2011-12-31 10:00"],
    ),
    (
        "Samoa leaves out a Friday",
        schedule(frequency="weekly", at="10:00", weekdays=["friday"], timezone="Pacific/Apia"),
        "2011-12-20 00:00",
        ["2011-12-23 20:00", "2011-12-30 10:00", "2012-01-05 20:00"],
    ),
    (
        "Samoa leaves out the 30th",
        schedule(frequency="monthly", at="10:00", day=30, timezone="Pacific/Apia"),
        "2011-12-01 00:00",
        ["2011-12-30 10:00", "2012-01-29 20:00", "2012-02-28 20:00"],
    ),
    (
        "Casablanca sets its clock back for Ramadan",
        daily("02:30", "Africa/Casablanca"),
        "2024-03-09 00:00",
        ["2024-03-09 01:30", "2024-03-10 01:30", "2024-03-11 02:30"],
    ),
    (
        "Casablanca sets its clock forward after Ramadan",
        daily("02:30", "Africa/Casablanca"),
        "2024-04-13 00:00",
        ["2024-04-13 02:30", "2024-04-14 02:00", "2024-04-15 01:30"],
    ),
    (
        "Sao Paulo skips midnight",
        daily("00:30", "America/Sao_Paulo"),
        "2018-11-03 00:00",
        ["2018-11-03 03:30", "2018-11-04 03:00", "2018-11-05 02:30"],
    ),
    (
        "Sao Paulo shows the hour before midnight twice",
        daily("23:30", "America/Sao_Paulo"),
        "2018-02-17 00:00",
        ["2018-02-17 01:30", "2018-02-18 01:30", "2018-02-19 02:30"],
    ),
    (
        "Nuuk skips the last hour of a Saturday",
        schedule(frequency="weekly", at="23:30", weekdays=["saturday"], timezone="America/Nuuk"),
        "2024-03-20 00:00",
        ["2024-03-24 01:30", "2024-03-31 01:00", "2024-04-07 00:30"],
    ),
    (
        "Taipei leaves its clock alone",
        daily("02:30", "Asia/Taipei"),
        "2026-03-28 00:00",
        ["2026-03-28 18:30", "2026-03-29 18:30", "2026-03-30 18:30"],
    ),
    (
        "several days of the week",
        schedule(frequency="weekly", at="06:00", weekdays=["sunday", "wednesday"]),
        "2026-11-24 00:00",
        ["2026-11-25 06:00", "2026-11-29 06:00", "2026-12-02 06:00"],
    ),
    (
        "the 31st is the last day of a shorter month",
        schedule(frequency="monthly", at="23:59", day=31),
        "2027-12-31 23:59",
        ["2028-01-31 23:59", "2028-02-29 23:59", "2028-03-31 23:59", "2028-04-30 23:59"],
    ),
    (
        "the 29th is the last day of February",
        schedule(frequency="monthly", at="00:00", day=29),
        "2027-01-29 00:00",
        ["2027-02-28 00:00", "2027-03-29 00:00", "2027-04-29 00:00"],
    ),
    ("cron: 29 February", cron("0 0 29 2 *"), "2026-01-01 00:00", ["2028-02-29 00:00", "2032-02-29 00:00"]),
    ("cron: 29 February on a Sunday", cron("0 0 29 2 */7"), "2089-01-01 00:00", ["2128-02-29 00:00"]),
    (
        "cron: a fixed time that is skipped is made up for, once",
        cron("0,30 2 * * *", "Europe/Berlin"),
        "2026-03-28 12:00",
        ["2026-03-29 01:00", "2026-03-30 00:00", "2026-03-30 00:30"],
    ),
    (
        "cron: a fixed time that is shown twice is due once",
        cron("0,30 2 * * *", "Europe/Berlin"),
        "2026-10-24 12:00",
        ["2026-10-25 00:00", "2026-10-25 00:30", "2026-10-26 01:00"],
    ),
    (
        "cron: a wildcard goes on through what is shown twice",
        cron("30 * * * *", "Europe/Berlin"),
        "2026-10-24 23:00",
        ["2026-10-24 23:30", "2026-10-25 00:30", "2026-10-25 01:30", "2026-10-25 02:30"],
    ),
    (
        "cron: a wildcard leaves out what is skipped",
        cron("*/30 2 * * *", "Europe/Berlin"),
        "2026-03-28 12:00",
        ["2026-03-30 00:00", "2026-03-30 00:30"],
    ),
    (
        "cron: a wildcard of minutes is due twice where its hour is shown twice",
        cron("*/30 2 * * *", "Europe/Berlin"),
        "2026-10-24 12:00",
        ["2026-10-25 00:00", "2026-10-25 00:30", "2026-10-25 01:00", "2026-10-25 01:30", "2026-10-26 01:00"],
    ),
    (
        "cron: nothing is lost where the clock is set by half an hour",
        cron("*/10 2 * * *", "Australia/Lord_Howe"),
        "2026-04-04 14:59",
        ["2026-04-04 15:30", "2026-04-04 15:40", "2026-04-04 15:50", "2026-04-04 16:00"],
    ),
    (
        "cron: a skipped midnight is not shown",
        cron("* 0 4 11 *", "America/Sao_Paulo"),
        "2018-01-01 00:00",
        ["2019-11-04 03:00", "2019-11-04 03:01"],
    ),
]


@pytest.mark.parametrize(("plan", "after", "expected"), [row[1:] for row in KNOWN], ids=[row[0] for row in KNOWN])
def test_runs_are_due_at_the_known_times(plan: ScheduleSettings, after: str, expected: list[str]) -> None:
    assert runs(plan, after, len(expected)) == expected


@pytest.mark.parametrize("plan", [row[1] for row in KNOWN], ids=[row[0] for row in KNOWN])
def test_a_run_is_the_previous_one_from_its_due_time_on(plan: ScheduleSettings) -> None:
    due = next_run(plan, utc("2026-03-28 00:00"))
    following = next_run(plan, due)
    assert previous_run(plan, due) == due
    assert previous_run(plan, following - timedelta.resolution) == due
    assert previous_run(plan, due - timedelta.resolution) < due


def test_the_previous_run_is_found_within_an_hour_that_is_shown_twice() -> None:
    plan = cron("30 * * * *", "Europe/Berlin")
    looks = ["2026-10-25 00:29", "2026-10-25 00:30", "2026-10-25 01:29", "2026-10-25 01:45", "2026-10-25 02:30"]
    found = [f"{previous_run(plan, utc(look)):%H:%M}" for look in looks]
    assert found == ["23:30", "00:30", "00:30", "01:30", "02:30"]


def test_after_years_of_absence_the_last_of_very_many_runs_is_found() -> None:
    assert previous_run(cron("* * * * *"), utc("2031-07-08 09:10:11")) == utc("2031-07-08 09:10")


def test_times_of_other_zones_are_understood_and_answered_in_utc() -> None:
    plan = daily("02:30", "Europe/Berlin")
    elsewhere = datetime(2026, 6, 1, 5, 0, tzinfo=timezone(timedelta(hours=9)))
    assert next_run(plan, elsewhere) == utc("2026-06-01 00:30")
    assert next_run(plan, elsewhere).tzinfo is UTC
    assert previous_run(plan, elsewhere).tzinfo is UTC


def test_times_without_a_zone_are_refused() -> None:
    plan, naive = daily("02:30", "UTC", jitter=5), datetime(2026, 6, 1)
    for refused in (
        lambda: next_run(plan, naive),
        lambda: previous_run(plan, naive),
        lambda: delay(plan, naive, "seed"),
        lambda: preview(plan, naive, 1, "seed"),
    ):
        with pytest.raises(ValueError, match="without a time zone"):
            refused()


def test_jitter_is_spread_over_all_its_seconds_and_both_ends() -> None:
    plan, due = daily("02:30", "UTC", jitter=1), utc("2026-06-01 02:30")
    found = [delay(plan, due, f"machine {n}") // timedelta(seconds=1) for n in range(3000)]
    assert set(found) == set(range(61))
    assert all(25 <= found.count(second) <= 80 for second in range(61)), "each is expected 49 times"


def test_jitter_differs_between_machines_and_between_runs_but_not_between_looks() -> None:
    plan, due = daily("02:30", "UTC", jitter=720), utc("2026-06-01 02:30")
    assert delay(plan, due, "a") == delay(plan, due.astimezone(timezone(timedelta(hours=2))), "a")
    assert len({delay(plan, due, "a"), delay(plan, due, "b"), delay(plan, due + timedelta(days=1), "a")}) == 3


def test_jitter_ends_before_the_next_run_is_due() -> None:
    plan = cron("*/5 * * * *", jitter=720)
    found = {delay(plan, utc("2026-06-01 02:30"), f"{n}") // timedelta(seconds=1) for n in range(5000)}
    assert found == set(range(300))


def test_without_jitter_nothing_is_put_off() -> None:
    assert delay(daily("02:30", "UTC"), utc("2026-06-01 02:30"), "a") == timedelta(0)


def test_a_preview_has_the_run_that_is_due_but_put_off() -> None:
    plan, due = daily("02:30", "UTC", jitter=720), utc("2026-06-01 02:30")
    put_off = delay(plan, due, "a")
    assert put_off > timedelta(minutes=1)
    shown = preview(plan, due + timedelta(minutes=1), 3, "a")
    assert shown[0] == due + put_off
    assert len(shown) == 3
    assert all(one < other for one, other in pairwise(shown))
    assert preview(plan, shown[0], 2, "a") == shown[1:]


@pytest.mark.parametrize(
    ("plan", "hours"),
    [
        (daily("02:00", "UTC"), 24),
        (daily("02:00", "UTC", jitter=30), 24.5),
        (daily("12:00", "Europe/Berlin"), 25),
        (schedule(frequency="weekly", at="02:00", weekdays=["monday", "tuesday"]), 6 * 24),
        (schedule(frequency="monthly", at="02:00", day=1), 31 * 24),
        (cron("0 */6 * * 1-5"), 54),
        (cron("30 2 1 1 *"), 365 * 24),
    ],
)
def test_the_longest_pause_is_that_of_weekends_short_nights_and_long_months(
    plan: ScheduleSettings, hours: float
) -> None:
    assert longest_pause(plan, utc("2026-03-02")) == timedelta(hours=hours)
