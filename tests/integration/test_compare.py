"""The comparison notices what counting rows would not; and it sees no difference where there is none."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from demo import config_files
from demo.compare import diff, fingerprint, sqlite_dump, tree_listing
from demo.postgresql_server import PostgresqlServer

SMALL = """
CREATE TYPE color AS ENUM ('red', 'green', 'blue');
CREATE TABLE t (id int PRIMARY KEY, a text, b float8, c timestamptz);
INSERT INTO t VALUES (1, 'one', 0, 'epoch'), (2, 'two', 'NaN', NULL), (3, '', 1e300, 'infinity');
CREATE TABLE child (extra int) INHERITS (t);
INSERT INTO child VALUES (9, 'child', 0, NULL, 1);
CREATE TABLE parts (color color, n int) PARTITION BY HASH (color);
CREATE TABLE parts_0 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO parts VALUES ('red', 1), ('green', 2), ('blue', 3);
CREATE UNLOGGED TABLE cache (a int);
CREATE SEQUENCE s;
CREATE MATERIALIZED VIEW m AS SELECT a FROM t;
CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE EXTENSION pg_trgm;
ALTER TABLE t ENABLE ROW LEVEL SECURITY;
SELECT lo_from_bytea(4711, 'large');
CREATE POLICY p ON t TO compare_reader, compare_group USING (true);
"""

# what is done -> the facts that have to differ, all of them
CHANGES = {
    "UPDATE t SET a = 'ONE' WHERE id = 1": ["table public.t rows"],
    "UPDATE t SET b = '-0' WHERE id = 1": ["table public.t rows"],
    "UPDATE t SET c = c + interval '1 microsecond' WHERE id = 1": ["table public.t rows"],
    "UPDATE t SET a = NULL WHERE id = 3": ["table public.t rows"],
    "DELETE FROM t WHERE id = 2": ["table public.t rows"],
    "UPDATE t SET a = CASE id WHEN 1 THEN 'two' ELSE 'one' END WHERE id IN (1, 2)": ["table public.t rows"],
    "INSERT INTO t SELECT 9, a, b, c FROM child; DELETE FROM child": ["table public.child rows", "table public.t rows"],
    "UPDATE parts SET n = 30 WHERE color = 'blue'": ["table public.parts rows"],
    "UPDATE parts SET color = 'red'": ["table public.parts rows"],
    "INSERT INTO cache VALUES (1)": ["table public.cache rows"],
    "REFRESH MATERIALIZED VIEW m WITH NO DATA": ["materialized view public.m rows"],
    "UPDATE ONLY t SET a = 'new'; REFRESH MATERIALIZED VIEW m": [
        "materialized view public.m rows",
        "table public.t rows",
    ],
    "SELECT nextval('s')": ["sequence public.s"],
    "SELECT setval('s', 5, false)": ["sequence public.s"],
    "SELECT lo_put(4711, 0, 'L')": ["large object 4711"],
    "ALTER LARGE OBJECT 4711 OWNER TO compare_reader": ["large object 4711"],
    "GRANT SELECT ON LARGE OBJECT 4711 TO PUBLIC": ["large object 4711"],
    "COMMENT ON LARGE OBJECT 4711 IS 'x'": ["large object 4711"],
    "GRANT SELECT (a) ON t TO compare_reader": ["schema"],
    "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2'": ["schema"],
    "ALTER TABLE t OWNER TO compare_reader": ["schema"],
    "COMMENT ON COLUMN t.b IS 'x'": ["schema"],
    "ALTER TABLE t DISABLE ROW LEVEL SECURITY": ["schema"],
    "ALTER POLICY p ON t TO compare_reader": ["schema"],
    "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO compare_reader": ["schema"],
    "ALTER EXTENSION pg_trgm SET SCHEMA pg_catalog": ["extension pg_trgm", "schema"],
    "ALTER TABLE t ADD d int": [
        *("schema", "table public.child columns", "table public.child rows"),
        *("table public.t columns", "table public.t rows"),
    ],
    "ALTER DATABASE {database} CONNECTION LIMIT 7": ["definition"],
    "ALTER DATABASE {database} OWNER TO compare_reader": ["definition"],
    "REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC": ["definition"],
    "COMMENT ON DATABASE {database} IS 'x'": ["definition"],
    "ALTER DATABASE {database} SET work_mem = '7MB'": ["settings of role (all) in database {database}"],
    "ALTER ROLE compare_reader IN DATABASE {database} SET work_mem = '7MB'": [
        "settings of role compare_reader in database {database}"
    ],
}

ROLE_CHANGES = {
    "ALTER ROLE compare_reader SET work_mem = '7MB'": ["settings of role compare_reader in database (all)"],
    "ALTER ROLE ALL SET work_mem = '7MB'": ["settings of role (all) in database (all)"],
    "ALTER ROLE compare_reader PASSWORD 'after'": ["role compare_reader"],
    "ALTER ROLE compare_reader VALID UNTIL '2030-01-01'": ["role compare_reader"],
    "COMMENT ON ROLE compare_reader IS 'x'": ["role compare_reader"],
    "GRANT compare_group TO compare_reader": ["membership compare_reader in compare_group"],
    "GRANT SET ON PARAMETER work_mem TO compare_reader": ["parameter work_mem"],
    "CREATE ROLE compare_third": ["role compare_third"],
}


@pytest.fixture(scope="module")
def whole_server() -> Iterator[PostgresqlServer]:
    with PostgresqlServer(fsync=False) as own:
        own.run("psql", ["-Xqc", "CREATE ROLE compare_group; CREATE ROLE compare_reader LOGIN PASSWORD 'before'"])
        own.run("createdb", ["small_template"])
        own.run("psql", ["-Xq", "-v", "ON_ERROR_STOP=1", "-c", SMALL, "small_template"])
        yield own


@pytest.fixture
def server(whole_server: PostgresqlServer) -> Iterator[PostgresqlServer]:
    whole_server.run("createdb", ["--template=small_template", "--strategy=file_copy", "small"])
    yield whole_server
    whole_server.run("psql", ["-Xqc", "ALTER ROLE ALL RESET ALL"])
    whole_server.run("dropdb", ["--force", "small"])


@pytest.fixture(scope="module")
def untouched(whole_server: PostgresqlServer) -> dict[str, str]:
    whole_server.run("createdb", ["--template=small_template", "small"])
    state = asyncio.run(fingerprint(whole_server, ["small"]))
    whole_server.run("dropdb", ["small"])
    return state


@pytest.mark.parametrize("change", CHANGES)
async def test_notices(untouched: dict[str, str], server: PostgresqlServer, change: str) -> None:
    await server.execute(change.format(database="small"), database="small")
    after = await fingerprint(server, ["small"])
    assert _changed(untouched, after) == {fact.format(database="small") for fact in CHANGES[change]}


def _changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    sentences = diff(before, after)
    facts = [line.split(": was")[0].split(": is ")[0].split(": changed")[0] for line in sentences]
    return {fact.removeprefix("database small: ") for fact in facts}


async def test_sees_no_difference_in_another_order_or_under_other_settings(server: PostgresqlServer) -> None:
    before = await fingerprint(server, ["small"])
    await server.execute("CREATE TABLE copy AS TABLE t; DELETE FROM ONLY t", database="small")
    await server.execute(
        "INSERT INTO t SELECT DISTINCT ON (id) id, a, b, c FROM copy WHERE id < 9 ORDER BY id DESC; DROP TABLE copy",
        database="small",
    )
    assert not diff(before, await fingerprint(server, ["small"]))
    for setting in (
        "datestyle = 'German'",
        "extra_float_digits = -3",
        "statement_timeout = '1ms'",
        "timezone = 'Asia/Tokyo'",
    ):
        await server.execute(f"ALTER DATABASE small SET {setting}")
    changed = diff(before, await fingerprint(server, ["small"]))
    assert [line.split(":")[0] for line in changed] == ["settings of role (all) in database small"]


async def test_can_leave_out_what_a_crash_empties(server: PostgresqlServer) -> None:
    assert "database small: table public.cache rows" in await fingerprint(server, ["small"])
    assert "database small: table public.cache rows" not in await fingerprint(server, ["small"], unlogged=False)


async def test_names_missing_and_new_things(server: PostgresqlServer) -> None:
    whole = await fingerprint(server, ["small"])
    part = {name: value for name, value in whole.items() if "public.t rows" not in name}
    assert diff(whole, part) == ["database small: table public.t rows: is missing"]
    assert diff(part, whole) == ["database small: table public.t rows: is new"]


async def test_shows_no_password_verifier(server: PostgresqlServer) -> None:
    assert "SCRAM-SHA" not in str(await fingerprint(server, ["small"]))


@pytest.mark.parametrize("change", ROLE_CHANGES)
async def test_notices_of_roles(server: PostgresqlServer, change: str) -> None:
    before = await fingerprint(server, [])
    await server.execute(change)
    assert _changed(before, await fingerprint(server, [])) == set(ROLE_CHANGES[change])


def _touch_nanoseconds(tree: Path) -> None:
    about = (tree / "deviceon" / "version").stat()
    os.utime(tree / "deviceon" / "version", ns=(about.st_atime_ns, about.st_mtime_ns + 1))


def _retarget(tree: Path) -> None:
    link = tree / "nginx" / "sites-enabled" / "gone.conf"
    about = link.lstat()
    link.unlink()
    link.symlink_to("elsewhere")
    os.utime(link, ns=(0, about.st_mtime_ns), follow_symlinks=False)
    _restore_times(link.parent)


def _break_hard_link(tree: Path) -> None:
    one = tree / "deviceon" / "Server_Config.xml"
    copy = one.with_name("copy")
    shutil.copy2(one, copy)
    about = one.stat()
    os.chown(copy, about.st_uid, about.st_gid)
    copy.replace(one)
    _restore_times(one.parent)


def _one_byte(tree: Path) -> None:
    path = tree / "deviceon" / "license.lic"
    about = path.stat()
    with path.open("r+b") as file:
        file.seek(2500)
        byte = file.read(1)[0]
        file.seek(2500)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(0, about.st_mtime_ns))


def _restore_times(directory: Path) -> None:
    os.utime(directory, ns=(0, _DIRECTORY_TIME))


_DIRECTORY_TIME = 1_600_000_000_000_000_000

TREE_CHANGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "one byte": (_one_byte, ["deviceon/license.lic"]),
    "a nanosecond": (_touch_nanoseconds, ["deviceon/version"]),
    "a mode": (lambda tree: (tree / "plugins" / "run as owner").chmod(0o755), ["plugins/run as owner"]),
    "an owner": (lambda tree: os.chown(tree / "plugins" / "-rf", 7, 7), ["plugins/-rf"]),
    "an attribute": (lambda tree: os.setxattr(tree / "plugins" / "noted", "user.empty", b"x"), ["plugins/noted"]),
    "an ACL": (
        lambda tree: os.removexattr(tree / "plugins" / "shared", "system.posix_acl_default"),
        ["plugins/shared"],
    ),
    "a link's target": (_retarget, ["nginx/sites-enabled/gone.conf"]),
    "a broken hard link": (_break_hard_link, ["deviceon/Server_Config.backup.xml", "deviceon/Server_Config.xml"]),
    "the top's own mode": (lambda tree: tree.chmod(0o711), ["."]),
}


@pytest.mark.parametrize("change", TREE_CHANGES)
def test_notices_in_a_tree(workspace: Path, change: str) -> None:
    files = config_files.write(workspace)
    for directory in ("nginx/sites-enabled", "deviceon"):
        _restore_times(files.config / directory)
    before = files.config_listing()
    act, expected = TREE_CHANGES[change]
    act(files.config)
    assert [line.split(": ")[0] for line in diff(before, files.config_listing())] == expected


def test_the_tree_has_mongodb_files_that_its_listing_leaves_out(workspace: Path) -> None:
    files = config_files.write(workspace)
    listing = tree_listing(files.config)
    assert "mongodb/WiredTiger.wt" in listing
    assert "mongodb/journal/WiredTigerLog.0000000001" in listing
    kept = [name for name in files.config_listing() if name.startswith("mongodb")]
    assert kept == ["mongodb", "mongodb/mongod.conf"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("UPDATE dashboard SET title = 'x' WHERE id = 7", ["table dashboard rows"]),
        ("UPDATE annotation SET data = CAST(data AS TEXT)", ["table annotation rows"]),
        ("UPDATE data_source SET secure_json = x'00ff01'", ["table data_source rows"]),
        ("DROP INDEX annotation_epoch", ["index annotation_epoch"]),
        ("PRAGMA user_version = 572", ["user_version"]),
    ],
)
def test_notices_in_sqlite(workspace: Path, change: str, expected: list[str]) -> None:
    files = config_files.write(workspace)
    with closing(config_files.GrafanaRunning(files.grafana)):
        before = sqlite_dump(files.grafana)
        with closing(sqlite3.connect(files.grafana)) as connection, connection:
            connection.execute(change)
        assert [line.split(": ")[0] for line in diff(before, sqlite_dump(files.grafana))] == expected


def test_reads_rows_that_are_only_in_grafanas_log(workspace: Path) -> None:
    files = config_files.write(workspace)
    with closing(config_files.GrafanaRunning(files.grafana)) as grafana:
        before = sqlite_dump(files.grafana)
        grafana.annotate("more")
        assert [line.split(": ")[0] for line in diff(before, sqlite_dump(files.grafana))] == ["table annotation rows"]
        copied = workspace / "copied.db"
        shutil.copyfile(files.grafana, copied)  # what a copy of files gets: the log is missing
        assert diff(before, sqlite_dump(copied))
