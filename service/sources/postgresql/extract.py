"""Databases out of an archive as files, without a server: definitions, rows as COPY wrote them, large objects, roles.

roles.json, roles.sql            all roles, with the verifiers of their passwords
DATABASE/schema.dump             for pg_restore; schema.sql is the same as text, when a pg_restore is there
DATABASE/large_objects.dump
DATABASE/database.json           what the manifest tells: settings, privileges, extensions, sequences' values
DATABASE/tables.json             each file of rows, with the statement that loads it
DATABASE/tables/SCHEMA.TABLE.copy, or .binary
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from service.errors import CorruptArchive, SourceError
from service.progress import Progress
from service.sources.base import StoredSource, StoredStream, StreamReader
from service.sources.postgresql import roles, tools
from service.sources.postgresql.connect import qualified, quote_identifier
from service.sources.postgresql.load import Cut, lacking, table_of
from service.sources.postgresql.rows import ROWS, SMALL_TABLES
from service.sources.private_files import make_directory, safe_name, write, write_text

WantsTable = Callable[[str, str, str], bool]
"""Say whether a table (database, schema, name) is wanted."""

_BINARY_START = b"PGCOPY\n\xff\r\n\0"
_BINARY_HEAD = len(_BINARY_START) + 8
_BINARY_END = b"\xff\xff"


async def extract(
    stored: StoredSource,
    reader: StreamReader,
    directory: Path,
    *,
    wants_table: WantsTable | None,
    with_roles: bool,
    progress: Progress,
) -> list[str]:
    """Write a server's files into `directory`; return sentences on what is different from what was asked.

    `wants_table`: only these tables, with the definitions of their databases; None is everything.
    """
    told: list[str] = []

    async def read(stream: StoredStream) -> AsyncGenerator[bytes, None]:
        async with aclosing(reader.read(stream)) as pieces:
            async for piece in pieces:
                progress.raw += len(piece)
                yield piece

    if with_roles:
        await _roles([stream for stream in stored.streams if stream.kind == "postgresql.globals"], read, directory)
    for database in stored.facts["databases"]:
        name = database["name"]
        streams = [stream for stream in stored.streams if stream.labels.get("database") == name]
        wanted = _tables(streams)
        if wants_table:
            wanted = {table: told for table, told in wanted.items() if wants_table(name, *table)}
        if wants_table and not wanted:
            continue
        progress.say(f"Extracting database {name}")
        place = make_directory(directory / safe_name(name))
        write_text(place / "database.json", _json(database))
        for stream in streams:
            if stream.kind == "postgresql.schema":
                await _to_file(place / "schema.dump", read(stream))
                told += await _as_text(place / "schema.dump", stored.facts["server"]["server_version_num"])
            elif stream.kind == "postgresql.large_objects" and not wants_table:
                await _to_file(place / "large_objects.dump", read(stream))
        await _Rows(place, wanted, read).run(streams)
    return list(dict.fromkeys(told))


Read = Callable[[StoredStream], AsyncGenerator[bytes, None]]
Table = tuple[str, str]


async def _to_file(path: Path, pieces: AsyncGenerator[bytes, None]) -> int:
    async with aclosing(pieces):
        return await write(path, pieces)


async def _roles(streams: Sequence[StoredStream], read: Read, directory: Path) -> None:
    async with aclosing(read(streams[0])) as pieces:
        found = roles.load_globals(b"".join([piece async for piece in pieces]))
    nothing: roles.Globals = {"roles": [], "memberships": [], "settings": [], "parameters": []}
    lines = [f"CREATE ROLE {quote_identifier(role['name'])};" for role in found["roles"]]
    lines += [f"{statement};" for statement in roles.statements(found, nothing, keep=())]
    write_text(directory / "roles.json", _json(found))
    write_text(directory / "roles.sql", "\n".join(["BEGIN;", *lines, "COMMIT;", ""]))


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


async def _as_text(dump: Path, server_version_num: int) -> list[str]:
    """Have pg_restore write the definitions as SQL for people; say so when there is none that can."""
    major = server_version_num // 10000
    program = tools.pg_restore_for(major)
    if program is None:
        return [f"There is no pg_restore of version {major} or newer here, so schema.sql was not made of schema.dump."]
    text = dump.with_name("schema.sql")
    write_text(text, "")  # so that it has the mode that all have
    process = await tools.started(
        program,
        f"--file={text}",
        str(dump),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    if process.returncode:
        raise SourceError(f"pg_restore could not write {dump.name} as text: {said.decode(errors='replace').strip()}")
    return []


def _tables(streams: Iterable[StoredStream]) -> dict[Table, dict[str, Any]]:
    """Return what the manifest tells of each table."""
    found: dict[Table, dict[str, Any]] = {}
    for stream in streams:
        if stream.kind == SMALL_TABLES:
            for told in stream.details["tables"]:
                found[told["schema"], told["table"]] = dict(told)
        elif stream.kind == ROWS:
            table = found.setdefault(table_of(stream), {**stream.details, "rows": 0, "bytes": 0})
            table["rows"] += stream.details["rows"]
            table["bytes"] += stream.bytes
    return found


class _Rows:
    """Writes the rows of one database's tables."""

    def __init__(self, place: Path, wanted: Mapping[Table, Mapping[str, Any]], read: Read) -> None:
        self._directory = place / "tables"
        self._wanted = wanted
        self._read = read
        self._index: list[dict[str, Any]] = []

    async def run(self, streams: Sequence[StoredStream]) -> None:
        if lacking([stream for stream in streams if stream.kind == ROWS]):
            raise CorruptArchive("the archive does not hold every part of every table")
        if self._wanted:
            make_directory(self._directory)
        for stream in streams:
            if stream.kind == SMALL_TABLES and any(_name(told) in self._wanted for told in stream.details["tables"]):
                await self._together(stream)
        parts: dict[Table, list[StoredStream]] = {}
        for stream in streams:
            if stream.kind == ROWS and table_of(stream) in self._wanted:
                parts.setdefault(table_of(stream), []).append(stream)
        for table, found in parts.items():
            found.sort(key=lambda stream: int(stream.details["part"]))
            await self._write(table, self._joined(found))
        write_text(
            self._directory.with_name("tables.json"), _json(sorted(self._index, key=lambda row: str(row["file"])))
        )

    async def _together(self, stream: StoredStream) -> None:
        async with aclosing(self._read(stream)) as pieces:
            cut = Cut(pieces)
            for told in stream.details["tables"]:
                async with aclosing(cut.take(told["bytes"])) as rows:
                    if _name(told) in self._wanted:
                        await self._write(_name(told), rows)
                    else:
                        async for _ in rows:
                            pass
            ended = await cut.ended()
        if not ended:
            raise CorruptArchive("the archive holds more rows of small tables than it tells of")

    async def _joined(self, parts: Sequence[StoredStream]) -> AsyncGenerator[bytes, None]:
        binary = parts[0].details["format"] == "binary"
        for number, stream in enumerate(parts):
            async with aclosing(self._read(stream)) as pieces:
                if binary and len(parts) > 1:
                    async with aclosing(_bare(pieces, head=not number, end=number == len(parts) - 1)) as bare:
                        async for piece in bare:
                            yield piece
                else:
                    async for piece in pieces:
                        yield piece

    async def _write(self, table: Table, pieces: AsyncGenerator[bytes, None]) -> None:
        told = self._wanted[table]
        ending = "binary" if told["format"] == "binary" else "copy"
        path = self._directory / f"{safe_name(*table)}.{ending}"
        size = await _to_file(path, pieces)
        columns = ", ".join(quote_identifier(column) for column in told["columns"])
        listed = f" ({columns})" if columns else ""
        encoding = "" if told["format"] == "binary" else f", ENCODING '{told['encoding']}'"
        target = tuple(told.get("load_via") or table)
        self._index.append(
            {
                "file": f"tables/{path.name}",
                "schema": table[0],
                "table": table[1],
                "rows": told["rows"],
                "bytes": size,
                "format": told["format"],
                "encoding": told["encoding"],
                "columns": told["columns"],
                "load": f"COPY {qualified(*target)}{listed} FROM STDIN WITH (FORMAT {told['format']}{encoding})",
            }
        )


def _name(told: Mapping[str, Any]) -> Table:
    return told["schema"], told["table"]


async def _bare(pieces: AsyncIterator[bytes], *, head: bool, end: bool) -> AsyncGenerator[bytes, None]:
    """Yield binary COPY data without its header (unless `head`) and its trailer (unless `end`), to be put together."""
    held = b""
    started = False
    async for piece in pieces:
        held += piece
        if not started:
            if len(held) < _BINARY_HEAD:
                continue
            extension = int.from_bytes(held[_BINARY_HEAD - 4 : _BINARY_HEAD], "big")
            if not held.startswith(_BINARY_START) or extension:
                raise CorruptArchive("rows of a table are no binary COPY data")
            held = held if head else held[_BINARY_HEAD:]
            started = True
        if len(held) > len(_BINARY_END):
            yield held[: -len(_BINARY_END)]
            held = held[-len(_BINARY_END) :]
    if not started or held != _BINARY_END:
        raise CorruptArchive("rows of a table are no binary COPY data")
    if end:
        yield held


def table_pattern(text: str) -> Callable[[str, str], bool]:
    """Return whether a table (schema, name) is meant by SCHEMA.TABLE or TABLE, of which each may have * and ?."""
    glob = re.compile(re.escape(text).replace(r"\*", ".*").replace(r"\?", "."), re.DOTALL)
    return lambda schema, table: bool(glob.fullmatch(f"{schema}.{table}") or glob.fullmatch(table))
