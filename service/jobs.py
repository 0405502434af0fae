"""Jobs one after the other: queued, run, watched, cancelled, and always brought to an end that is remembered."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from service import allocator
from service.announcer import Announcer
from service.blocking import to_the_end
from service.config import ServiceSettings
from service.errors import JobRefused, NotFound, ServiceError, StateError, TooLate
from service.failure import as_json, expected
from service.job import Job, JobKind, JobOrigin, JobState
from service.job_log import JobLog
from service.log import current_job, job_listener
from service.opening import NOTHING, Opening
from service.progress import Progress
from service.state import History
from service.state.history import Request
from service.watchdog import Watchdog
from storage_backends.base import StorageError

log = logging.getLogger(__name__)
ends = logging.getLogger(f"{__name__}.ends")
"""How jobs ended; a command that ran one tells that itself."""

Result = dict[str, Any]
Work = Callable[[Job, Progress], Awaitable[Result]]
"""Does a job, returns its result. Raises ServiceError, StorageError, Partial; undoes what it began when cancelled."""

LONGEST_QUEUE = 16
LOOK_SECONDS = 0.5
REMEMBER_SECONDS = 2.0
"""What a running job says is remembered so often: each time costs a write to the disk."""
UNDO_SECONDS = 120.0
"""At least this long may nothing move while a job undoes what it began."""
HOOK_SECONDS = 60.0
"""What others do when a job begins or ends may take this long; a target that hangs does not hold up the queue."""
VERIFYING_STAGE = "read back"

_INTERRUPTED = {"code": "INTERRUPTED", "message": "the service was stopped", "hint": "", "transient": True}


class Partial(Exception):
    """The archive is there, but something after it did not happen."""

    def __init__(self, result: Result, error: ServiceError | StorageError) -> None:
        super().__init__(str(error))
        self.result = result
        self.error = error


class Stalled(ServiceError):
    """A job stopped getting on and was given up."""

    code = "STALLED"
    transient = True


class Stuck(Exception):
    """A job was given up and does not end: a thread of it hangs. Only the end of the process frees it."""


@dataclass(slots=True)
class _Running:
    job: Job
    progress: Progress
    task: asyncio.Task[Result]
    watchdog: Watchdog
    log: JobLog
    remembered: float = 0.0
    """When its log was remembered last, by the event loop's clock."""
    ended_by: Literal["", "cancel", "stop", "standstill"] = ""
    given_up: Stalled | None = None
    abandoned: bool = False


@dataclass(slots=True)
class Jobs:
    """The queue and what runs. `run` works it off; without it, `run_now` does one job for a caller that waits."""

    history: History
    announcer: Announcer
    work: Work
    settings: Callable[[], ServiceSettings]
    clock: Callable[[], datetime]
    on_start: Callable[[Job], Awaitable[None]] | None = None
    on_end: Callable[[Job], Awaitable[None]] | None = None
    _queue: deque[Job] = field(default_factory=deque)
    _more: asyncio.Event = field(default_factory=asyncio.Event)
    _submitting: asyncio.Lock = field(default_factory=asyncio.Lock)
    _running: _Running | None = None
    _openings: dict[str, Opening] = field(default_factory=dict, repr=False)

    def opening(self, identifier: str) -> Opening:
        """Return what was given to open archives with for a job that waits or runs; it is nowhere but here."""
        return self._openings.get(identifier, NOTHING)

    @property
    def active(self) -> Job | None:
        """Return the job that runs; None when there is none."""
        return self._running.job if self._running else None

    @property
    def waiting(self) -> list[Job]:
        """Return the jobs that are queued, the next one first."""
        return list(self._queue)

    async def submit(
        self,
        kind: JobKind,
        params: Mapping[str, Any],
        *,
        origin: JobOrigin,
        scheduled_for: datetime | None = None,
        request: Request | None = None,
        values: Mapping[str, Any] | None = None,
        opening: Opening = NOTHING,
    ) -> Job:
        """Queue a job; it is remembered, with `values`, before this returns. Raises JobRefused when too many wait.

        `opening` is kept in memory until the job ends.

        A request that was made before, by its idempotency key, gets the job that it got then.
        """
        async with self._submitting:  # what is remembered as queued is in the queue
            if len(self._queue) >= LONGEST_QUEUE and not await self._asked_before(request):
                raise JobRefused("too many jobs wait already", hint="Wait until some have ended, or cancel them.")
            job = self._new(kind, params, origin, scheduled_for)
            added = await self.history.add_job(job, request=request, values=values)
            if added.id == job.id:
                self._openings[job.id] = opening
                self._queue.append(job)
                self._more.set()
                await self.announcer.tell("job.queued", job.as_json(), job_id=job.id)
            return added

    async def _asked_before(self, request: Request | None) -> bool:
        return request is not None and await self.history.answer_before(request, self.clock()) is not None

    def _new(self, kind: JobKind, params: Mapping[str, Any], origin: JobOrigin, due: datetime | None) -> Job:
        return Job(
            id=secrets.token_hex(8),
            kind=kind,
            origin=origin,
            state="queued",
            created=self.clock(),
            params=dict(params),
            scheduled_for=due,
        )

    async def run(self) -> None:
        """Work off the queue until cancelled; the job that runs then is stopped first. Raises Stuck."""
        while True:
            while not self._queue:
                self._more.clear()
                await self._more.wait()
            await self._run(self._queue.popleft(), Progress())
            await asyncio.to_thread(allocator.give_back)

    async def run_now(
        self, kind: JobKind, params: Mapping[str, Any], progress: Progress, *, opening: Opening = NOTHING
    ) -> Job:
        """Do one job while the caller waits; return it ended. When cancelled, it is stopped in good order first."""
        job = await self.history.add_job(self._new(kind, params, "command line", None))
        self._openings[job.id] = opening
        return await self._run(job, progress)

    async def cancel(self, identifier: str) -> Job:
        """Cancel a job; it ends as `cancelled` once it has undone what it began. Returns it as it is now.

        Raises NotFound, and TooLate when it has ended or cannot be stopped any more.
        """
        async with self._submitting:
            waiting = next((job for job in self._queue if job.id == identifier), None)
            if waiting is not None:
                self._queue.remove(waiting)
        if waiting is not None:
            return await self._end(waiting, "cancelled")
        running = self._running
        if running is not None and running.job.id == identifier:
            if running.progress.past_cancelling:
                raise TooLate(
                    f"the {running.job.kind} is past the point where it could be cancelled ({running.progress.stage})",
                    hint="Wait for its end. An archive can then be deleted, a restore be rolled back.",
                )
            self._stop(running, "cancel")
            return running.job
        known = await self.history.job(identifier)
        if known is None:
            raise NotFound(f"there is no job {identifier}", hint="`job.list` tells which there are.")
        raise TooLate(f"the job has ended already ({known.state})", hint="There is nothing to cancel.")

    def abandon(self) -> None:
        """Have `run` raise Stuck: the job that runs was stopped and has had its time."""
        if self._running is not None:
            self._running.abandoned = True

    def how_far(self, identifier: str) -> dict[str, Any] | None:
        """Return how far a job is; None when it does not run."""
        running = self._running
        return told(running.progress) if running is not None and running.job.id == identifier else None

    async def _run(self, job: Job, progress: Progress) -> Job:
        job = job.but(state="running", started=self.clock())
        tell, identifier = progress.on_step, job.id
        said = JobLog(self.clock, progress)

        def on_step(sentence: str) -> None:
            tell(sentence)
            said.step(sentence)
            self.announcer.progress(identifier, told(progress) | {"message": sentence})

        progress.on_step = on_step
        task = asyncio.create_task(self._do(job, progress, said), name=f"job {job.id}")
        self._running = running = _Running(job, progress, task, self._watchdog(), said)
        stopped: asyncio.CancelledError | None = None
        try:
            while not task.done():
                try:
                    await asyncio.wait({task}, timeout=LOOK_SECONDS)
                    await self._look(running)
                except asyncio.CancelledError as error:
                    stopped = error
                    self._stop(running, "stop")
            try:
                await to_the_end(self._remember_log(running))
            except asyncio.CancelledError as error:  # what became of the job has to be remembered all the same
                stopped = error
        finally:
            self._running = None
        ended = await self._outcome(running)
        if stopped is not None:
            raise stopped
        return ended

    async def _do(self, job: Job, progress: Progress, said: JobLog) -> Result:
        current_job.set(job.id)
        job_listener.set(said.add)
        await self.announcer.job(job)
        await self._hook(self.on_start, job)
        log.info("%s begins", job.kind)
        return await self.work(job, progress)

    async def _look(self, running: _Running) -> None:
        """Tell how far the job is, and end it when it has stopped getting on."""
        if running.task.done():
            return
        progress = running.progress
        if progress.stage == VERIFYING_STAGE and running.job.state == "running":
            running.job = running.job.but(state="verifying")
            await self.announcer.job(running.job)
        self.announcer.progress(running.job.id, told(progress))
        now = asyncio.get_running_loop().time()
        if now - running.remembered >= REMEMBER_SECONDS:
            running.remembered = now
            await self._remember_log(running)
        stood = running.watchdog.standstill(progress, asyncio.get_running_loop().time())
        if running.abandoned:
            await self._end(running.job, "interrupted", error=_INTERRUPTED)
            raise Stuck(f"{running.job.kind} {running.job.id} does not stop while {_stage(progress)}")
        if stood is None:
            return
        running.given_up = running.given_up or self._stalled(running)
        if running.ended_by:
            await self._end(running.job, "failed", error=as_json(running.given_up))
            raise Stuck(f"{running.job.kind} {running.job.id} does not stop while {_stage(progress)}")
        log.error("%s %s: %s", running.job.kind, running.job.id, running.given_up)
        self._stop(running, "standstill")

    async def _remember_log(self, running: _Running) -> None:
        """Remember what the job has said; a memory that cannot be written does not stop it."""
        try:
            await self.history.logs.add(running.job.id, running.log.take())
        except StateError as error:
            log.error("cannot remember what %s %s says: %s", running.job.kind, running.job.id, error)

    def _stop(self, running: _Running, by: Literal["cancel", "stop", "standstill"]) -> None:
        # Once is enough: what runs now may already be the way back, which must not be cut short.
        if not running.ended_by:
            running.ended_by = by
            running.watchdog = self._watchdog(least=UNDO_SECONDS)  # the way back gets its own time
            running.task.cancel()

    def _watchdog(self, *, least: float = 0.0) -> Watchdog:
        settings = self.settings()
        return Watchdog(max(settings.no_progress_timeout, least), max(settings.quiet_timeout, least))

    async def _outcome(self, running: _Running) -> Job:
        job, task = running.job, running.task
        if task.cancelled() and running.ended_by:
            return await self._end_cancelled(running)
        # A job that ends as cancelled although nobody asked for that has failed.
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            return await self._end(job, "succeeded", result=task.result())
        if isinstance(error, Partial):
            return await self._end(job, "partial", result=error.result, error=as_json(error.error))
        if expected(error) is None:
            log.error("%s %s failed unexpectedly", job.kind, job.id, exc_info=error)
        return await self._end(job, "failed", error=as_json(error))

    async def _end_cancelled(self, running: _Running) -> Job:
        job = running.job
        if running.given_up is not None:
            return await self._end(job, "failed", error=as_json(running.given_up))
        if running.ended_by == "stop" and job.origin != "command line":
            return await self._end(job, "interrupted", error=_INTERRUPTED)
        return await self._end(job, "cancelled")

    def _stalled(self, running: _Running) -> Stalled:
        settings, progress = self.settings(), running.progress
        setting = "quiet_timeout" if progress.quiet else "no_progress_timeout"
        return Stalled(
            f"nothing moved for {getattr(settings, setting):.0f} s while {_stage(progress)},"
            f" so the {running.job.kind} was given up",
            hint=f"Look whether the target and PostgreSQL answer; `service.{setting}` sets how long to wait.",
        )

    async def _end(self, job: Job, state: JobState, *, result: Result | None = None, error: Any = None) -> Job:
        self._openings.pop(job.id, None)
        job = job.but(state=state, ended=self.clock(), result=result, error=error)
        try:
            await to_the_end(self.announcer.job(job))
        finally:  # a service that stops just now still says how the job ended
            _log_end(job)
            await self._hook(self.on_end, job)
        return job

    async def _hook(self, hook: Callable[[Job], Awaitable[None]] | None, job: Job) -> None:
        """Do what others want done at this point; whatever becomes of it, the jobs go on."""
        try:
            if hook is not None:
                async with asyncio.timeout(HOOK_SECONDS):
                    await hook(job)
        except (ServiceError, StorageError) as problem:
            log.error("at %s %s: %s", job.kind, job.id, problem)
        except Exception:
            log.exception("at %s %s: this went wrong unexpectedly", job.kind, job.id)


def _stage(progress: Progress) -> str:
    return progress.stage or "starting"


def _log_end(job: Job) -> None:
    good = job.state in ("succeeded", "cancelled")
    error = job.error or {}
    fields = {"kind": job.kind, "state": job.state, "seconds": job.seconds, "code": error.get("code")}
    token = current_job.set(job.id)
    ends.log(
        logging.INFO if good else logging.ERROR,
        "%s %s%s",
        job.kind,
        job.state,
        f": {error['message']}" if error else "",
        extra={"fields": {name: value for name, value in fields.items() if value is not None}},
    )
    current_job.reset(token)


def told(progress: Progress) -> dict[str, Any]:
    """Return how far a job is, for clients: bytes, bytes per second, seconds, and how far it is in each target."""
    eta = progress.eta
    return {
        "stage": progress.stage,
        "raw_bytes": progress.raw,
        "stored_bytes": progress.stored,
        "expected_raw_bytes": progress.expected_raw or None,
        "rate": round(progress.rate),
        "eta_seconds": None if eta is None else round(eta, 1),
        "targets": [{"url": url, "state": state, "why": why} for url, (state, why) in progress.targets.items()],
    }
