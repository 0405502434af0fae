"""Loading rows into scratch databases: frozen, in parts, within the server's limits, and never more or fewer."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from demo.postgresql_server import PostgresqlServer
from service.config_sources import PostgresqlSettings
from service.errors import CorruptArchive, NotAuthentic, RestoreRefused, ServiceError, SourceUnavailable
from service.pipeline.unpack import ArchiveReader
from service.sources.base import StoredStream
from service.sources.postgresql import PostgresqlRestorer, rows, tools
from service.sources.postgresql.connect import connection_to
from service.sources.postgresql.load import _copy_in
from tests import app_database
from tests.app_database import SAMPLE, contents, spoil, untouched
from tests.conftest import NewServer
from tests.recipes import Installation, eventually


@pytest.fixture
async def installation(own_postgresql: PostgresqlServer, workspace: Path) -> Installation:
    return await app_database.make(own_postgresql, workspace)


async def test_restored_rows_are_frozen_and_known_to_the_planner(installation: Installation) -> None:
    await installation.server.execute(
        """CREATE TABLE split (day int, text text) PARTITION BY RANGE (day);
           CREATE TABLE split_1 PARTITION OF split FOR VALUES FROM (0) TO (50);
           CREATE TABLE split_2 PARTITION OF split FOR VALUES FROM (50) TO (100);
           INSERT INTO split SELECT n % 100, md5(n::text) FROM generate_series(1, 100000) AS n""",
        database="app",
    )
    await installation.restore((await installation.backup()).name)
    tables = await installation.server.fetch(
        """SELECT relname::text, relpages > 0 AND relallvisible = relpages AS frozen, reltuples::int
           FROM pg_class WHERE relname IN ('things', 'split_1', 'split_2', 'total') AND relkind IN ('r', 'm')
           ORDER BY 1""",
        database="app",
    )
    assert [(row[0], row[2]) for row in tables] == [
        ("split_1", 50000),
        ("split_2", 50000),
        ("things", 200000),
        ("total", 1),
    ]
    assert all(row[1] for row in tables if row[0] != "total")
    statistics = await installation.server.fetch(
        "SELECT DISTINCT tablename::text, inherited FROM pg_stats WHERE schemaname = 'public' ORDER BY 1",
        database="app",
    )
    expected = [("split", True), ("split_1", False), ("split_2", False), ("things", False), ("total", False)]
    assert [tuple(row) for row in statistics] == expected


async def test_a_server_that_dies_while_the_socket_is_full_of_rows_ends_the_loading(
    own_postgresql: PostgresqlServer,
) -> None:
    await own_postgresql.execute("CREATE TABLE filled (t text)")
    pulled = 0

    async def endless() -> AsyncGenerator[bytes, None]:
        nonlocal pulled
        while True:
            pulled += 1
            yield b"x" * 100_000 + b"\n"

    settings = PostgresqlSettings.model_validate(own_postgresql.source_settings(), strict=False)
    async with connection_to(settings, "postgres") as connection:
        backend = await connection.fetchval("SELECT pg_backend_pid()")
        told = {
            "schema": "public",
            "table": "filled",
            "format": "text",
            "encoding": "UTF8",
            "columns": ["t"],
            "rows": 0,
        }
        waiting = asyncio.ensure_future(_copy_in(connection, "postgres", told, endless(), freeze=False))
        await eventually(lambda: pulled > 10)
        os.kill(backend, signal.SIGSTOP)
        before = -1
        while pulled != before:  # until the driver waits for room in the socket
            before = pulled
            await asyncio.sleep(0.5)
        os.kill(backend, signal.SIGKILL)
        async with asyncio.timeout(20):
            with pytest.raises(SourceUnavailable, match="while rows were being sent"):
                await waiting


async def test_parts_of_a_table_that_fills_the_database_are_loaded_at_once(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_PART_BYTES", 300 * 8192)
    archived = await contents(installation)
    archive = (await installation.backup()).name
    monkeypatch.undo()
    await spoil(installation)
    await installation.restore(archive)
    assert await contents(installation) == archived


async def test_parts_of_a_table_that_is_loaded_whole_are_frozen_in_one_transaction(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    await installation.server.execute(
        "CREATE TABLE bigger AS SELECT n, repeat(md5(n::text), 4) AS t FROM generate_series(1, 250000) AS n",
        database="app",
    )
    monkeypatch.setattr(rows, "_PART_BYTES", 300 * 8192)
    archive = (await installation.backup()).name
    await installation.restore(archive)
    [row] = await installation.server.fetch(
        "SELECT relallvisible = relpages, relpages > 900, (SELECT count(*) FROM things) FROM pg_class"
        " WHERE relname = 'things'",
        database="app",
    )
    assert tuple(row) == (True, True, 200000)


async def test_statistics_that_cannot_be_gathered_do_not_stop_a_restore(installation: Installation) -> None:
    gone = installation.root / "gone.csv"
    gone.write_text("150,x\n")
    gone.chmod(0o644)
    await installation.server.execute(
        f"""CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
            CREATE TABLE split (day int, text text) PARTITION BY RANGE (day);
            CREATE TABLE split_1 PARTITION OF split FOR VALUES FROM (0) TO (100);
            CREATE FOREIGN TABLE split_2 PARTITION OF split FOR VALUES FROM (100) TO (200)
                SERVER files OPTIONS (filename '{gone}', format 'csv');
            INSERT INTO split SELECT n % 100, md5(n::text) FROM generate_series(1, 1000) AS n""",
        database="app",
    )
    archived = await contents(installation)
    archive = (await installation.backup()).name
    gone.unlink()
    await installation.restore(archive)
    assert await contents(installation) == archived
    [row] = await installation.server.fetch("SELECT count(*) FROM split_1", database="app")
    assert row[0] == 1000
    assert any("no statistics of table" in said and "split" in said for said in installation.said)


async def test_a_restore_takes_no_more_connections_than_the_server_has_free(
    workspace: Path, new_postgresql: NewServer
) -> None:
    server = new_postgresql(settings={"max_connections": 12, "superuser_reserved_connections": 3})
    installation = Installation(server, workspace, source={"connections": 16})
    await server.execute("CREATE DATABASE app")
    await server.execute(SAMPLE, database="app")
    for number in range(20):
        await server.execute(f"CREATE TABLE t{number} AS SELECT 1 AS n", database="app")
    archive = (await installation.backup()).name
    await server.execute("CREATE ROLE worker LOGIN")
    applications = [await server.connect() for _ in range(5)]
    try:
        await installation.restore(archive, allow=frozenset({"LIVE_CONNECTIONS"}))
    finally:
        for application in applications:
            await application.close()


async def test_a_small_table_with_another_number_of_rows_is_not_restored_at_all(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    await installation.server.execute(
        "CREATE TABLE first AS SELECT 1 AS n; CREATE TABLE second AS SELECT 2 AS n", database="app"
    )
    copy_out = rows._copy_out

    async def miscounting(connection: Any, table: Any, condition: str, connections: Any, told: Any) -> Any:
        async for piece in copy_out(connection, table, condition, connections, told):
            yield piece
        told["rows"] += table.name == "second"

    monkeypatch.setattr(rows, "_copy_out", miscounting)
    archive = (await installation.backup()).name
    await spoil(installation)
    spoilt = await contents(installation)
    with pytest.raises(ServiceError, match=r'table "public"\."second".*1 rows restored, 2 archived'):
        await installation.restore(archive)
    await untouched(installation, spoilt)


async def test_an_archive_with_a_kind_of_stream_from_the_future_is_refused(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = (await installation.backup()).name
    monkeypatch.setattr(PostgresqlRestorer, "kinds", PostgresqlRestorer.kinds - {"postgresql.large_objects"})
    before = await contents(installation)
    with pytest.raises(RestoreRefused, match=r"cannot restore: postgresql\.large_objects"):
        await installation.restore(archive)
    await untouched(installation, before)


async def test_large_objects_are_fed_to_pg_restore_only_when_all_of_them_are_what_was_archived(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Who knows an archive's key can exchange one chunk of a signed archive; it must not run before that shows.
    server = installation.server
    await server.execute(
        "SELECT lo_from_bytea(0, string_agg(decode(md5(n::text), 'hex'), '')) FROM generate_series(1, 50000) AS n",
        database="app",
    )
    archive = (await installation.backup()).name
    await server.execute("CREATE DATABASE evil")
    await server.execute(
        """CREATE FUNCTION f() RETURNS bool LANGUAGE plpgsql
               AS $$BEGIN COPY (SELECT 1) TO PROGRAM 'cat > ran.1'; RETURN true; END$$;
           CREATE TABLE t (x int CHECK (public.f())); INSERT INTO t VALUES (1)""",
        database="evil",
    )
    dump = await evil_dump(installation)
    await server.execute("DROP DATABASE evil")
    genuine, readings = ArchiveReader.read, 0

    async def exchanged(self: ArchiveReader, stream: StoredStream) -> AsyncGenerator[bytes, None]:
        nonlocal readings
        if stream.kind != "postgresql.large_objects":
            async for piece in genuine(self, stream):
                yield piece
            return
        assert stream.chunks > 1
        readings += 1
        if readings == honest:  # it is what it was the first time, and something else the second
            async for piece in genuine(self, stream):
                yield piece
            return
        yield dump
        await asyncio.sleep(1)
        raise CorruptArchive("the stream is not what the manifest says")

    monkeypatch.setattr(ArchiveReader, "read", exchanged)
    for honest in (0, 1):
        readings = 0
        before = await contents(installation)
        with pytest.raises((CorruptArchive, NotAuthentic)):
            await installation.restore(archive)
        await untouched(installation, before)
        [[ran]] = await server.fetch("SELECT count(*) FROM pg_ls_dir('.') AS name WHERE name = 'ran.2'")
        assert ran == 0, honest
    monkeypatch.setattr(ArchiveReader, "read", genuine)
    await installation.restore(archive)


async def evil_dump(installation: Installation) -> bytes:
    """Return a dump of the database `evil` that leaves another trace when it is restored."""
    settings = PostgresqlSettings.model_validate(installation.server.source_settings(), strict=False)
    version = (await installation.server.fetch("SHOW server_version_num"))[0][0]
    directory = tools.client_directory(settings, int(version))
    argv = ["--format=custom", f"--dbname={tools.conninfo(settings, 'evil')}"]
    async with tools.child(settings, directory / "pg_dump", argv) as process:
        assert process.stdout is not None
        return (await process.stdout.read()).replace(b"ran.1", b"ran.2")


async def test_entries_of_a_dump_are_told_apart_whatever_ends_a_line_in_their_names(
    own_postgresql: PostgresqlServer,
) -> None:
    names = [f"line{end}1; 2 3 end" for end in "\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029"]
    for name in names:
        await own_postgresql.execute(f'CREATE TABLE "{name}" ()')
    settings = PostgresqlSettings.model_validate(own_postgresql.source_settings(), strict=False)
    version = (await own_postgresql.fetch("SHOW server_version_num"))[0][0]
    directory = tools.client_directory(settings, int(version))
    with tools.anonymous_file("schema") as schema:
        async for piece in tools.dump(settings, directory, "postgres", tools.dump_options("UTF8")):
            schema.write(piece)
        schema.flush()
        entries = await tools.entries(settings, directory, schema)
    tables = [entry for entry in entries if tools.is_of(entry, ("TABLE public ",))]
    assert len(tables) == len(names)
    assert not [entry for entry in entries if entry.startswith("1; 2 3 end")]
