"""What a database computes by its settings, such as its time zone, is computed so in a restore, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from demo.postgresql_server import PostgresqlServer
from service.restore_table import restore_tables
from tests.recipes import Installation

_FUNCTIONS = """
    CREATE FUNCTION day(timestamptz) RETURNS date LANGUAGE sql IMMUTABLE AS 'SELECT $1::pg_catalog.date';
    CREATE FUNCTION site() RETURNS text LANGUAGE sql IMMUTABLE
        AS $$SELECT pg_catalog.current_setting('app.site_timeout')$$;
"""
_MORNING = "'2024-05-01 03:00+08'"
"""The evening before in UTC."""


@pytest.fixture
async def installation(own_postgresql: PostgresqlServer, workspace: Path) -> Installation:
    await own_postgresql.execute("CREATE DATABASE app")
    for setting in (
        "TimeZone = 'Asia/Taipei'",
        "app.site_timeout = 'factory-7'",  # a name of an application's own, whatever it ends with
        "default_text_search_config = 'pg_catalog.german'",
        "array_nulls = off",
        "standard_conforming_strings = off",
        "default_transaction_read_only = on",
        "temp_file_limit = 0",
    ):
        await own_postgresql.execute(f"ALTER DATABASE app SET {setting}")
    return Installation(own_postgresql, workspace, source={"include": ["app"]})


async def made(installation: Installation, sql: str) -> None:
    async with installation.server.connected("app") as connection:
        await connection.execute("SET default_transaction_read_only = off")
        await connection.execute(f"SET array_nulls = on; SET standard_conforming_strings = on; {_FUNCTIONS} {sql}")


async def rows(installation: Installation, sql: str) -> list[tuple[Any, ...]]:
    async with installation.server.connected("app") as connection:
        await connection.execute("SET enable_seqscan = off")
        return [tuple(row) for row in await connection.fetch(sql)]


async def test_generated_columns_indexes_and_what_is_searched_are_as_they_were(installation: Installation) -> None:
    await made(
        installation,
        f"""CREATE TABLE seen (at timestamptz, words text, nothing text[] DEFAULT '{{NULL,x}}',
                day date GENERATED ALWAYS AS (day(at)) STORED, site text GENERATED ALWAYS AS (site()) STORED);
            CREATE INDEX by_day ON seen (day(at));
            CREATE INDEX by_word ON seen USING gin (to_tsvector('pg_catalog.german', words));
            INSERT INTO seen (at, words) VALUES ({_MORNING}, 'Die Häuser');
            CREATE MATERIALIZED VIEW found AS SELECT day(at), to_tsvector(words)::text FROM seen""",
    )
    of_all = "SELECT day::text, site, nothing[1], pg_get_expr(adbin, adrelid) FROM seen, pg_attrdef WHERE adnum = 3"
    by_index = "SELECT count(*) FROM seen WHERE day(at) = '2024-05-01'"
    questions = (of_all, by_index, "SELECT day::text, to_tsvector FROM found")
    before = [await rows(installation, question) for question in questions]
    assert before[0] == [("2024-05-01", "factory-7", None, "'{NULL,x}'::text[]")]
    assert before[1:] == [[(1,)], [("2024-05-01", "'haus':2")]]
    await installation.restore((await installation.backup()).name)
    assert [await rows(installation, question) for question in questions] == before


async def test_checks_and_partitions_that_go_by_the_time_zone_are_no_obstacle(installation: Installation) -> None:
    await made(
        installation,
        f"""CREATE TABLE checked (at timestamptz CHECK (at::date >= '2024-05-01'));
            INSERT INTO checked VALUES ({_MORNING});
            CREATE TABLE divided (at timestamptz) PARTITION BY RANGE (day(at));
            CREATE TABLE may PARTITION OF divided FOR VALUES FROM ('2024-05-01') TO ('2024-06-01');
            CREATE TABLE april PARTITION OF divided FOR VALUES FROM ('2024-04-01') TO ('2024-05-01');
            INSERT INTO divided VALUES ({_MORNING})""",
    )
    archive = (await installation.backup()).name
    await installation.restore(archive)
    await installation.commit()
    assert await rows(installation, "SELECT count(*) FROM checked, may") == [(1,)]
    beside = await restore_tables(
        installation.config,
        archive,
        database="app",
        tables=["public.checked", "public.divided"],
        into="beside",
        progress=installation.progress(),
    )
    assert [table["rows"] for table in beside.tables] == [1, 1]
