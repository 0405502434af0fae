"""The methods of the socket. Each is a few lines: parameters are checked before, work is done by what is below.

A method that takes long gives a job, which goes on whatever becomes of the client; `job.get` and events tell of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from service.announcer import Announcer
from service.api import params as p
from service.api.registry import method
from service.api.views import (
    ArchivePage,
    Changed,
    Done,
    EventPage,
    Inspection,
    JobPage,
    JobView,
    Pending,
    RetentionVerdicts,
    SystemInfo,
)
from service.catalog import archive_at, list_archives, opened
from service.config import Config, ConfigFile, TargetSettings, complete, require_consistent
from service.doctor import examine
from service.errors import JobRefused, NotFound, SealError
from service.finding import Finding
from service.holding import hold, release
from service.job import Job, JobKind
from service.jobs import Jobs
from service.ledger import Ledger
from service.pipeline.unpack import peek
from service.prune import preview
from service.restore import pending
from service.restore_plan import RestorePlan, plan_restore
from service.schedule import preview as upcoming
from service.scheduler import Scheduler
from service.settings import StoredSettings, parsed, shown
from service.state import History
from service.state.history import Request
from service.target_test import try_target
from storage_backends import open_target

T = TypeVar("T")


@dataclass(slots=True)
class Methods:
    """What the methods work with. `file` and `stored` are looked at anew for each call."""

    file: Callable[[], ConfigFile]
    stored: StoredSettings
    jobs: Jobs
    history: History
    ledger: Ledger
    scheduler: Scheduler
    announcer: Announcer
    clock: Callable[[], datetime]
    boot_id: str
    started: datetime
    not_ready: Callable[[], str | None]
    schema: Callable[[], dict[str, Any]]
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @method("system.info")
    async def info(self, params: p.Nothing) -> SystemInfo:
        """Tell what service this is and how it stands."""
        file = self.file()
        return SystemInfo(
            version=version("deviceon-backup"),
            boot_id=self.boot_id,
            started=self.started,
            now=self.clock(),
            product=file.server.product,
            state_dir=str(file.state_dir),
            sealing=file.sealing.mode,
            not_ready=self.not_ready(),
            active=None if self.jobs.active is None else JobView.of(self.jobs.active, self.jobs),
            waiting=len(self.jobs.waiting),
            next_run=self.scheduler.next_run(),
            last_backup=next(iter(await self.history.jobs(limit=1, kinds=["backup"])), None),
            last_success=next(iter(await self.history.jobs(limit=1, kinds=["backup"], states=["succeeded"])), None),
            clock_doubted_since=self.scheduler.guard.doubted_since,
            restore=self._waiting_restore(),
        )

    @method("system.doctor", admin=True)
    async def doctor(self, params: p.Nothing) -> list[Finding]:
        """Try the TPM, the sources and the target, and say what has to be put right."""
        return await examine(self._config())

    @method("system.schema")
    async def describe(self, params: p.Nothing) -> dict[str, Any]:
        """Return the JSON Schema of every method and event."""
        return self.schema()

    @method("settings.get")
    async def settings(self, params: p.Nothing) -> Changed:
        """Return the System Backup settings in force, and which of them the configuration file fixes."""
        return self._settings()

    @method("settings.update", admin=True)
    async def update(self, params: p.SettingsUpdate) -> Changed:
        """Change System Backup settings. A new target is tried first; nothing changes when anything is wrong."""

        async def change() -> Changed:
            given = params.model_fields_set - {"idempotency_key"}
            file = self.file()
            changes = {name: getattr(params, name) for name in given}
            value, secrets = self.stored.changed(file.fixed, changes)
            try:
                require_consistent(file, value)
                if "target" in given and value.target is not None:
                    await _require_good(value.target)
            except BaseException:
                _remove(secrets)
                raise
            await self.stored.store(value, idle=self.jobs.active is None)
            await self.announcer.tell("settings.changed", {"changed": sorted(given)})
            self.scheduler.wake()
            return self._settings()

        async with self._changing:
            return await self._once("settings.update", params, change, again=self._settings)

    @method("target.test", admin=True)
    async def test_target(self, params: p.TargetTest) -> list[Finding]:
        """Write a small object to a target, read it back, try to overwrite, list and remove it; tell what was found."""
        if params.target is None:
            return [finding for one in self._config().targets for finding in await try_target(one)]
        # As an update would take it: a client has no more say in what is read on this machine because it only tries.
        file = self.file()
        known = file.copies if file.target is None else [file.target, *file.copies]
        async with self._changing:  # an update removes the files of secrets that it does not know
            value, secrets = self.stored.changed(frozenset(), {"target": params.target}, known)
            try:
                return await try_target(value.target) if value.target is not None else []
            finally:
                _remove(secrets)

    @method("backup.start", admin=True)
    async def backup(self, params: p.Mutation) -> Job:
        """Queue a backup."""
        return await self._submit("backup", "backup.start", params)

    @method("job.get")
    async def job(self, params: p.JobId) -> JobView:
        """Return a job, and how far it is when it runs."""
        known = await self.history.job(params.id)
        if known is None:
            raise NotFound(f"there is no job {params.id}", hint="`job.list` tells which there are.")
        return JobView.of(known, self.jobs)

    @method("job.list")
    async def list_jobs(self, params: p.JobList) -> JobPage:
        """Return a page of jobs, the newest first."""
        jobs = await self.history.jobs(
            limit=params.limit + 1, before=params.before, kinds=params.kinds, states=params.states
        )
        return JobPage(jobs[: params.limit], more=len(jobs) > params.limit)

    @method("job.cancel", admin=True)
    async def cancel(self, params: p.JobId) -> Job:
        """Cancel a job. It has the state `cancelled` when what it began is undone; too late gives an error."""
        return await self.jobs.cancel(params.id)

    @method("archive.list")
    async def archives(self, params: p.ArchiveList) -> ArchivePage:
        """Return a page of the target's archives, the newest first."""
        config = self._config().at(params.target)
        async with open_target(config.target.url, config.target.options()) as target:
            found = list(reversed(await list_archives(target, self.ledger)))
        begin = 0
        if params.before is not None:
            begin = next((at + 1 for at, entry in enumerate(found) if entry.name == params.before), len(found))
        page = found[begin : begin + params.limit]
        return ArchivePage(config.target.url, page, total=len(found), more=begin + params.limit < len(found))

    @method("archive.inspect")
    async def inspect(self, params: p.Archive) -> Inspection:
        """Return what is in an archive; without its key, what it says of itself."""
        config = self._config()
        try:
            async with opened(config, archive_at(config, params.archive, params.target)) as reader:
                return Inspection.of(reader.info, reader.header, reader.footer, reader.manifest)
        except SealError as error:
            one = config.at(params.target).target
            async with open_target(one.url, one.options()) as target:
                seen = await peek(target, params.archive)
            return Inspection.of(seen.info, seen.header, seen.footer, None, closed=str(error))

    @method("archive.verify", admin=True)
    async def verify(self, params: p.ArchiveJob) -> Job:
        """Queue the reading and authenticating of every byte of an archive."""
        return await self._submit("verify", "archive.verify", params)

    @method("archive.copy", admin=True)
    async def copy(self, params: p.ArchiveCopy) -> Job:
        """Queue a copy of an archive to another target: the sealed bytes as they are, then read back."""
        return await self._submit("copy", "archive.copy", params)

    @method("archive.hold", admin=True)
    async def hold(self, params: p.ArchiveHold) -> Done:
        """Hold an archive: it is removed neither by retention nor by hand."""

        async def do() -> Done:
            await hold(
                self._chosen(params),
                params.archive,
                reason=params.reason,
                by="socket",
                now=self.clock(),
                ledger=self.ledger,
            )
            await self.announcer.tell("archive.held", {"archive": params.archive, "reason": params.reason})
            return Done()

        return await self._once("archive.hold", params, do, again=Done)

    @method("archive.release", admin=True)
    async def release(self, params: p.ArchiveJob) -> Done:
        """End an archive's hold."""

        async def do() -> Done:
            await release(self._chosen(params), params.archive, ledger=self.ledger)
            await self.announcer.tell("archive.released", {"archive": params.archive})
            return Done()

        return await self._once("archive.release", params, do, again=Done)

    @method("archive.delete", admin=True)
    async def delete(self, params: p.ArchiveDelete) -> Job:
        """Queue the removal of an archive for good."""
        return await self._submit("delete", "archive.delete", params)

    @method("restore.plan", admin=True)
    async def plan(self, params: p.RestorePlanOf) -> RestorePlan:
        """Tell what a restore would replace, and every obstacle in its way. Touches nothing."""
        config = self._config()
        return await plan_restore(config, archive_at(config, params.archive, params.target))

    @method("restore.start", admin=True)
    async def restore(self, params: p.RestoreStart) -> Job:
        """Queue a restore. The state before is kept until restore.commit or restore.rollback."""
        return await self._submit("restore", "restore.start", params)

    @method("restore.pending")
    async def pending(self, params: p.Nothing) -> Pending | None:
        """Return the restore that waits for commit or rollback; null when there is none."""
        return self._waiting_restore()

    @method("restore.commit", admin=True)
    async def commit(self, params: p.Mutation) -> Job:
        """Queue the removal of the state before the restore, for good."""
        return await self._submit("commit", "restore.commit", params)

    @method("restore.rollback", admin=True)
    async def rollback(self, params: p.Mutation) -> Job:
        """Queue the return to the state before the restore."""
        return await self._submit("rollback", "restore.rollback", params)

    @method("retention.preview")
    async def preview_retention(self, params: p.RetentionPreview) -> RetentionVerdicts:
        """Tell which archives would be kept and removed, and why, in each target. Removes nothing."""
        config = self._chosen(params)
        if params.retention is not None:
            config = config.model_copy(update={"retention": _checked("retention", params.retention)})
        suspect = self.scheduler.clock_suspect
        return RetentionVerdicts(
            [await preview(one, ledger=self.ledger, now=self.clock(), clock_suspect=suspect) for one in config.each()]
        )

    @method("retention.apply", admin=True)
    async def apply_retention(self, params: p.RetentionApply) -> Job:
        """Queue the removal of the archives that no rule keeps."""
        return await self._submit("prune", "retention.apply", params)

    @method("schedule.preview")
    async def preview_schedule(self, params: p.SchedulePreview) -> list[datetime]:
        """Return when the next backups would start, in UTC; an empty list without a schedule."""
        settings = self.file().system_backup(self.stored.value)
        schedule = settings.schedule if settings.enabled else None
        if params.schedule is not None:
            schedule = _checked("schedule", params.schedule)
        return [] if schedule is None else upcoming(schedule, self.clock(), params.count, self.scheduler.seed)

    @method("events.list")
    async def events(self, params: p.Since) -> EventPage:
        """Return the events that are remembered after a number. `events.subscribe` sends them as they happen."""
        found = await self.history.events()
        return EventPage([event for event in found if event["seq"] > (params.since or 0)], self.boot_id)

    def _waiting_restore(self) -> Pending | None:
        journal = pending(self.file())
        if journal is None:
            return None
        names = [str(participant["name"]) for participant in journal.participants]
        return Pending(journal.id, journal.archive, journal.started, journal.state, names)

    def _chosen(self, params: p.OfTarget) -> Config:
        """Return the configuration with the target that is asked about alone, with all when none is named."""
        config = self._config()
        return config if params.target is None else config.at(params.target)

    def _config(self) -> Config:
        return complete(self.file(), self.stored.value)

    def _settings(self) -> Changed:
        file = self.file()
        return Changed(shown(file.system_backup(self.stored.value)), fixed=sorted(file.fixed))

    async def _submit(self, kind: JobKind, name: str, params: p.Mutation) -> Job:
        given = params.model_dump(exclude={"idempotency_key"})
        config = self._config()  # a job that cannot even find its target is refused at once
        for url in filter(None, (given.get("target"), given.get("source"))):
            config.at(url)
        return await self.jobs.submit(kind, given, origin="socket", request=_request(name, params))

    async def _once(
        self, name: str, params: p.Mutation, do: Callable[[], Awaitable[T]], *, again: Callable[[], T]
    ) -> T:
        """Do something, unless the same request was answered before: then return what `again` gives."""
        request = _request(name, params)
        if request is not None and await self.history.answer_before(request, self.clock()) is not None:
            return again()
        answer = await do()
        if request is not None:
            await self.history.remember_answer(request, {}, self.clock())
        return answer


def _request(name: str, params: p.Mutation) -> Request | None:
    if params.idempotency_key is None:
        return None
    # Only what was given: to leave a setting as it is and to take it away are two requests.
    given = params.model_dump(mode="json", exclude={"idempotency_key"}, exclude_unset=True)
    return Request(params.idempotency_key, name, given)


def _remove(files: list[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)


async def _require_good(target: TargetSettings) -> None:
    wrong = [finding for finding in await try_target(target) if finding.ok is False]
    if wrong:
        raise TargetNotGood(f"the target did not pass its test: {wrong[0].message}", hint=wrong[0].remedy)


class TargetNotGood(JobRefused):
    """A target that was to be set did not pass its test."""

    code = "TARGET_TEST_FAILED"


def _checked(name: str, document: dict[str, Any]) -> Any:
    """Return one System Backup setting that is only tried. Raises ConfigError."""
    return getattr(parsed({name: document}), name)
