"""What a plan tells of a real server, and that a token holds a restore to it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from demo.postgresql_server import PostgresqlServer
from service.backup import backup
from service.catalog import opened
from service.errors import Obstacle, RestoreRefused
from service.exclusive import servers_locked
from service.journal import Journal
from service.progress import Progress
from service.restore import restore
from service.restore_plan import RestorePlan, plan_restore
from service.sources.postgresql import room
from service.state_directory import only_job
from tests.recipes import Installation

ALLOW = frozenset({"LIVE_CONNECTIONS"})


@pytest.fixture
async def installation(own_postgresql: PostgresqlServer, workspace: Path) -> Installation:
    await own_postgresql.execute("CREATE ROLE keeper; CREATE ROLE gone LOGIN; CREATE ROLE team; CREATE ROLE worker")
    await own_postgresql.execute("CREATE DATABASE app")
    await own_postgresql.execute("CREATE TABLE things AS SELECT 1 AS id", database="app")
    return Installation(own_postgresql, workspace)


@pytest.fixture
async def archive(installation: Installation) -> str:
    return (await installation.backup()).name


async def planned(installation: Installation, archive: str) -> RestorePlan:
    return await plan_restore(installation.config, archive)


def codes(found: list[Obstacle]) -> list[str]:
    return [each.code for each in found]


async def test_a_plan_says_what_becomes_of_each_database_and_role(installation: Installation, archive: str) -> None:
    server = installation.server
    await server.execute("DROP ROLE gone; CREATE ROLE newcomer; ALTER ROLE worker PASSWORD 'other' CREATEDB")
    await server.execute("ALTER ROLE keeper SET work_mem TO '8MB'; GRANT team TO keeper")
    await server.execute("CREATE DATABASE other")
    plan = await planned(installation, archive)
    told = {item.what: (item.action, item.note) for item in plan.items}
    assert {what: action for what, (action, _) in told.items()} == {
        "database app": "replace",
        "database postgres": "replace",
        "database other": "keep",
        "role gone": "create",
        "role worker": "replace",
        "role keeper": "replace",
        "role newcomer": "keep",
    }
    assert re.fullmatch(r"(1 table|\d+ tables), [\d.]+ MB on the server", told["database app"][1])
    assert re.fullmatch(r"0 tables, [\d.]+ MB on the server", told["database postgres"][1])
    assert told["role worker"][1] == "other attributes, password"
    assert told["role keeper"][1] == "other settings, memberships"
    assert (plan.obstacles, plan.notes) == ([], [])
    assert sum(place.needed for place in plan.space) > 10_000_000, "two databases take as much at least"
    assert all(place.free > place.needed for place in plan.space)


async def test_a_server_whose_files_cannot_be_seen_is_told(
    installation: Installation, archive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_HERE", frozenset())
    plan = await planned(installation, archive)
    assert (codes(plan.obstacles), codes(plan.notes), plan.space) == ([], ["SPACE_UNSEEN"], [])


async def test_what_all_copies_need_together_has_to_fit(
    installation: Installation, archive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_LOG_SHARE", 1e9)
    assert codes((await planned(installation, archive)).obstacles) == ["SPACE"]


async def test_who_is_connected_is_told_and_has_to_be_allowed_unless_a_hook_stops_the_server(
    installation: Installation, archive: str
) -> None:
    session = await installation.server.connect("app")
    await session.execute("SET application_name = 'DeviceOn portal'")
    [told] = (await planned(installation, archive)).obstacles
    assert told.code == "LIVE_CONNECTIONS"
    assert "database 'app' is in use: 1 x DeviceOn portal as postgres from 127.0.0.1" in told.message
    with pytest.raises(RestoreRefused, match="is in use"):
        await installation.restore(archive)
    hook = {"command": ["true"]}
    installation.hooks = {"stop": hook, "start": hook}
    plan = await planned(installation, archive)
    assert (codes(plan.obstacles), codes(plan.notes)) == ([], ["LIVE_CONNECTIONS"])
    await installation.restore(archive)
    session.terminate()


async def test_what_keeps_a_restore_from_beginning_now_is_told(installation: Installation, archive: str) -> None:
    config = installation.config
    async with servers_locked(config.sources, "another service"):
        assert codes((await planned(installation, archive)).obstacles) == ["SERVER_LOCKED"]
    with only_job(config.state_dir, "a backup"):
        assert codes((await planned(installation, archive)).notes) == ["JOB_RUNNING"]
    journal = Journal.begin(config.state_dir, archive=archive, started="2026-01-01T00:00:00Z")
    await journal.save()
    assert codes((await planned(installation, archive)).notes) == ["RESTORE_INTERRUPTED"]
    await journal.save("swapped")
    assert codes((await planned(installation, archive)).obstacles) == ["RESTORE_PENDING"]


async def test_a_server_without_room_for_sessions_and_a_standby_are_obstacles(
    installation: Installation, archive: str
) -> None:
    server = installation.server
    server.restart({"max_connections": 8, "superuser_reserved_connections": 3})
    held = [await server.connect("template1") for _ in range(3)]
    assert codes((await planned(installation, archive)).obstacles) == ["CONNECTIONS_FULL"]
    for session in held:
        session.terminate()
    server.stop()
    (server.data / "standby.signal").touch()
    server.start()
    assert "SERVER_READ_ONLY" in codes((await planned(installation, archive)).obstacles)


async def test_a_client_of_another_version_is_an_obstacle(installation: Installation, archive: str) -> None:
    clients = installation.root / "clients"
    clients.mkdir()
    for name in ("pg_dump", "pg_restore"):
        (clients / name).write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.1'\n")
        (clients / name).chmod(0o755)
    installation.source = {"client_dir": str(clients)}
    [told] = (await planned(installation, archive)).obstacles
    assert told.code == "POSTGRESQL_CLIENT" and "is version 9.6.1" in told.message


async def test_a_token_holds_a_restore_to_the_plan_that_was_looked_at(installation: Installation, archive: str) -> None:
    async def put_back(token: str) -> None:
        await restore(installation.config, archive, allow=ALLOW, token=token, progress=Progress())

    token = (await planned(installation, archive)).token
    session = await installation.server.connect("app")  # comes and goes, so it is no part of the plan
    assert (await planned(installation, archive)).token == token
    session.terminate()
    await installation.server.execute("CREATE ROLE newcomer")
    with pytest.raises(RestoreRefused) as caught:
        await put_back(token)
    assert codes(list(caught.value.obstacles)) == ["PLAN_CHANGED"]
    assert not any(name.startswith("app__") for name in await installation.databases())
    changed = (await planned(installation, archive)).token
    path = installation.target / archive
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)  # the same bytes, but who says so?
    other = (await planned(installation, archive)).token
    assert len({token, changed, other}) == 3
    installation.hooks = {"start": {"command": ["true"]}}
    assert (await planned(installation, archive)).token != other
    installation.hooks = {}
    await put_back(other)


async def test_a_backup_while_the_old_state_is_kept_leaves_the_old_databases_out(
    installation: Installation, archive: str
) -> None:
    await installation.restore(archive)
    later = datetime.now(UTC) + timedelta(hours=1)
    made = await backup(installation.config, progress=Progress(), clock=lambda: later)
    async with opened(installation.config, made.name) as reader:
        [stored] = reader.sources()
    assert [database["name"] for database in stored.facts["databases"]] == ["app", "postgres"]
    left_out = [item["reason"] for item in made.excluded if "__old_" in item["path"]]
    assert len(left_out) == 2
