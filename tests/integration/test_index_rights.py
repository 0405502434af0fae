"""Indexes over functions that not everybody may run: their rights come back, and do not keep them from being built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncpg
import pytest

from demo.postgresql_server import PostgresqlServer
from service.sources.postgresql import load as loading
from service.sources.postgresql import stage
from tests import app_database
from tests.recipes import Installation

FUNCTIONS = """
    CREATE FUNCTION plain(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1; END';
    CREATE FUNCTION nobody(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1; END';
    CREATE FUNCTION nested(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN public.plain($1); END';
    CREATE FUNCTION strong(int) RETURNS int IMMUTABLE SECURITY DEFINER LANGUAGE plpgsql AS 'BEGIN RETURN $1; END';
    CREATE FUNCTION hashed(text) RETURNS int IMMUTABLE STRICT LANGUAGE internal AS 'hashtext';
    CREATE FUNCTION looked_up(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
        'BEGIN RETURN (SELECT id FROM public.things WHERE id = $1); END';
"""
RIGHTS = """
    SELECT oid::regprocedure::text, proacl::text FROM pg_proc
    WHERE pronamespace = 'public'::regnamespace OR oid = 'pg_catalog.lower(text)'::regprocedure ORDER BY 1
"""
INDEXES = """
    SELECT indrelid::regclass::text, indexrelid::regclass::text FROM pg_index
    WHERE indrelid IN ('papers'::regclass, 'heads'::regclass, 'sums'::regclass) ORDER BY 1, 2
"""
SAMPLED = "SELECT tablename FROM pg_stats WHERE tablename IN ('by_strong', 'of_sums') ORDER BY 1"


@pytest.fixture
async def installation(own_postgresql: PostgresqlServer, workspace: Path) -> Installation:
    return await app_database.make(own_postgresql, workspace)


async def test_an_index_is_built_whoever_may_run_its_function_and_the_rights_are_those_of_before(
    installation: Installation,
) -> None:
    server = installation.server
    await server.execute(
        """CREATE ROLE readers; CREATE ROLE staff IN ROLE readers; CREATE ROLE clerk IN ROLE staff;
           CREATE ROLE head SUPERUSER"""
    )
    await server.execute(
        f"""{FUNCTIONS}
           CREATE TABLE papers AS SELECT n FROM generate_series(1, 100) AS n; ALTER TABLE papers OWNER TO clerk;
           CREATE INDEX by_plain ON papers (plain(n)); CREATE INDEX by_nobody ON papers (n) WHERE nobody(n) > 3;
           CREATE INDEX by_nested ON papers (nested(n)); CREATE INDEX by_strong ON papers (strong(n));
           CREATE INDEX by_hashed ON papers (hashed(n::text)); CREATE INDEX by_lower ON papers (lower(n::text));
           CREATE TABLE heads AS SELECT n FROM papers; ALTER TABLE heads OWNER TO head;
           CREATE INDEX of_head ON heads (strong(n), looked_up(n));
           CREATE MATERIALIZED VIEW sums AS SELECT n FROM papers; ALTER MATERIALIZED VIEW sums OWNER TO clerk;
           CREATE INDEX of_sums ON sums (strong(n)); ANALYZE papers, sums;
           REVOKE ALL ON FUNCTION plain, nobody, nested, strong, hashed, looked_up, pg_catalog.lower(text) FROM PUBLIC;
           REVOKE ALL ON FUNCTION nobody FROM CURRENT_USER;
           GRANT EXECUTE ON FUNCTION strong, hashed, pg_catalog.lower(text) TO readers;
           CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''not here''; END';
           CREATE EVENT TRIGGER refuse ON ddl_command_start EXECUTE FUNCTION refuse()""",
        database="app",
    )

    async def found() -> list[list[object]]:
        return [
            list(row)
            for query in (RIGHTS, INDEXES, "SELECT count(*) FROM sums", SAMPLED)
            for row in await server.fetch(query, database="app")
        ]

    before = await found()
    assert ["papers", "by_strong"] in before
    result = await installation.backup()
    assert not [told for told in result.warnings if "may not run" in told]
    await server.execute("DROP DATABASE app")
    await server.execute("DROP ROLE clerk, staff, readers, head")
    await installation.restore(result.name)
    assert await found() == before
    assert not [told for told in installation.said if "statistics" in told and "there are no" in told]
    await installation.commit()
    await installation.restore(result.name)  # where they are there
    assert await found() == before


async def test_a_restore_lends_no_right_that_the_owner_of_a_table_did_not_have(installation: Installation) -> None:
    """One who may become a superuser, but is none, owns a table that somebody else's function indexes."""
    server = installation.server
    await server.execute("CREATE ROLE low; CREATE ROLE boss NOINHERIT; GRANT postgres TO boss")
    await server.execute(
        """CREATE TABLE loot (text text); ALTER TABLE loot OWNER TO low; GRANT INSERT ON loot TO boss;
           CREATE FUNCTION take() RETURNS void LANGUAGE plpgsql AS $$BEGIN
               INSERT INTO public.loot VALUES (pg_catalog.pg_read_file('PG_VERSION')); END$$;
           CREATE FUNCTION steal(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$BEGIN
               PERFORM public.take(); RETURN $1; EXCEPTION WHEN insufficient_privilege THEN RETURN $1; END$$;
           ALTER FUNCTION take OWNER TO low; ALTER FUNCTION steal OWNER TO low;
           CREATE TABLE bait AS SELECT n FROM generate_series(1, 3) AS n; ALTER TABLE bait OWNER TO boss;
           CREATE INDEX of_bait ON bait (steal(n))""",
        database="app",
    )
    query = "SELECT count(*) FROM loot"
    assert [list(row) for row in await server.fetch(query, database="app")] == [[0]]
    await installation.restore((await installation.backup()).name)
    assert [list(row) for row in await server.fetch(query, database="app")] == [[0]]


async def test_an_index_that_a_restore_may_fail_to_build_is_told_by_the_backup(installation: Installation) -> None:
    server = installation.server
    await server.execute("CREATE ROLE clerk")
    await server.execute(
        f"""{FUNCTIONS}
           CREATE OPERATOR ### (FUNCTION = hashed, RIGHTARG = text);
           CREATE TABLE papers AS SELECT n FROM generate_series(1, 100) AS n; ALTER TABLE papers OWNER TO clerk;
           CREATE INDEX by_strong ON papers (strong(n)); CREATE INDEX by_hashed ON papers ((### n::text));
           CREATE INDEX by_lower ON papers (lower(n::text));
           REVOKE ALL ON FUNCTION strong, hashed, pg_catalog.lower(text) FROM PUBLIC""",
        database="app",
    )
    result = await installation.backup()
    [told] = [told for told in result.warnings if "may not run" in told]
    assert "'app'" in told
    assert told.endswith(
        "public.by_hashed (runs public.hashed(text)), public.by_lower (runs lower(text)),"
        " public.by_strong (runs public.strong(integer))"
    )


async def test_nobody_but_a_superuser_gets_into_a_database_that_is_being_filled(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = (await installation.backup()).name
    knocks = 0

    async def load(*arguments: Any, **named: Any) -> None:
        nonlocal knocks
        [scratch] = {name for name in await installation.databases() if name.startswith("app__r_")}
        with pytest.raises(asyncpg.TooManyConnectionsError):
            await worker(installation.server, scratch)
        knocks += 1
        await loading.load(*arguments, **named)

    monkeypatch.setattr(stage, "load", load)
    await installation.restore(archive)
    assert knocks
    await (await worker(installation.server, "app")).close()


async def worker(server: PostgresqlServer, database: str) -> asyncpg.Connection:
    return await asyncpg.connect(host=server.host, port=server.port, user="worker", password="first", database=database)
