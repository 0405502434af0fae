"""Single steps of a restore on one database that they share: what breaks in them, and what they leave then."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.postgresql_server import PostgresqlServer
from service.config_sources import PostgresqlSettings
from service.errors import SourceError, SourceUnavailable, SwapFailed
from service.progress import Progress
from service.sources.postgresql import catalog, swap, tools
from service.sources.postgresql.connect import Connection, connection_to, errors_as_source
from service.sources.postgresql.materialized import fill
from service.sources.postgresql.needed import NO_CHANGE
from service.sources.postgresql.stage import _Build, bare_template
from tests.conftest import NewDatabase

SQL = """
    CREATE SCHEMA kept;
    CREATE FUNCTION kept.deadly(int) RETURNS int IMMUTABLE LANGUAGE sql AS
        'SELECT pg_terminate_backend(pg_backend_pid())::int WHERE current_setting(''my.death'', true) = ''on''';
    CREATE TABLE kept.numbers AS SELECT 1 AS n; CREATE INDEX ON kept.numbers (kept.deadly(n));
    CREATE MATERIALIZED VIEW kept.view AS
        SELECT kept.deadly(n), timestamptz '2026-01-01 20:00+00'::date AS day FROM kept.numbers WITH NO DATA;
"""


@pytest.fixture(scope="module")
def database(postgresql: PostgresqlServer) -> Iterator[str]:
    name = f"steps_{os.getpid()}"

    async def make() -> None:
        await postgresql.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        await postgresql.execute(SQL, database=name)

    asyncio.run(make())
    yield name
    asyncio.run(postgresql.execute(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def settings(postgresql: PostgresqlServer) -> PostgresqlSettings:
    return PostgresqlSettings.model_validate(postgresql.source_settings(), strict=False)


async def fill_view(connection: Connection, *settings: str) -> None:
    told = {"name": "app", "materialized_views": [["kept", "view"]], "settings": [{"role": None, "settings": settings}]}
    await fill(connection, told, NO_CHANGE, Progress())


async def analyze(connection: Connection) -> None:
    build: Any = _Build(
        PostgresqlSettings(type="postgresql"),
        Path(),
        {"name": "app"},
        "scratch",
        [],
        None,  # type: ignore[arg-type]  # nothing is read here
        Progress(),
        jobs=1,
        new=NO_CHANGE,
    )
    await build._analyze(connection, "kept.numbers")


@pytest.mark.parametrize("step", [fill_view, analyze])
async def test_a_connection_that_breaks_in_a_step_is_told_as_that(
    settings: PostgresqlSettings, database: str, step: Callable[[Connection], Awaitable[None]]
) -> None:
    with pytest.raises(SourceUnavailable, match=r"broke while working: .*administrator command"):
        async with connection_to(settings, database) as connection:
            with errors_as_source("working"):
                await connection.execute("SET my.death = on")
                await step(connection)


async def test_a_connection_that_breaks_while_a_setting_is_taken_is_told_as_that(
    postgresql: PostgresqlServer, settings: PostgresqlSettings, database: str
) -> None:
    async def taking() -> None:
        async with connection_to(settings, database) as connection:
            with errors_as_source("working"):
                await fill_view(connection, "default_text_search_config=pg_catalog.german")

    async with postgresql.connected(database) as other, other.transaction():
        await other.execute("LOCK TABLE pg_catalog.pg_ts_config")
        task = asyncio.ensure_future(taking())
        query = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = $1 AND wait_event_type = 'Lock' AND query ~ 'default_text_search_config'"""
        async with asyncio.timeout(20):
            while not await postgresql.fetch(query, database):
                await asyncio.sleep(0.01)
        with pytest.raises(SourceUnavailable, match=r"broke while working: .*administrator command"):
            await task


async def test_a_setting_that_a_session_cannot_take_leaves_the_others(
    settings: PostgresqlSettings, database: str
) -> None:
    async with connection_to(settings, database) as connection:
        await fill_view(connection, "log_connections=on", "TimeZone=Asia/Taipei")
        assert str(await connection.fetchval("SELECT day FROM kept.view")) == "2026-01-02"


async def test_what_an_archived_database_had_dropped_of_its_template_is_dropped(
    settings: PostgresqlSettings, database: str
) -> None:
    async with connection_to(settings, database) as connection:
        block = connection.transaction()
        await block.start()
        had = await catalog.database_facts(connection)
        await bare_template(connection, had)
        assert await catalog.database_facts(connection) == had
        await bare_template(connection, {"extensions": [], "schemas": ["kept"]})
        has = await catalog.database_facts(connection)
        await block.rollback()
    assert ([each["name"] for each in had["extensions"]], had["schemas"]) == (["plpgsql"], ["kept", "public"])
    assert (has["extensions"], has["schemas"]) == ([], ["kept"])


async def test_a_session_that_does_not_end_stops_an_exchange(
    postgresql: PostgresqlServer, settings: PostgresqlSettings, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap, "_DISCONNECT_SECONDS", 0.0)
    session = await postgresql.connect(database)
    backend = session.get_server_pid()
    os.kill(backend, signal.SIGSTOP)
    try:
        async with connection_to(settings, "postgres") as connection:
            with pytest.raises(SwapFailed, match=f"1 sessions of {database} do not end"):
                await swap._disconnect(connection, [database])
    finally:
        os.kill(backend, signal.SIGCONT)
        session.terminate()


async def test_a_database_that_cannot_be_taken_back_stays_open(
    postgresql: PostgresqlServer, settings: PostgresqlSettings, database: str
) -> None:
    [[oid]] = await postgresql.fetch("SELECT oid::bigint FROM pg_database WHERE datname = $1", database)
    entry = {"name": database, "scratch": f"{database}_scratch", "old": f"{database}_old", "scratch_oid": oid}
    entry |= {"live_oid": None, "live_allowed_connections": True}
    before = {**NO_CHANGE, "settings": [{"role": None, "settings": ["work_mem=nonsense"]}]}
    record = {"databases": [entry], "globals_before": before, "roles_created": [], "exchanging": True}
    with pytest.raises(SourceError, match=r"undoing the restore of the databases: .*work_mem"):
        await swap.undo(settings, record)
    assert [tuple(row) for row in await postgresql.fetch("SELECT 1", database=database)] == [(1,)]


@pytest.mark.parametrize("columns", [20, 1000])
async def test_the_error_of_a_command_is_told_however_long_the_command_is(
    settings: PostgresqlSettings, new_database: NewDatabase, columns: int
) -> None:
    wide = f"""CREATE COLLATION pg_catalog.mine (locale = 'C');  -- which pg_dump leaves out
        DO $$BEGIN EXECUTE (SELECT 'CREATE TABLE wide (' || string_agg(format('column_%s text COLLATE mine', n), ',')
                            || ')' FROM generate_series(1, {columns}) AS n); END$$"""
    name = await new_database(wide)
    async with connection_to(settings, name) as connection:
        directory = tools.client_directory(settings, (await catalog.server_facts(connection))["server_version_num"])
    with tools.anonymous_file("schema") as file:
        async for piece in tools.dump(settings, directory, name, tools.dump_options("UTF8")):
            file.write(piece)
        file.flush()
        with pytest.raises(SourceError, match=r'ERROR: +collation "pg_catalog.mine" .*does not exist') as caught:
            await tools.restore_file(settings, directory, await new_database(), [], file=file, options={})
    assert len(str(caught.value)) < 2500
