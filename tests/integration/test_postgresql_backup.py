"""Backing up a real PostgreSQL: consistent, or a clear error and no archive."""

from __future__ import annotations

import asyncio
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from demo.compare import diff, fingerprint
from demo.postgresql_server import PostgresqlServer
from service.backup import BackupResult, backup
from service.catalog import opened
from service.errors import JobRefused, SourceError, SourceUnavailable
from service.pipeline import level
from service.sources.postgresql import copy_out, rows
from tests.recipes import Installation, eventually

BIG_TABLE = """CREATE TABLE big AS
    SELECT n AS id, md5(n::text) || md5((-n)::text) || md5((n * 7)::text) AS text
    FROM generate_series(1, 600000) AS n"""


@pytest.fixture
def installation(own_postgresql: PostgresqlServer, workspace: Path) -> Installation:
    return Installation(own_postgresql, workspace)


def program(directory: Path, name: str, script: str) -> None:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


async def failing_backup(installation: Installation, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        await installation.backup()
    assert await installation.archives() == []
    assert list(installation.target.iterdir()) == []


async def test_a_wrong_password_is_told_and_leaves_no_archive(installation: Installation) -> None:
    wrong = installation.root / "wrong"
    wrong.write_text("not it\n")
    installation.source = {"password_file": str(wrong)}
    await failing_backup(installation, SourceUnavailable, "refuses the connection.*password authentication failed")


async def test_the_way_around_peer_authentication_is_told(installation: Installation) -> None:
    server = installation.server
    (server.data / "pg_hba.conf").write_text("local all all peer\n")
    server.restart()
    installation.source = {"host": str(server.socket_directory), "user": "nobody-of-this-system"}
    with pytest.raises(SourceUnavailable, match="Peer authentication failed") as refused:
        await installation.backup()
    assert "password_file, or map this user" in refused.value.hint


async def test_a_server_that_is_down_is_told_and_leaves_no_archive(installation: Installation) -> None:
    config = installation.server
    config.stop()
    await failing_backup(installation, SourceUnavailable, "cannot be reached")
    config.start()
    assert (await installation.backup()).streams > 0


async def test_no_database_selected_is_an_error_and_not_an_empty_backup(installation: Installation) -> None:
    installation.source = {"include": ["nothing-like-this-*"]}
    await failing_backup(installation, SourceError, "no database of the server matches")


async def test_postgresql_killed_while_rows_are_copied_leaves_no_archive(installation: Installation) -> None:
    await installation.server.execute(BIG_TABLE)
    progress = installation.progress()
    running = asyncio.create_task(installation.backup(progress))
    await eventually(lambda: progress.stage == "dump" and progress.raw > 1_000_000)
    installation.server.kill()
    with pytest.raises(SourceError):
        await running
    assert list(installation.target.iterdir()) == []


async def test_losing_the_connection_that_holds_the_snapshot_fails_the_backup(installation: Installation) -> None:
    await installation.server.execute(BIG_TABLE)
    progress = installation.progress()
    running = asyncio.create_task(installation.backup(progress))
    await eventually(lambda: progress.stage == "dump" and progress.raw > 1_000_000)
    killed = await installation.server.fetch(
        """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
           WHERE application_name = 'deviceon-backup' AND state = 'idle in transaction' AND datname = 'postgres'"""
    )
    assert killed
    with pytest.raises(SourceError):
        await running
    assert list(installation.target.iterdir()) == []


async def test_a_table_cannot_be_dropped_or_truncated_during_a_backup(installation: Installation) -> None:
    await installation.server.execute(BIG_TABLE)
    await installation.server.execute("CREATE TABLE small AS SELECT 1 AS one")
    progress = installation.progress()
    running = asyncio.create_task(installation.backup(progress))
    await eventually(lambda: progress.stage == "dump" and progress.raw > 1_000_000)
    for statement in ("DROP TABLE small", "TRUNCATE big"):
        with pytest.raises(asyncpg.LockNotAvailableError):
            await installation.server.execute(f"SET lock_timeout = '50ms'; {statement}")
    assert (await running).rows == 600_001


async def test_rows_written_during_a_backup_are_not_in_it(installation: Installation) -> None:
    await installation.server.execute(BIG_TABLE)
    progress = installation.progress()
    running = asyncio.create_task(installation.backup(progress))
    await eventually(lambda: progress.stage == "dump" and progress.raw > 1_000_000)
    await installation.server.execute("INSERT INTO big SELECT -n, 'late' FROM generate_series(1, 1000) AS n")
    assert (await running).rows == 600_000


async def test_pg_dump_failing_half_way_fails_the_backup(installation: Installation) -> None:
    real = installation.server.programs
    clients = installation.root / "clients"
    wrapped = (
        f'case "$*" in *--version*) exec {real}/pg_dump --version;; esac\n{real}/pg_dump "$@" | head -c 500\nexit 3'
    )
    program(clients, "pg_dump", wrapped)
    program(clients, "pg_restore", f'exec {real}/pg_restore "$@"')
    installation.source = {"client_dir": str(clients)}
    await failing_backup(installation, SourceError, r"pg_dump failed \(exit code 3\)")


async def test_a_client_of_another_major_version_is_refused(installation: Installation) -> None:
    clients = installation.root / "clients"
    program(clients, "pg_dump", "echo 'pg_dump (PostgreSQL) 11.9'")
    program(clients, "pg_restore", "exit 1")
    installation.source = {"client_dir": str(clients)}
    await failing_backup(installation, SourceError, r"is version 11\.9")


async def test_a_missing_client_names_the_package(installation: Installation) -> None:
    installation.source = {"client_dir": str(installation.root)}
    with pytest.raises(SourceError, match="were not found in") as raised:
        await installation.backup()
    assert "postgresql-client-" in raised.value.hint


async def test_a_role_that_row_security_would_filter_is_refused_rather_than_given_some_rows(
    installation: Installation,
) -> None:
    await installation.server.execute(
        f"""CREATE ROLE limited LOGIN PASSWORD '{installation.server.password}' IN ROLE pg_read_all_data;
            CREATE TABLE secrets AS SELECT 1 AS one; ALTER TABLE secrets ENABLE ROW LEVEL SECURITY;"""
    )
    installation.source = {"user": "limited"}
    await failing_backup(installation, SourceError, "row-level security")


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ("TRUNCATE small; INSERT INTO small SELECT n, 'new' FROM generate_series(1, 7) AS n", 7),
        ("ALTER TABLE small ALTER id TYPE bigint", 3),
        ("ALTER TABLE small RENAME TO away; CREATE TABLE small AS SELECT 1 AS id, 'other' AS text", 4),
        ("DROP TABLE small", 0),
    ],
)
async def test_a_table_changed_between_snapshot_and_lock_is_backed_up_as_it_is_afterwards(
    installation: Installation, change: str, rows: int
) -> None:
    await installation.server.execute(
        "CREATE TABLE small AS SELECT n AS id, 'old' AS text FROM generate_series(1, 3) AS n"
    )
    assert (await backup_meanwhile(installation, change)).rows == rows


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE small ADD more text; UPDATE small SET more = 'new'; ALTER TABLE small DROP text;"
        "ALTER TABLE small RENAME more TO text",
        "ALTER TABLE small ALTER id TYPE oid",
    ],
)
async def test_columns_changed_between_snapshot_and_lock_come_back_as_they_are_afterwards(
    installation: Installation, change: str
) -> None:
    async def rows() -> list[str]:
        query = "SELECT concat_ws(',', id, text) FROM small"
        return [row[0] for row in await installation.server.fetch(query, database="app")]

    await installation.server.execute("CREATE DATABASE app")
    await installation.server.execute(
        "CREATE TABLE small AS SELECT -1 AS id, 'old' AS text, 'pg_class'::regclass AS none_in_binary",
        database="app",
    )
    installation.source = {"include": ["app"]}
    archive = (await backup_meanwhile(installation, change, database="app")).name
    now = await rows()
    await installation.restore(archive)
    assert await rows() == now


async def backup_meanwhile(installation: Installation, change: str, *, database: str = "postgres") -> BackupResult:
    """Back up while a session changes something, and commits when the backup waits for it."""
    session = await installation.server.connect(database)
    await session.execute(f"BEGIN; {change}")
    running = asyncio.create_task(installation.backup())
    for _ in range(400):  # until the backup waits for this session
        if await session.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("the backup did not wait")
    await session.execute("COMMIT")
    await session.close()
    return await running


async def test_a_database_that_is_named_but_not_there_fails_the_backup(installation: Installation) -> None:
    installation.source = {"include": ["postgres", "misspelt"]}
    await failing_backup(installation, SourceError, "the server has no database misspelt")


async def test_a_template_that_is_left_out_is_told(installation: Installation) -> None:
    await installation.server.execute("CREATE DATABASE blueprint IS_TEMPLATE true")
    left_out = (await installation.backup()).excluded
    assert [(item["path"], item["reason"]) for item in left_out] == [("blueprint", "the database is a template")]


async def test_time_outs_and_read_only_settings_of_database_and_role_do_not_stop_a_backup(
    installation: Installation,
) -> None:
    await installation.server.execute(BIG_TABLE)
    hostile = ("statement_timeout = '1ms'", "lock_timeout = '1ms'", "default_transaction_read_only = on")
    targets = ("DATABASE postgres", "ROLE postgres")
    statements = [f"ALTER {target} SET {setting}" for target in targets for setting in hostile]
    await installation.server.execute("; ".join(statements))
    assert (await installation.backup()).rows == 600_000


async def test_two_backups_at_once_are_one_backup_and_one_refusal(installation: Installation) -> None:
    await installation.server.execute(BIG_TABLE)
    progress = installation.progress()
    running = asyncio.create_task(installation.backup(progress))
    await eventually(lambda: progress.stage == "dump")
    with pytest.raises(JobRefused, match=r"a backup .* is running"):
        await installation.backup()
    result = await running
    assert await installation.archives() == [result.name]


async def test_a_second_backup_in_one_minute_waits_for_the_next(installation: Installation) -> None:
    now = datetime(2026, 3, 4, 5, 6, 59, tzinfo=UTC)
    first = await backup(installation.config, progress=installation.progress(), clock=lambda: now)
    second = asyncio.create_task(backup(installation.config, progress=installation.progress(), clock=lambda: now))
    told = f"{first.name} exists already; waiting for the next minute"
    await eventually(lambda: told in installation.said)
    now += timedelta(seconds=1)
    assert (await second).name == "Backup_20260304_0507Z.zip"
    assert await installation.archives() == [first.name, "Backup_20260304_0507Z.zip"]


async def test_a_cancelled_backup_leaves_no_archive_and_no_session(installation: Installation) -> None:
    await installation.server.execute(BIG_TABLE)
    progress = installation.progress()
    running = asyncio.create_task(installation.backup(progress))
    await eventually(lambda: progress.stage == "dump" and progress.raw > 1_000_000)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert list(installation.target.iterdir()) == []
    for _ in range(200):
        left = await installation.server.fetch(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'deviceon-backup'"
        )
        if not left:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"sessions are left: {left}")


async def test_connections_show_their_name_to_the_server(installation: Installation) -> None:
    await installation.server.execute(BIG_TABLE)
    installation.source = {"application_name": "nightly", "connections": 2, "delay": 0.02}
    running = asyncio.create_task(installation.backup())
    names: set[str] = set()
    while not running.done():
        rows = await installation.server.fetch(
            "SELECT application_name, count(*) FROM pg_stat_activity WHERE query LIKE 'COPY%' GROUP BY 1"
        )
        names |= {row[0] for row in rows}
        assert sum(row[1] for row in rows) <= 2
    await running
    assert names == {"nightly"}


async def test_many_small_tables_of_several_databases_share_streams_and_one_connection(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_TOGETHER", 3)
    monkeypatch.setattr(copy_out, "_TABLES_PER_TRANSACTION", 4)
    installation.source = {"connections": 1, "include": ["a", "b"]}
    for database in ("a", "b"):
        await installation.server.execute(f"CREATE DATABASE {database}")
        tables = "; ".join(f"CREATE TABLE t{n} AS SELECT {n} AS n, '{database}' AS d" for n in range(11))
        await installation.server.execute(tables, database=database)
    before = await fingerprint(installation.server, ["a", "b"])
    archive = (await installation.backup()).name
    async with opened(installation.config, archive) as reader:
        shared = [one.details for one in reader.manifest.streams if one.kind == rows.SMALL_TABLES]
    assert sorted(len(details["tables"]) for details in shared) == [2, 2, 3, 3, 3, 3, 3, 3]
    assert sum(details["rows"] for details in shared) == 22
    for database in ("a", "b"):
        await installation.server.execute("DELETE FROM t3; DROP TABLE t4", database=database)
    await installation.restore(archive)
    await installation.commit()
    assert diff(before, await fingerprint(installation.server, ["a", "b"])) == []


async def test_a_session_that_ends_between_small_tables_leaves_no_archive(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = "; ".join(f"CREATE TABLE t{n} AS SELECT {n} AS n" for n in range(10))
    await installation.server.execute(tables)
    read = rows._copy_out

    async def cut_off(connection: Any, table: Any, condition: str, connections: Any, told: Any) -> Any:
        if table.name == "t5":
            await installation.server.execute(
                f"SELECT pg_terminate_backend({connection.get_server_pid()})",
            )
        async for piece in read(connection, table, condition, connections, told):
            yield piece

    monkeypatch.setattr(rows, "_copy_out", cut_off)
    await failing_backup(installation, SourceError, "t5")


async def test_level_auto_is_decided_during_a_backup(installation: Installation) -> None:
    await installation.server.execute(BIG_TABLE)
    installation.compression = {"level": "auto", "chunk_bytes": 256 * 1024}
    result = await installation.backup()
    assert result.compression_level in level.CANDIDATES
    async with opened(installation.config, result.name) as reader:
        await reader.verify(installation.progress())
