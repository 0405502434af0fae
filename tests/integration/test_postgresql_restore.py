"""Restoring into a real PostgreSQL: wholly new after the swap, wholly old before it and after a rollback."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import asyncpg
import pytest

from demo.postgresql_server import PostgresqlServer
from service.errors import ConfigError, HookFailed, JobRefused, RestoreRefused, ServiceError, SwapFailed
from service.progress import Progress
from service.restore import recover, restore
from service.restore_plan import plan_restore
from service.sources.postgresql import room, stage
from tests import app_database
from tests.app_database import contents, spoil, untouched
from tests.conftest import NewServer
from tests.recipes import Installation, eventually


@pytest.fixture
async def installation(own_postgresql: PostgresqlServer, workspace: Path) -> Installation:
    return await app_database.make(own_postgresql, workspace)


async def test_a_restore_brings_back_what_was_there_and_rollback_what_was_there_before_it(
    installation: Installation,
) -> None:
    archived = await contents(installation)
    archive = (await installation.backup()).name
    await spoil(installation)
    spoilt = await contents(installation)
    await installation.restore(archive)
    assert await contents(installation) == archived
    await installation.rollback()
    await untouched(installation, spoilt)
    await installation.restore(archive)
    await installation.commit()
    await untouched(installation, archived)
    roles = await installation.server.fetch("SELECT 1 FROM pg_roles WHERE rolname = 'newcomer'")
    assert roles, "a role that the archive does not know stays"


async def test_databases_and_roles_that_are_gone_are_made_again_and_rollback_removes_them(
    installation: Installation,
) -> None:
    archived = await contents(installation)
    archive = (await installation.backup()).name
    await installation.server.execute("DROP DATABASE app")
    await installation.server.execute("DROP ROLE worker")
    await installation.restore(archive)
    assert await contents(installation) == archived
    await installation.rollback()
    assert await installation.databases() == {"postgres"}
    assert not await installation.server.fetch("SELECT 1 FROM pg_roles WHERE rolname = 'worker'")


async def test_sessions_of_the_live_databases_are_ended(installation: Installation) -> None:
    archive = (await installation.backup()).name
    session = await installation.server.connect("app")
    await session.execute("BEGIN; UPDATE things SET text = 'never committed' WHERE id = 1")
    await installation.restore(archive, allow=frozenset({"LIVE_CONNECTIONS"}))
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError)):
        await session.fetch("SELECT 1")
    session.terminate()
    assert (await contents(installation))[0] == 200_000


async def test_a_second_restore_waits_for_commit_or_rollback_of_the_first(installation: Installation) -> None:
    archive = (await installation.backup()).name
    await installation.restore(archive)
    with pytest.raises(JobRefused, match="still keeps the state before it"):
        await installation.restore(archive)
    await installation.commit()
    with pytest.raises(JobRefused, match="no restore waits"):
        await installation.rollback()


async def test_commit_keeps_the_old_database_when_the_restored_one_was_replaced(installation: Installation) -> None:
    archive = (await installation.backup()).name
    await spoil(installation)
    spoilt = await contents(installation)
    await installation.restore(archive)
    await installation.server.execute("ALTER DATABASE app RENAME TO elsewhere")
    with pytest.raises(SwapFailed, match="is not the restored one any more"):
        await installation.commit()
    await installation.server.execute("ALTER DATABASE elsewhere RENAME TO app")
    assert any("__old_" in name for name in await installation.databases())
    await installation.commit()
    assert await contents(installation) != spoilt


async def test_rollback_without_the_old_database_is_refused_and_keeps_the_restored_one(
    installation: Installation,
) -> None:
    archived = await contents(installation)
    archive = (await installation.backup()).name
    await installation.restore(archive)
    [old] = [name for name in await installation.databases() if name.startswith("app__old_")]
    await installation.server.execute(f'DROP DATABASE "{old}"')
    with pytest.raises(SwapFailed, match="is not there any more"):
        await installation.rollback()
    assert await contents(installation) == archived


async def test_rollback_makes_a_role_again_that_was_dropped_meanwhile(installation: Installation) -> None:
    archive = (await installation.backup()).name
    before = await contents(installation)
    await installation.restore(archive)
    await installation.server.execute("DROP ROLE worker")
    await installation.rollback()
    await untouched(installation, before)


async def test_passwords_that_a_backup_does_not_know_are_left_as_they_are(installation: Installation) -> None:
    await installation.server.execute(
        f"CREATE ROLE reader LOGIN PASSWORD '{installation.server.password}' IN ROLE pg_read_all_data"
    )
    installation.source = {"user": "reader", "include": ["postgres"]}
    result = await installation.backup()
    assert any("passwords of roles are not in this backup" in warning for warning in result.warnings)
    before = await contents(installation)
    installation.source = {}
    await installation.restore(result.name)
    await installation.commit()
    await untouched(installation, before)


async def test_subscriptions_and_slots_of_live_databases_are_obstacles(
    workspace: Path, new_postgresql: NewServer
) -> None:
    server = new_postgresql(settings={"wal_level": "logical"})
    installation = Installation(server, workspace)
    archive = (await installation.backup()).name
    await server.execute("SELECT pg_create_logical_replication_slot('slot', 'pgoutput')")
    await server.execute("CREATE SUBSCRIPTION feed CONNECTION '' PUBLICATION p WITH (connect = false)")
    codes = [obstacle.code for obstacle in (await plan_restore(installation.config, archive)).obstacles]
    assert codes == ["LOGICAL_REPLICATION", "LOGICAL_REPLICATION"]


async def test_another_version_of_an_extension_can_be_allowed(installation: Installation) -> None:
    await installation.server.execute("CREATE EXTENSION hstore VERSION '1.4'", database="app")
    archived = await contents(installation)
    archive = (await installation.backup()).name
    with pytest.raises(RestoreRefused, match=r"has extension hstore 1\.4, this server installs"):
        await installation.restore(archive)
    await installation.restore(archive, allow=frozenset({"EXTENSION_VERSION"}))
    assert await contents(installation) == archived


async def test_a_materialized_view_that_cannot_be_filled_stays_empty_and_is_told(installation: Installation) -> None:
    await installation.server.execute(
        """CREATE FUNCTION lost() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM things); END';
           CREATE MATERIALIZED VIEW careless AS SELECT lost() AS n""",
        database="app",
    )
    archived = await contents(installation)
    archive = (await installation.backup()).name
    await installation.restore(archive)
    assert await contents(installation) == archived
    assert any('materialized view "public"."careless"' in sentence for sentence in installation.said)


async def test_a_materialized_view_is_filled_as_its_database_and_its_owner_would(installation: Installation) -> None:
    await installation.server.execute("CREATE ROLE readers NOLOGIN; CREATE ROLE guide BYPASSRLS IN ROLE readers")
    await installation.server.execute("CREATE ROLE visitor; ALTER DATABASE app SET TimeZone = 'Asia/Taipei'")
    await installation.server.execute(
        """GRANT SELECT ON things TO readers, visitor; ALTER TABLE things ENABLE ROW LEVEL SECURITY;
           CREATE POLICY few ON things TO visitor USING (id < 5);
           CREATE TABLE seen (tag text);
           CREATE FUNCTION look() RETURNS event_trigger LANGUAGE plpgsql AS
               'BEGIN INSERT INTO public.seen VALUES (tg_tag); END';
           CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''not here''; END';
           CREATE MATERIALIZED VIEW of_guide AS SELECT count(*), timestamptz '2026-01-01 20:00+00'::date FROM things;
           CREATE MATERIALIZED VIEW of_visitor AS SELECT count(*) FROM things;
           ALTER MATERIALIZED VIEW of_guide OWNER TO guide; ALTER MATERIALIZED VIEW of_visitor OWNER TO visitor;
           REFRESH MATERIALIZED VIEW of_guide; REFRESH MATERIALIZED VIEW of_visitor;
           CREATE EVENT TRIGGER look ON ddl_command_end EXECUTE FUNCTION look();
           CREATE EVENT TRIGGER refuse ON ddl_command_start EXECUTE FUNCTION refuse();
           ALTER EVENT TRIGGER look ENABLE ALWAYS""",
        database="app",
    )

    async def rows() -> list[object]:
        query = """SELECT of_guide::text, of_visitor::text, (SELECT count(*) FROM seen), (
                   SELECT string_agg(evtname::text || evtenabled::text, ' ' ORDER BY evtname) FROM pg_event_trigger)
                   FROM of_guide, of_visitor"""
        return [list(row) for row in await installation.server.fetch(query, database="app")]

    async def roles() -> list[object]:
        query = """SELECT r::text, (SELECT array_agg(roleid::regrole::text) FROM pg_auth_members WHERE member = r.oid)
                   FROM pg_roles AS r WHERE rolname IN ('readers', 'guide', 'visitor') ORDER BY rolname"""
        return [list(row)[1:] for row in await installation.server.fetch(query)]

    archived, had = await rows(), await roles()
    assert archived == [["(200000,2026-01-02)", "(4)", 0, "lookA refuseO"]]
    archive = (await installation.backup()).name
    await installation.server.execute("DROP DATABASE app")
    await installation.server.execute("DROP ROLE guide, visitor, readers")
    await installation.restore(archive)
    assert (await rows(), await roles()) == (archived, had)


async def test_what_a_role_or_a_database_is_set_to_changes_nothing_in_what_comes_back(
    installation: Installation,
) -> None:
    await installation.server.execute(
        """CREATE TYPE kind AS ENUM ('a', 'NULL'); CREATE TABLE "設備😀" (kinds kind[], texts text[]);
           INSERT INTO "設備😀" VALUES (ARRAY['a', NULL]::kind[], ARRAY['😀', NULL])""",
        database="app",
    )
    await installation.server.execute("ALTER ROLE postgres SET array_nulls = off")
    await installation.server.execute("ALTER DATABASE app SET client_encoding = 'LATIN1'")

    async def rows() -> list[object]:
        found = await installation.server.fetch('SELECT kinds::text[], texts FROM "設備😀"', database="app")
        return [list(row) for row in found]

    archived = await rows()
    assert archived == [[["a", None], ["😀", None]]]
    await installation.restore((await installation.backup()).name)
    assert await rows() == archived


async def test_what_postgresql_does_not_bring_back_is_told(installation: Installation) -> None:
    await installation.server.execute("CREATE ROLE owner; GRANT CREATE ON DATABASE app TO owner")
    await installation.server.execute(
        """CREATE FUNCTION pg_catalog.mine(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
           SET ROLE owner; CREATE EXTENSION hstore""",
        database="app",
    )
    result = await installation.backup()
    assert result.warnings == [
        "postgresql: what was added to pg_catalog of database 'app' is not in this backup, and what uses it cannot be"
        " restored: mine(integer)"
    ]
    restored = await installation.restore(result.name)
    told = [each.message for each in restored.attention if each.code == "RESTORE_WARNING"]
    assert told == [
        "extension hstore of database app belongs to role postgres now, it was owner's: PostgreSQL gives an extension"
        " to the role that makes it"
    ]


async def test_an_unsealed_archive_is_refused_where_archives_are_sealed(installation: Installation) -> None:
    archive = (await installation.backup()).name
    installation.sealing = {"mode": "tpm", "tcti": "swtpm:path=/nonexistent"}
    with pytest.raises(RestoreRefused, match="is not sealed although"):
        await installation.restore(archive)
    await installation.restore(archive, allow=frozenset({"ARCHIVE_NOT_SEALED"}))


async def test_the_archive_being_restored_stays_though_it_lies_in_the_tree(installation: Installation) -> None:
    tree = installation.root / "srv"
    tree.mkdir()
    (tree / "config.xml").write_text("<then/>")
    installation.more_sources = [{"type": "tree", "path": str(tree)}]
    archive = (await installation.backup()).name
    inside = tree / archive
    inside.write_bytes((installation.target / archive).read_bytes())
    (tree / "config.xml").write_text("<now/>")
    await installation.restore(str(inside))
    await installation.commit()
    assert (tree / "config.xml").read_text() == "<then/>"
    assert inside.read_bytes() == (installation.target / archive).read_bytes()


async def test_another_server_version_is_refused_before_anything_is_touched(installation: Installation) -> None:
    archive = (await installation.backup()).name
    before = await contents(installation)
    installation.version = "5.3.12"
    plan = await plan_restore(installation.config, archive)
    assert [obstacle.code for obstacle in plan.obstacles] == ["SERVER_VERSION"]
    with pytest.raises(RestoreRefused, match=r"the archive is of DeviceOn 5\.4\.1, installed is 5\.3\.12"):
        await installation.restore(archive)
    await untouched(installation, before)
    with pytest.raises(ConfigError, match="SERVER_VERSION cannot be overridden"):
        await installation.restore(archive, allow=frozenset({"SERVER_VERSION"}))


async def test_a_missing_extension_is_named_before_anything_is_touched(installation: Installation) -> None:
    directory = Path(installation.server.program_output("pg_config", "--sharedir")) / "extension"
    name = f"deviceon_test_gone_{os.getpid()}"
    control, script = directory / f"{name}.control", directory / f"{name}--1.0.sql"
    try:
        control.write_text("default_version = '1.0'\n")
        script.write_text("SELECT 1;\n")
        await installation.server.execute(f"CREATE EXTENSION {name}", database="app")
        archive = (await installation.backup()).name
    finally:
        control.unlink()
        script.unlink()
    before = await contents(installation)
    with pytest.raises(RestoreRefused, match=f"needs extension {name} 1.0, which this server does not have"):
        await installation.restore(archive)
    await untouched(installation, before)


async def test_prepared_transactions_are_an_obstacle(workspace: Path, new_postgresql: NewServer) -> None:
    server = new_postgresql(settings={"max_prepared_transactions": 2})
    installation = Installation(server, workspace)
    archive = (await installation.backup()).name
    await server.execute("BEGIN; CREATE TABLE later (); PREPARE TRANSACTION 'open'")
    with pytest.raises(RestoreRefused, match="has prepared transactions"):
        await installation.restore(archive)
    await server.execute("ROLLBACK PREPARED 'open'")
    await installation.restore(archive)


async def test_a_server_that_is_down_refuses_the_restore(installation: Installation) -> None:
    archive = (await installation.backup()).name
    installation.server.stop()
    with pytest.raises(RestoreRefused, match="cannot be reached"):
        await installation.restore(archive)


async def test_a_stop_hook_that_stops_postgresql_too_is_told_and_the_way_back_goes_on_when_it_is_up(
    own_postgresql: PostgresqlServer, workspace: Path
) -> None:
    server = own_postgresql
    installation = Installation(server, workspace, source={"include": ["postgres"]})
    archive = (await installation.backup()).name
    before = await installation.databases()
    stop, nothing = installation.root / "stop", installation.root / "nothing"
    stop.write_text(
        f"#!/bin/sh\nkill -INT {server.pid} || exit 0\nwhile [ -e {server.data}/postmaster.pid ]; do :; done\n"
    )
    nothing.write_text("#!/bin/sh\n")
    for hook in (stop, nothing):
        hook.chmod(0o755)
    installation.hooks = {"stop": {"command": [str(stop)]}, "start": {"command": [str(nothing)]}}
    with pytest.raises(SwapFailed, match="after the stop hook, postgresql cannot be restored any more") as caught:
        await installation.restore(archive)
    cause = caught.value.__context__
    while not isinstance(cause, HookFailed):
        assert cause is not None
        cause = cause.__context__
    assert "leave PostgreSQL running" in cause.hint
    server.start()
    assert await recover(installation.config, progress=installation.progress()) == [archive]
    assert await installation.databases() == before


@pytest.mark.parametrize("sentence", ["Restoring database app", "Building indexes and constraints of database app"])
async def test_postgresql_killed_while_staging_leaves_live_data_as_it_was(
    installation: Installation, sentence: str
) -> None:
    archive = (await installation.backup()).name
    await spoil(installation)
    spoilt = await contents(installation)
    running = asyncio.create_task(installation.restore(archive))
    await eventually(lambda: any(said.startswith(sentence) for said in installation.said))
    installation.server.kill()
    with pytest.raises(ServiceError):
        await running
    installation.server.start()
    assert await contents(installation) == spoilt
    await recover(installation.config, progress=installation.progress())
    await untouched(installation, spoilt)


async def test_a_restore_cancelled_while_staging_leaves_nothing(installation: Installation) -> None:
    archive = (await installation.backup()).name
    await spoil(installation)
    spoilt = await contents(installation)
    running = asyncio.create_task(installation.restore(archive))
    await eventually(lambda: any(sentence.startswith("Restoring database app") for sentence in installation.said))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await untouched(installation, spoilt)


async def test_a_database_that_differs_from_the_manifest_is_not_swapped_in(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = (await installation.backup()).name
    await spoil(installation)
    spoilt = await contents(installation)
    finish = stage._Build._finish

    async def losing_an_index(build: stage._Build, take_back: Sequence[str]) -> None:
        async with build._connect() as connection:
            await connection.execute("DROP TABLE IF EXISTS public.things CASCADE")
            await connection.execute("CREATE MATERIALIZED VIEW public.total AS SELECT 1 AS n")
        await finish(build, take_back)

    monkeypatch.setattr(stage._Build, "_finish", losing_an_index)
    with pytest.raises(ServiceError, match="differs from the archived one in its objects"):
        await installation.restore(archive)
    await untouched(installation, spoilt)


async def test_a_full_disk_while_staging_leaves_live_data_as_it_was(workspace: Path, new_postgresql: NewServer) -> None:
    disk = workspace / "disk"
    disk.mkdir()
    await run("mount", "-t", "tmpfs", "-o", "size=220m,mode=0755", "tmpfs", str(disk))
    try:
        small = {"max_wal_size": "32MB", "min_wal_size": "32MB", "shared_buffers": "16MB"}
        server = new_postgresql(directory=disk / "server", settings=small)
        installation = Installation(server, workspace)
        rows = "SELECT repeat(md5(n::text), 30) AS t FROM generate_series(1, 30000) AS n"
        await server.execute(f"CREATE TABLE large AS {rows}")
        await server.execute("CHECKPOINT")
        archive = (await installation.backup()).name
        await server.execute("CREATE TABLE later AS SELECT 1 AS one")
        filler = disk / "filler"

        def fill(sentence: str) -> None:
            if sentence.startswith("Restoring database"):
                free = os.statvfs(disk)
                filler.write_bytes(b"x" * (free.f_bavail * free.f_frsize - 12_000_000))

        with pytest.raises(ServiceError):
            await restore(installation.config, archive, progress=Progress(on_step=fill))
        assert filler.exists()
        filler.unlink()
        if not server.running:  # PostgreSQL gives up when its log cannot grow
            server.start()
        await recover(installation.config, progress=installation.progress())
        assert await installation.databases() == {"postgres"}
        [[large, later]] = await server.fetch("SELECT (SELECT count(*) FROM large), (SELECT one FROM later)")
        assert (large, later) == (30_000, 1)
        server.close()
    finally:
        await run("umount", "-l", str(disk))


async def test_too_little_space_is_an_obstacle(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = (await installation.backup()).name
    monkeypatch.setattr(room, "_LOG_SHARE", 1e9)
    with pytest.raises(RestoreRefused, match="the copies need about"):
        await installation.restore(archive)


async def run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0
