"""A copy of an archive from one target to another: the sealed bytes as they are, then read back like a new archive."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from service.catalog import HOLD_SUFFIX, archive_at, is_held, list_archives, verify
from service.config import Config
from service.errors import ArchiveError, CorruptArchive, PinRequired, ServiceError
from service.ledger import PROVEN, Ledger
from service.pipeline.closed import check_closed
from service.pipeline.sidecar import read_sidecar, remove_sidecar, write_sidecar
from service.pipeline.unpack import peek
from service.progress import Progress
from service.state_directory import only_job
from service.targets import was_removed
from storage_backends import open_target
from storage_backends.base import ObjectExists, ObjectInfo, ObjectNotFound, StorageBackend, StorageError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CopyResult:
    """A copy that was read back and authenticated. `copied` is false when it was there already."""

    archive: str
    source: str
    target: str
    size: int
    copied: bool


class NoSource(ObjectNotFound):
    """No target has the archive that is to be copied."""


async def copy(
    config: Config, name: str, *, target: str, source: str | None, ledger: Ledger, progress: Progress
) -> CopyResult:
    """Copy an archive to the configured target with the URL `target`, from `source` or whichever target has it.

    One that is there already is read instead. A copy that does not pass is removed. Raises ObjectNotFound when no
    target has the archive, JobRefused, ServiceError, StorageError.
    """
    there = config.at(target)
    archive = archive_at(config, name, target)
    with only_job(config.state_dir, "a copy"):
        here, info, proven = await _where(config, name, target=there.target.url, source=source, ledger=ledger)
        copied = await _copied(here, there, info, ledger, progress)
        await _held_too(here, there, name)
        await _keys_too(here, there, name)
        try:
            await _proven(config, archive, here, there, info, ledger=ledger, progress=progress, proven=proven)
        except (ServiceError, StorageError) as error:
            if was_removed(error) and not copied:
                error.add_note(
                    f"It was there before; `deviceon-backup delete {name} --target {there.target.url}` first."
                )
            elif was_removed(error):
                async with open_target(there.target.url, there.target.options()) as opened:
                    await opened.delete(name + HOLD_SUFFIX)
                    await opened.delete(name)
                    await remove_sidecar(opened, name)
                    await ledger.settled(opened.url, name)
            raise
    return CopyResult(name, here.target.url, there.target.url, info.size, copied)


async def _where(
    config: Config, name: str, *, target: str, source: str | None, ledger: Ledger
) -> tuple[Config, ObjectInfo, bool]:
    """Return the configuration of the target to copy from, what it has, and whether that is proven: best is one where
    it is.
    """
    places = [config.at(source)] if source else [each for each in config.each() if each.target.url != target]
    found: list[tuple[bool, Config, ObjectInfo]] = []
    problems = []
    for place in places:
        try:
            async with open_target(place.target.url, place.target.options()) as opened:
                entries = await list_archives(opened, ledger)
                info = await opened.stat(name)
        except ObjectNotFound:
            continue
        except (ServiceError, StorageError) as error:
            problems.append(error)
            continue
        good = any(entry.name == name and entry.evidence in PROVEN for entry in entries)
        found.append((good, place, info))
    if not found:
        if problems:
            raise problems[0]
        raise NoSource(
            f"no other target has the archive {name}", hint="`deviceon-backup list --target URL` shows what one has."
        )
    proven, place, info = max(found, key=lambda each: each[0])
    return place, info, proven


async def _proven(
    config: Config,
    archive: str,
    here: Config,
    there: Config,
    info: ObjectInfo,
    *,
    ledger: Ledger,
    progress: Progress,
    proven: bool,
) -> None:
    """Read the copy as a restore would. One that needs the restore PIN is compared with what was copied instead: of a
    proven archive every byte is proven.
    """
    try:
        await verify(config, archive, progress=progress, ledger=ledger)
    except PinRequired:
        async with (
            open_target(here.target.url, here.target.options()) as source,
            open_target(there.target.url, there.target.options()) as target,
        ):
            copy_info = await target.stat(info.key)
            progress.begin("read back", f"Comparing {info.key} with the archive that it was copied from")
            if await _digest(source, info) != await _digest(target, copy_info):
                raise CorruptArchive(
                    f"the copy of {info.key} in {target.url} has other bytes than the archive in {source.url}",
                    hint="Check that target; the archive that was copied from is as it was.",
                ) from None
            if not proven:
                await check_closed(target, info.key, progress)
            else:
                await ledger.found(target.url, info.key, copy_info.etag, "verified")
            await ledger.settled(target.url, info.key)


async def _digest(target: StorageBackend, info: ObjectInfo) -> bytes:
    digest = hashlib.sha256()
    async with aclosing(target.get(info.key, etag=info.etag)) as pieces:
        async for piece in pieces:
            await asyncio.to_thread(digest.update, piece)
    return digest.digest()


async def _copied(here: Config, there: Config, info: ObjectInfo, ledger: Ledger, progress: Progress) -> bool:
    """Write the copy; False when an object of that name is there already."""
    async with (
        open_target(here.target.url, here.target.options()) as source,
        open_target(there.target.url, there.writing_options(there.target)) as target,
    ):
        progress.begin("copy", f"Copying {info.key} from {source.url} to {target.url}", expected_raw=info.size)
        await ledger.writing(target.url, info.key)
        try:
            async with aclosing(_counted(source, info, progress)) as pieces:
                written = await target.put(info.key, pieces, announce=partial(ledger.unfinished, target.url, info.key))
        except ObjectExists:
            await ledger.settled(target.url, info.key)
            if (await peek(source, info.key)).header.archive_id != (await peek(target, info.key)).header.archive_id:
                raise
            return False
        progress.past_cancelling = True
        if written.size != info.size:
            await target.delete(info.key)
            await ledger.settled(target.url, info.key)
            raise StorageError(
                f"{target.url} says that {info.key} has {written.size} bytes, but {info.size} were sent",
                hint="Do not use this copy; check the target.",
            )
        await ledger.found(target.url, info.key, written.etag, "written")
        return True


async def _held_too(here: Config, there: Config, name: str) -> None:
    """Hold the copy when the archive is held where it comes from: whoever holds one means it everywhere."""
    async with (
        open_target(here.target.url, here.target.options()) as source,
        open_target(there.target.url, there.target.options()) as target,
    ):
        if await is_held(source, name) and not await is_held(target, name):
            await target.put(name + HOLD_SUFFIX, source.get(name + HOLD_SUFFIX), overwrite=True)


async def _keys_too(here: Config, there: Config, name: str) -> None:
    """Copy the key slots beside the archive where the copy lacks them: without them it may not open any more."""
    async with (
        open_target(here.target.url, here.target.options()) as source,
        open_target(there.target.url, there.target.options()) as target,
    ):
        try:
            slots = await read_sidecar(source, name)
            known = await read_sidecar(target, name)
        except ArchiveError as error:
            log.warning("%s", error)
            return
        if lacking := [slot for slot in slots if slot not in known]:
            await write_sidecar(target, name, [*known, *lacking])


async def _counted(source: StorageBackend, info: ObjectInfo, progress: Progress) -> AsyncGenerator[bytes, None]:
    async with aclosing(source.get(info.key, etag=info.etag)) as pieces:
        async for piece in pieces:
            progress.raw += len(piece)
            yield piece
