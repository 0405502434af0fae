"""What archives there are, and what is in one. The targets are the truth; nothing is remembered elsewhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from service.archive.names import parse_archive_name
from service.config import Config
from service.errors import ArchiveError
from service.keys import identities
from service.pipeline.unpack import ArchiveReader, peek
from service.progress import Progress
from service.secret import remember_password_in
from storage_backends import open_target
from storage_backends.base import InvalidKey, ObjectNotFound, StorageBackend, StorageError


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
    problem: str | None = None


async def list_archives(target: StorageBackend) -> list[CatalogEntry]:
    """List every archive of ours, the oldest first; two small reads each."""
    found = []
    async for info in target.list_objects("Backup_"):
        if parse_archive_name(info.key) is None:
            continue
        try:
            seen = await peek(target, info.key)
        except (ArchiveError, StorageError) as error:
            found.append(CatalogEntry(info.key, info.size, problem=str(error)))
            continue
        header = seen.header
        found.append(
            CatalogEntry(
                name=info.key,
                size=info.size,
                created=header.created,
                seq=header.seq,
                server_version=header.server_version,
                sealing=header.sealing,
                fingerprint=header.fingerprint,
                raw_bytes=seen.footer.raw_bytes,
            )
        )
    return sorted(found, key=lambda entry: (entry.seq or 0, entry.name))


def place_of(config: Config, archive: str) -> tuple[str, str]:
    """Return target URL and name of `archive`: a name in the configured target, or the path or URL of a file."""
    if "/" not in archive:
        return config.target.url, archive
    if "://" in archive:
        url, _, name = archive.rpartition("/")
        return url, name
    directory, name = os.path.split(os.path.abspath(archive))
    return f"file://{directory}", name


@contextlib.asynccontextmanager
async def locate(config: Config, archive: str) -> AsyncIterator[tuple[StorageBackend, str]]:
    """Open the target that holds `archive`, and return it with the archive's name there."""
    url, name = place_of(config, archive)
    remember_password_in(url)
    ours = url.rstrip("/") == config.target.url.rstrip("/")
    async with open_target(url, config.target.options() if ours else {}) as target:
        try:
            await target.stat(name)
        except ObjectNotFound as error:
            raise ObjectNotFound(
                f"there is no archive {archive}", hint="`deviceon-backup list` shows the archives of the target."
            ) from error
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


async def verify(config: Config, archive: str, *, progress: Progress) -> ArchiveReader:
    """Read every byte of an archive and authenticate it; return the (closed) reader for its manifest."""
    async with opened(config, archive) as reader:
        progress.begin("verify", f"Verifying {archive}", expected_raw=reader.footer.raw_bytes)
        await reader.verify(progress)
        return reader
