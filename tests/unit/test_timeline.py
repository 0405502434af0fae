"""The timeline: what became of each day, out of jobs and of due times that brought none."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from service.job import JobState
from service.state import Gap, Stub
from service.timeline import MOST_JOBS, MOST_MISSED, Day, days

NOW = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
DAILY = {"frequency": "daily", "at": "02:00"}


def at(day: int, hour: int = 2) -> datetime:
    return datetime(2026, 3, day, hour, tzinfo=UTC)


def stub(state: JobState, when: datetime, *, due: bool = True, name: str = "") -> Stub:
    return Stub(name or f"{state} {when:%d %H}", state, when, due)


def gap(since: datetime, until: datetime, schedule: dict[str, Any] | None = None) -> Gap:
    return Gap("backup", since, until, DAILY if schedule is None else schedule)


def found(*facts: Stub | Gap, count: int = 10, timezone: str = "UTC", now: datetime = NOW) -> dict[date, Day]:
    stubs = [fact for fact in facts if isinstance(fact, Stub)]
    gaps = [fact for fact in facts if isinstance(fact, Gap)]
    told = days(stubs, gaps, now=now, count=count, timezone=timezone)
    assert [each.day for each in told] == sorted(each.day for each in told)
    return {each.day: each for each in told}


def test_every_day_is_told_up_to_today_also_those_of_which_nothing_is_known() -> None:
    told = found(count=90)
    assert len(told) == 90
    assert min(told) == date(2025, 12, 11)
    assert max(told) == date(2026, 3, 10)
    assert {day.state for day in told.values()} == {"none"}


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["succeeded"], "succeeded"),
        (["partial"], "partial"),
        (["failed"], "failed"),
        (["interrupted"], "failed"),
        (["cancelled"], "cancelled"),
        (["running"], "running"),
        (["queued"], "running"),
        (["verifying"], "running"),
        (["succeeded", "failed"], "partial"),
        (["failed", "succeeded"], "partial"),
        (["succeeded", "cancelled"], "succeeded"),
        (["failed", "cancelled"], "failed"),
        (["failed", "running"], "running"),
        (["succeeded", "running"], "succeeded"),
    ],
)
def test_the_state_of_a_day_is_that_of_all_its_jobs(states: list[JobState], expected: str) -> None:
    jobs = [stub(state, at(9, hour), due=False) for hour, state in enumerate(states)]
    day = found(*jobs)[date(2026, 3, 9)]
    assert day.state == expected
    assert sum(day.counts.values()) == len(states)
    assert day.jobs == [job.id for job in reversed(jobs)]


def test_a_job_that_was_due_belongs_to_the_day_of_its_due_time_and_any_other_to_its_own() -> None:
    told = found(stub("succeeded", at(8)), stub("succeeded", at(9, 23), due=False))
    assert [day for day, each in told.items() if each.state == "succeeded"] == [date(2026, 3, 8), date(2026, 3, 9)]


def test_what_was_due_before_the_first_day_and_made_up_for_since_belongs_to_no_day_that_is_told() -> None:
    told = found(stub("succeeded", at(7)), stub("failed", at(9)), count=3)
    assert [day.state for day in told.values()] == ["none", "failed", "none"]


def test_of_several_tries_for_one_due_time_the_last_counts() -> None:
    first, again = stub("interrupted", at(9), name="first"), stub("succeeded", at(9), name="again")
    day = found(first, again)[date(2026, 3, 9)]
    assert (day.state, day.counts, day.jobs) == ("succeeded", {"succeeded": 1}, ["again"])


def test_days_begin_at_midnight_of_the_time_zone() -> None:
    late = stub("succeeded", datetime(2026, 3, 8, 20, 0, tzinfo=UTC))
    assert found(late)[date(2026, 3, 8)].state == "succeeded"
    assert found(late, timezone="Asia/Taipei")[date(2026, 3, 9)].state == "succeeded"
    assert max(found(timezone="Pacific/Kiritimati")) == date(2026, 3, 11)


def test_a_gap_makes_the_days_missed_on_which_its_schedule_had_a_due_time() -> None:
    told = found(gap(at(3), at(6)))
    assert [day for day, each in told.items() if each.state == "missed"] == [date(2026, 3, n) for n in (4, 5, 6)]
    weekly = {"frequency": "weekly", "at": "02:00", "weekdays": ["thursday"]}
    told = found(gap(at(1), at(10), weekly))
    assert [day for day, each in told.items() if each.state == "missed"] == [date(2026, 3, 5)]


def test_a_due_time_that_has_a_job_or_is_in_two_gaps_is_not_missed_twice() -> None:
    told = found(gap(at(3), at(5)), gap(at(3), at(6)), stub("failed", at(5)))
    assert [(each.counts, each.state) for each in told.values()][3:6] == [
        ({"missed": 1}, "missed"),
        ({"failed": 1}, "failed"),
        ({"missed": 1}, "missed"),
    ]


def test_a_day_with_a_backup_and_a_missed_one_is_partial() -> None:
    day = found(gap(at(8), at(9)), stub("succeeded", at(9, 15), due=False))[date(2026, 3, 9)]
    assert (day.state, day.counts) == ("partial", {"missed": 1, "succeeded": 1})


def test_a_gap_from_a_clock_that_was_ahead_or_with_a_schedule_of_another_version_is_left_out() -> None:
    unknown = {"frequency": "hourly by moonlight"}
    told = found(gap(at(3), NOW + timedelta(days=4000)), gap(at(3), at(9), unknown))
    assert {day.state for day in told.values()} == {"none"}


def test_a_schedule_of_every_minute_that_was_missed_for_months_is_counted_within_bounds() -> None:
    minutely = {"frequency": "cron", "cron": "* * * * *"}
    told = found(gap(NOW - timedelta(days=400), NOW, minutely), count=90)
    assert {day.state for day in told.values()} == {"missed"}
    assert {day.counts["missed"] for day in told.values()} == {MOST_MISSED}


def test_of_a_day_with_many_jobs_the_newest_are_named_and_all_are_counted() -> None:
    jobs = [stub("succeeded", at(9) + timedelta(minutes=n), due=False, name=str(n)) for n in range(MOST_JOBS + 5)]
    day = found(*jobs)[date(2026, 3, 9)]
    assert day.counts == {"succeeded": MOST_JOBS + 5}
    assert day.jobs == [str(n) for n in reversed(range(5, MOST_JOBS + 5))]


def test_a_day_on_which_the_clock_is_set_by_an_hour_has_its_due_time_once() -> None:
    berlin = {"frequency": "daily", "at": "02:30", "timezone": "Europe/Berlin"}  # skipped on 29 March 2026
    now = datetime(2026, 3, 31, 12, tzinfo=UTC)
    told = found(
        gap(datetime(2026, 3, 27, 12, tzinfo=UTC), datetime(2026, 3, 31, 0, 30, tzinfo=UTC), berlin),
        timezone="Europe/Berlin",
        now=now,
        count=5,
    )
    assert [each.counts for each in told.values()] == [{}, *({"missed": 1},) * 4]
