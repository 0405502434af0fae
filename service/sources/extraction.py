"""Any source out of an archive as files of an ordinary directory, for somebody who looks for something."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from re import compile as compiled

from service.blocking import run_in_thread
from service.errors import CorruptArchive, StageFailed
from service.progress import Progress
from service.sources.base import StoredSource, StoredStream, StreamReader
from service.sources.directories import ancestors, encode_path, opened
from service.sources.private_files import make_directory, safe_name, write
from service.sources.selection import translate
from service.sources.tree_extract import Place, TreeExtractor
from service.sources.tree_unpack import ChosenMembers, unpack

Wants = Callable[[str], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What of a source's content is wanted; with neither tables nor paths it is everything.

    `tables` are [DATABASE:]SCHEMA.TABLE or TABLE with * and ?; `paths` are globs as in `exclude` of a tree, relative to
    its directory or, beginning with a slash, from the root.
    """

    tables: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()

    @property
    def everything(self) -> bool:
        """Tell whether nothing was said."""
        return not (self.tables or self.paths)

    def wants_table(self, database: str, schema: str, table: str) -> bool:
        """Tell whether a table is wanted."""
        from service.sources.postgresql.extract import table_pattern  # noqa: PLC0415 - a heavy driver

        for text in self.tables:
            before, colon, name = text.partition(":")
            if colon and before == database and table_pattern(name)(schema, table):
                return True
            if table_pattern(text)(schema, table):
                return True
        return False

    def wants_path(self, root: str) -> Wants:
        """Return what tells whether a path below `root` is wanted: it or a directory above it matches."""
        whole = [compiled(translate(pattern)) for pattern in self.paths if pattern.startswith("/")]
        relative = [compiled(translate(pattern)) for pattern in self.paths if not pattern.startswith("/")]
        top = root.strip("/")

        def wants(path: str) -> bool:
            names = [path, *ancestors(path)]
            below = any(glob.fullmatch(name) for glob in relative for name in names if name)
            return below or any(glob.fullmatch(f"{top}/{name}".rstrip("/")) for glob in whole for name in names)

        return wants


async def extract(
    stored: StoredSource, reader: StreamReader, directory: Path, chosen: Chosen, progress: Progress
) -> tuple[bool, list[str]]:
    """Write what is chosen of one source below `directory`/<its name>.

    Returns whether there was any, and sentences for people. Raises ArchiveError, StageFailed, StorageError.
    """
    place = directory / safe_name(stored.name)
    try:
        if stored.type == "postgresql":
            return await _postgresql(stored, reader, place, chosen, progress)
        if stored.type == "tree":
            return await _tree(stored, reader, place, chosen, progress)
        return await _file(stored, reader, place, chosen, progress)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StageFailed(f"There is no room left at {directory.parent}.", hint="Extract to elsewhere.") from error
        raise StageFailed(f"{error.filename or place} could not be written: {error.strerror or error}.") from error


async def _postgresql(
    stored: StoredSource, reader: StreamReader, place: Path, chosen: Chosen, progress: Progress
) -> tuple[bool, list[str]]:
    if chosen.paths and not chosen.tables:
        return False, []
    from service.sources.postgresql import extract as postgresql  # noqa: PLC0415 - a heavy driver

    make_directory(place)
    told = await postgresql.extract(
        stored,
        reader,
        place,
        wants_table=chosen.wants_table if chosen.tables else None,
        with_roles=not chosen.tables and (stored.whole or not stored.facts["databases"]),
        progress=progress,
    )
    return await run_in_thread(_is_filled, place), told


def _is_filled(place: Path) -> bool:
    """Tell whether something is in a directory, and remove it when it is empty."""
    if any(place.iterdir()):
        return True
    place.rmdir()
    return False


async def _tree(
    stored: StoredSource, reader: StreamReader, place: Path, chosen: Chosen, progress: Progress
) -> tuple[bool, list[str]]:
    if chosen.tables and not chosen.paths:
        return False, []
    said: list[str] = []
    members = ChosenMembers(chosen.wants_path(stored.facts["path"]), say=said.append) if chosen.paths else None
    progress.say(f"Extracting directory {stored.facts['path']}")
    with (
        opened(place.parent) as fd,
        TreeExtractor({"": Place(fd, place.name)}, say=said.append, reader=members, lenient=True) as extractor,
    ):
        await unpack(reader.read(_only_stream(stored)), extractor, progress)
        await run_in_thread(extractor.finish)
    there = members is None or members.taken > 0 or await run_in_thread(_is_filled, place)
    return there, list(dict.fromkeys(said))


async def _file(
    stored: StoredSource, reader: StreamReader, place: Path, chosen: Chosen, progress: Progress
) -> tuple[bool, list[str]]:
    above, _, name = str(stored.facts["path"]).rpartition("/")
    if not chosen.everything and not (chosen.paths and chosen.wants_path(above)(name)):
        return False, []
    progress.say(f"Extracting {stored.facts['path']}")
    make_directory(place)
    async with aclosing(reader.read(_only_stream(stored))) as pieces:
        progress.raw += await write(place / safe_name(name), pieces)
    return True, []


def _only_stream(stored: StoredSource) -> StoredStream:
    if len(stored.streams) != 1:
        raise CorruptArchive(f"The archive's source {stored.name} has not the one stream that it should have.")
    return stored.streams[0]


def contents(stored: Sequence[StoredSource]) -> list[dict[str, object]]:
    """Return what `extract` would find in these sources as JSON values, from the manifest alone."""
    found = []
    for source in stored:
        size = sum(stream.bytes for stream in source.streams)
        told: dict[str, object] = {"name": source.name, "type": source.type, "bytes": size}
        if source.type == "postgresql":
            told["databases"] = [
                {"name": database["name"], "tables": _tables(source, database["name"])}
                for database in source.facts["databases"]
            ]
        else:
            told |= {"path": encode_path(source.facts["path"]), "files": source.facts.get("files", 1)}
        found.append(told)
    return found


def _tables(source: StoredSource, database: str) -> list[dict[str, object]]:
    from service.sources.postgresql.load import tables_of  # noqa: PLC0415 - a heavy driver

    streams = [stream for stream in source.streams if stream.labels.get("database") == database]
    return [
        {"schema": schema, "table": table, "rows": size.rows, "bytes": size.bytes}
        for (schema, table), size in sorted(tables_of([s for s in streams if "rows" in s.details]).items())
    ]
