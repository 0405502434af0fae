"""Starts backups when they are due, once for each due time; makes up for one that was missed.

What was due is remembered in the transaction that queues the job, so no due time is served twice, whenever the service
is killed. Sleeps are short: a machine that was asleep, or whose clock was set, is noticed within a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from service.announcer import Announcer
from service.clock_guard import ClockGuard
from service.config import SystemBackup
from service.errors import ServiceError
from service.job import Job, JobOrigin
from service.jobs import Jobs
from service.schedule import ScheduleSettings, delay, next_run, previous_run
from service.state import Values

log = logging.getLogger(__name__)

LONGEST_SLEEP = 60.0
ON_TIME = timedelta(minutes=2)
"""A run that begins within this of its due time was not missed."""
RETRIES = 1
"""How often a scheduled backup that was interrupted is made up for."""

SERVED, CLOCK = "schedule.served", "clock"


@dataclass(slots=True)
class Scheduler:
    """Looks at the schedule in force, as `settings` gives it. `seed` is this installation's own, for its jitter."""

    jobs: Jobs
    values: Values
    announcer: Announcer
    settings: Callable[[], SystemBackup]
    clock: Callable[[], datetime]
    seed: str
    on_missed: Callable[[datetime, str], None] | None = None
    guard: ClockGuard = field(default_factory=ClockGuard)
    _served_until: datetime | None = None
    _running: bool = False
    _told_of: datetime | None = None
    _woken: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Start what is due, for ever."""
        self._running = True
        while True:
            self._woken.clear()
            try:
                await self.look()
                pause = self._sleep()
            except ServiceError as error:
                log.error("the schedule could not be looked at: %s", error)
                pause = LONGEST_SLEEP
            except Exception:
                log.exception("looking at the schedule went wrong unexpectedly")
                pause = LONGEST_SLEEP
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._woken.wait()

    async def load(self) -> None:
        """Remember what was known of the clock before."""
        self.guard = ClockGuard.from_json(await self.values.get(CLOCK))

    @property
    def clock_suspect(self) -> bool:
        """Tell whether the clock may have been set: pruning by age waits then."""
        now = self.clock()
        # Between two looks of a service that runs, a clock that was just set shows, too.
        return (self.guard.look(now) if self._running else self.guard).suspects(now)

    def wake(self) -> None:
        """Look again now: the settings have changed."""
        self._woken.set()

    async def look(self) -> None:
        """Start what is due by now."""
        now = self.clock()
        await self._look_at_the_clock(now)
        schedule = self._schedule()
        if schedule is None:
            if await self.values.get(SERVED) is not None:
                await self.values.set(SERVED, None)
            return
        self._served_until = await self._served(schedule, now)
        due = previous_run(schedule, now)
        if due > self._served_until and now < due + delay(schedule, due, self.seed):
            # put off by its jitter; the run before it may still be owed
            due = previous_run(schedule, due - timedelta(microseconds=1))
        if due > self._served_until:
            try:
                await self._serve(schedule, due, now)
            except ServiceError as error:
                self._tell_once(due, str(error))
                raise
            self._served_until = due

    def next_run(self) -> datetime | None:
        """Return when the next backup starts by itself; None when none does."""
        schedule = self._schedule()
        if schedule is None:
            return None
        now = self.clock()
        due = previous_run(schedule, now)
        if self._served_until is None or due <= self._served_until:
            due = next_run(schedule, now)
        return due + delay(schedule, due, self.seed)

    def _schedule(self) -> ScheduleSettings | None:
        settings = self.settings()
        return settings.schedule if settings.enabled else None

    async def retry(self, interrupted: Job) -> None:
        """Make up for a scheduled backup that was interrupted, once."""
        schedule, due = self._schedule(), interrupted.scheduled_for
        if schedule is None or due is None:
            return
        now = self.clock()
        tries = [job for job in await self.jobs.history.jobs(limit=100, kinds=["backup"]) if job.scheduled_for == due]
        if len(tries) <= RETRIES and now - due <= timedelta(hours=schedule.catch_up):
            # not remembered as served: the schedule may have changed since, and begins anew then
            await self.jobs.submit("backup", {}, origin="catch-up", scheduled_for=due)

    async def _serve(self, schedule: ScheduleSettings, due: datetime, now: datetime) -> None:
        late = now - due - delay(schedule, due, self.seed)
        if late <= ON_TIME:
            await self._queue(schedule, "schedule", due)
        elif late <= timedelta(hours=schedule.catch_up):
            log.warning("the backup of %s was missed; making up for it", due.isoformat())
            if await self._queue(schedule, "catch-up", due):
                await self.announcer.tell("schedule.missed", {"due": due.isoformat(), "made_up": True})
        else:
            log.error("the backup of %s was missed", due.isoformat())
            await self.values.set(SERVED, _served(schedule, due))
            await self.announcer.tell("schedule.missed", {"due": due.isoformat(), "made_up": False})
            if self.on_missed is not None:
                self.on_missed(due, f"the service did not run, and more than {schedule.catch_up} hours have passed")

    def _tell_once(self, due: datetime, why: str) -> None:
        """Tell that a due backup cannot be begun, once, though it is tried again."""
        if due != self._told_of and self.on_missed is not None:
            self.on_missed(due, why)
        self._told_of = due

    async def _queue(self, schedule: ScheduleSettings, origin: JobOrigin, due: datetime) -> bool:
        """Queue the backup of a due time; False when it is left out, since another is at work."""
        values = {SERVED: _served(schedule, due)}
        busy = [job for job in (self.jobs.active, *self.jobs.waiting) if job is not None and job.kind == "backup"]
        if busy:
            log.warning("the backup of %s is left out: another is at work", due.isoformat())
            await self.values.set(SERVED, values[SERVED])
            await self.announcer.tell("schedule.skipped", {"due": due.isoformat(), "job_id": busy[0].id})
            if self.on_missed is not None:
                self.on_missed(due, "another backup was still at work")
            return False
        await self.jobs.submit("backup", {}, origin=origin, scheduled_for=due, values=values)
        return True

    async def _served(self, schedule: ScheduleSettings, now: datetime) -> datetime:
        """Return the last due time that was served; a schedule that is new begins now."""
        before = await self.values.get(SERVED)
        if before is not None and before["schedule"] == _told(schedule):
            last = datetime.fromisoformat(before["due"])
            # Set back past one due time, the clock comes to it again: that was served. Past several, begin anew.
            if last <= now + ON_TIME or previous_run(schedule, last - timedelta(microseconds=1)) <= now:
                return last
            log.error("the clock was set back from after %s; the schedule begins anew", last.isoformat())
        await self.values.set(SERVED, _served(schedule, now))
        return now

    async def _look_at_the_clock(self, now: datetime) -> None:
        before, self.guard = self.guard, self.guard.look(now)
        newly_doubted = self.guard.doubted_since is not None and self.guard.doubted_since != before.doubted_since
        if newly_doubted:
            log.warning("the clock has jumped from %s to %s", before.last_seen, now)
            last = before.last_seen.isoformat() if before.last_seen else None
            await self.announcer.tell("clock.jumped", {"from": last, "to": now.isoformat()})
        rarely = before.last_seen is None or now.hour != before.last_seen.hour
        if newly_doubted or rarely or before.doubted_since != self.guard.doubted_since:
            await self.values.set(CLOCK, self.guard.as_json())

    def _sleep(self) -> float:
        due = self.next_run()
        if due is None:
            return LONGEST_SLEEP
        return min(LONGEST_SLEEP, max(0.05, (due - self.clock()).total_seconds() + 0.01))


def _told(schedule: ScheduleSettings) -> str:
    """Return what decides the due times; the same due times with another jitter are the same schedule."""
    return json.dumps(schedule.model_dump(mode="json", exclude={"jitter", "catch_up"}), sort_keys=True)


def _served(schedule: ScheduleSettings, due: datetime) -> dict[str, Any]:
    return {"schedule": _told(schedule), "due": due.isoformat()}
