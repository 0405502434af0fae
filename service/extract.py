"""Files out of an archive: into a new directory that appears whole or not at all, from wherever the archive is.

Nothing but the archive and its key is needed: no configuration, no server. Only the streams that are wanted are read.
Everything is written below a temporary name beside the directory, and gets its name when every byte is authenticated.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from service.blocking import run_in_thread
from service.catalog import opened, origin_proven
from service.config import Config
from service.errors import ServiceError
from service.pipeline.unpack import ArchiveReader
from service.progress import Progress
from service.selection import EVERYTHING, NotInArchive, Selection
from service.sources import extraction
from service.sources.directories import OWN_PREFIX, remove_tree, sync_file_system
from service.sources.directories import opened as opened_directory
from service.sources.extraction import Chosen


class NotExtracted(ServiceError):
    """The directory to extract to cannot be made."""

    code = "EXTRACT"


@dataclass(frozen=True, slots=True)
class Extraction:
    """What was written. Sizes in bytes, `warnings` are sentences for people."""

    archive: str
    directory: str
    sources: list[str]
    files: int
    bytes: int
    warnings: list[str]


async def contents(config: Config, archive: str, *, select: Selection = EVERYTHING) -> list[dict[str, Any]]:
    """Tell what is in an archive: sources, databases, tables. Raises ArchiveError, SealError, StorageError."""
    async with opened(config, archive) as reader:
        return extraction.contents(select.of(reader.sources()))


async def extract(
    config: Config,
    archive: str,
    to: Path,
    *,
    select: Selection = EVERYTHING,
    chosen: Chosen | None = None,
    progress: Progress,
) -> Extraction:
    """Extract what is wanted of an archive into the new directory `to`; see `extract_from`."""
    async with opened(config, archive) as reader:
        done = await extract_from(reader, to, select=select, chosen=chosen or Chosen(), progress=progress)
        return done if origin_proven(config, reader) else replace(done, warnings=[_UNPROVEN, *done.warnings])


_UNPROVEN = (
    "Nothing proves that this installation made the archive: whoever could write to where it lay may have made it."
)


async def extract_from(
    reader: ArchiveReader, to: Path, *, select: Selection, chosen: Chosen, progress: Progress
) -> Extraction:
    """Write what is wanted into `to`, which must not exist; its directory must.

    Raises NotInArchive when nothing of the archive is wanted, NotExtracted, StageFailed, ArchiveError, NotAuthentic,
    StorageError; `to` does not exist then.
    """
    name = reader.header.name
    wanted = select.of(reader.sources())
    above = Path(await run_in_thread(os.path.realpath, to.parent))
    work, new = above / f"{OWN_PREFIX}{secrets.token_hex(8)}", above / to.name
    told: list[str] = []
    found: list[str] = []
    try:
        await run_in_thread(_begin, work, new)
        progress.begin("extract", f"Extracting from {name}")
        for stored in wanted:
            was_there, said = await extraction.extract(stored, reader, work, chosen, progress)
            told += said
            found += [stored.name] if was_there else []
        _require_any(found, chosen)
        files, size = await run_in_thread(_publish, work, new)
    except BaseException:
        await run_in_thread(_remove, work)
        raise
    return Extraction(name, os.fspath(to), found, files, size, told)


def _require_any(found: Sequence[str], chosen: Chosen) -> None:
    if not found:
        raise NotInArchive(
            f"nothing in the archive is {' or '.join([*chosen.tables, *chosen.paths]) or 'wanted'}",
            hint="`deviceon-backup extract ARCHIVE --list` shows what there is.",
        )


def _begin(work: Path, to: Path) -> None:
    if os.path.lexists(to):
        raise NotExtracted(f"{to} is there already, and nothing is overwritten", hint="Name a directory that is new.")
    try:
        work.mkdir(mode=0o700)
    except OSError as error:
        raise NotExtracted(
            f"nothing can be written to {work.parent}: {error.strerror}", hint="Name a directory in one that there is."
        ) from error


def _publish(work: Path, to: Path) -> tuple[int, int]:
    """Make the files durable and give the directory its name; return their number and size."""
    files = size = 0
    for path, _, names in os.walk(work):
        for name in names:
            files += 1
            size += os.lstat(os.path.join(path, name)).st_size
    with opened_directory(work) as fd:
        sync_file_system(fd)
    if os.path.lexists(to):  # for a plain word; rename itself replaces nothing but an empty directory
        raise NotExtracted(f"{to} has appeared meanwhile, and nothing is overwritten")
    try:
        work.rename(to)
    except OSError as error:
        raise NotExtracted(f"{to} could not be made: {error.strerror}") from error
    with opened_directory(to.parent) as fd:
        os.fsync(fd)
    return files, size


def _remove(work: Path) -> None:
    if not os.path.lexists(work):
        return
    with opened_directory(work.parent) as fd:
        remove_tree(work.name, dir_fd=fd)
