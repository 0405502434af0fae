"""The long-running service: settle what was left, then take commands, keep the schedule, and stop well."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import NoReturn

from service import allocator, drill, drill_report, measuring
from service.app import App, opened
from service.backup import utc_now
from service.config import ConfigFile, require_consistent
from service.config_monitoring import address
from service.config_types import Person
from service.errors import ConfigError, JobRefused, ServiceError
from service.http import status_server
from service.job import ENDED, Job, JobKind
from service.jobs import Stuck
from service.metrics import Metrics
from service.notify import Notifier
from service.old_state import OldState
from service.progress import Progress
from service.recovery_choice import NO_RECOVERY, without_recovery
from service.restore import recover
from service.rpc.activation import handed_over
from service.rpc.peers import AllowedNames, AllowedUsers, uid_of
from service.rpc.server import RpcServer
from service.rpc.tls import TlsFiles
from service.state_directory import only_job, only_service
from service.supervisor import Supervisor
from storage_backends.base import StorageError

log = logging.getLogger(__name__)

LOOK_SECONDS = 60.0
MEASURE_EVERY = 10
SETTLE_AGAIN, SETTLE_SELDOM = 1, 60
"""How many looks pass before settling is tried again: at first, and after many failures."""


async def serve(
    read: Callable[[], ConfigFile],
    *,
    stop: asyncio.Event,
    reload: asyncio.Event,
    abandon: Callable[[str], NoReturn],
    clock: Callable[[], datetime] = utc_now,
) -> None:
    """Run the service until `stop` is set; `reload` has the configuration file read again.

    `abandon` ends the process at once: it is called when a job hangs, since leaving in good order would wait for it.
    Raises ConfigError and JobRefused when the service cannot begin.
    """
    allocator.use_one_arena()
    file = read()
    with only_service(file.state_dir):
        async with opened(file, clock=clock) as app:
            await _Service(app, read, stop, reload, abandon).run()


@dataclass(slots=True)
class _Service:
    app: App
    read: Callable[[], ConfigFile]
    stop: asyncio.Event
    reload: asyncio.Event
    abandon: Callable[[str], NoReturn]
    metrics: Metrics = field(default_factory=Metrics)
    supervisor: Supervisor = field(default_factory=lambda: Supervisor.taken_from(os.environ))
    notifier: Notifier = field(init=False)
    settled: bool = False
    backed_up: bool = False
    patience: int = SETTLE_AGAIN
    waited: int = 0
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    looked_for: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the target is to be looked at now."""

    async def run(self) -> None:
        app, file = self.app, self.app.file
        interrupted = await self._interrupt_unfinished()
        self.notifier = Notifier(file.notifications, file.dead_man, server=f"{file.server.product} on {os.uname()[1]}")
        app.jobs.on_start, app.jobs.on_end = self._job_started, self._job_ended
        app.scheduler.on_missed = self._missed
        await measuring.seed(app, self.metrics)
        await app.stored.remove_unused_secrets()
        if without_recovery(file):
            log.warning("%s (docs/KEYS.md)", NO_RECOVERY)
        async with self.notifier, self._listening(), asyncio.TaskGroup() as tasks:
            working = tasks.create_task(self._work(interrupted))
            others = [
                tasks.create_task(self._keep_schedule()),
                tasks.create_task(self._keep_config()),
                tasks.create_task(self._look_at_target()),
            ]
            alive = tasks.create_task(self.supervisor.keep_alive())
            log.info("ready for commands on %s", file.service.socket)
            self.supervisor.ready()
            await self.stop.wait()
            app.not_ready = "stopping"
            log.info("stopping")
            self.supervisor.stopping(file.service.stop_timeout)
            for task in others:
                task.cancel()
            await self._stop_working(working)
            alive.cancel()

    @contextlib.asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        settings, app = self.app.file.service, self.app
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(RpcServer(app.api, app.hub))
            users = _users(settings.admins, settings.readers)
            given = handed_over(os.environ)
            await server.serve_unix(settings.socket, users, group=settings.socket_group, given=given)
            if settings.tls is not None:
                host, port = address(settings.tls.listen)
                files = TlsFiles(settings.tls.certificate_file, settings.tls.key_file, settings.tls.client_ca_file)
                names = AllowedNames(frozenset(settings.tls.admins), frozenset(settings.tls.readers))
                await server.serve_tls(host, port, files, names)
            if app.file.http.listen is not None:
                await stack.enter_async_context(status_server(app.file.http.listen, metrics=self.metrics, health=self))
            yield

    def alive(self) -> str | None:
        """Say that the service lives: what answers here is what works through jobs."""
        return None

    def ready(self) -> str | None:
        """Say why no jobs are taken; None when they are."""
        return self.app.not_ready

    async def _interrupt_unfinished(self) -> list[Job]:
        """End the jobs that the last life of the service left."""
        ended = []
        error = {
            "code": "INTERRUPTED",
            "message": "the service ended before the job did",
            "hint": "What it had begun is undone when the service starts again, but for a restore that was exchanged: "
            "`deviceon-backup status` tells whether one waits for commit or rollback.",
            "transient": True,
        }
        running_elsewhere = await asyncio.to_thread(_job_runs, self.app.file.state_dir)
        for unfinished in await self.app.history.unfinished():
            if running_elsewhere and unfinished.origin == "command line":
                continue
            job = unfinished.but(state="interrupted", ended=self.app.clock(), error=error)
            await self.app.announcer.job(job)
            ended.append(job)
        await self.app.announcer.tell("service.started", {"interrupted": [job.id for job in ended]})
        return ended

    async def _work(self, interrupted: list[Job]) -> None:
        """Settle first; then make up for a backup that was interrupted; then whatever is asked for."""
        await self._submit_settle()
        for job in interrupted:
            self.metrics.job_ended(job)
            with _logged("telling of what was interrupted"):
                self._notify(job, await self._previous(job))
        with _logged("making up for what was interrupted"):
            for occasion in self.app.scheduler.occasions:
                jobs = await self.app.history.jobs(limit=50, kinds=[occasion.kind])
                last = next((job for job in jobs if job.scheduled_for is not None), None)
                if last is not None and last.state == "interrupted":
                    await self.app.scheduler.retry(last)
        self.app.not_ready = None
        self.begun.set()
        try:
            await self.app.jobs.run()
        except Stuck as stuck:
            self.abandon(str(stuck))

    async def _submit_settle(self) -> None:
        if self.app.file.system_backup(self.app.stored.value).target is None:
            log.warning("no target is set yet: `deviceon-backup settings set` does that")
            self.settled = True
            with _logged("recovering a restore"):
                await recover(self.app.file, progress=Progress())
                await drill.recover(self.app.file, progress=Progress())
            return
        with _logged("settling"):
            await self.app.jobs.submit("settle", {}, origin="service")

    async def _stop_working(self, working: asyncio.Task[None]) -> None:
        timeout = self.app.file.service.stop_timeout
        working.cancel()
        done, _ = await asyncio.wait({working}, timeout=timeout)
        if not done:
            log.error("what runs did not stop within %g s", timeout)
            self.app.jobs.abandon()
            working.cancel()
            await asyncio.wait({working})

    async def _keep_schedule(self) -> None:
        await self.begun.wait()
        await self.app.scheduler.run()

    async def _keep_config(self) -> None:
        """Read the configuration file again when asked; keep the old one when the new one is wrong."""
        while True:
            await self.reload.wait()
            self.reload.clear()
            try:
                file = await asyncio.to_thread(self.read)
                _require_same_place(self.app.file, file)
                require_consistent(file, self.app.stored.value)
                self.app.file = file
            except ConfigError as error:
                log.error("nothing of the configuration was read again: %s (%s)", error, error.hint)
                continue
            except Exception:
                log.exception("reading the configuration again went wrong unexpectedly")
                continue
            log.info("the configuration was read again")
            self.app.scheduler.wake()

    async def _look_at_target(self) -> None:
        """Keep the metrics of the target true, settle again what could not be settled, and forget old jobs."""
        looks = 0
        while True:
            try:
                if self.looked_for.is_set() or looks % MEASURE_EVERY == 0:
                    self.looked_for.clear()
                    await measuring.measure(self.app, self.metrics)
                    await self._prove_one_more()
                    await self._forget_old_jobs()
                await self._look_at_old_state()
                if self._idle() and self.waited >= self.patience:
                    self.patience, self.waited = min(self.patience * 2, SETTLE_SELDOM), 0
                    if not self.settled:
                        await self._submit_settle()
                    await self._make_good()
            except (ServiceError, StorageError) as error:
                log.error("looking after the targets failed: %s", error)
            except Exception:
                log.exception("looking after the target went wrong unexpectedly")
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self.looked_for.wait()
            except TimeoutError:
                looks += 1
                self.waited += 1

    async def _look_at_old_state(self) -> None:
        app = self.app
        if self._idle() and not app.scheduler.clock_suspect:
            old = OldState(app.jobs, app.history, app.values, app.announcer, self.notifier.expiring)
            await old.look(app.file, now=app.clock())

    def _idle(self) -> bool:
        return self.app.jobs.active is None and not self.app.jobs.waiting

    async def _forget_old_jobs(self) -> None:
        if not self.app.scheduler.clock_suspect:
            with _logged("forgetting old jobs"):
                before = self.app.clock() - timedelta(days=self.app.file.service.keep_history)
                await self.app.history.forget(before)
                await asyncio.to_thread(drill_report.forget, self.app.file.state_dir, before)

    async def _job_started(self, job: Job) -> None:
        self.metrics.job_started(job)
        self.notifier.job_started(job)

    async def _job_ended(self, job: Job) -> None:
        self.metrics.job_ended(job)
        if job.kind == "settle":
            self.settled = job.state == "succeeded"
        elif job.kind != "copy" or job.origin != "service":  # that a target missed an archive was told already
            self._notify(job, await self._previous(job))
        if job.kind == "copy" and job.state == "succeeded":
            self.patience = self.waited = SETTLE_AGAIN  # that target works again: the next one at once
        if job.kind == "drill" and await asyncio.to_thread(drill.unfinished, self.app.file):
            self.settled = False  # something it has made is still there
        self.backed_up |= job.kind == "backup" and job.state in ("succeeded", "partial")
        self.looked_for.set()

    def _notify(self, job: Job, previous: Job | None) -> None:
        self.notifier.job_ended(job, previous, next_run=self.app.scheduler.next_run())

    async def _previous(self, job: Job) -> Job | None:
        """Return the job of the same kind before this one, that ended of itself."""
        ended = sorted(ENDED - {"cancelled"})
        found = await self.app.history.jobs(limit=1, before=job.id, kinds=[job.kind], states=ended)
        return found[0] if found else None

    def _missed(self, kind: JobKind, due: datetime, reason: str) -> None:
        self.metrics.missed(kind, self.app.clock())
        self.notifier.missed(kind, due, reason, next_run=self.app.scheduler.next_run())

    async def _prove_one_more(self) -> None:
        """After a backup, read one archive of which nothing is known here: only verified ones count for retention."""
        if not self.backed_up:
            return
        self.backed_up = False
        tried = {
            (job.params.get("target"), job.params.get("archive"))
            for job in await self.app.history.jobs(limit=500, kinds=["verify"])
            if job.state == "succeeded"
            or str((job.error or {}).get("code")).startswith(("ARCHIVE", "SEAL", "TPM_WRONG", "TPM_CLEARED"))
        }
        for one in self.app.config().each():
            url = one.target.url
            for entry in reversed(await measuring.archives(self.app, one)):
                wanted = entry.evidence in ("unknown", "written") and entry.problem is None
                if wanted and (url, entry.name) not in tried:
                    await self.app.jobs.submit("verify", {"archive": entry.name, "target": url}, origin="service")
                    return

    async def _make_good(self) -> None:
        """Copy what a target has missed, one archive at a time."""
        owed = await self.app.pending.all()
        if owed:
            name, target = owed[0]
            await self.app.jobs.submit("copy", {"archive": name, "target": target}, origin="service")


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    """Log what goes wrong on the side, such as a full disk under the memory: no job that runs may end for it."""
    try:
        yield
    except ServiceError as error:
        log.error("%s failed: %s", what, error)
    except Exception:
        log.exception("%s failed unexpectedly", what)


def _job_runs(state_dir: Path) -> bool:
    """Tell whether a job of another process is at work: the command line's."""
    try:
        with only_job(state_dir, "a look"):
            return False
    except JobRefused:
        return True


def _users(admins: list[Person], readers: list[Person]) -> AllowedUsers:
    def uids(people: list[Person]) -> set[int]:
        return {uid_of(who, named_in="service.admins or service.readers") for who in people}

    return AllowedUsers(frozenset({0, os.geteuid()} | uids(admins)), frozenset(uids(readers)))


def _require_same_place(before: ConfigFile, after: ConfigFile) -> None:
    """Refuse what cannot be changed while the service runs."""
    fixed = [
        name
        for name, one, other in (
            ("state_dir", before.state_dir, after.state_dir),
            ("service", before.service, after.service),
            ("http", before.http, after.http),
            ("notifications", before.notifications, after.notifications),
            ("dead_man", before.dead_man, after.dead_man),
        )
        if one != other
    ]
    if fixed:
        raise ConfigError(f"{', '.join(fixed)} cannot be changed while the service runs", hint="Restart the service.")
