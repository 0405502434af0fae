"""The streams of a database's rows: one a table, several a big table (ranges of its pages), one for many small tables.

A stream costs an entry of the archive, a key and a line of the manifest, and a restore one transaction: too much for a
table of a few rows, of which some databases have thousands.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from service.sources.base import Stream
from service.sources.postgresql.catalog import Table
from service.sources.postgresql.connect import Connection, errors_as_source, quote_identifier
from service.sources.postgresql.copy_out import Connections, SnapshotHolder, pull

ROWS = "postgresql.rows"
SMALL_TABLES = "postgresql.small_tables"

_PART_BYTES = 32 << 20
"""A table is read in ranges of its heap's pages that are so large, with what is stored out of line (TOAST), so that one
huge table keeps all workers busy."""
_SMALL_BYTES = 128 << 10
"""Tables up to this size on disk are small."""
_TOGETHER = 100
"""So many small tables are one stream at most: a few megabytes, and few locks for a worker's transaction."""


@dataclass(frozen=True, slots=True)
class Held:
    """A database whose snapshot is held: what reading its rows needs to know."""

    database: SnapshotHolder
    encoding: str
    ranges: bool
    """Whether this server can read a range of pages without reading the whole table."""


def row_streams(held: Held, tables: Sequence[Table], connections: Connections) -> Iterator[Stream]:
    """Yield the streams of all rows of one database, in no particular order."""
    small = [table for table in tables if table.bytes <= _SMALL_BYTES]
    for start in range(0, len(small), _TOGETHER):
        yield _together(held, small[start : start + _TOGETHER], connections)
    for table in tables:
        if table.bytes > _SMALL_BYTES:
            yield from _by_itself(held, table, connections)


def _by_itself(held: Held, table: Table, connections: Connections) -> Iterator[Stream]:
    whole = table.condition or table.load_via or not held.ranges
    parts = 1 if whole else max(1, min(table.pages, round(table.bytes / _PART_BYTES)))
    step = -(-table.pages // parts)
    for part in range(parts):
        details = _described(held, table) | {"part": part, "parts": parts}
        condition = _range(part * step, (part + 1) * step, last=part == parts - 1, whole=parts == 1)
        yield Stream(
            kind=ROWS,
            labels={"database": held.database.name, "schema": table.schema, "table": table.name},
            read=partial(_read_one, held, table, condition, connections, details),
            expected_bytes=table.bytes // parts,
            details=details,
        )


def _together(held: Held, tables: Sequence[Table], connections: Connections) -> Stream:
    details: dict[str, Any] = {
        "tables": [{"schema": table.schema, "table": table.name, **_described(held, table)} for table in tables]
    }
    return Stream(
        kind=SMALL_TABLES,
        labels={"database": held.database.name},
        read=partial(_read_together, held, tables, connections, details),
        expected_bytes=sum(table.bytes for table in tables),
        details=details,
    )


def _described(held: Held, table: Table) -> dict[str, Any]:
    described: dict[str, Any] = {
        "format": "binary" if table.binary else "text",
        "encoding": "UTF8" if table.binary else held.encoding,
        "columns": list(table.columns),
    }
    if table.configuration:
        described["configuration"] = True
    if table.load_via:
        described["load_via"] = list(table.load_via)
    return described


def _range(first: int, beyond: int, *, last: bool, whole: bool) -> str:
    """The WHERE clause for the heap pages from `first` to before `beyond`; the last part has no upper end."""
    if whole:
        return ""
    lower = f"ctid >= '({first},0)'::tid"
    return f"WHERE {lower}" if last else f"WHERE {lower} AND ctid < '({beyond},0)'::tid"


async def _read_one(
    held: Held, table: Table, condition: str, connections: Connections, details: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    with errors_as_source(_doing(held, table)):
        async with connections.reading(held.database) as connection:
            async with contextlib.aclosing(_copy_out(connection, table, condition, connections, details)) as pieces:
                async for piece in pieces:
                    yield piece
            held.database.require_snapshot()


async def _read_together(
    held: Held, tables: Sequence[Table], connections: Connections, details: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    """Yield one table's rows after another's; `bytes` of each says where it ends."""
    with errors_as_source(f"copying small tables of database {held.database.name!r}"):
        async with connections.reading(held.database, tables=len(tables)) as connection:
            for table, described in zip(tables, details["tables"], strict=True):
                size = 0
                with errors_as_source(_doing(held, table)):
                    async with contextlib.aclosing(_copy_out(connection, table, "", connections, described)) as pieces:
                        async for piece in pieces:
                            size += len(piece)
                            yield piece
                described["bytes"] = size
            held.database.require_snapshot()
    details["rows"] = sum(described["rows"] for described in details["tables"])


def _doing(held: Held, table: Table) -> str:
    return f"copying table {table.qualified} of database {held.database.name!r}"


async def _copy_out(
    connection: Connection, table: Table, condition: str, connections: Connections, described: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    """Yield the COPY data of a table, or of the part that `condition` selects, and note the number of rows."""
    options = {"format": described["format"], "encoding": described["encoding"]}
    if options["format"] == "binary":
        del options["encoding"]  # binary text is in the client's encoding, which is UTF8
    condition = table.condition or condition
    if condition:
        columns = ", ".join(quote_identifier(column) for column in table.columns)
        query = f"SELECT {columns} FROM ONLY {table.qualified} {condition}"
        copy = partial(connection.copy_from_query, query, **options)
    else:
        copy = partial(
            connection.copy_from_table,
            table.name,
            schema_name=table.schema,
            columns=list(table.columns) or None,
            **options,
        )
    async with contextlib.aclosing(pull(copy, abort=connection.terminate, delay=connections.delay)) as pieces:
        async for piece in pieces:
            if isinstance(piece, str):
                described["rows"] = int(piece.split()[-1])
            else:
                yield piece
