"""THE RECIPE BACK: refuse early, stage beside the live data, check, exchange, keep the old state until told.

Live data is not touched before every byte was authenticated and every copy was compared with the manifest. From
there on the journal says what was about to happen, so that a failure, a crash or `rollback` brings the old state back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service import sources
from service.backup import utc_now
from service.blocking import run_in_thread
from service.catalog import opened
from service.config import Config, ConfigFile
from service.drill import tidy_before_restore
from service.errors import (
    HookFailed,
    JobRefused,
    RestoreError,
    RestoreRefused,
    ServerNotStarted,
    ServiceError,
    SwapFailed,
    Unhealthy,
)
from service.exclusive import servers_locked
from service.hooks import ServerHooks
from service.journal import Journal, journals
from service.pipeline.unpack import ArchiveReader
from service.progress import Progress
from service.restore_plan import plan_changed, plan_for, preserved, require_allowable
from service.restore_report import Attention, Report, hardware_of, reported, write
from service.selection import EVERYTHING, Selection
from service.sources.base import PlanItem, Restorer, StoredSource
from service.state_directory import only_job

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """A restore that was exchanged into place; `restore_id` names it for commit and rollback.

    `seconds` is wall time, `stages` says how much of it each stage took.
    """

    restore_id: str
    archive: str
    items: list[PlanItem]
    seconds: float
    stages: dict[str, float]
    raw_bytes: int = 0
    attention: list[Attention] = field(default_factory=list)
    """What somebody has to know or do; the report in the state directory has it too."""


async def restore(
    config: Config,
    archive: str,
    *,
    allow: frozenset[str] = frozenset(),
    select: Selection = EVERYTHING,
    token: str | None = None,
    progress: Progress,
) -> RestoreResult:
    """Restore what is selected of an archive; `allow` are obstacle codes to go ahead in spite of.

    `token` is of a plan that somebody has looked at: the restore is refused when it finds something else.

    When this returns, the restored state is live and the old state is kept until `commit` or `rollback`. When it
    raises, live data is as it was. Raises RestoreRefused before anything was touched; StageFailed, SwapFailed,
    ServiceError, StorageError after the copies were removed again.
    """
    started = utc_now()
    require_allowable(allow)
    with only_job(config.state_dir, "a restore"):
        await _recover(config, progress)
        _require_settled(config)
        await tidy_before_restore(config, progress)
        async with opened(config, archive) as reader:
            progress.begin("plan", f"Checking what restoring {archive} would do")
            plan = await plan_for(config, reader, archive, select=select)
            if blocking := [obstacle for obstacle in plan.obstacles if obstacle.code not in allow]:
                raise RestoreRefused(blocking)
            if token is not None and token != plan.token:
                raise RestoreRefused([plan_changed()])
            journal = Journal.begin(config.state_dir, archive=archive, started=started.isoformat())
            hooks = _hooks(config, journal)
            wanted = select.of(reader.sources())
            servers = [sources.settings_for(config, stored) for stored in wanted]
            async with servers_locked(servers, "a restore"):
                try:
                    await _stage(config, reader, wanted, journal, progress)
                    await _stop(journal, hooks, progress)
                    await _swap(journal, progress)
                    hardware = hardware_of(reader)
                    if hardware != "same":
                        await hooks.reissue_secrets(hardware, progress)
                    await _start(journal, hooks, progress)
                    journal.swapped = utc_now().isoformat()
                    await journal.save("swapped")
                    progress.past_cancelling = True
                except BaseException as error:
                    await _finish(_undo_failed(journal, hooks, error, progress))
                    raise
            report = reported(config, plan, reader, wanted, journal, progress.warnings)
            await _finish(_tell(config, report, progress))
    seconds = (utc_now() - started).total_seconds()
    raw = sum(stream.bytes for stored in wanted for stream in stored.streams)
    return RestoreResult(journal.id, archive, plan.items, seconds, progress.end(), raw, report.attention)


async def _tell(config: Config, report: Report, progress: Progress) -> None:
    """Write the report. It is no part of the restore: one that cannot be written is told."""
    try:
        progress.say(f"The report is {await run_in_thread(write, config.state_dir, report)}")
    except (OSError, ServiceError) as error:
        _warn(progress, f"The report could not be written: {error}")


def _require_settled(config: Config) -> None:
    if waiting := journals(config.state_dir):
        raise JobRefused(
            f"the restore of {waiting[0].archive} still keeps the state before it",
            hint="`deviceon-backup commit` removes that old state, `deviceon-backup rollback` returns to it.",
        )


async def _stage(
    config: Config,
    reader: ArchiveReader,
    stored_sources: Sequence[StoredSource],
    journal: Journal,
    progress: Progress,
) -> None:
    preserve = preserved(config, reader, journal.archive)
    progress.begin(
        "stage", "Restoring beside the live data", expected_raw=sum(s.bytes for x in stored_sources for s in x.streams)
    )
    for stored in sorted(stored_sources, key=lambda stored: sources.SWAP_ORDER.index(stored.type)):
        settings = sources.settings_for(config, stored)
        record = journal.add(stored.name, settings.model_dump(mode="json"), [str(path) for path in preserve])
        restorer = sources.restorer(settings, preserve)
        await restorer.stage(stored, reader, record, journal.save, progress)


async def _stop(journal: Journal, hooks: ServerHooks, progress: Progress) -> None:
    """Stop the server, which must leave everything that is needed for the exchange."""
    if hooks.settings.stop is None:
        return
    progress.begin("stop", "Everything is staged and checked; the server is stopped for the exchange")
    journal.hooks_begun = True
    await journal.save("stopping")
    await hooks.stop("restore", progress)
    for participant in journal.participants:
        try:
            await _restorer(participant).ready(participant["record"])
        except ServiceError as error:
            raise HookFailed(
                f"after the stop hook, {participant['name']} cannot be restored any more: {error}",
                hint="The stop hook must stop the server's applications, and leave PostgreSQL running.",
            ) from error


async def _swap(journal: Journal, progress: Progress) -> None:
    progress.begin("swap", "Everything is staged and checked; exchanging it with the live data")
    await journal.save("swapping")
    for participant in journal.participants:
        await _restorer(participant).swap(participant["record"], journal.save)


async def _start(journal: Journal, hooks: ServerHooks, progress: Progress) -> None:
    """Start the server on what was restored, and see that it works."""
    if not hooks.configured:
        return
    progress.begin("start", "Everything is exchanged; now the server has to work with it")
    journal.hooks_begun = True
    await journal.save("starting")
    await hooks.start("restore", progress)
    await hooks.health("restore", progress)


def _hooks(config: ConfigFile, journal: Journal) -> ServerHooks:
    return ServerHooks(config.restore.hooks, journal.archive, journal.id, config.state_dir)


def _restorer(participant: dict[str, Any]) -> Restorer:
    settings = sources.settings_from_json(participant["settings"])
    return sources.restorer(settings, [Path(path) for path in participant["preserve"]])


async def _undo(journal: Journal, hooks: ServerHooks, progress: Progress) -> None:
    """Bring the old state back from wherever the restore stands, and forget it.

    Raises ServerNotStarted when the old state is back, but the server is not.
    """
    if journal.state == "stopping":  # nothing was exchanged, so the server need not wait
        trouble = await _start_again(hooks, progress)
        await _take_back(journal, progress)
        return await _forget(journal, trouble)
    if journal.hooks_begun:
        try:
            await hooks.stop("rollback", progress)
        except HookFailed as error:  # a server that did not come up may not go down either; the old state must be back
            _warn(progress, f"The server could not be stopped ({error}); the way back goes on all the same")
    return await _take_back_and_start(journal, hooks, progress)


async def _take_back_and_start(journal: Journal, hooks: ServerHooks, progress: Progress) -> None:
    await _take_back(journal, progress)
    await _forget(journal, await _start_again(hooks, progress) if journal.hooks_begun else "")


async def _take_back(journal: Journal, progress: Progress) -> None:
    """Bring the old state back, the last exchanged first."""
    await journal.save("undoing")
    for participant in reversed(journal.participants):
        progress.say(f"Bringing back the state of {participant['name']} before the restore")
        await _restorer(participant).undo(participant["record"])


async def _forget(journal: Journal, trouble: str) -> None:
    await journal.remove()
    if trouble:
        raise ServerNotStarted(
            f"the state before the restore of {journal.archive} is in place, but the server was not started: {trouble}",
            hint="Start the server by hand, then look why restore.hooks.start does not.",
        )


async def _start_again(hooks: ServerHooks, progress: Progress) -> str:
    """Start the server on its old state; return what went wrong. That it may not work is told, no more."""
    try:
        await hooks.start("rollback", progress)
    except HookFailed as error:
        return str(error)
    try:
        await hooks.health("rollback", progress)
    except Unhealthy as error:
        _warn(progress, f"The state before the restore is in place, but {error}")
    return ""


def _warn(progress: Progress, sentence: str) -> None:
    log.warning("%s", sentence)
    progress.say(sentence)


async def _undo_failed(journal: Journal, hooks: ServerHooks, cause: BaseException, progress: Progress) -> None:
    progress.begin("undo", "The restore failed; live data is kept as it was")
    try:
        await _undo(journal, hooks, progress)
        if isinstance(cause, HookFailed | Unhealthy):
            cause.add_note("The state before the restore is back.")
    except ServerNotStarted as error:
        raise ServerNotStarted(f"the restore failed ({_told(cause)}); {error}", hint=error.hint) from error
    except Exception as error:
        raise SwapFailed(
            f"the restore failed ({_told(cause)}), and so did the way back: {error}",
            hint="Remove that cause, then run `deviceon-backup rollback`: it goes on where this stopped.",
        ) from error


def _told(cause: BaseException) -> str:
    return "it was cancelled" if isinstance(cause, asyncio.CancelledError) else str(cause) or type(cause).__name__


async def _finish(work: Awaitable[None]) -> None:
    """Wait for `work` to its end, also when this task is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError, Exception):  # what became of it is raised below
            await asyncio.shield(task)
    task.result()


async def _recover(config: ConfigFile, progress: Progress) -> list[str]:
    settled = []
    for journal in journals(config.state_dir):
        if journal.state == "swapped":
            continue
        progress.say(f"The restore of {journal.archive} was interrupted while {journal.state}; tidying up")
        async with _servers_locked(journal, "a restore's recovery"):
            if journal.state == "committing":
                await _finish(_commit(journal, progress))
            else:
                await _finish(_undo(journal, _hooks(config, journal), progress))
        settled.append(journal.archive)
    return settled


def _servers_locked(journal: Journal, what: str) -> AbstractAsyncContextManager[None]:
    servers = [sources.settings_from_json(participant["settings"]) for participant in journal.participants]
    return servers_locked(servers, what, recovering=True)


async def recover(config: ConfigFile, *, progress: Progress) -> list[str]:
    """Settle restores that a crash interrupted: undo them, or end a commit. Returns the archives concerned."""
    with only_job(config.state_dir, "a restore's recovery"):
        return await _recover(config, progress)


def pending(config: ConfigFile) -> Journal | None:
    """Return the restore that waits for commit or rollback, or was interrupted; None when there is none."""
    return next(iter(journals(config.state_dir)), None)


async def rollback(config: Config, *, progress: Progress) -> str:
    """Return to the state before the last restore; what it restored is removed. Returns the archive's name."""
    with only_job(config.state_dir, "a rollback"):
        journal = _waiting(config)
        if journal.state == "committing":
            raise RestoreError(
                f"the old state before the restore of {journal.archive} is already being removed",
                hint="Run `deviceon-backup commit` to finish that.",
            )
        progress.past_cancelling = True  # it is always ended: half a way back is no state
        progress.begin("rollback", f"Returning to the state before the restore of {journal.archive}")
        async with _servers_locked(journal, "a rollback"):
            await _finish(_roll_back(journal, _hooks(config, journal), progress))
        return journal.archive


async def _roll_back(journal: Journal, hooks: ServerHooks, progress: Progress) -> None:
    """Undo a restore that was well: a server that does not let itself be stopped is left as it is."""
    if journal.state != "swapped" or not hooks.configured:
        return await _undo(journal, hooks, progress)
    journal.hooks_begun = True
    await journal.save("undoing")
    try:
        await hooks.stop("rollback", progress)
    except HookFailed as error:
        if trouble := await _start_again(hooks, progress):
            error.add_note(f"The server was not started again: {trouble}")
        await journal.save("swapped")
        raise
    return await _take_back_and_start(journal, hooks, progress)


async def commit(config: Config, *, only_if_healthy: bool = False, progress: Progress) -> str:
    """Keep what was restored and remove the old state for good. Returns the archive's name.

    `only_if_healthy`: asks the health probe first. Raises Unhealthy, and nothing has changed.
    """
    with only_job(config.state_dir, "a commit"):
        journal = _waiting(config)
        if journal.state not in ("swapped", "committing"):
            raise RestoreError(
                f"the restore of {journal.archive} did not finish (it was {journal.state}): there is nothing to keep",
                hint="Run `deviceon-backup rollback` to bring the state before it back.",
            )
        if only_if_healthy and journal.state == "swapped":
            progress.begin("health", "Looking whether the server works before the state before the restore goes")
            await _hooks(config, journal).health("commit", progress)
        progress.past_cancelling = True
        progress.begin("commit", f"Removing the state before the restore of {journal.archive}")
        async with _servers_locked(journal, "a commit"):
            await _finish(_commit(journal, progress))
        return journal.archive


async def _commit(journal: Journal, progress: Progress) -> None:
    if journal.state == "swapped":
        for participant in journal.participants:
            await _restorer(participant).confirm(participant["record"])
    await journal.save("committing")
    for participant in journal.participants:
        progress.say(f"Removing the old state of {participant['name']}")
        await _restorer(participant).commit(participant["record"])
    await journal.remove()


def _waiting(config: Config) -> Journal:
    journal = pending(config)
    if journal is None:
        raise JobRefused(
            "no restore waits for commit or rollback",
            hint="Nothing is to be decided. `deviceon-backup job list` tells how the last restore ended.",
        )
    return journal
