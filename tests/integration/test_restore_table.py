"""Tables of an archive in a database beside the live one: complete, compared, and without a trace when it fails."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from demo.compare import fingerprint
from demo.postgresql_server import PostgresqlServer
from service.cli.app import command_line
from service.errors import ConfigError, RestoreRefused, SourceError, StageFailed, SwapFailed
from service.journal import Journal, journals
from service.restore import recover
from service.restore_table import TablesRestored, _only_one, named, restore_tables
from service.selection import NotInArchive
from service.sources.base import StoredSource
from service.sources.postgresql import room, rows, side, swap
from tests.recipes import Installation

LIVE = "tables_of"
SIDE = "beside"
SQL = """
    CREATE ROLE table_owner; CREATE ROLE table_reader;
    CREATE SCHEMA shop;
    CREATE TYPE shop.state AS ENUM ('new', 'paid');
    CREATE DOMAIN shop.price AS numeric(9, 2) CHECK (VALUE >= 0);
    CREATE FUNCTION shop.shout(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT upper($1)';
    CREATE TABLE shop.customers (id int PRIMARY KEY, name text);
    CREATE TABLE shop.orders (
        id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int NOT NULL REFERENCES shop.customers,
        state shop.state, price shop.price, note text, loud text GENERATED ALWAYS AS (shop.shout(note)) STORED,
        before int REFERENCES shop.orders);
    CREATE TABLE shop."order lines" (id int PRIMARY KEY, "order" int REFERENCES shop.orders);
    CREATE TABLE shop.log (at date, text text) PARTITION BY RANGE (at);
    CREATE TABLE shop.log_1 PARTITION OF shop.log FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
    CREATE TABLE shop.log_2 PARTITION OF shop.log DEFAULT;
    CREATE TABLE shop.states (state shop.state, n int) PARTITION BY HASH (state);
    CREATE TABLE shop.states_0 PARTITION OF shop.states FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE shop.states_1 PARTITION OF shop.states FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    CREATE TABLE shop.notes (id int, text text);
    CREATE TABLE shop.files (name text) INHERITS (shop.notes);
    CREATE TABLE shop.empty () INHERITS (shop.notes);
    CREATE TABLE shop.images (width int) INHERITS (shop.files, shop.empty);
    CREATE TABLE shop.big (id int PRIMARY KEY, noise text);
    CREATE VIEW shop.unpaid AS SELECT * FROM shop.orders WHERE state = 'new';
    CREATE MATERIALIZED VIEW shop.total AS SELECT count(*) FROM shop.orders;
    INSERT INTO shop.customers SELECT n, 'name ' || n FROM generate_series(1, 40) AS n;
    INSERT INTO shop.orders (customer, state, price, note, before)
        SELECT n, 'paid', n, E'tab\\there', CASE WHEN n > 1 THEN n - 1 END FROM generate_series(1, 40) AS n;
    INSERT INTO shop."order lines" SELECT n, n FROM generate_series(1, 40) AS n;
    INSERT INTO shop.log SELECT date '2020-11-01' + n, n::text FROM generate_series(1, 100) AS n;
    INSERT INTO shop.states SELECT CASE WHEN n % 2 = 0 THEN 'new' ELSE 'paid' END::shop.state, n
        FROM generate_series(1, 30) AS n;
    INSERT INTO shop.notes VALUES (1, 'one'), (2, 'two');
    INSERT INTO shop.files VALUES (3, 'three', 'a file');
    INSERT INTO shop.images VALUES (4, 'four', 'an image', 640);
    INSERT INTO shop.big SELECT n, sha512(n::text::bytea)::text FROM generate_series(1, 9000) AS n;
    ALTER TABLE shop.orders OWNER TO table_owner;
    GRANT SELECT ON shop.orders TO table_reader;
    ALTER TABLE shop.orders ENABLE ROW LEVEL SECURITY;
    CREATE POLICY mine ON shop.orders TO table_reader USING (true);
    COMMENT ON POLICY mine ON shop.orders IS 'a comment on what is left out';
    CREATE PUBLICATION everything FOR ALL TABLES;
    CREATE FUNCTION shop.forbid() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
"""
FORBID = "CREATE EVENT TRIGGER forbid ON ddl_command_start EXECUTE FUNCTION shop.forbid()"


@pytest.fixture(scope="module")
def archived(postgresql: PostgresqlServer) -> Iterator[tuple[Installation, str]]:
    root = Path(tempfile.mkdtemp(prefix="deviceon-backup-test-"))
    installation = Installation(postgresql, root, source={"include": [LIVE]})

    async def make() -> str:
        await postgresql.execute(f"CREATE DATABASE {LIVE} TEMPLATE template0")
        await postgresql.execute(SQL, database=LIVE)
        await postgresql.execute(FORBID, database=LIVE)
        name = (await installation.backup()).name
        # what is live now has lost rows, and the roles; the definitions still are the archived ones
        await postgresql.execute("DROP EVENT TRIGGER forbid; DROP PUBLICATION everything", database=LIVE)
        await postgresql.execute(
            "ALTER TABLE shop.orders OWNER TO postgres; DROP POLICY mine ON shop.orders", database=LIVE
        )
        await postgresql.execute("DROP OWNED BY table_owner, table_reader", database=LIVE)
        await postgresql.execute("DROP ROLE table_owner, table_reader")
        return name

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_PART_BYTES", 1 << 19)
        name = asyncio.run(make())
    yield installation, name
    asyncio.run(postgresql.execute(f"DROP DATABASE {LIVE} WITH (FORCE)"))
    shutil.rmtree(root)


@pytest.fixture
async def live(archived: tuple[Installation, str]) -> Any:
    """Hold every test to leaving the live database and the roles as they are; drop what it made beside."""
    installation, _ = archived
    before = await fingerprint(installation.server, [LIVE])
    yield before
    await installation.server.execute(f"DROP DATABASE IF EXISTS {SIDE} WITH (FORCE)")
    assert await fingerprint(installation.server, [LIVE]) == before
    assert journals(installation.config.state_dir) == []
    assert not [name for name in await installation.databases() if "__r_" in name]


async def beside(archived: tuple[Installation, str], *tables: str, into: str = SIDE, **more: Any) -> TablesRestored:
    installation, name = archived
    return await restore_tables(
        installation.config,
        name,
        tables=list(tables),
        into=into,
        progress=installation.progress(),
        **{"database": LIVE, **more},
    )


def environment_of(server: PostgresqlServer) -> dict[str, str]:
    return {"PATH": f"{server.programs}:/usr/bin:/bin", "PGPASSWORD": server.password}


async def count(server: PostgresqlServer, table: str, database: str = SIDE) -> int:
    found: int = (await server.fetch(f"SELECT count(*) FROM {table}", database=database))[0][0]
    return found


@pytest.mark.usefixtures("live")
async def test_a_table_comes_with_its_rows_and_all_definitions_and_no_rows_of_others(
    archived: tuple[Installation, str],
) -> None:
    server = archived[0].server
    result = await beside(archived, "shop.orders", "shop.big")
    assert [(each["table"], each["rows"]) for each in result.tables] == [("orders", 40), ("big", 9000)]
    told = "SELECT md5(string_agg(o::text, ',' ORDER BY id)) FROM shop.{} o"
    for table in ("orders", "big"):
        same = [await server.fetch(told.format(table), database=database) for database in (LIVE, SIDE)]
        assert same[0] == same[1]
    assert await count(server, "shop.customers") == await count(server, 'shop."order lines"') == 0
    assert await count(server, "shop.unpaid") == 0, "views are there"
    keys = await server.fetch("SELECT conname FROM pg_constraint WHERE contype = 'f'", database=SIDE)
    assert [row[0] for row in keys] == ["orders_before_fkey"]
    assert (
        "Left out is the foreign key shop orders orders_customer_fkey: the rows that it refers to are not there."
        in (result.notes)
    )
    next_value = await server.fetch("SELECT nextval('shop.orders_id_seq')", database=SIDE)
    assert next_value[0][0] == 41
    assert (await server.fetch("SELECT datacl::text FROM pg_database WHERE datname = $1", SIDE))[0][0].startswith(
        "{postgres="
    )


@pytest.mark.usefixtures("live")
async def test_rows_are_copied_back_by_the_command_that_is_told(archived: tuple[Installation, str]) -> None:
    server = archived[0].server
    result = await beside(archived, "shop.orders", "shop.log")
    before = await fingerprint(server, [LIVE])
    await server.execute('DELETE FROM shop."order lines"; DELETE FROM shop.orders; DELETE FROM shop.log', database=LIVE)
    environment = environment_of(server)
    for table in result.tables:
        subprocess.run(["bash", "-euo", "pipefail", "-c", table["copy_back"]], env=environment, check=True)
    await server.execute('INSERT INTO shop."order lines" SELECT n, n FROM generate_series(1, 40) AS n', database=LIVE)
    assert await fingerprint(server, [LIVE]) == before


@pytest.mark.usefixtures("live")
async def test_a_partitioned_table_comes_with_its_partitions_and_a_partition_alone(
    archived: tuple[Installation, str],
) -> None:
    server = archived[0].server
    result = await beside(archived, "shop.log", "shop.states")
    assert [each["rows"] for each in result.tables] == [100, 30]
    assert await count(server, "shop.log_2") > 0
    await server.execute(f"DROP DATABASE {SIDE}")
    result = await beside(archived, "shop.log_1")
    assert result.tables[0]["rows"] == await count(server, "shop.log") == await count(server, "shop.log_1", LIVE)


@pytest.mark.usefixtures("live")
async def test_what_inherits_from_a_table_is_copied_back_where_its_rows_were(
    archived: tuple[Installation, str],
) -> None:
    server = archived[0].server
    result = await beside(archived, "shop.notes", "shop.images")
    before = await fingerprint(server, [LIVE])
    found = [(each["table"], each["rows"]) for each in result.tables]
    assert found == [("notes", 2), ("files", 1), ("images", 1)]
    await server.execute("DELETE FROM shop.notes", database=LIVE)
    for table in result.tables:
        subprocess.run(["bash", "-euo", "pipefail", "-c", table["copy_back"]], env=environment_of(server), check=True)
    assert await fingerprint(server, [LIVE]) == before


@pytest.mark.usefixtures("live")
async def test_what_cannot_be_is_refused_and_leaves_nothing(
    archived: tuple[Installation, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StageFailed, match=r"no table shop\.order"):
        await beside(archived, "shop.order")
    with pytest.raises(StageFailed, match=r"no table shop\.unpaid") as caught:
        await beside(archived, "shop.unpaid")
    assert "shop.orders" in caught.value.hint
    with pytest.raises(NotInArchive, match="no database nothing"):
        await beside(archived, "shop.orders", database="nothing")
    with pytest.raises(RestoreRefused) as refused:
        await beside(archived, "shop.orders", into=LIVE)
    assert [obstacle.code for obstacle in refused.value.obstacles] == ["DATABASE_EXISTS"]
    with monkeypatch.context() as patch, pytest.raises(RestoreRefused) as refused:
        patch.setattr(room, "_SPACE_FACTOR", 1e15)
        await beside(archived, "shop.orders")
    assert [obstacle.code for obstacle in refused.value.obstacles] == ["SPACE"]
    before = await archived[0].databases()
    for name in ("é" * 32, "a\0b"):
        with pytest.raises(ConfigError, match="cannot be the name of a database"):
            await beside(archived, "shop.orders", into=name)
    assert await archived[0].databases() == before


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize("name", ["host=elsewhere user='x'", "postgresql://elsewhere/x", "it's \\ $(odd)\""])
async def test_rows_are_copied_out_of_a_database_with_an_odd_name(
    archived: tuple[Installation, str], name: str
) -> None:
    server = archived[0].server
    quoted = name.replace('"', '""')
    try:
        done = await beside(archived, "shop.customers", into=name)
        out, _, _ = done.tables[0]["copy_back"].partition(" | ")
        rows_out = subprocess.run(["bash", "-c", out], env=environment_of(server), check=True, stdout=subprocess.PIPE)
        assert rows_out.stdout.count(b"\n") == 40
    finally:
        await server.execute(f'DROP DATABASE IF EXISTS "{quoted}" WITH (FORCE)')


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize("step", ["load", "_foreign_keys", "_table", "swap"])
async def test_a_failure_at_any_step_leaves_nothing(
    archived: tuple[Installation, str], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise SourceError("planned")

    owner: Any = {"load": side, "swap": swap}.get(step, side._Side)
    monkeypatch.setattr(owner, step, fail)
    with pytest.raises(SourceError, match="planned"):
        await beside(archived, "shop.orders")
    assert SIDE not in await archived[0].databases()


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize(
    ("step", "change", "told"),
    [
        ("_foreign_keys", "DROP TABLE shop.customers CASCADE", r'relation "shop\.customers" does not exist'),
        ("_table", "DELETE FROM shop.orders WHERE id = 40", r'table "shop"\."orders": 39 rows restored, 40 archived'),
    ],
)
async def test_a_copy_that_somebody_changes_meanwhile_is_refused(
    archived: tuple[Installation, str], monkeypatch: pytest.MonkeyPatch, step: str, change: str, told: str
) -> None:
    genuine = getattr(side._Side, step)

    async def interfered(self: side._Side, *arguments: Any) -> Any:
        async with self._connect() as connection:
            await connection.execute(change)
        return await genuine(self, *arguments)

    monkeypatch.setattr(side._Side, step, interfered)
    with pytest.raises((SourceError, StageFailed), match=told):
        await beside(archived, "shop.orders")
    assert SIDE not in await archived[0].databases()


@pytest.mark.usefixtures("live")
async def test_a_cancellation_at_the_very_last_step_leaves_nothing(
    archived: tuple[Installation, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = Journal.remove

    async def cancelled_once(journal: Journal) -> None:
        monkeypatch.undo()
        await remove(journal)
        raise asyncio.CancelledError

    monkeypatch.setattr(Journal, "remove", cancelled_once)
    with pytest.raises(asyncio.CancelledError):
        await beside(archived, "shop.orders")
    assert SIDE not in await archived[0].databases()


@pytest.mark.usefixtures("live")
async def test_what_a_crash_left_is_removed_at_the_next_start(
    archived: tuple[Installation, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installation = archived[0]

    async def crash(*_: Any, **__: Any) -> None:
        raise SourceError("the process is gone")

    with monkeypatch.context() as patch:  # neither the work nor the way back gets to its end
        patch.setattr("service.restore_table._undo", crash)
        patch.setattr("service.journal.Journal.remove", crash)
        with pytest.raises(SourceError, match="gone"):
            await beside(archived, "shop.orders")
    assert SIDE in await installation.databases(), "the crash came after the database had its name"
    assert await recover(installation.config, progress=installation.progress()) == [archived[1]]
    assert SIDE not in await installation.databases()


@pytest.mark.usefixtures("live")
async def test_what_cannot_be_removed_again_is_told_and_a_rollback_goes_on_with_it(
    archived: tuple[Installation, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installation = archived[0]

    async def fails(*_: Any, **__: Any) -> None:
        raise SourceError("planned")

    with monkeypatch.context() as patch:
        patch.setattr("service.restore_table.Journal.remove", fails)
        with pytest.raises(
            SwapFailed, match=r"failed \(planned\), and what was begun could not be removed: planned"
        ) as caught:
            await beside(archived, "shop.orders")
    assert "deviceon-backup rollback" in caught.value.hint
    assert await installation.rollback() == archived[1]
    assert SIDE not in await installation.databases()


@pytest.mark.usefixtures("live")
async def test_a_server_that_does_not_answer_refuses_tables_before_anything_is_made(
    archived: tuple[Installation, str], tmp_path: Path
) -> None:
    installation, name = archived
    [source] = installation.config.sources
    away = installation.config.model_copy(update={"sources": [source.model_copy(update={"host": str(tmp_path)})]})
    with pytest.raises(RestoreRefused) as refused:
        await restore_tables(
            away, name, database=LIVE, tables=["shop.orders"], into=SIDE, progress=installation.progress()
        )
    assert [obstacle.code for obstacle in refused.value.obstacles] == ["SERVER_UNREACHABLE"]


def test_the_command_tells_how_rows_are_copied_back(archived: tuple[Installation, str], tmp_path: Path) -> None:
    installation, name = archived
    server = installation.server
    options = ["--pg-host", server.host, "--pg-port", str(server.port), "--pg-user", server.user]
    options += ["--pg-password-file", str(server.password_file), "--state-dir", str(tmp_path / "state"), "--quiet"]
    options += ["--source", "postgresql"]
    arguments = [
        "restore-table",
        str(installation.target / name),
        LIVE,
        "shop.orders",
        "--into",
        "by_command",
        *options,
    ]
    result = CliRunner().invoke(command_line, arguments, env={"DEVICEON_BACKUP_CONFIG": None})
    try:
        assert result.exit_code == 0, result.output
        assert "shop.orders: 40 rows in by_command" in result.stdout
        assert "-d by_command -c" in result.stdout.partition("to copy them back: psql -h ")[2]
        again = CliRunner().invoke(command_line, arguments, env={"DEVICEON_BACKUP_CONFIG": None})
        assert (again.exit_code, "DATABASE_EXISTS" in again.stderr) == (3, True)
    finally:
        server.run("dropdb", ["--if-exists", "by_command"])


def test_a_table_is_named_with_its_schema_or_lies_in_public() -> None:
    assert named("shop.orders") == ("shop", "orders")
    assert named("orders") == ("public", "orders")
    assert named("shop.a.b") == ("shop", "a.b")
    for text in ("", ".", ".orders", "shop."):
        with pytest.raises(ConfigError, match="is no name of a table") as caught:
            named(text)
        assert caught.value.hint == "Write SCHEMA.TABLE."


def test_a_database_that_several_sources_have_is_taken_from_the_one_that_is_named() -> None:
    found = [StoredSource(name=name, type="postgresql", facts={}, streams=[]) for name in ("one", "two")]
    assert _only_one(found[1:], "app") is found[1]
    with pytest.raises(ConfigError, match="several sources have a database 'app': one, two") as caught:
        _only_one(found, "app")
    assert caught.value.hint == "Say which with --source."
