"""Settings of roles and databases that the server does not take are told before anything live is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.postgresql_server import PostgresqlServer
from service.errors import StageFailed
from service.progress import Progress
from service.restore import restore
from service.selection import Selection
from tests.recipes import Installation


@pytest.fixture
async def installation(own_postgresql: PostgresqlServer, workspace: Path) -> Installation:
    await own_postgresql.execute("CREATE ROLE worker")
    await own_postgresql.execute("CREATE DATABASE app OWNER worker")
    return Installation(own_postgresql, workspace, source={"include": ["app"]})


async def unknown_here(server: PostgresqlServer, setting: str) -> None:
    """Have every setting be one for which the server lacks something, as if it had lost that since."""
    await server.execute(f"UPDATE pg_catalog.pg_db_role_setting SET setconfig = ARRAY['{setting}']")


async def settings(server: PostgresqlServer) -> list[str]:
    rows = await server.fetch("SELECT setrole::text || setconfig::text FROM pg_catalog.pg_db_role_setting ORDER BY 1")
    return [row[0] for row in rows]


async def test_all_settings_that_are_refused_are_named_and_nothing_is_left(installation: Installation) -> None:
    server = installation.server
    for target in ("ROLE worker", "ROLE ALL", "DATABASE app", "ROLE worker IN DATABASE app"):
        await server.execute(f"ALTER {target} SET work_mem = '5MB'")
    await unknown_here(server, "lc_messages=xx_YY.UTF-8")
    archive = (await installation.backup()).name
    for target in ("ROLE worker", "ROLE ALL"):
        await server.execute(f"ALTER {target} RESET ALL")
    before = await settings(server)
    with pytest.raises(StageFailed) as caught:
        await installation.restore(archive)
    for who in ("role 'worker'", "all roles", "database 'app'", "role 'worker' in database 'app'"):
        assert f"lc_messages of {who} of the archive: invalid value" in str(caught.value)
    assert "--only databases" in caught.value.hint
    assert not [said for said in installation.said if "beside the live one" in said], "it is found first"
    assert await installation.databases() == {"app", "postgres"}
    assert await settings(server) == before


async def test_a_setting_of_a_role_that_single_databases_need_is_tried_too(installation: Installation) -> None:
    server = installation.server
    await server.execute("CREATE ROLE idler")
    for name in ("worker", "idler"):
        await server.execute(f"ALTER ROLE {name} SET work_mem = '5MB'")
    await unknown_here(server, "lc_messages=xx_YY.UTF-8")
    archive = (await installation.backup()).name
    await server.execute("DROP DATABASE app")
    await server.execute("DROP ROLE worker, idler")
    with pytest.raises(StageFailed, match="role 'worker' of the archive") as caught:
        await restore(
            installation.config, archive, select=Selection(databases=("app",)), progress=Progress(), allow=frozenset()
        )
    assert "idler" not in str(caught.value)
    assert await installation.databases() == {"postgres"}


async def test_settings_that_a_rollback_could_not_bring_back_are_told(installation: Installation) -> None:
    server = installation.server
    await server.execute("ALTER ROLE worker SET work_mem = '5MB'")
    archive = (await installation.backup()).name
    await unknown_here(server, "lc_messages=xx_YY.UTF-8")
    with pytest.raises(StageFailed, match="lc_messages of role 'worker' of this server"):
        await installation.restore(archive)


async def test_settings_that_stay_are_not_tried(installation: Installation) -> None:
    server = installation.server
    await server.execute("ALTER ROLE worker SET work_mem = '5MB'")
    await unknown_here(server, "lc_messages=xx_YY.UTF-8")
    before = await settings(server)
    archive = (await installation.backup()).name
    await installation.restore(archive)
    assert await settings(server) == before
    await installation.rollback()
    assert await settings(server) == before
