"""What stands in the way of a restore, on the server that all share: what an archive tells is changed instead."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demo.postgresql_server import PostgresqlServer
from service.config_sources import PostgresqlSettings
from service.errors import Obstacle
from service.sources.base import StoredSource
from service.sources.postgresql import catalog, stage
from service.sources.postgresql.connect import connection_to
from service.sources.postgresql.preflight import plan


@pytest.fixture
def settings(postgresql: PostgresqlServer) -> PostgresqlSettings:
    return PostgresqlSettings.model_validate(postgresql.source_settings(), strict=False)


async def archived(settings: PostgresqlSettings, name: str) -> StoredSource:
    """Return one database as an archive of now would tell of it."""
    async with connection_to(settings, name) as connection:
        server = await catalog.server_facts(connection)
        [found] = [each for each in await catalog.databases(connection) if each["name"] == name]
        inside = await catalog.database_facts(connection)
    facts = {"server": server, "databases": [{**found, **inside, "tables": 0, "sequences": []}]}
    return StoredSource(name="postgresql", type="postgresql", facts=facts, streams=[], whole=False)


def changed(stored: StoredSource, **database: object) -> dict[str, Any]:
    return {**stored.facts, "databases": [{**stored.facts["databases"][0], **database}]}


def told(found: Sequence[Obstacle]) -> list[tuple[str, str]]:
    return [(each.code, each.message) for each in found]


async def test_what_a_server_lacks_is_an_obstacle(settings: PostgresqlSettings) -> None:
    stored = await archived(settings, "postgres")
    found = await plan(settings, stored, None)
    assert (found.obstacles, found.notes) == ([], [])
    assert ("database postgres", "replace") in [(item.what, item.action) for item in found.items]
    lacking = changed(stored, collate="xx_XX.UTF-8", collation_version="1.2", tablespace="fast", tablespaces=["fast"])
    found = await plan(settings, replace(stored, facts=lacking), None)
    assert told(found.obstacles) == [
        ("TABLESPACE_MISSING", "database 'postgres' uses tablespace 'fast', which this server does not have"),
        ("LOCALE_MISSING", "database 'postgres' uses locale 'xx_XX.UTF-8', which this server does not offer"),
    ]
    assert found.notes == [], "a locale that is missing has no version"
    stored.facts["server"]["server_version_num"] = 90624
    [(code, message)] = told((await plan(settings, stored, None)).obstacles)
    assert (code, "of PostgreSQL 9," in message) == ("POSTGRESQL_VERSION", True)


async def test_a_tablespace_that_is_there_is_no_obstacle(own_postgresql: PostgresqlServer, workspace: Path) -> None:
    place = workspace / "roomy"
    place.mkdir()
    shutil.chown(place, own_postgresql.data.owner())
    await own_postgresql.execute(f"CREATE TABLESPACE roomy LOCATION '{place}'")
    settings = PostgresqlSettings.model_validate(own_postgresql.source_settings(), strict=False)
    stored = await archived(settings, "postgres")
    found = await plan(settings, replace(stored, facts=changed(stored, tablespaces=["roomy", "pg_default"])), None)
    assert found.obstacles == []


async def test_a_role_that_is_no_superuser_is_an_obstacle(
    postgresql: PostgresqlServer, settings: PostgresqlSettings
) -> None:
    stored = await archived(settings, "postgres")
    name = f"nobody_{os.getpid()}"
    await postgresql.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{postgresql.password}'")
    try:
        found = await plan(settings.model_copy(update={"user": name}), stored, None)
    finally:
        await postgresql.execute(f"DROP ROLE {name}")
    assert told(found.obstacles) == [
        ("POSTGRESQL_PRIVILEGE", f"role {name!r} is not a superuser, so owners and privileges could not be restored")
    ]


async def test_a_database_that_icu_sorts_is_made_again_and_another_version_of_its_locale_is_told(
    postgresql: PostgresqlServer, settings: PostgresqlSettings
) -> None:
    name, again = f"icu_{os.getpid()}", f"icu_{os.getpid()}_again"
    try:
        await postgresql.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING UTF8 LOCALE_PROVIDER icu ICU_LOCALE 'de'"
        )
        stored = await archived(settings, name)
        [database] = stored.facts["databases"]
        assert (await plan(settings, stored, None)).notes == []
        found = await plan(settings, replace(stored, facts=changed(stored, collation_version="1.2")), None)
        async with connection_to(settings, "postgres") as connection:
            await stage.create_database(connection, database, again)
            [made] = [each for each in await catalog.databases(connection) if each["name"] == again]
    finally:
        for each in (name, again):
            await postgresql.execute(f"DROP DATABASE IF EXISTS {each}")
    here = database["collation_version"]
    assert found.obstacles == []
    assert told(found.notes) == [
        ("COLLATION_VERSION", f"database {name!r} was sorted by version 1.2 of its locale, this system has {here}")
    ]
    kept = ["owner", "encoding", "collate", "ctype", "provider", "locale", "collation_version", "tablespace"]
    assert {key: made[key] for key in kept} == {key: database[key] for key in kept}
    assert (database["provider"], database["locale"], made["connection_limit"]) == ("i", "de", 0)
