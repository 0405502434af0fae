"""Compares complete scratch databases with the manifest: rows as they are counted, definitions as pg_dump writes them.

`stage` has compared what COPY said that it wrote; here the finished tables are read.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from service.config_sources import PostgresqlSettings
from service.errors import StageFailed
from service.progress import Progress
from service.sources.base import Compared, Record, StoredSource, StoredStream, StreamReader
from service.sources.postgresql import catalog, tools
from service.sources.postgresql.connect import Connection, connection_to, errors_as_source, qualified
from service.sources.postgresql.load import table_of
from service.sources.postgresql.rows import ROWS, SMALL_TABLES

_TABLES_AT_ONCE = 100
_NAMED = 10
_DATABASE = re.compile(r"DATABASE\b|DATABASE PROPERTIES\b|\S+ - DATABASE ")
_BLOCK = re.compile(r"^--\n-- Name: (.*); Type: (.*); Schema: (.*); Owner: (.*)\n--\n", re.M)


async def compare(
    settings: PostgresqlSettings, stored: StoredSource, reader: StreamReader, record: Record, progress: Progress
) -> Compared:
    """Compare every scratch database; see `Restorer.compare`."""
    found = Compared()
    counts: Counter[str] = Counter()
    async with connection_to(settings, settings.maintenance_database) as connection:
        with errors_as_source("looking at the server"):
            server = await catalog.server_facts(connection)
    directory = tools.client_directory(settings, server["server_version_num"])
    for database, entry in zip(stored.facts["databases"], record["databases"], strict=True):
        name, scratch = database["name"], entry["scratch"]
        streams = [stream for stream in stored.streams if stream.labels.get("database") == name]
        progress.say(f"Comparing the restored copy of database {name} with the archive")
        with progress.part("rows compared", quiet=True):
            async with connection_to(settings, scratch, scratch=True) as connection:
                with errors_as_source(f"counting rows (database {name!r})"):
                    counts += await _rows(connection, name, streams)
        [schema] = [stream for stream in streams if stream.kind == "postgresql.schema"]
        with progress.part("definitions compared", quiet=True):
            archived = await _archived(settings, directory, reader, schema)
            restored = await _restored(settings, directory, scratch, database["encoding"])
        counts += _definitions(name, archived, restored, found.notes)
        counts["databases"] += 1
        counts["tables"] += database["tables"]
        counts["sequences"] += len(database["sequences"])
    found.counts = dict(counts)
    found.notes.append(
        f"restored with {directory / 'pg_restore'} into PostgreSQL {server['server_version']}; "
        f"archived from PostgreSQL {stored.facts['server']['server_version']}"
    )
    return found


@dataclass(slots=True)
class _Group:
    """Tables whose rows are counted together: one, or all below one partitioned table that rows were loaded through."""

    tables: dict[tuple[str, str], None]
    archived: int = 0


def _groups(streams: Sequence[StoredStream]) -> Iterable[_Group]:
    groups: dict[tuple[str, str], _Group] = defaultdict(lambda: _Group({}))
    for stream in streams:
        for table, told in _told(stream):
            if told.get("configuration"):
                continue  # the extension brings rows of its own, which are not in the archive
            via = told.get("load_via")
            group = groups[(via[0], via[1]) if via else table]
            group.tables[table] = None
            group.archived += told["rows"]
    return groups.values()


def _told(stream: StoredStream) -> list[tuple[tuple[str, str], Mapping[str, Any]]]:
    if stream.kind == SMALL_TABLES:
        return [((told["schema"], told["table"]), told) for told in stream.details["tables"]]
    return [(table_of(stream), stream.details)] if stream.kind == ROWS else []


async def _rows(connection: Connection, database: str, streams: Sequence[StoredStream]) -> Counter[str]:
    """Count the rows of every table by reading it."""
    groups = list(_groups(streams))
    tables = [table for group in groups for table in group.tables]
    counted: dict[tuple[str, str], int] = {}
    for start in range(0, len(tables), _TABLES_AT_ONCE):
        some = tables[start : start + _TABLES_AT_ONCE]
        query = " UNION ALL ".join(
            f"SELECT {number}, count(*) FROM ONLY {qualified(*table)}" for number, table in enumerate(some)
        )
        counted |= {some[number]: rows for number, rows in await connection.fetch(query)}
    for group in groups:
        rows = sum(counted[table] for table in group.tables)
        if rows != group.archived:
            names = ", ".join(qualified(*table) for table in group.tables)
            raise StageFailed(
                f"{names} of the restored copy of database {database!r}: {rows} rows are there, {group.archived} were "
                "archived"
            )
    return Counter({"rows": sum(counted.values()), "counted_tables": len(counted)})


@dataclass(frozen=True, slots=True)
class _Schema:
    """What a dump of definitions holds: its list of objects, and the text of each."""

    objects: Counter[str]
    texts: Counter[tuple[str, str]]


async def _archived(
    settings: PostgresqlSettings, directory: Path, reader: StreamReader, stream: StoredStream
) -> _Schema:
    with tools.anonymous_file("archived-schema") as file:
        async with contextlib.aclosing(reader.read(stream)) as pieces:
            async for piece in pieces:
                file.write(piece)
        return await _schema(settings, directory, file)


async def _restored(settings: PostgresqlSettings, directory: Path, scratch: str, encoding: str) -> _Schema:
    arguments = [*tools.dump_options(encoding), "--schema-only"]
    with tools.anonymous_file("restored-schema") as file:
        async with contextlib.aclosing(tools.dump(settings, directory, scratch, arguments)) as pieces:
            async for piece in pieces:
                file.write(piece)
        return await _schema(settings, directory, file)


async def _schema(settings: PostgresqlSettings, directory: Path, file: IO[bytes]) -> _Schema:
    file.flush()
    listing = await tools.converted(settings, directory, ["--list"], file=file)
    text = await tools.converted(settings, directory, ["--file=-"], file=file)
    return _Schema(_objects(listing), _texts(text))


def _objects(listing: str) -> Counter[str]:
    """Return type, schema, name and owner of every object; the database itself has another name in a drill."""
    entries = (line.split(" ", 3) for line in listing.splitlines() if line and not line.startswith(";"))
    told = (entry[3] for entry in entries if len(entry) == 4)
    return Counter(entry for entry in told if not _DATABASE.match(entry))


def _texts(text: str) -> Counter[tuple[str, str]]:
    """Return the text of every object with its heading, without what pg_dump says of the dump as a whole."""
    parts = _BLOCK.split(text)[1:]
    blocks = (parts[at : at + 5] for at in range(0, len(parts), 5))
    return Counter(
        (f"{kind} {schema}.{name}", _normal(body)) for name, kind, schema, _, body in blocks if kind != "DATABASE"
    )


def _normal(body: str) -> str:
    lines = (line.rstrip() for line in body.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith(("--", "\\unrestrict", "\\restrict")))


def _definitions(database: str, archived: _Schema, restored: _Schema, notes: list[str]) -> Counter[str]:
    """Compare definitions. Raises StageFailed when an object is missing, added, or somebody else's.

    The text of one may differ all the same: PostgreSQL writes some expressions in other words once it has read them
    (a list of varchar constants in a CHECK, for one). That is told, since no program can judge it.
    """
    if archived.objects != restored.objects:
        missing = sorted((archived.objects - restored.objects).elements())[:_NAMED]
        added = sorted((restored.objects - archived.objects).elements())[:_NAMED]
        raise StageFailed(
            f"the restored copy of database {database!r} has other definitions than were archived: "
            f"missing {missing}, added {added}"
        )
    reworded = archived.texts - restored.texts
    if reworded:
        names = sorted({name for name, _ in reworded})
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        notes.append(
            f"PostgreSQL tells {reworded.total()} definitions of database {database} in other words after a restore: "
            f"{', '.join(names[:_NAMED])}{more}"
        )
    return Counter(
        {
            "definitions": archived.objects.total(),
            "definition_texts": archived.texts.total(),
            "identical_definition_texts": archived.texts.total() - reworded.total(),
        }
    )
