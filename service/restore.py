"""THE RECIPE BACK: refuse early, stage beside the live data, check, exchange, keep the old state until told.

Live data is not touched before every byte was authenticated and every copy was compared with the manifest. From
there on the journal says what was about to happen, so that a failure, a crash or `rollback` brings the old state back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from service import sources
from service.backup import utc_now
from service.catalog import locate, opened, place_of
from service.config import Config, ConfigFile
from service.errors import ConfigError, JobRefused, Obstacle, RestoreError, RestoreRefused, SealError, SwapFailed
from service.exclusive import servers_locked
from service.journal import Journal, journals
from service.pipeline.unpack import ArchiveReader, peek
from service.progress import Progress
from service.server_version import server_version
from service.sources.base import PlanItem, Restorer, StoredSource
from service.state_directory import only_job
from storage_backends import local_directory

MAY_BE_ALLOWED = frozenset({"ARCHIVE_NOT_SEALED", "EXTENSION_VERSION", "LOCALE_MISSING"})
"""Obstacles that `--allow CODE` overrides: the restore then tries, and its own checks still protect what is live.

Not SPACE: PostgreSQL stops altogether when its disk is full, the live databases with it.
"""


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What a restore would do, and what stands in its way. Sizes in bytes."""

    archive: str
    created: datetime
    product: str
    server_version: str
    sealing: str
    size: int
    raw_bytes: int
    items: list[PlanItem] = field(default_factory=list)
    obstacles: list[Obstacle] = field(default_factory=list)
    excluded: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


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


async def plan_restore(config: Config, archive: str) -> RestorePlan:
    """Tell what a restore would replace and every obstacle in its way. Touches nothing."""
    try:
        async with opened(config, archive) as reader:
            return await _plan(config, reader, archive)
    except SealError as error:
        async with locate(config, archive) as (target, name):
            seen = await peek(target, name)
        header = seen.header
        return RestorePlan(
            archive=archive,
            created=header.created,
            product=header.product,
            server_version=header.server_version,
            sealing=header.sealing,
            size=seen.info.size,
            raw_bytes=seen.footer.raw_bytes,
            obstacles=[Obstacle(error.code, str(error), error.hint)],
        )


async def _plan(config: Config, reader: ArchiveReader, archive: str) -> RestorePlan:
    header = reader.header
    plan = RestorePlan(
        archive=archive,
        created=header.created,
        product=header.product,
        server_version=header.server_version,
        sealing=header.sealing,
        size=reader.info.size,
        raw_bytes=reader.footer.raw_bytes,
        excluded=[dict(item) for item in reader.manifest.excluded],
        warnings=list(reader.manifest.warnings),
    )
    installed = await server_version(config.server)
    if installed != header.server_version:
        plan.obstacles.append(
            Obstacle(
                "SERVER_VERSION",
                f"the archive is of {header.product} {header.server_version}, installed is {installed}",
                f"Install {header.product} {header.server_version}, then restore.",
            )
        )
    if config.sealing.mode != "off" and not header.sealed:
        plan.obstacles.append(
            Obstacle(
                "ARCHIVE_NOT_SEALED",
                "the archive is not sealed although this service seals: whoever can write the target may have made it",
                "Restore a sealed archive; allow ARCHIVE_NOT_SEALED if you know where this one comes from.",
            )
        )
    preserve = _preserve(config, reader, archive)
    for stored in reader.sources():
        try:
            restorer = sources.restorer(sources.settings_for(config, stored), preserve)
        except ConfigError as error:
            plan.obstacles.append(Obstacle("SOURCE_NOT_CONFIGURED", str(error), error.hint))
            continue
        plan.obstacles.extend(_unknown_kinds(stored, restorer))
        items, obstacles = await restorer.plan(stored)
        plan.items.extend(items)
        plan.obstacles.extend(obstacles)
    return plan


def _unknown_kinds(stored: StoredSource, restorer: Restorer) -> list[Obstacle]:
    unknown = sorted({stream.kind for stream in stored.streams} - restorer.kinds)
    if not unknown:
        return []
    return [
        Obstacle(
            "STREAM_KIND_UNKNOWN",
            f"source {stored.name} has streams that this version cannot restore: {', '.join(unknown)}",
            "Restore with the version of deviceon-backup that wrote the archive, or a newer one.",
        )
    ]


def _preserve(config: Config, reader: ArchiveReader, archive: str) -> list[Path]:
    sqlite = [Path(source.facts["path"]) for source in reader.sources() if source.type == "sqlite"]
    url, name = place_of(config, archive)
    directory = local_directory(url)
    return sources.not_in_a_tree(config, sqlite=sqlite, archive=directory / name if directory else None)


async def restore(
    config: Config, archive: str, *, allow: frozenset[str] = frozenset(), progress: Progress
) -> RestoreResult:
    """Restore every source of an archive; `allow` are obstacle codes to go ahead in spite of.

    When this returns, the restored state is live and the old state is kept until `commit` or `rollback`. When it
    raises, live data is as it was. Raises RestoreRefused before anything was touched; StageFailed, SwapFailed,
    ServiceError, StorageError after the copies were removed again.
    """
    started = utc_now()
    _check_allowed(allow)
    with only_job(config.state_dir, "a restore"):
        await _recover(config, progress)
        _require_settled(config)
        async with opened(config, archive) as reader:
            progress.begin("plan", f"Checking what restoring {archive} would do")
            plan = await _plan(config, reader, archive)
            if blocking := [obstacle for obstacle in plan.obstacles if obstacle.code not in allow]:
                raise RestoreRefused(blocking)
            journal = Journal.begin(config.state_dir, archive=archive, started=started.isoformat())
            servers = [sources.settings_for(config, stored) for stored in reader.sources()]
            async with servers_locked(servers, "a restore"):
                try:
                    await _stage(config, reader, journal, progress)
                    await _swap(journal, progress)
                except BaseException as error:
                    await _finish(_undo_failed(journal, error, progress))
                    raise
    seconds = (utc_now() - started).total_seconds()
    return RestoreResult(journal.id, archive, plan.items, seconds, progress.end())


def _check_allowed(allow: frozenset[str]) -> None:
    if refused := sorted(allow - MAY_BE_ALLOWED):
        raise ConfigError(
            f"{', '.join(refused)} cannot be overridden",
            hint=f"Only these can: {', '.join(sorted(MAY_BE_ALLOWED))}. Remove the obstacle instead.",
        )


def _require_settled(config: Config) -> None:
    if waiting := journals(config.state_dir):
        raise JobRefused(
            f"the restore of {waiting[0].archive} still keeps the state before it",
            hint="`deviceon-backup commit` removes that old state, `deviceon-backup rollback` returns to it.",
        )


async def _stage(config: Config, reader: ArchiveReader, journal: Journal, progress: Progress) -> None:
    stored_sources = reader.sources()
    preserve = _preserve(config, reader, journal.archive)
    progress.begin(
        "stage", "Restoring beside the live data", expected_raw=sum(s.bytes for x in stored_sources for s in x.streams)
    )
    for stored in sorted(stored_sources, key=lambda stored: sources.SWAP_ORDER.index(stored.type)):
        settings = sources.settings_for(config, stored)
        record = journal.add(stored.name, settings.model_dump(mode="json"), [str(path) for path in preserve])
        restorer = sources.restorer(settings, preserve)
        await restorer.stage(stored, reader, record, journal.save, progress)


async def _swap(journal: Journal, progress: Progress) -> None:
    progress.begin("swap", "Everything is staged and checked; exchanging it with the live data")
    await journal.save("swapping")
    for participant in journal.participants:
        await _restorer(participant).swap(participant["record"], journal.save)
    await journal.save("swapped")
    progress.past_cancelling = True


def _restorer(participant: dict[str, Any]) -> Restorer:
    settings = sources.settings_from_json(participant["settings"])
    return sources.restorer(settings, [Path(path) for path in participant["preserve"]])


async def _undo(journal: Journal, progress: Progress) -> None:
    """Bring the old state back, the last exchanged first, and forget the restore."""
    await journal.save("undoing")
    for participant in reversed(journal.participants):
        progress.say(f"Bringing back the state of {participant['name']} before the restore")
        await _restorer(participant).undo(participant["record"])
    await journal.remove()


async def _undo_failed(journal: Journal, cause: BaseException, progress: Progress) -> None:
    progress.begin("undo", "The restore failed; live data is kept as it was")
    try:
        await _undo(journal, progress)
    except Exception as error:
        raise SwapFailed(
            f"the restore failed ({cause}), and so did the way back: {error}",
            hint="Remove that cause, then run `deviceon-backup rollback`: it goes on where this stopped.",
        ) from error


async def _finish(work: Awaitable[None]) -> None:
    """Wait for `work` to its end, also when this task is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise
        except Exception:  # noqa: S110 - raised below, once the task is done
            pass
    task.result()


async def _recover(config: ConfigFile, progress: Progress) -> list[str]:
    settled = []
    for journal in journals(config.state_dir):
        if journal.state == "swapped":
            continue
        progress.say(f"The restore of {journal.archive} was interrupted while {journal.state}; tidying up")
        async with _servers_locked(journal, "a restore's recovery"):
            await _finish(_commit(journal, progress) if journal.state == "committing" else _undo(journal, progress))
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
            await _finish(_undo(journal, progress))
        return journal.archive


async def commit(config: Config, *, progress: Progress) -> str:
    """Keep what was restored and remove the old state for good. Returns the archive's name."""
    with only_job(config.state_dir, "a commit"):
        journal = _waiting(config)
        if journal.state not in ("swapped", "committing"):
            raise RestoreError(
                f"the restore of {journal.archive} did not finish (it was {journal.state}): there is nothing to keep",
                hint="Run `deviceon-backup rollback` to bring the state before it back.",
            )
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
            "no restore waits for commit or rollback", hint="`deviceon-backup restore` keeps the old state until then."
        )
    return journal
