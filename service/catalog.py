"""What archives there are, and what is in one. The targets are the truth; nothing is remembered elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Container, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from service.archive.names import parse_archive_name
from service.config import Config
from service.errors import ArchiveError, ConfigError, DamagedSlot, NotAuthentic, PinRequired, SealError
from service.keys import identities, trusted_signers
from service.ledger import Evidence, Known, Ledger, NoLedger
from service.pipeline.closed import check_closed
from service.pipeline.unpack import ArchiveReader, Peek, peek
from service.progress import Progress
from service.secret import remember_password_in
from storage_backends import open_target
from storage_backends.base import InvalidKey, ObjectInfo, ObjectNotFound, StorageBackend, StorageError

LOOKED_AT_ONCE = 4
HOLD_SUFFIX = ".hold"
"""An object of this name beside an archive holds it: it is not removed by retention, nor by hand."""


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One archive in a target. `problem` says why it cannot be used; then only name and size are known."""

    name: str
    size: int
    created: datetime | None = None
    seq: int | None = None
    server_version: str | None = None
    sealing: str | None = None
    fingerprint: str | None = None
    raw_bytes: int | None = None
    seconds: float | None = None
    """How long it took to write, to the second; null when an older version looked at it."""
    problem: str | None = None
    evidence: Evidence = "unknown"
    evidence_since: datetime | None = None
    held: bool = False
    etag: str = ""


async def list_archives(
    target: StorageBackend, ledger: Ledger | None = None, *, only: Container[str] | None = None
) -> list[CatalogEntry]:
    """List every archive of ours, or those named `only`, the oldest first; two small reads for each that the ledger
    does not know.
    """
    ledger = ledger or NoLedger()
    known = await ledger.known(target.url)
    objects = [info async for info in target.list_objects("Backup_")]
    held = {info.key.removesuffix(HOLD_SUFFIX) for info in objects if info.key.endswith(HOLD_SUFFIX)}
    archives = [
        (info, before if (before := known.get(info.key)) and before.etag == info.etag else Known(info.etag))
        for info in objects
        if parse_archive_name(info.key) is not None and (only is None or info.key in only)
    ]
    new = await _look_at_all(target, [info for info, before in archives if before.facts is None])
    found, looked_at = [], {}
    for info, before in archives:
        facts = before.facts
        if facts is None:
            facts = new[info.key]
            if facts.get("problem") is None:  # one that could not be read may be readable tomorrow
                looked_at[info.key] = replace(before, facts=facts)
        found.append(
            CatalogEntry(
                name=info.key,
                size=info.size,
                etag=info.etag,
                evidence=before.evidence,
                evidence_since=before.since,
                held=info.key in held,
                **facts | {"created": _time(facts.get("created"))},
            )
        )
    # A place that is empty all at once is more often a disk that is not mounted: what was proven is not forgotten then.
    gone = sorted(known.keys() - {entry.name for entry in found}) if found and only is None else []
    if looked_at or gone:
        await ledger.listed(target.url, looked_at, gone)
    return sorted(found, key=lambda entry: (entry.seq or 0, entry.name))


async def is_held(target: StorageBackend, name: str) -> bool:
    """Tell whether an archive is held at this moment."""
    try:
        await target.stat(name + HOLD_SUFFIX)
    except ObjectNotFound:
        return False
    return True


async def _look_at_all(target: StorageBackend, infos: Sequence[ObjectInfo]) -> dict[str, dict[str, Any]]:
    """Look at archives, some at a time: each costs two answers of a server that may be far away."""
    turns = asyncio.Semaphore(LOOKED_AT_ONCE)

    async def look(info: ObjectInfo) -> dict[str, Any]:
        async with turns:
            return await _look_at(target, info)

    try:
        async with asyncio.TaskGroup() as looking:
            tasks = {info.key: looking.create_task(look(info)) for info in infos}
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return {name: task.result() for name, task in tasks.items()}


async def _look_at(target: StorageBackend, info: ObjectInfo) -> dict[str, Any]:
    """Return what an archive says of itself as JSON values; a `problem` when it cannot be read."""
    try:
        seen = await peek(target, info.key, listed=info)
    except (ArchiveError, StorageError) as error:
        return {"problem": str(error)}
    header = seen.header
    return {
        "created": header.created.isoformat(),
        "seq": header.seq,
        "server_version": header.server_version,
        "sealing": header.sealing,
        "fingerprint": header.fingerprint,
        "raw_bytes": seen.footer.raw_bytes,
        "seconds": (seen.footer.finished - seen.footer.started).total_seconds(),
    }


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def place_of(config: Config, archive: str) -> tuple[str, str]:
    """Return target URL and name of `archive`: a name in the configured target, or the path or URL of a file."""
    if "/" not in archive:
        return config.target.url, archive
    if "://" in archive:
        url, _, name = archive.rpartition("/")
        if "://" not in url or not name:
            raise ConfigError(
                f"{archive} is the URL of a target, not of an archive in it",
                hint="Put a slash and the archive's name behind it.",
            )
        return url, name
    directory, name = os.path.split(os.path.abspath(archive))
    return f"file://{directory}", name


def archive_at(config: Config, name: str, target: str | None) -> str:
    """Return the archive `name` as recipes take it: as it is for the first target, else with the URL of `target`.

    Raises ConfigError when `target` is none of the targets.
    """
    return name if target is None else f"{config.at(target).target.url.rstrip('/')}/{name}"


@contextlib.asynccontextmanager
async def locate(config: Config, archive: str) -> AsyncIterator[tuple[StorageBackend, str]]:
    """Open the target that holds `archive`, and return it with the archive's name there."""
    url, name = place_of(config, archive)
    remember_password_in(url)
    ours = config.target_at(url)
    async with open_target(url, ours.options() if ours else {}) as target:
        try:
            await target.stat(name)
        except ObjectNotFound as error:
            hint = "`deviceon-backup list` shows the archives of the target."
            if "/" in archive:
                hint = "Check the path of the file; is the disk or share mounted?"
            raise ObjectNotFound(f"there is no archive {archive}", hint=hint) from error
        except InvalidKey as error:
            raise InvalidKey(
                str(error), hint="Give the file its own name back: Backup_YYYYMMDD_HHMMZ.zip, as its header.json says."
            ) from error
        yield target, name


@contextlib.asynccontextmanager
async def opened(config: Config, archive: str) -> AsyncIterator[ArchiveReader]:
    """Open an archive for reading what is inside. Raises ArchiveError, SealError, StorageError."""
    async with locate(config, archive) as (target, name):
        yield await ArchiveReader.open(target, name, identities(config))


def origin_proven(config: Config, reader: ArchiveReader) -> bool:
    """Tell whether a sealed archive was surely made by this machine, or by one whose signature is trusted here.

    A recovery key proves nothing: whoever knows its public half can make an archive that it opens. With
    `require_signature`, the TPM proves nothing either: who holds a recovery key knows the data keys that it opens.
    """
    if reader.opened_by_tpm and not config.sealing.require_signature:
        return True
    return reader.signer is not None and reader.signer in trusted_signers(config)


async def check_whole(config: Config, archive: str, *, progress: Progress, ledger: Ledger | None = None) -> Peek:
    """Read every byte of an archive whose key is not at hand; see `service.pipeline.closed`.

    That proves no evidence; the ledger is told when the archive is `damaged`.
    """
    ledger = ledger or NoLedger()
    async with locate(config, archive) as (target, name):
        info = await target.stat(name)
        progress.begin("verify", f"Reading {archive}")
        try:
            return await check_closed(target, name, progress)
        except ArchiveError:
            await ledger.found(target.url, name, info.etag, "damaged")
            raise


async def needs_pin(config: Config, archive: str) -> bool:
    """Tell whether the archive opens here with a restore PIN only, and none was given."""
    try:
        async with opened(config, archive):
            return False
    except PinRequired:
        return True
    except (ArchiveError, SealError, StorageError):
        return False  # whoever opens it next is told


async def verify(config: Config, archive: str, *, progress: Progress, ledger: Ledger | None = None) -> ArchiveReader:
    """Read every byte of an archive and authenticate it; return the (closed) reader for its manifest.

    What comes out is told to the ledger: the archive is `verified` or `damaged`; neither when it could not be read, or
    when anybody may have made it: it is not sealed although this service seals, or only a recovery key opens it.
    """
    ledger = ledger or NoLedger()
    async with locate(config, archive) as (target, name):
        info = await target.stat(name)
        try:
            reader = await ArchiveReader.open(target, name, identities(config))
            progress.begin("verify", f"Verifying {archive}", expected_raw=reader.footer.raw_bytes)
            await reader.verify(progress)
        except (ArchiveError, NotAuthentic, DamagedSlot):
            await ledger.found(target.url, name, info.etag, "damaged")
            raise
        # Anybody who can write the target can make an unsealed archive, and whoever knows a recipient one for it.
        proven = config.sealing.mode == "off" or origin_proven(config, reader)
        await ledger.found(target.url, name, reader.info.etag, "verified" if proven else "unknown")
        await ledger.settled(target.url, name)
        return reader
