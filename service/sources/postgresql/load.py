"""Loads the rows of one scratch database: several tables at once, the biggest first."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from service.errors import SourceError, StageFailed
from service.sources.base import StoredStream
from service.sources.postgresql.connect import Connection, errors_as_source, qualified, while_connected
from service.sources.postgresql.rows import ROWS, SMALL_TABLES

_FREEZE_BYTES = 1 << 20
"""A smaller table is not worth the TRUNCATE that freezing asks for."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one connection loads in one transaction: a table, or a part of one.

    `freeze`: the rows are written as if they had been there for ever, which saves their first reader and the first
    vacuum from writing the table again. PostgreSQL wants the table to be new to the transaction, so such a table is
    loaded by one connection.
    """

    streams: tuple[StoredStream, ...]
    freeze: bool

    @property
    def bytes(self) -> int:
        """Raw bytes to be loaded."""
        return sum(stream.bytes for stream in self.streams)


def divide(rows: Sequence[StoredStream], workers: int) -> list[Load]:
    """Divide the streams of rows among transactions, the biggest first.

    A table goes as a whole, frozen; but the parts of one that is more than a worker's share of all rows do not wait
    for each other. Rows that are added to what the schema or an extension brought (`load_via`, `configuration`) must
    not be frozen: that would empty the table first.
    """
    tables: dict[tuple[str, str], list[StoredStream]] = {}
    loads = []
    for stream in rows:
        if stream.kind == SMALL_TABLES:
            loads.append(Load((stream,), freeze=False))
        else:
            tables.setdefault(table_of(stream), []).append(stream)
    total = sum(stream.bytes for stream in rows)
    for streams in tables.values():
        whole = Load(tuple(streams), freeze=True)
        details = streams[0].details
        added = details.get("load_via") or details.get("configuration")
        if added or whole.bytes < _FREEZE_BYTES or (len(streams) > 1 and whole.bytes * workers > total):
            loads += [Load((stream,), freeze=False) for stream in streams]
        else:
            loads.append(whole)
    return sorted(loads, key=lambda load: -load.bytes)


def table_of(stream: StoredStream) -> tuple[str, str]:
    """Return schema and name of the table whose rows a stream of kind `ROWS` holds."""
    return stream.labels["schema"], stream.labels["table"]


@dataclass(slots=True)
class Size:
    """How much of one table was archived."""

    bytes: int = 0
    rows: int = 0


def tables_of(streams: Sequence[StoredStream]) -> dict[tuple[str, str], Size]:
    """Return every table (schema, name) whose rows these streams hold."""
    found: dict[tuple[str, str], Size] = {}
    for stream in streams:
        if stream.kind == SMALL_TABLES:
            parts = [
                ((told["schema"], told["table"]), told["bytes"], told["rows"]) for told in stream.details["tables"]
            ]
        else:
            parts = [(table_of(stream), stream.bytes, stream.details["rows"])]
        for table, size, rows in parts:
            total = found.setdefault(table, Size())
            total.bytes += size
            total.rows += rows
    return found


def lacking(streams: Sequence[StoredStream]) -> bool:
    """Say whether a part of a table is missing."""
    parts: dict[tuple[str, str, int], list[int]] = {}
    for stream in streams:
        if stream.kind == ROWS:
            parts.setdefault((*table_of(stream), stream.details["parts"]), []).append(stream.details["part"])
    return any(sorted(found) != list(range(key[-1])) for key, found in parts.items())


async def load(
    database: str,
    rows: Sequence[StoredStream],
    *,
    connect: Callable[[], AbstractAsyncContextManager[Connection]],
    read: Callable[[StoredStream], AsyncGenerator[bytes, None]],
    workers: int,
    only: Collection[tuple[str, str]] | None = None,
) -> None:
    """Copy the rows of every table in, over `workers` connections. `database` is its name in messages.

    With `only`, the tables among small ones (schema, name) that are wanted; the others' rows are passed over.

    Raises StageFailed when a table gets another number of rows than were archived, SourceError, and what `read` does.
    """
    waiting = divide(rows, workers)[::-1]

    async def work() -> None:
        async with connect() as connection:
            while waiting:
                await _load_one(connection, database, waiting.pop(), read, only)

    await together(work() for _ in range(min(workers, len(waiting))))


async def _load_one(
    connection: Connection,
    database: str,
    job: Load,
    read: Callable[[StoredStream], AsyncGenerator[bytes, None]],
    only: Collection[tuple[str, str]] | None,
) -> None:
    with errors_as_source(f"loading rows into database {database!r}"):
        # no transaction block of the driver's: its own failing at the end would hide the reason
        await connection.execute("BEGIN")
        if job.freeze:
            name = qualified(*table_of(job.streams[0]))
            await connection.execute(f"TRUNCATE ONLY {name}")  # empty, but now new to this transaction
        for stream in job.streams:
            async with contextlib.aclosing(read(stream)) as pieces:
                if stream.kind == SMALL_TABLES:
                    await _copy_together(connection, database, stream, pieces, only)
                else:
                    schema, table = table_of(stream)
                    told = {"schema": schema, "table": table, **stream.details}
                    await _copy_in(connection, database, told, pieces, freeze=job.freeze)
        await connection.execute("COMMIT")


async def _copy_together(
    connection: Connection,
    database: str,
    stream: StoredStream,
    pieces: AsyncGenerator[bytes, None],
    only: Collection[tuple[str, str]] | None,
) -> None:
    cut = Cut(pieces)
    for told in stream.details["tables"]:
        async with contextlib.aclosing(cut.take(told["bytes"])) as rows:
            if only is None or (told["schema"], told["table"]) in only:
                await _copy_in(connection, database, told, rows, freeze=False)
            else:
                async for _ in rows:
                    pass
    if await cut.ended():
        return
    raise StageFailed(f"the archive holds more rows of small tables of database {database!r} than it tells of")


async def _copy_in(
    connection: Connection,
    database: str,
    told: Mapping[str, Any],
    pieces: AsyncGenerator[bytes, None],
    *,
    freeze: bool,
) -> None:
    """Copy rows into one table, as the manifest tells of it."""
    name = qualified(told["schema"], told["table"])
    schema, table = told.get("load_via") or (told["schema"], told["table"])
    options = {"format": told["format"]}
    if told["format"] == "text":
        options["encoding"] = told["encoding"]
    with errors_as_source(f"copying rows into table {name} of database {database!r}"):
        if told.get("configuration"):
            # the extension's own triggers and keys must not judge rows that were in order when archived
            await connection.execute("SET LOCAL session_replication_role = replica")
        copying = connection.copy_to_table(
            table,
            schema_name=schema,
            columns=list(told["columns"]) or None,
            source=pieces,
            freeze=freeze,
            **options,
        )
        status = await while_connected(connection, copying)
        if told.get("configuration"):
            await connection.execute("SET LOCAL session_replication_role = DEFAULT")
    rows = int(status.split()[-1])
    if rows != told["rows"]:
        raise StageFailed(f"table {name} of database {database!r}: {rows} rows restored, {told['rows']} archived")


class Cut:
    """Cuts the stream of small tables into one run of pieces for each table."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    async def take(self, size: int) -> AsyncGenerator[bytes, None]:
        """Yield the next `size` bytes."""
        while size > 0:
            if not await self._more():
                raise StageFailed("the archive holds fewer rows of small tables than it tells of")
            piece = self._rest[:size]
            self._rest = self._rest[len(piece) :]
            size -= len(piece)
            yield bytes(piece)

    async def ended(self) -> bool:
        """Say whether nothing is left; only then is the whole stream known to be what was archived."""
        return not await self._more()

    async def _more(self) -> bool:
        """Say whether there is a byte left; an empty piece is not the end."""
        while not self._rest:
            try:
                self._rest = memoryview(await anext(self._pieces))
            except StopAsyncIteration:
                return False
        return True


async def together(work: Iterable[Coroutine[None, None, None]]) -> None:
    """Run all of it at once. When one fails, the others are cancelled, and its error is raised by itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except* Exception as errors:
        raise _first(errors) from None


def _first(errors: BaseExceptionGroup[Exception]) -> Exception:
    """The error to show when several workers failed: what came first, rather than what followed from it."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, Exception) else SourceError(repr(error))
