"""What a backup does not keep as it is, is told with what to do."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest

from demo.postgresql_server import PostgresqlServer
from service.errors import SourceError
from tests.recipes import Installation


@pytest.fixture
async def installation(own_postgresql: PostgresqlServer, workspace: Path) -> Installation:
    await own_postgresql.execute("CREATE DATABASE app")
    return Installation(own_postgresql, workspace, source={"include": ["app"]})


async def test_a_partition_whose_detaching_was_interrupted_is_told(installation: Installation) -> None:
    server = installation.server
    await server.execute(
        """CREATE TABLE whole (id int) PARTITION BY RANGE (id);
           CREATE TABLE "Part" PARTITION OF whole FOR VALUES FROM (0) TO (10); INSERT INTO whole VALUES (1)""",
        database="app",
    )
    async with server.connected("app") as reader, server.connected("app") as session:
        await reader.execute("BEGIN; SELECT FROM whole")
        await session.execute("SET lock_timeout = '100ms'")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await session.execute('ALTER TABLE whole DETACH PARTITION "Part" CONCURRENTLY')
    assert await server.fetch("SELECT FROM whole", database="app") == []
    remedy = 'ALTER TABLE public.whole DETACH PARTITION public."Part" FINALIZE'
    assert (await installation.backup()).warnings == [
        "postgresql: partitions of database 'app' whose detaching was interrupted come back attached,"
        f" with their rows; finish it, and back up again: {remedy}"
    ]
    await server.execute(remedy, database="app")
    result = await installation.backup()
    assert result.warnings == []
    await installation.restore(result.name)
    assert await server.fetch("SELECT FROM whole", database="app") == []


async def test_rights_that_an_extension_gave_to_a_role_that_was_dropped_are_told(installation: Installation) -> None:
    async def rights() -> list[str]:
        query = """SELECT concat_ws(' ', oid::regclass::text, relacl::text) FROM pg_class WHERE relname ~ '^pg_stat_st'
                   UNION ALL SELECT concat_ws(' ', oid::regprocedure::text, proacl::text) FROM pg_proc
                   WHERE proname ~ '^pg_stat_st' ORDER BY 1"""
        return [row[0] for row in await server.fetch(query, database="app")]

    server = installation.server
    await server.execute(
        "CREATE ROLE installer SUPERUSER; SET ROLE installer; CREATE EXTENSION pg_stat_statements", database="app"
    )
    await server.execute("REASSIGN OWNED BY installer TO postgres; DROP OWNED BY installer", database="app")
    await server.execute("DROP ROLE installer")
    result = await installation.backup()
    [warning] = result.warnings
    told, remedy = warning.split(", and back up again: ")
    assert told == (
        "postgresql: a restore of database 'app' will fail at rights that extensions gave to a role that was dropped"
        " (pg_stat_statements); run this there as a superuser"
    )
    with pytest.raises(SourceError, match=r"role .* does not exist"):
        await installation.restore(result.name)
    had = await rights()
    await server.execute(remedy, database="app")
    result = await installation.backup()
    assert result.warnings == []
    await installation.restore(result.name)
    assert await rights() == had


async def test_types_and_used_collations_that_were_added_to_pg_catalog_are_told(installation: Installation) -> None:
    await installation.server.execute(
        """CREATE DOMAIN pg_catalog."Small" AS int[]; CREATE TYPE pg_catalog.mood AS ENUM ('fine');
           CREATE COLLATION pg_catalog."Mine" FROM "C"; CREATE COLLATION pg_catalog.unused FROM "C";
           CREATE TABLE things (name text COLLATE pg_catalog."Mine", mood mood)""",
        database="app",
    )
    assert (await installation.backup()).warnings == [
        "postgresql: what was added to pg_catalog of database 'app' is not in this backup, and what uses it cannot be"
        ' restored: collation "Mine", type "Small", type mood'
    ]
