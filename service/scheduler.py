"""Starts what is due by a schedule, once for each due time; makes up for what was missed.

There are several occasions (backups, drills), each with a schedule of its own. What was due is remembered in the
transaction that queues the job, so no due time is served twice, whenever the service is killed. Sleeps are short: a
machine that was asleep, or whose clock was set, is noticed within a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from service.announcer import Announcer
from service.clock_guard import ClockGuard
from service.errors import ServiceError
from service.job import Job, JobKind, JobOrigin
from service.jobs import Jobs
from service.schedule import ScheduleSettings, delay, next_run, previous_run
from service.state import Gap, Values

log = logging.getLogger(__name__)

LONGEST_SLEEP = 60.0
ON_TIME = timedelta(minutes=2)
"""A run that begins within this of its due time was not missed."""
RETRIES = 1
"""How often a scheduled job that was interrupted is made up for."""

SERVED, CLOCK = "schedule.served", "clock"


@dataclass(slots=True)
class Occasion:
    """Jobs of one kind that begin by a schedule of their own; `schedule` returns the one in force, None for never."""

    kind: JobKind
    schedule: Callable[[], ScheduleSettings | None]
    served_until: datetime | None = None
    """The last due time that was served, once it is known."""
    told_of: datetime | None = None
    """The due time that could not be served and of which this was told."""

    @property
    def served(self) -> str:
        """Return the name under which the last due time that was served is remembered."""
        return SERVED if self.kind == "backup" else f"{SERVED}.{self.kind}"

    def seed(self, installation: str) -> str:
        """Return what decides this occasion's jitter: jobs of different kinds at one time do not begin together."""
        return installation if self.kind == "backup" else f"{installation}/{self.kind}"


@dataclass(slots=True)
class Scheduler:
    """Looks at the schedules in force. `seed` is this installation's own, for their jitter.

    `on_missed` is told of a due time that brought no job: its kind, when it was, why.
    """

    jobs: Jobs
    values: Values
    announcer: Announcer
    occasions: Sequence[Occasion]
    clock: Callable[[], datetime]
    seed: str
    on_missed: Callable[[JobKind, datetime, str], None] = lambda *_: None
    guard: ClockGuard = field(default_factory=ClockGuard)
    _running: bool = False
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
        """Start what is due by now. One occasion that goes wrong does not keep the others from their time."""
        now = self.clock()
        await self._look_at_the_clock(now)
        problems: list[ServiceError] = []
        for occasion in self.occasions:
            try:
                await self._look_at(occasion, now)
            except ServiceError as error:
                problems.append(error)
        if problems:
            raise problems[0]

    async def _look_at(self, occasion: Occasion, now: datetime) -> None:
        schedule = occasion.schedule()
        if schedule is None:
            if await self.values.get(occasion.served) is not None:
                await self.values.set(occasion.served, None)
            return
        seed = occasion.seed(self.seed)
        occasion.served_until = await self._served(occasion, schedule, now)
        due = previous_run(schedule, now)
        if due > occasion.served_until and now < due + delay(schedule, due, seed):
            # put off by its jitter; the run before it may still be owed
            due = previous_run(schedule, due - timedelta(microseconds=1))
        if due > occasion.served_until:
            try:
                await self._serve(occasion, schedule, due, now)
            except ServiceError as error:
                self._tell_once(occasion, due, str(error))
                raise
            occasion.served_until = due

    def next_run(self, kind: JobKind = "backup") -> datetime | None:
        """Return when the next job of a kind starts by itself; None when none does."""
        occasion = self._occasion(kind)
        schedule = occasion.schedule() if occasion else None
        if occasion is None or schedule is None:
            return None
        now = self.clock()
        due = previous_run(schedule, now)
        if occasion.served_until is None or due <= occasion.served_until:
            due = next_run(schedule, now)
        return due + delay(schedule, due, occasion.seed(self.seed))

    def _occasion(self, kind: JobKind) -> Occasion | None:
        return next((occasion for occasion in self.occasions if occasion.kind == kind), None)

    async def retry(self, interrupted: Job) -> None:
        """Make up for a scheduled job that was interrupted, once."""
        kind, due, occasion = interrupted.kind, interrupted.scheduled_for, self._occasion(interrupted.kind)
        schedule = occasion.schedule() if occasion else None
        if schedule is None or due is None:
            return
        now = self.clock()
        tries = [job for job in await self.jobs.history.jobs(limit=100, kinds=[kind]) if job.scheduled_for == due]
        if len(tries) <= RETRIES and now - due <= timedelta(hours=schedule.catch_up):
            # not remembered as served: the schedule may have changed since, and begins anew then
            await self.jobs.submit(kind, {}, origin="catch-up", scheduled_for=due)

    async def _serve(self, occasion: Occasion, schedule: ScheduleSettings, due: datetime, now: datetime) -> None:
        late = now - due - delay(schedule, due, occasion.seed(self.seed))
        given_up = late > max(ON_TIME, timedelta(hours=schedule.catch_up))
        before = previous_run(schedule, due - timedelta(microseconds=1))
        await self._remember_gap(occasion, schedule, until=due if given_up else before)
        if late <= ON_TIME:
            await self._queue(occasion, schedule, "schedule", due)
        elif not given_up:
            log.warning("the %s of %s was missed; making up for it", occasion.kind, due.isoformat())
            if await self._queue(occasion, schedule, "catch-up", due):
                await self._tell("missed", occasion, due, made_up=True)
        else:
            log.error("the %s of %s was missed", occasion.kind, due.isoformat())
            await self.values.set(occasion.served, _served(schedule, due))
            await self._tell("missed", occasion, due, made_up=False)
            self.on_missed(
                occasion.kind, due, f"the service did not run, and more than {schedule.catch_up} hours have passed"
            )

    async def _remember_gap(self, occasion: Occasion, schedule: ScheduleSettings, *, until: datetime) -> None:
        """Remember that what was due since the last time that was served, up to `until`, did not happen."""
        since = occasion.served_until
        if since is not None and until > since:
            document = schedule.model_dump(mode="json", exclude_none=True)
            await self.jobs.history.gaps.add(Gap(occasion.kind, since, until, document))

    async def _tell(self, what: str, occasion: Occasion, due: datetime, **more: Any) -> None:
        await self.announcer.tell(f"schedule.{what}", {"kind": occasion.kind, "due": due.isoformat(), **more})

    def _tell_once(self, occasion: Occasion, due: datetime, why: str) -> None:
        """Tell that a due job cannot be begun, once, though it is tried again."""
        if due != occasion.told_of:
            self.on_missed(occasion.kind, due, why)
        occasion.told_of = due

    async def _queue(self, occasion: Occasion, schedule: ScheduleSettings, origin: JobOrigin, due: datetime) -> bool:
        """Queue the job of a due time; False when it is left out, since another of its kind is at work."""
        values = {occasion.served: _served(schedule, due)}
        busy = [job for job in (self.jobs.active, *self.jobs.waiting) if job is not None and job.kind == occasion.kind]
        if busy:
            log.warning("the %s of %s is left out: another is at work", occasion.kind, due.isoformat())
            await self.values.set(occasion.served, values[occasion.served])
            await self._tell("skipped", occasion, due, job_id=busy[0].id)
            self.on_missed(occasion.kind, due, f"another {occasion.kind} was still at work")
            return False
        await self.jobs.submit(occasion.kind, {}, origin=origin, scheduled_for=due, values=values)
        return True

    async def _served(self, occasion: Occasion, schedule: ScheduleSettings, now: datetime) -> datetime:
        """Return the last due time that was served; a schedule that is new begins now."""
        before = await self.values.get(occasion.served)
        if before is not None and before["schedule"] == _told(schedule):
            last = datetime.fromisoformat(before["due"])
            # Set back past one due time, the clock comes to it again: that was served. Past several, begin anew.
            if last <= now + ON_TIME or previous_run(schedule, last - timedelta(microseconds=1)) <= now:
                return last
            log.error("the clock was set back from after %s; the schedule begins anew", last.isoformat())
        await self.values.set(occasion.served, _served(schedule, now))
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
        due = [when for occasion in self.occasions if (when := self.next_run(occasion.kind)) is not None]
        if not due:
            return LONGEST_SLEEP
        return min(LONGEST_SLEEP, max(0.05, (min(due) - self.clock()).total_seconds() + 0.01))


def _told(schedule: ScheduleSettings) -> str:
    """Return what decides the due times; the same due times with another jitter are the same schedule."""
    return json.dumps(schedule.model_dump(mode="json", exclude={"jitter", "catch_up"}), sort_keys=True)


def _served(schedule: ScheduleSettings, due: datetime) -> dict[str, Any]:
    return {"schedule": _told(schedule), "due": due.isoformat()}
