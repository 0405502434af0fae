"""The schedule kept: each due time gets its backup once, whatever happens to the service, its clock and settings."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.announcer import Announcer
from service.config import ServiceSettings, SystemBackup
from service.errors import JobRefused, StateError
from service.events import EventHub
from service.job import ENDED, Job, JobKind
from service.jobs import Jobs
from service.progress import Progress
from service.schedule import ScheduleSettings, delay, next_run, previous_run
from service.scheduler import LONGEST_SLEEP, ON_TIME, Occasion, Scheduler
from service.state import Database, History, Values
from tests.service_parts import Clock, until

DAILY = {"frequency": "daily", "at": "02:30"}
HOURLY = {"frequency": "cron", "cron": "0 * * * *"}
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
DUE = datetime(2026, 3, 3, 2, 30, tzinfo=UTC)


def schedule_of(document: dict[str, Any]) -> ScheduleSettings:
    return ScheduleSettings.model_validate(document)


@dataclass
class Life:
    """One life of a service after the other, on one state: `restart` begins the next one."""

    directory: Path
    clock: Clock = field(default_factory=lambda: Clock(NOON))
    settings: SystemBackup = field(default_factory=SystemBackup)
    drill: ScheduleSettings | None = None
    missed: list[tuple[datetime, str]] = field(default_factory=list)
    begun: bool = False

    async def begin(self) -> None:
        self.database = Database.open(self.directory)
        self.history, self.values = History(self.database), Values(self.database)
        announcer = Announcer(EventHub("boot", [], clock=self.clock), self.history)
        service = ServiceSettings()
        self.jobs = Jobs(self.history, announcer, self.work, lambda: service, self.clock)
        self.scheduler = Scheduler(
            self.jobs,
            self.values,
            announcer,
            [
                Occasion("backup", lambda: self.settings.schedule if self.settings.enabled else None),
                Occasion("drill", lambda: self.drill),
            ],
            self.clock,
            "seed",
            self.on_missed,
        )
        await self.scheduler.load()
        self.begun = True

    async def work(self, job: Job, progress: Progress) -> dict[str, Any]:
        return {}

    def on_missed(self, kind: JobKind, due: datetime, reason: str) -> None:
        if kind == "backup":
            self.missed.append((due, reason))

    def kill(self) -> None:
        """End this life as kill -9 does: what was queued is known to the state only."""
        if self.begun:
            self.database.close()
            self.begun = False

    async def restart(self) -> list[Job]:
        """Begin another life as `service.serve` does: what has not ended was interrupted, and may be made up for."""
        self.kill()
        await self.begin()
        interrupted = [job.but(state="interrupted", ended=self.clock()) for job in await self.history.unfinished()]
        for job in interrupted:
            await self.history.save_job(job)
            await self.scheduler.retry(job)
        return interrupted

    async def finish(self) -> None:
        """Work off the queue."""
        while (waiting := self.jobs.waiting) or self.jobs.active:
            working = asyncio.create_task(self.jobs.run())
            await until(lambda: not self.jobs.waiting and not self.jobs.active)
            for job in waiting:
                while not (found := await self.history.job(job.id)) or not found.done:
                    await asyncio.sleep(0)
            working.cancel()
            await asyncio.wait({working})

    def use(self, schedule: dict[str, Any] | None, *, enabled: bool = True) -> None:
        self.settings = SystemBackup(enabled=enabled, schedule=schedule_of(schedule) if schedule else None)

    async def look_at(self, when: datetime) -> None:
        self.clock.now = when
        await self.scheduler.look()

    async def backups(self) -> list[Job]:
        """Every backup there ever was, the oldest first."""
        return list(reversed(await self.history.jobs(limit=100000)))

    async def due_times(self) -> list[tuple[datetime | None, str]]:
        return [(job.scheduled_for, job.origin) for job in await self.backups()]

    async def events(self, kind: str) -> list[dict[str, Any]]:
        return [event["data"] for event in await self.history.events() if event["type"] == kind]


@pytest.fixture
async def life(tmp_path: Path) -> AsyncIterator[Life]:
    begun = Life(tmp_path)
    await begun.begin()
    begun.use(DAILY)
    await begun.scheduler.look()
    yield begun
    begun.kill()


async def test_a_due_run_starts_at_its_time_and_once_however_often_it_is_looked_at(life: Life) -> None:
    await life.look_at(DUE - timedelta(seconds=1))
    assert await life.backups() == []
    for _ in range(5):
        await life.look_at(DUE)
    await life.look_at(DUE + timedelta(hours=3))
    await life.finish()
    await life.look_at(DUE + timedelta(hours=4))
    assert await life.due_times() == [(DUE, "schedule")]
    await life.look_at(DUE + timedelta(days=1))
    assert await life.due_times() == [(DUE, "schedule"), (DUE + timedelta(days=1), "schedule")]


async def test_a_run_that_was_served_is_not_served_again_after_a_restart(life: Life) -> None:
    await life.look_at(DUE)
    await life.finish()
    await life.restart()
    await life.look_at(DUE + timedelta(minutes=1))
    assert await life.due_times() == [(DUE, "schedule")]


async def test_a_run_whose_job_was_killed_in_the_queue_is_made_up_for_once(life: Life) -> None:
    await life.look_at(DUE)
    life.clock.go(minutes=1)
    (interrupted,) = await life.restart()
    await life.scheduler.look()
    assert await life.due_times() == [(DUE, "schedule"), (DUE, "catch-up")]
    (again,) = await life.restart()  # the second try is killed as well: that was enough
    assert again.scheduled_for == interrupted.scheduled_for == DUE
    await life.scheduler.look()
    assert len(await life.backups()) == 2


async def test_an_interrupted_backup_that_nobody_scheduled_is_not_made_up_for(life: Life) -> None:
    await life.jobs.submit("backup", {}, origin="socket")
    await life.restart()
    assert [job.state for job in await life.backups()] == ["interrupted"]


async def test_an_interrupted_backup_is_not_made_up_for_after_catch_up_or_when_disabled(life: Life) -> None:
    await life.look_at(DUE)
    life.use(DAILY, enabled=False)
    await life.restart()
    life.use(DAILY)
    await life.jobs.history.save_job((await life.backups())[0].but(state="running"))
    life.clock.go(hours=25)
    await life.restart()
    assert len(await life.backups()) == 1


async def test_making_up_for_a_run_of_an_older_schedule_does_not_make_the_new_one_owe_any(life: Life) -> None:
    """The schedule changed while the service was away: it begins anew, and only the interrupted run is made up for."""
    await life.look_at(DUE)
    life.use({"frequency": "daily", "at": "04:00"})
    life.clock.now = DUE + timedelta(hours=3)
    await life.restart()
    await life.scheduler.look()
    await life.finish()
    await life.look_at(DUE + timedelta(hours=4))
    assert await life.due_times() == [(DUE, "schedule"), (DUE, "catch-up")]
    assert await life.events("schedule.skipped") == []


@pytest.mark.parametrize(
    ("late", "origin"),
    [
        (timedelta(0), "schedule"),
        (ON_TIME, "schedule"),
        (ON_TIME + timedelta(seconds=1), "catch-up"),
        (timedelta(hours=5), "catch-up"),
        (timedelta(hours=5, seconds=1), None),
    ],
)
async def test_a_missed_run_is_made_up_for_once_within_catch_up_and_told_as_missed_later(
    life: Life, late: timedelta, origin: str | None
) -> None:
    life.use(DAILY | {"catch_up": 5})
    await life.scheduler.look()
    life.clock.now = DUE + late
    await life.restart()
    for _ in range(3):
        await life.scheduler.look()
    await life.restart()
    await life.scheduler.look()
    assert [job.origin for job in await life.backups() if job.state == "interrupted"] == ([origin] if origin else [])
    told = [] if origin == "schedule" else [{"kind": "backup", "due": DUE.isoformat(), "made_up": origin is not None}]
    assert await life.events("schedule.missed") == told
    assert [due for due, _ in life.missed] == ([] if origin else [DUE])


async def gaps(life: Life) -> list[tuple[datetime, datetime]]:
    found = await life.history.gaps.of("backup", NOON - timedelta(days=1))
    return [(gap.since, gap.until) for gap in found]


async def test_what_was_missed_is_remembered_as_a_gap_and_what_came_in_time_or_late_is_not(life: Life) -> None:
    await life.look_at(DUE)
    await life.look_at(DUE + timedelta(days=1, hours=5))  # made up for
    assert await gaps(life) == []
    await life.look_at(DUE + timedelta(days=4, minutes=1))  # asleep for two days, and just in time again
    expected = [(DUE + timedelta(days=1), DUE + timedelta(days=3))]
    assert await gaps(life) == expected
    await life.look_at(DUE + timedelta(days=9, hours=1))  # the last one is made up for, those before it are not
    expected.append((DUE + timedelta(days=4), DUE + timedelta(days=8)))
    assert await gaps(life) == expected
    life.use(DAILY | {"catch_up": 1})
    for _ in range(2):
        await life.look_at(DUE + timedelta(days=11, hours=2))
        await life.restart()
    expected.append((DUE + timedelta(days=9), DUE + timedelta(days=11)))
    assert await gaps(life) == expected


async def test_catch_up_of_zero_makes_up_for_nothing(life: Life) -> None:
    life.use(DAILY | {"catch_up": 0})
    await life.scheduler.look()
    await life.look_at(DUE + timedelta(hours=1))
    assert await life.backups() == []
    assert len(life.missed) == 1
    await life.look_at(DUE + timedelta(days=1))
    assert await life.due_times() == [(DUE + timedelta(days=1), "schedule")]


async def test_of_many_missed_runs_only_the_last_is_made_up_for(life: Life) -> None:
    await life.look_at(DUE + timedelta(days=9, hours=1))
    assert await life.due_times() == [(DUE + timedelta(days=9), "catch-up")]


@pytest.mark.parametrize(
    "changed", [{"at": "01:00"}, {"frequency": "cron", "at": None, "cron": "0 1 * * *"}, {"timezone": "Asia/Tokyo"}]
)
async def test_a_changed_schedule_does_not_make_up_for_the_past(life: Life, changed: dict[str, Any]) -> None:
    life.clock.now = DUE + timedelta(hours=6)
    life.use(DAILY | changed)
    await life.scheduler.look()
    await life.restart()
    await life.scheduler.look()
    assert await life.backups() == []
    expected = next_run(schedule_of(DAILY | changed), life.clock.now)
    assert life.scheduler.next_run() == expected
    await life.look_at(expected)
    assert await life.due_times() == [(expected, "schedule")]


async def test_another_jitter_or_catch_up_keeps_what_was_due(life: Life) -> None:
    life.clock.now = DUE + timedelta(minutes=1)
    life.use(DAILY | {"catch_up": 100, "jitter": 0})
    await life.scheduler.look()
    assert await life.due_times() == [(DUE, "schedule")]


async def test_a_clock_set_back_past_many_due_times_begins_the_schedule_anew(life: Life) -> None:
    hourly = {"frequency": "cron", "cron": "0 * * * *"}
    life.use(hourly)
    await life.look_at(DUE + timedelta(hours=20))
    before = len(await life.backups())
    await life.look_at(DUE)
    await life.look_at(DUE + timedelta(hours=2))
    assert len(await life.backups()) > before


async def test_a_first_schedule_begins_with_its_next_run(tmp_path: Path) -> None:
    life = Life(tmp_path, Clock(DUE + timedelta(minutes=1)))
    await life.begin()
    life.use(DAILY)
    await life.scheduler.look()
    assert await life.backups() == []
    assert life.scheduler.next_run() == DUE + timedelta(days=1)
    life.kill()


async def test_what_is_disabled_starts_nothing_and_begins_anew_when_it_is_enabled(life: Life) -> None:
    life.use(DAILY, enabled=False)
    await life.look_at(DUE + timedelta(hours=1))
    assert life.scheduler.next_run() is None
    life.use(DAILY)
    await life.look_at(DUE + timedelta(hours=2))
    assert await life.backups() == []
    life.use(None)
    await life.look_at(DUE + timedelta(days=1))
    assert life.scheduler.next_run() is None
    assert await life.backups() == []
    assert life.missed == []


async def test_jitter_puts_a_run_off_and_next_run_is_true_before_during_and_after(life: Life) -> None:
    schedule = schedule_of(DAILY | {"jitter": 120})
    life.use(DAILY | {"jitter": 120})
    put_off = delay(schedule, DUE, "seed")
    assert put_off > timedelta(minutes=1), "choose another seed: this one does not put the run off"
    await life.scheduler.look()
    begins = DUE + put_off
    for when in (DUE - timedelta(hours=1), DUE, DUE + put_off / 2, begins - timedelta(seconds=1)):
        await life.look_at(when)
        assert life.scheduler.next_run() == begins
        assert await life.backups() == []
    await life.restart()
    await life.look_at(begins - timedelta(seconds=1))
    assert life.scheduler.next_run() == begins
    await life.look_at(begins)
    assert await life.due_times() == [(DUE, "schedule")]
    tomorrow = DUE + timedelta(days=1)
    assert life.scheduler.next_run() == tomorrow + delay(schedule, tomorrow, "seed")


async def test_a_run_that_is_owed_while_the_next_is_put_off_is_made_up_for_and_both_come_once(life: Life) -> None:
    schedule = schedule_of(DAILY | {"jitter": 120, "catch_up": 48})
    life.use(DAILY | {"jitter": 120, "catch_up": 48})
    await life.scheduler.look()
    second = DUE + timedelta(days=1)
    await life.look_at(second + timedelta(seconds=1))  # the first was missed, the second waits for its jitter
    await life.finish()
    await life.look_at(second + delay(schedule, second, "seed"))
    assert await life.due_times() == [(DUE, "catch-up"), (second, "schedule")]


async def test_next_run_without_a_look_yet_is_the_next_due_time(tmp_path: Path) -> None:
    life = Life(tmp_path)
    await life.begin()
    life.use(DAILY)
    assert life.scheduler.next_run() == DUE
    life.kill()


async def test_a_clock_set_back_by_hours_starts_nothing_twice(life: Life) -> None:
    await life.look_at(DUE)
    await life.finish()
    await life.look_at(DUE - timedelta(hours=2))
    await life.look_at(DUE + timedelta(minutes=1))
    assert await life.due_times() == [(DUE, "schedule")]
    assert [event["to"] for event in await life.events("clock.jumped")] == [(DUE - timedelta(hours=2)).isoformat()]


async def test_a_clock_set_back_by_a_month_begins_the_schedule_anew_instead_of_pausing_it(life: Life) -> None:
    await life.look_at(DUE)
    await life.finish()
    earlier = DUE - timedelta(days=30)
    await life.look_at(earlier + timedelta(hours=1))
    assert len(await life.backups()) == 1, "and makes up for nothing"
    await life.look_at(earlier + timedelta(days=1))
    assert (earlier + timedelta(days=1), "schedule") in await life.due_times()


async def test_a_clock_set_forward_by_a_year_and_back_costs_one_backup_and_no_later_one(life: Life) -> None:
    wrong = DUE + timedelta(days=365, hours=1)
    await life.look_at(wrong)
    await life.finish()
    await life.look_at(DUE - timedelta(hours=1))
    await life.look_at(DUE)
    assert sorted(await life.due_times()) == [(DUE, "schedule"), (DUE + timedelta(days=365), "catch-up")]
    assert life.scheduler.clock_suspect
    assert len(await life.events("clock.jumped")) == 2


async def test_a_doubted_clock_is_remembered_over_a_restart_and_trusted_after_a_day(life: Life) -> None:
    await life.look_at(NOON - timedelta(hours=3))
    assert life.scheduler.clock_suspect
    await life.restart()
    assert life.scheduler.clock_suspect, "before the first look, too: a pruning may come first"
    for _ in range(24):
        life.clock.go(hours=1)
        await life.scheduler.look()
    assert not life.scheduler.clock_suspect
    await life.restart()
    assert not life.scheduler.clock_suspect


async def test_a_clock_that_was_set_back_while_nothing_ran_is_suspect_before_the_first_look(life: Life) -> None:
    life.clock.now = NOON - timedelta(days=400)
    await life.restart()
    assert life.scheduler.clock_suspect


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", datetime(2026, 3, 29, tzinfo=UTC), 23),  # 02:30 is skipped
        ("Europe/Berlin", datetime(2026, 10, 25, tzinfo=UTC), 25),  # 02:30 comes twice
    ],
)
async def test_a_day_on_which_the_clock_changes_has_one_backup(
    tmp_path: Path, zone: str, day: datetime, hours: int
) -> None:
    life = Life(tmp_path, Clock(day - timedelta(hours=20)))
    await life.begin()
    life.use(DAILY | {"timezone": zone})
    for _ in range(2 * 24 * 6):
        await life.scheduler.look()
        await life.finish()
        life.clock.go(minutes=10)
    runs = [job.scheduled_for for job in await life.backups()]
    assert len(runs) == 2 and None not in runs
    assert [run.date() for run in runs if run] == [day.date(), day.date() + timedelta(days=1)]
    assert [job.origin for job in await life.backups()] == ["schedule", "schedule"]
    life.kill()


async def test_a_run_is_left_out_and_told_while_another_backup_is_at_work(life: Life) -> None:
    working = await life.jobs.submit("backup", {}, origin="socket")
    await life.look_at(DUE)
    await life.look_at(DUE + timedelta(minutes=1))
    assert await life.events("schedule.skipped") == [{"kind": "backup", "due": DUE.isoformat(), "job_id": working.id}]
    assert life.missed == [(DUE, "another backup was still at work")]
    await life.finish()
    await life.look_at(DUE + timedelta(minutes=2))
    assert await life.due_times() == [(None, "socket")]


async def test_drills_have_due_times_of_their_own_that_are_served_missed_and_retried_apart(life: Life) -> None:
    life.drill = schedule_of({"frequency": "weekly", "weekdays": ["tuesday"], "at": "03:00", "catch_up": 1})
    await life.scheduler.look()
    first, week = DUE + timedelta(minutes=30), timedelta(weeks=1)
    assert (life.scheduler.next_run(), life.scheduler.next_run("drill")) == (DUE, first)
    await life.look_at(DUE)
    await life.finish()
    await life.look_at(first)
    assert [(job.kind, job.scheduled_for) for job in await life.backups()] == [("backup", DUE), ("drill", first)]
    life.clock.go(minutes=1)
    await life.restart()  # it had begun: interrupted, and made up for
    await life.finish()
    await life.look_at(first + timedelta(minutes=5))
    tries = [job for job in await life.backups() if job.kind == "drill"]
    assert [(job.scheduled_for, job.origin, job.state) for job in tries] == [
        (first, "schedule", "interrupted"),
        (first, "catch-up", "succeeded"),
    ]
    await life.look_at(first + week + timedelta(hours=2))  # too late for the drill, not for the backup
    assert {"kind": "drill", "due": (first + week).isoformat(), "made_up": False} in await life.events(
        "schedule.missed"
    )
    assert [job.kind for job in life.jobs.waiting] == ["backup"]
    assert life.scheduler.next_run("drill") == first + 2 * week


async def test_a_drill_at_work_holds_no_backup_up_and_a_backup_no_drill(life: Life) -> None:
    life.drill = schedule_of(DAILY)
    await life.scheduler.look()
    working = await life.jobs.submit("drill", {}, origin="socket")
    await life.look_at(DUE)
    assert [job.kind for job in life.jobs.waiting] == ["drill", "backup"]
    assert await life.events("schedule.skipped") == [{"kind": "drill", "due": DUE.isoformat(), "job_id": working.id}]


async def test_other_jobs_do_not_hold_a_backup_up(life: Life) -> None:
    await life.jobs.submit("verify", {"archive": "x"}, origin="socket")
    await life.look_at(DUE)
    assert [job.kind for job in life.jobs.waiting] == ["verify", "backup"]


async def test_a_run_that_cannot_be_queued_is_tried_again_and_not_forgotten(life: Life) -> None:
    for _ in range(16):
        await life.jobs.submit("verify", {"archive": "x"}, origin="socket")
    with pytest.raises(JobRefused):
        await life.look_at(DUE)
    await life.finish()
    await life.look_at(DUE + timedelta(minutes=1))
    assert (DUE, "schedule") in await life.due_times()


async def test_a_run_that_cannot_be_queued_is_told_as_missed_once_however_often_it_is_tried(life: Life) -> None:
    for _ in range(16):
        await life.jobs.submit("verify", {"archive": "x"}, origin="socket")
    for minute in range(3):
        with pytest.raises(JobRefused):
            await life.look_at(DUE + timedelta(minutes=minute))
    assert [due for due, _ in life.missed] == [DUE]
    with pytest.raises(JobRefused):
        await life.look_at(DUE + timedelta(days=1))
    assert [due for due, _ in life.missed] == [DUE, DUE + timedelta(days=1)]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """Note how long the scheduler means to sleep; it sleeps until it is woken."""
    noted: list[float | None] = []
    timeout = asyncio.timeout

    def endless(seconds: float | None) -> asyncio.Timeout:
        noted.append(seconds)
        return timeout(None)

    monkeypatch.setattr(asyncio, "timeout", endless)
    return noted


async def test_with_nothing_due_the_clock_is_still_looked_at_every_minute(
    life: Life, pauses: list[float | None]
) -> None:
    life.use(None)
    running = asyncio.create_task(life.scheduler.run())
    while not pauses:
        await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.wait({running})
    assert pauses == [LONGEST_SLEEP]


async def test_a_clock_at_the_end_of_the_calendar_stops_no_later_backup(
    life: Life, pauses: list[float | None], caplog: pytest.LogCaptureFixture
) -> None:
    """No next due time can be told of it, which nobody has planned for."""
    life.clock.now = datetime(9999, 12, 31, 23, 0, tzinfo=UTC)
    running = asyncio.create_task(life.scheduler.run())
    while not pauses:
        await asyncio.sleep(0.001)
    assert pauses == [LONGEST_SLEEP]
    assert "looking at the schedule went wrong unexpectedly" in caplog.text
    await life.finish()
    for when in (DUE - timedelta(hours=1), DUE):
        life.clock.now = when
        life.scheduler.wake()
        looks = len(pauses)
        while len(pauses) == looks:
            await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.wait({running})
    assert (DUE, "schedule") in await life.due_times()


async def test_a_state_that_cannot_be_written_is_looked_at_again_in_a_minute_and_not_at_once(
    life: Life, pauses: list[float | None]
) -> None:
    """A full disk must not be filled further with one line in the log after the other."""
    life.clock.now = DUE
    life.database._connection.execute("PRAGMA query_only = ON")
    running = asyncio.create_task(life.scheduler.run())
    while not pauses:
        await asyncio.sleep(0.001)
    assert pauses == [LONGEST_SLEEP]
    life.database._connection.execute("PRAGMA query_only = OFF")
    life.scheduler.wake()
    while len(pauses) < 2:
        await asyncio.sleep(0.001)
    assert await life.due_times() == [(DUE, "schedule")]
    running.cancel()
    await asyncio.wait({running})


async def test_a_change_of_the_settings_wakes_the_scheduler(life: Life) -> None:
    life.use(None)
    running = asyncio.create_task(life.scheduler.run())
    await asyncio.sleep(0)
    life.use(HOURLY)
    life.scheduler.wake()
    while HOURLY["cron"] not in str(await life.values.get("schedule.served")):
        await asyncio.sleep(0.001)
    life.clock.now = NOON + timedelta(hours=1)
    life.scheduler.wake()
    await until(lambda: life.jobs.waiting)
    running.cancel()
    await asyncio.wait({running})
    assert await life.due_times() == [(NOON + timedelta(hours=1), "schedule")]


async def step(life: Life, chance: random.Random, current: dict[str, Any]) -> dict[str, Any]:
    """Let one thing of what may happen to a service happen; return the schedule in force."""
    match chance.choice([*["time"] * 5, *["finish"] * 3, "looks", "restart", "kill", "full", "schedule"]):
        case "time":
            life.clock.go(minutes=chance.choice([1, 7, 31, 61, 61, 200, 1500]), seconds=chance.randrange(60))
        case "looks":
            for _ in range(3):
                await life.scheduler.look()
        case "finish":
            await life.finish()
        case "restart":
            await life.restart()
        case "kill":  # between the job that is queued and the next look
            await life.scheduler.look()
            await life.restart()
        case "full":
            life.database._connection.execute("PRAGMA query_only = ON")
            with pytest.raises(StateError):
                await life.scheduler.look()
            life.database._connection.execute("PRAGMA query_only = OFF")
        case "schedule":
            current = chance.choice([DAILY, HOURLY, DAILY | {"jitter": 300}, HOURLY | {"jitter": 30, "catch_up": 2}])
            life.use(current, enabled=chance.random() < 0.9)
    await life.scheduler.look()
    return current


@pytest.mark.parametrize("seed", range(6))
async def test_over_any_sequence_of_events_no_due_time_gets_two_jobs_of_a_kind(tmp_path: Path, seed: int) -> None:
    """But for the one retry of a job that was interrupted."""
    chance = random.Random(seed)
    life, current = Life(tmp_path), DAILY
    await life.begin()
    life.use(current)
    life.drill = schedule_of(HOURLY | {"timezone": "Asia/Kolkata"})
    await life.scheduler.look()
    for _ in range(120):
        current = await step(life, chance, current)
    await life.finish()
    jobs = await life.backups()
    served: dict[tuple[str, datetime], list[Job]] = {}
    for job in jobs:
        assert job.scheduled_for is not None and job.done
        served.setdefault((job.kind, job.scheduled_for), []).append(job)
    for kind in ("backup", "drill"):
        reached = [due for occasion, due in served if occasion == kind]
        assert len(reached) > 5, "hardly anything happened: the walk proves nothing"
    for (_, due), tries in served.items():
        assert len(tries) <= 2, due
        assert sum(job.state != "interrupted" for job in tries) <= 1, due
        assert sum(job.origin == "schedule" for job in tries) <= 1, due
        assert all(job.created >= due for job in tries), due
    life.kill()


async def test_a_service_that_runs_through_serves_every_due_time(tmp_path: Path) -> None:
    life = Life(tmp_path)
    await life.begin()
    life.use(HOURLY | {"jitter": 20})
    chance, hourly = random.Random(1), schedule_of(HOURLY)
    await life.scheduler.look()
    while life.clock.now < NOON + timedelta(days=2):
        life.clock.go(seconds=chance.randrange(1, 300))
        await life.scheduler.look()
        await life.finish()
    due = [job.scheduled_for for job in await life.backups()]
    last = previous_run(hourly, life.clock.now)
    expected = [NOON + timedelta(hours=n) for n in range(1, (last - NOON) // timedelta(hours=1) + 1)]
    assert due in (expected, expected[:-1])  # the last may still be put off
    assert {job.state for job in await life.backups()} <= ENDED
    life.kill()
