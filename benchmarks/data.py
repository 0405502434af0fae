"""The shapes of data: each makes one database on a server, the same rows every time, made by the server itself.

A size is GB (10^9 bytes) of what `pg_dump -Fp` writes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping

import asyncpg

from demo import sample
from demo.postgresql_server import PostgresqlServer

Shape = Callable[[PostgresqlServer, float], Awaitable[str]]
"""`await shape(server, gigabytes)` makes a database and returns its name."""

_DEVICES_GB = 1.85  # what `pg_dump -Fp` writes at scale 1.0
_PIECES = 8
SMALL_TABLES = 5_000

_HUGE = """
INSERT INTO measurements SELECT n, 1 + (h & 65535)::int, timestamptz '2025-01-01 00:00+00' + n * interval '37 ms',
  'sensor-' || (h & 1023), ((h >> 10) & 1048575) / 977.0, 'reading ' || (h >> 43) || ' of shift ' || (h & 31)
FROM (SELECT n, hashint8extended(n, 7) & 9223372036854775807 AS h FROM generate_series($1::bigint, $2::bigint) n) AS m
"""
_BLOB = """
INSERT INTO blobs SELECT n, (SELECT string_agg(sha512(int8send(n * 64 + k)), '') FROM generate_series(1, 64) k)
FROM generate_series($1::bigint, $2::bigint) n
"""
_DOCUMENT = """
INSERT INTO documents SELECT n, (
  SELECT jsonb_object_agg('property_' || k, CASE k % 4
    WHEN 0 THEN to_jsonb(hashint8extended(n * 64 + k, 7) & 16777215) WHEN 1 THEN to_jsonb('value ' || (n * k) % 9973)
    WHEN 2 THEN to_jsonb((n + k) % 3 = 0)
    ELSE jsonb_build_object('unit', 'u' || k, 'raw', hashint8extended(n + k, 9) & 65535) END)
  FROM generate_series(1, 48) k)
FROM generate_series($1::bigint, $2::bigint) n
"""
_SMALL = """
DO $do$ BEGIN FOR t IN {first}..{last} LOOP
  EXECUTE format('CREATE TABLE settings_%s (id int PRIMARY KEY, name text NOT NULL, value numeric)', t);
  EXECUTE format($q$INSERT INTO settings_%s SELECT n, 'setting ' || n || ' of ' || %s, n * %s / 7.0
    FROM generate_series(1, 20) n$q$, t, t, t);
  IF t % 200 = 0 THEN COMMIT; END IF;
END LOOP; END $do$
"""


async def devices(server: PostgresqlServer, gigabytes: float) -> str:
    """The demo's device-management database: events, devices with JSON, audit text, bytea, partitions, large objects.

    Without the one trigger of a partitioned table: `pg_restore -j` may make it before it loads the partitions, where
    it then refuses every row.
    """
    await sample.create(server, scale=gigabytes / _DEVICES_GB, extension=False)
    await server.execute("DROP TRIGGER no_insert ON telemetry.alarms", database=sample.MAIN)
    return sample.MAIN


async def small_tables(server: PostgresqlServer, gigabytes: float) -> str:
    """5,000 tables of 20 rows with a primary key each; fewer when less than half a GB is asked for."""
    await server.execute("CREATE DATABASE small_tables TEMPLATE template0")
    count = min(SMALL_TABLES, max(200, round(2 * SMALL_TABLES * gigabytes)))
    connection = await server.connect("small_tables")
    try:
        await connection.execute(_SMALL.format(first=1, last=count))
    finally:
        await connection.close()
    return "small_tables"


async def huge_table(server: PostgresqlServer, gigabytes: float) -> str:
    """One table of numbers, times and short texts."""
    columns = "id bigint, device int, at timestamptz, sensor text, value float8, note text"
    await _filled(server, "huge_table", f"measurements ({columns})", _HUGE, round(gigabytes * 1e9 / 94))
    await server.execute("ALTER TABLE measurements ADD PRIMARY KEY (id)", database="huge_table")
    return "huge_table"


async def bytea(server: PostgresqlServer, gigabytes: float) -> str:
    """Hash values of 4 KiB as bytea; a text dump has them in hexadecimal, twice as long."""
    table = "blobs (id bigint PRIMARY KEY, content bytea); ALTER TABLE blobs ALTER content SET STORAGE EXTERNAL"
    await _filled(server, "bytea", table, _BLOB, round(gigabytes * 1e9 / 8204))
    return "bytea"


async def json(server: PostgresqlServer, gigabytes: float) -> str:
    """Documents of 48 properties as jsonb."""
    await _filled(server, "json", "documents (id bigint PRIMARY KEY, body jsonb)", _DOCUMENT, round(gigabytes * 7e5))
    return "json"


SHAPES: Mapping[str, Shape] = {shape.__name__: shape for shape in (devices, small_tables, huge_table, bytea, json)}


async def make(server: PostgresqlServer, shape: str, gigabytes: float) -> str:
    """Make the database of a shape, and settle it: what the first reader would have to do, is done."""
    database = await SHAPES[shape](server, gigabytes)
    # by a program, because the sample has settings that end a long statement
    server.run("vacuumdb", ["--analyze", "--quiet", database], timeout=1800)
    return database


async def _filled(server: PostgresqlServer, database: str, table: str, insert: str, rows: int) -> None:
    """Make a database with one table; some connections fill it with pieces of the row numbers."""
    await server.execute(f"CREATE DATABASE {database} TEMPLATE template0")
    await server.execute(f"CREATE TABLE {table}", database=database)
    piece = max(1, -(-rows // _PIECES))
    pieces = [(first, min(first + piece - 1, rows)) for first in range(1, rows + 1, piece)]

    async def work(connection: asyncpg.Connection[asyncpg.Record]) -> None:
        try:
            while pieces:
                await connection.execute(insert, *pieces.pop(0))
        finally:
            await connection.close()

    connections = [await server.connect(database) for _ in range(os.cpu_count() or 1)]
    async with asyncio.TaskGroup() as group:
        for connection in connections:
            group.create_task(work(connection))
