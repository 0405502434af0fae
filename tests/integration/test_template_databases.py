"""Databases that PostgreSQL does not drop at once, and a restore has to when it ends: templates, half-dropped ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.postgresql_server import PostgresqlServer
from tests.recipes import Installation

TEMPLATE = "ALTER DATABASE app IS_TEMPLATE true"


@pytest.fixture
async def installation(own_postgresql: PostgresqlServer, workspace: Path) -> Installation:
    await own_postgresql.execute("CREATE DATABASE app")
    await own_postgresql.execute("CREATE TABLE things AS SELECT 1 AS n", database="app")
    return Installation(own_postgresql, workspace, source={"include": ["app"]})


async def databases(server: PostgresqlServer) -> list[tuple[str, bool]]:
    rows = await server.fetch(
        "SELECT datname::text, datistemplate FROM pg_database WHERE datname !~ '^template' ORDER BY 1"
    )
    return [tuple(row) for row in rows]


async def test_commit_removes_an_old_state_that_is_a_template(installation: Installation) -> None:
    server = installation.server
    archive = (await installation.backup()).name
    await server.execute(TEMPLATE)
    await installation.restore(archive)
    await installation.commit()
    assert [name for name, _ in await databases(server)] == ["app", "postgres"]
    assert await server.fetch("SELECT n FROM things", database="app")


async def test_rollback_brings_a_template_back_and_removes_a_restored_one(installation: Installation) -> None:
    server = installation.server
    archive = (await installation.backup()).name
    await server.execute(TEMPLATE)
    await installation.restore(archive)
    await server.execute(TEMPLATE)
    await installation.rollback()
    assert await databases(server) == [("app", True), ("postgres", False)]


async def test_a_database_whose_dropping_was_killed_is_dropped(installation: Installation) -> None:
    server = installation.server
    archive = (await installation.backup()).name
    await installation.restore(archive)
    await server.execute("UPDATE pg_database SET datconnlimit = -2 WHERE datname ~ '__old_'")  # what such a kill leaves
    await installation.commit()
    assert [name for name, _ in await databases(server)] == ["app", "postgres"]
