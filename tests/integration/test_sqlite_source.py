"""SQLite files: consistent while others write, whole or an error, and never beside another database's log."""

# ruff: noqa: PTH208

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from service.config_sources import SqliteSettings
from service.errors import SourceError, SourceUnavailable, StageFailed, SwapFailed
from service.sources import sqlite
from service.sources.base import StoredSource
from service.sources.sqlite import SqliteRestorer, SqliteSource
from tests.trees import Archived, Journal, back_up, back_up_tree, leftovers, restore, stage, tree_restorer

# Each transaction moves money from one account to another: the sum tells whether a copy is of one state.
WRITER = """
import random, sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
print("ready", flush=True)
while True:
    giver, taker = random.sample(range(1000), 2)
    database.execute("BEGIN IMMEDIATE")
    database.execute("UPDATE account SET money = money - 1, note = hex(randomblob(400)) WHERE id = ?", [giver])
    database.execute("UPDATE account SET money = money + 1 WHERE id = ?", [taker])
    database.execute("INSERT INTO transfer (giver, taker) VALUES (?, ?)", [giver, taker])
    database.execute("COMMIT")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "var" / "grafana.db"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, money INTEGER, note TEXT)")
        database.execute("CREATE TABLE transfer (giver INTEGER, taker INTEGER)")
        database.executemany("INSERT INTO account VALUES (?, 100, ?)", [(n, "x" * 4000) for n in range(1000)])
        database.commit()
    path.chmod(0o640)
    os.chown(path, 101, 104)
    return path


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    return tmp_path / "state"


def source(file: Path, staging: Path) -> SqliteSource:
    return SqliteSource(SqliteSettings(path=file), staging=staging)


def set_mode(file: Path, mode: str) -> None:
    with closing(sqlite3.connect(file)) as database:
        assert database.execute(f"PRAGMA journal_mode = {mode}").fetchone() == (mode,)


def count(file: Path, query: str) -> int:
    with closing(sqlite3.connect(file)) as database:
        return int(database.execute(query).fetchone()[0])


@contextmanager
def writing(file: Path) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", WRITER, file], stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout
            writer.stdout.readline()
            time.sleep(0.1)
            yield
        finally:
            writer.kill()


@pytest.mark.parametrize("mode", ["wal", "delete"])
async def test_a_copy_is_one_state_while_another_process_writes(
    file: Path, staging: Path, tmp_path: Path, mode: str
) -> None:
    set_mode(file, mode)
    copies: list[Archived] = []
    with writing(file):
        for _ in range(5):
            copies.append(await back_up(source(file, staging)))
    transfers = []
    for number, copy in enumerate(copies):
        path = tmp_path / f"copy-{number}.db"
        path.write_bytes(copy.data)
        assert count(path, "SELECT sum(money) FROM account") == 100_000
        assert count(path, "SELECT count(*) FROM account") == 1000
        transfers.append(count(path, "SELECT count(*) FROM transfer"))
        assert copy.facts["journal_mode"] == mode
    assert transfers == sorted(transfers)
    assert transfers[-1] > transfers[0], "the writer did not write meanwhile"
    assert os.listdir(staging) == []


async def test_reading_leaves_no_trace_at_the_live_file(file: Path, staging: Path) -> None:
    before = (file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ctime_ns, os.listdir(file.parent))
    await back_up(source(file, staging))
    assert (file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ctime_ns, os.listdir(file.parent)) == before


async def test_rows_that_are_only_in_the_log_are_in_the_copy(file: Path, staging: Path, tmp_path: Path) -> None:
    set_mode(file, "wal")
    with closing(sqlite3.connect(file)) as writer:
        writer.execute("INSERT INTO transfer VALUES (1, 2)")
        writer.commit()
        copy = await back_up(source(file, staging))
    (tmp_path / "copy.db").write_bytes(copy.data)
    assert count(tmp_path / "copy.db", "SELECT count(*) FROM transfer") == 1


async def test_what_a_killed_writer_left_half_done_is_not_in_the_copy(
    file: Path, staging: Path, tmp_path: Path
) -> None:
    set_mode(file, "delete")
    half = (
        "import os, sqlite3, sys; d = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "d.execute('PRAGMA cache_size = 1'); d.execute('BEGIN');"
        "d.execute('UPDATE account SET money = 0'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", half, file], check=False)
    assert Path(f"{file}-journal").stat().st_size > 0
    copy = await back_up(source(file, staging))
    (tmp_path / "copy.db").write_bytes(copy.data)
    assert count(tmp_path / "copy.db", "SELECT sum(money) FROM account") == 100_000


async def test_missing_empty_foreign_and_damaged_files_are_errors_never_an_empty_backup(
    file: Path, staging: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.db").touch()
    (tmp_path / "foreign.db").write_bytes(b"this is no database, " * 1000)
    damaged = bytearray(file.read_bytes())
    damaged[8192:65536] = os.urandom(65536 - 8192)
    (tmp_path / "damaged.db").write_bytes(damaged)
    for path in (*(tmp_path / f"{name}.db" for name in ("missing", "empty", "foreign", "damaged")), tmp_path):
        with pytest.raises(SourceError) as caught:
            await back_up(source(path, staging))
        assert str(path) in str(caught.value)
    assert not (tmp_path / "missing.db").exists()
    assert not staging.exists() or os.listdir(staging) == []


async def test_a_database_that_stays_locked_is_unavailable(
    file: Path, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", 0.2)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(SourceUnavailable, match="locked"):
            await back_up(source(file, staging))
    assert os.listdir(staging) == []


async def test_a_full_disk_where_the_copy_is_made_is_an_error(file: Path, staging: Path) -> None:
    staging.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", staging], check=True)
    try:
        with pytest.raises(SourceError, match="full"):
            await back_up(source(file, staging))
        assert os.listdir(staging) == []
    finally:
        subprocess.run(["umount", staging], check=True)


async def test_a_copy_that_is_cancelled_leaves_nothing_and_what_a_killed_run_left_is_swept(
    file: Path, staging: Path
) -> None:
    staging.mkdir()
    (staging / ".deviceon-backup-sqlite.killed").write_text("left behind")
    (staging / "not-ours").touch()
    open_files = sorted(os.listdir("/proc/self/fd"))
    for wait in (0.0, 0.001, 0.005, 0.02):
        task = asyncio.create_task(back_up(source(file, staging)))
        await asyncio.sleep(wait)
        task.cancel()
        await asyncio.wait({task})
    assert os.listdir(staging) == ["not-ours"]
    assert sorted(os.listdir("/proc/self/fd")) == open_files


# --- and back --------------------------------------------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


async def test_the_file_comes_back_with_its_owner_and_mode_and_the_old_log_goes(
    file: Path, staging: Path, journal: Journal
) -> None:
    set_mode(file, "wal")
    os.setxattr(file, "user.a", b"1")
    status = file.stat()
    archived = await back_up(source(file, staging))
    with closing(sqlite3.connect(file)) as writer:
        writer.execute("DELETE FROM account")
        writer.commit()
        left = [(Path(f"{file}{end}"), Path(f"{file}{end}").read_bytes()) for end in ("-wal", "-shm")]
    for path, content in left:
        path.write_bytes(content)
    file.chmod(0o600)
    restorer = SqliteRestorer(SqliteSettings(path=file))
    items, obstacles, _ = await restorer.plan(archived.stored)
    assert [(item.what, item.action) for item in items] == [(str(file), "replace")]
    assert obstacles == []
    await restore(restorer, archived, journal)
    assert [path.name for path in file.parent.iterdir() if not path.name.startswith(".")] == ["grafana.db"]
    now = file.stat()
    assert (now.st_mode, now.st_uid, now.st_gid, now.st_mtime_ns) == (
        *(status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns),
    )
    assert os.getxattr(file, "user.a") == b"1"
    assert count(file, "SELECT sum(money) FROM account") == 100_000
    await restorer.commit(journal.record)
    assert leftovers(file.parent) == []
    assert count(file, "SELECT sum(money) FROM account") == 100_000


async def test_a_missing_file_is_created_also_when_its_directory_is_gone(
    file: Path, staging: Path, journal: Journal
) -> None:
    archived = await back_up(source(file, staging))
    file.unlink()
    file.parent.rmdir()
    restorer = SqliteRestorer(SqliteSettings(path=file))
    assert [item.action for item in (await restorer.plan(archived.stored))[0]] == ["create"]
    await restore(restorer, archived, journal)
    assert count(file, "SELECT count(*) FROM account") == 1000
    await restorer.undo(journal.record)
    assert not file.parent.exists()


@pytest.mark.parametrize("live", ["there", "file gone", "directory gone", "tree gone"])
async def test_a_database_inside_a_tree_is_restored_after_it_and_undone_before_it(
    tmp_path: Path, file: Path, staging: Path, live: str
) -> None:
    root = tmp_path / "srv"
    inside = root / "grafana" / "grafana.db"
    inside.parent.mkdir(parents=True)
    (root / "server.xml").write_text("old")
    (root / "grafana" / "grafana.ini").write_text("old")
    file.rename(inside)
    tree = await back_up_tree(root, preserve=[inside])
    database = await back_up(source(inside, staging))
    assert len(tree.data) < 20_000
    changes = {
        "there": "echo new > srv/server.xml",
        "file gone": "rm srv/grafana/grafana.db",
        "directory gone": "rm -r srv/grafana",
        "tree gone": "rm -r srv",
    }
    subprocess.run(changes[live], shell=True, cwd=tmp_path, check=True)
    before = sorted(str(path) for path in root.rglob("*"))
    trees, databases = tree_restorer(root, preserve=[inside]), SqliteRestorer(SqliteSettings(path=inside))
    for end in ("undo", "commit"):
        one, two = Journal(tmp_path / f"tree.{end}"), Journal(tmp_path / f"database.{end}")
        await stage(trees, tree, one)
        await stage(databases, database, two)
        await trees.swap(one.record, one.save)
        await databases.swap(two.record, two.save)
        assert count(inside, "SELECT count(*) FROM account") == 1000
        assert (root / "server.xml").read_text() == "old"
        assert (root / "grafana" / "grafana.ini").read_text() == "old"
        if end == "undo":
            await databases.undo(two.record)
            await trees.undo(one.record)
            assert sorted(str(path) for path in root.rglob("*")) == before
        else:
            await trees.commit(one.record)
            await databases.commit(two.record)
            assert count(inside, "SELECT count(*) FROM account") == 1000
    assert leftovers(tmp_path) == []


async def test_a_copy_that_is_short_or_unsound_is_refused_and_the_live_file_is_as_it_was(
    file: Path, staging: Path, tmp_path: Path
) -> None:
    archived = await back_up(source(file, staging))
    unsound = bytearray(archived.data)
    unsound[8192:65536] = bytes(65536 - 8192)
    before = (file.read_bytes(), file.stat().st_ino)
    restorer = SqliteRestorer(SqliteSettings(path=file))
    for number, data in enumerate([archived.data[:-4096], b"", archived.data + b"x", bytes(unsound)]):
        journal = Journal(tmp_path / f"journal.{number}")
        with pytest.raises(StageFailed):
            await stage(restorer, archived.changed(data), journal)
        with pytest.raises(SwapFailed):
            await restorer.commit(journal.record)
        await restorer.undo(journal.record)
    assert (file.read_bytes(), file.stat().st_ino) == before
    assert leftovers(file.parent) == []


async def test_a_full_disk_fails_the_copy(file: Path, staging: Path, tmp_path: Path, journal: Journal) -> None:
    archived = await back_up(source(file, staging))
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], check=True)
    try:
        restorer = SqliteRestorer(SqliteSettings(path=small / "grafana.db"))
        assert [obstacle.code for obstacle in (await restorer.plan(archived.stored))[1]] == ["NO_SPACE"]
        with pytest.raises(StageFailed, match="no room left"):
            await stage(restorer, archived, journal)
        await restorer.undo(journal.record)
        assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", small], check=True)


async def test_an_archive_without_the_stream_is_refused(file: Path, staging: Path, journal: Journal) -> None:
    archived = await back_up(source(file, staging))
    none = StoredSource(name="sqlite", type="sqlite", facts=archived.stored.facts, streams=[])
    with pytest.raises(Exception, match="no single stream"):
        await stage(SqliteRestorer(SqliteSettings(path=file)), Archived(none, b""), journal)
    assert journal.record == {}
