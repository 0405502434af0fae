"""Restoring a part of an archive: exactly that part, and nothing else that is live, changes; rollback undoes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from demo.postgresql_server import PostgresqlServer
from service import drill as drill_module
from service.config_drill import DrillSettings
from service.errors import RestoreRefused, SourceError, SwapFailed
from service.journal import journals
from service.ledger import NoLedger
from service.progress import Progress
from service.restore import restore
from service.restore_plan import plan_restore
from service.rpc.codec import RpcError
from service.selection import NotInArchive, Selection
from service.sources.postgresql import roles, swap
from tests.recipes import Installation
from tests.service_parts import ADMIN, Place

ROLES = """
    CREATE ROLE app_owner NOLOGIN;
    CREATE ROLE app_reader NOLOGIN;
    CREATE ROLE app_login LOGIN PASSWORD 'first' IN ROLE app_reader;
    CREATE ROLE bystander LOGIN PASSWORD 'first';
    ALTER ROLE bystander SET work_mem TO '7MB';
    ALTER ROLE ALL SET statement_timeout TO '1h';
"""
APP = """
    CREATE TABLE orders (id int PRIMARY KEY, text text);
    INSERT INTO orders SELECT n, md5(n::text) FROM generate_series(1, 3000) AS n;
    ALTER TABLE orders OWNER TO app_owner;
    GRANT SELECT ON orders TO app_reader;
"""


@pytest.fixture
async def installation(own_postgresql: PostgresqlServer, workspace: Path) -> Installation:
    tree = workspace / "etc"
    tree.mkdir()
    (tree / "server.conf").write_text("port = 80\n")
    await own_postgresql.execute(ROLES)
    for name in ("app", "other"):
        await own_postgresql.execute(f"CREATE DATABASE {name}")
        await own_postgresql.execute(APP, database=name)
    more: list[dict[str, Any]] = [{"type": "tree", "name": "etc", "path": str(tree)}]
    return Installation(own_postgresql, workspace, more_sources=more)


async def state(installation: Installation) -> dict[str, Any]:
    """What is live: rows, roles with passwords, memberships and settings, privileges, files."""
    server = installation.server
    found: dict[str, Any] = {"file": (installation.root / "etc/server.conf").read_text()}
    for name in sorted(await installation.databases() & {"app", "other"}):
        rows = await server.fetch(
            "SELECT count(*), min(text), (SELECT relacl::text FROM pg_class WHERE relname = 'orders') FROM orders",
            database=name,
        )
        found[name] = list(rows[0])
    roles = "SELECT rolname, rolpassword, rolcanlogin FROM pg_authid WHERE rolname !~ '^pg_' ORDER BY 1"
    found["roles"] = [tuple(row) for row in await server.fetch(roles)]
    found["members"] = [
        tuple(row)
        for row in await server.fetch(
            "SELECT roleid::regrole::text, member::regrole::text FROM pg_auth_members WHERE member > 16000 ORDER BY 1"
        )
    ]
    settings = "SELECT setrole::regrole::text, setconfig::text FROM pg_db_role_setting ORDER BY 1"
    found["settings"] = [tuple(row) for row in await server.fetch(settings)]
    return found


async def spoil(installation: Installation) -> None:
    server = installation.server
    for name in ("app", "other"):
        await server.execute("DELETE FROM orders WHERE id > 10", database=name)
    await server.execute("ALTER ROLE bystander PASSWORD 'second'; ALTER ROLE bystander SET work_mem TO '9MB'")
    await server.execute("ALTER ROLE ALL SET statement_timeout TO '2h'")
    (installation.root / "etc/server.conf").write_text("port = 81\n")


async def restored(installation: Installation, archive: str, **said: Any) -> None:
    await restore(installation.config, archive, select=Selection(**said), progress=installation.progress())


async def test_one_database_comes_back_and_nothing_else_changes(installation: Installation) -> None:
    then = await state(installation)
    archive = (await installation.backup()).name
    await spoil(installation)
    before = await state(installation)
    plan = await plan_restore(installation.config, archive, select=Selection(databases=("app",)))
    assert [(item.what, item.action) for item in plan.items] == [
        ("database app", "replace"),
        ("database other", "keep"),
        ("database postgres", "keep"),
    ]
    assert any("beside other and postgres of now" in warning for warning in plan.warnings)
    await restored(installation, archive, databases=("app",))
    after = await state(installation)
    assert len([name for name in await installation.databases() if "__old_" in name]) == 1
    assert after == before | {"app": then["app"]}
    await installation.rollback()
    assert await state(installation) == before


async def test_a_database_brings_the_missing_roles_that_it_needs_and_no_others(installation: Installation) -> None:
    then = await state(installation)
    archive = (await installation.backup()).name
    server = installation.server
    for name in ("app", "other"):
        await server.execute(f"DROP DATABASE {name}")
    await server.execute("DROP ROLE app_login, app_reader, app_owner, bystander; CREATE ROLE app_login LOGIN")
    before = await state(installation)
    await restored(installation, archive, databases=("app",))
    after = await state(installation)
    names = [name for name, *_ in after["roles"]]
    assert names == ["app_login", "app_owner", "app_reader", "postgres"]
    assert after["app"] == then["app"]
    assert ("app_reader", "app_login") in after["members"], "what a made role is a member of, and who of it"
    assert {name: password for name, password, _ in after["roles"]}["app_login"] is None, "it was there"
    assert any("Roles that were missing and are made: app_owner, app_reader" in said for said in installation.said)
    assert any("no restored database needs: bystander" in said for said in installation.said)
    await installation.rollback()
    assert await state(installation) == before


async def test_roles_that_somebody_else_had_granted_come_back_where_that_one_is_not_known(
    installation: Installation,
) -> None:
    server = installation.server
    await server.execute(
        """CREATE ROLE chief SUPERUSER;
           SET ROLE chief;
           GRANT app_reader TO app_owner;
           GRANT SET ON PARAMETER log_statement TO app_owner;
           RESET ROLE"""
    )
    archive = (await installation.backup()).name
    for name in ("app", "other"):
        await server.execute("DROP OWNED BY app_owner, app_reader", database=name)
    await server.execute("DROP OWNED BY app_owner, chief; DROP ROLE app_owner, app_reader, chief")
    before = await state_of_roles(server)
    await restored(installation, archive, databases=("app",))
    after = await state_of_roles(server)
    assert after - before == {"app_owner", "app_reader"}, "nobody needs the one who granted"
    granted = await server.fetch(
        "SELECT pg_has_role('app_owner', 'app_reader', 'USAGE'),"
        " has_parameter_privilege('app_owner', 'log_statement', 'SET')"
    )
    assert list(granted[0]) == [True, True]
    await installation.rollback()
    assert await state_of_roles(server) == before


@pytest.mark.parametrize("said", [{}, {"databases": ("app",)}])
async def test_what_a_killed_drill_left_is_neither_taken_for_the_real_thing_nor_dropped_with_it_later(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any]
) -> None:
    """It leaves roles that are names alone; what a restore has made of them since is not the drill's any more."""
    then = await state(installation)
    config = installation.config.model_copy(update={"drill": DrillSettings(min_free_share=0)})
    archive = (await installation.backup()).name
    for statement in ("DROP DATABASE app", "DROP DATABASE other", "DROP ROLE app_login, app_reader, app_owner"):
        await installation.server.execute(statement)
    real = drill_module._dropped

    async def killed(*_: Any) -> None:
        raise drill_module.NotTidied("killed")

    monkeypatch.setattr(drill_module, "_dropped", killed)
    with pytest.raises(drill_module.NotTidied):
        await drill_module.drill(config, archive, progress=Progress(), ledger=NoLedger())
    if not said:  # the server of the drill is away: the restore goes on all the same
        await restored(installation, archive, **said)
    monkeypatch.setattr(drill_module, "_dropped", real)
    if said:
        await restored(installation, archive, **said)
        assert "app_login" not in await state_of_roles(installation.server)
    else:
        assert drill_module.unfinished(config)
    await installation.commit()
    after = await state(installation)
    await drill_module.recover(config, progress=Progress())
    assert not drill_module.unfinished(config)
    assert not [name for name in await installation.databases() if "__" in name]
    assert await state(installation) == after
    if not said:
        assert after == then


async def state_of_roles(server: PostgresqlServer) -> set[str]:
    return {row[0] for row in await server.fetch("SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_'")}


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("_rename", {"databases": ("app",)}),
        ("statements", {"databases": ("app",)}),
        ("statements", {"only": "roles"}),
    ],
)
async def test_an_exchange_that_fails_leaves_everything_as_it_was(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, step: str, said: dict[str, Any]
) -> None:
    archive = (await installation.backup()).name
    await spoil(installation)
    before = await state(installation)
    failed = 0
    owner: Any = roles if step == "statements" else swap
    real = getattr(owner, step)

    def fail(*given: Any, **more: Any) -> Any:
        nonlocal failed
        failed += 1
        if failed == 1:
            raise SourceError("planned")
        return real(*given, **more)

    monkeypatch.setattr(owner, step, fail)
    with pytest.raises(SourceError, match="planned"):
        await restored(installation, archive, **said)
    assert failed > 0
    assert await state(installation) == before
    assert journals(installation.config.state_dir) == []
    assert not [name for name in await installation.databases() if "__" in name]


async def test_only_roles_come_back_and_rollback_returns_to_those_of_before(installation: Installation) -> None:
    then = await state(installation)
    archive = (await installation.backup()).name
    await spoil(installation)
    before = await state(installation)
    await restored(installation, archive, only="roles")
    changed = {"roles": then["roles"], "settings": then["settings"]}
    assert await state(installation) == before | changed
    await installation.rollback()
    assert await state(installation) == before
    await restored(installation, archive, only="roles")
    await installation.commit()
    assert await state(installation) == before | changed
    assert journals(installation.config.state_dir) == []


async def test_only_the_configuration_comes_back_without_a_server(
    installation: Installation, own_postgresql: PostgresqlServer
) -> None:
    archive = (await installation.backup()).name
    (installation.root / "etc/server.conf").write_text("port = 81\n")
    own_postgresql.stop()
    await restored(installation, archive, only="config")
    assert (installation.root / "etc/server.conf").read_text() == "port = 80\n"
    await installation.rollback()
    assert (installation.root / "etc/server.conf").read_text() == "port = 81\n"


async def test_all_databases_without_roles_and_configuration_come_back(installation: Installation) -> None:
    then = await state(installation)
    archive = (await installation.backup()).name
    await spoil(installation)
    before = await state(installation)
    await restored(installation, archive, only="databases")
    await installation.commit()
    assert await state(installation) == before | {"app": then["app"], "other": then["other"]}


async def test_over_the_socket_a_part_is_planned_and_restored_and_an_unknown_one_is_told(tmp_path: Path) -> None:
    place = Place(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("then")
    place.settings["sources"] = [
        {"type": "tree", "name": "config", "path": str(place.tree)},
        {"type": "tree", "name": "other", "path": str(other)},
    ]
    async with place.app() as app:
        name = await place.backup(app.archives)
        (other / "file").write_text("now")
        (place.tree / "server.conf").write_text("now")
        plan = await app.api.call("restore.plan", {"archive": name, "sources": ["other"]}, ADMIN)
        assert [item["what"] for item in plan["items"]] == [str(other)]
        assert "beside config of now" in plan["warnings"][0]
        with pytest.raises(RpcError) as caught:
            await app.api.call("restore.plan", {"archive": name, "sources": ["nothing"]}, ADMIN)
        assert (caught.value.reason, caught.value.hint) == ("CONFIG_SELECTION", "It has: config, other.")
        job = await app.jobs.run_now("restore", {"archive": name, "sources": ["other"]}, Progress())
        assert job.state == "succeeded", job.error
        assert ((other / "file").read_text(), (place.tree / "server.conf").read_text()) == ("then", "now")


async def test_what_the_archive_does_not_have_is_refused_before_anything_is_touched(installation: Installation) -> None:
    archive = (await installation.backup()).name
    with pytest.raises(NotInArchive, match="no database nothing") as caught:
        await restored(installation, archive, databases=("nothing", "app"))
    assert "app, other" in caught.value.hint
    assert journals(installation.config.state_dir) == []


async def test_another_servers_databases_are_never_taken_to_the_only_one_that_is_configured(
    installation: Installation,
) -> None:
    """Both have databases of the same names, for all that anybody knows."""
    settings = installation.server.source_settings
    installation.source, trees = {"name": "one", "include": ["app"]}, installation.more_sources
    installation.more_sources = [settings(name="two", include=["other"]), *trees]
    archive = (await installation.backup()).name
    before = await state(installation)
    installation.more_sources = trees
    unclear: list[dict[str, Any]] = [{}, {"sources": ("two",)}, {"databases": ("other",)}]
    for said in unclear:
        plan = await plan_restore(installation.config, archive, select=Selection(**said))
        [told] = [each for each in plan.obstacles if each.code == "SOURCE_NOT_CONFIGURED"]
        assert "'two'" in told.message
        with pytest.raises(RestoreRefused, match="'two'"):
            await restored(installation, archive, **said)
    await restored(installation, archive, sources=("one",))
    await installation.rollback()
    installation.source = {"name": "new", "include": ["app"]}
    with pytest.raises(RestoreRefused, match="'two'"):
        await restored(installation, archive)
    await restored(installation, archive, sources=("two",))  # somebody said which one the only server is
    await installation.rollback()
    assert await state(installation) == before


async def test_a_rollback_never_takes_a_database_away_that_somebody_has_made_since(
    installation: Installation,
) -> None:
    server = installation.server
    archive = (await installation.backup()).name
    await spoil(installation)
    before = await state(installation)
    await restored(installation, archive, databases=("app", "other"))
    await server.execute("DROP DATABASE app")
    await server.execute("CREATE DATABASE app")
    await server.execute("CREATE TABLE mine ()", database="app")
    for _ in range(2):
        with pytest.raises(SwapFailed, match="'app' was made since"):
            await installation.rollback()
        await server.execute("SELECT FROM mine", database="app")
        assert (await server.fetch("SELECT count(*) FROM orders", database="other"))[0][0] == 3000
    await server.execute("ALTER DATABASE app RENAME TO mine")
    await installation.rollback()
    assert await state(installation) == before
    await server.execute("SELECT FROM mine", database="mine")
