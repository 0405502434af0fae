"""The SQLite file behind the service's memory: opened, brought up to date, one transaction at a time.

A transaction is durable when it returns (write-ahead log, synchronous=FULL). The file belongs to this machine: it must
not lie on a network share.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from service.blocking import run_in_thread
from service.errors import StateError
from service.state_directory import prepare

T = TypeVar("T")

FILE_NAME = "state.db"
ASIDE = ".damaged-"
BUSY_SECONDS = 10.0

# Each script brings the file from the version that is its place in the list to the next. They are never changed.
MIGRATIONS = (
    """
    CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL, created TEXT NOT NULL, content TEXT NOT NULL
    ) STRICT;
    CREATE INDEX jobs_by_time ON jobs (created, id);
    CREATE TABLE events (seq INTEGER PRIMARY KEY, content TEXT NOT NULL) STRICT;
    CREATE TABLE intents (
        target TEXT NOT NULL, name TEXT NOT NULL, action TEXT NOT NULL, PRIMARY KEY (target, name)
    ) STRICT;
    CREATE TABLE archives (
        target TEXT NOT NULL, name TEXT NOT NULL, etag TEXT NOT NULL, evidence TEXT NOT NULL, since TEXT, facts TEXT,
        PRIMARY KEY (target, name)
    ) STRICT;
    CREATE TABLE idempotency (
        key TEXT PRIMARY KEY, request TEXT NOT NULL, answer TEXT NOT NULL, created TEXT NOT NULL
    ) STRICT;
    """,
    """
    CREATE TABLE unfinished (
        target TEXT NOT NULL, name TEXT NOT NULL, what TEXT NOT NULL, PRIMARY KEY (target, name, what)
    ) STRICT;
    """,
    """
    CREATE TABLE gaps (
        kind TEXT NOT NULL, since TEXT NOT NULL, until TEXT NOT NULL, schedule TEXT NOT NULL,
        PRIMARY KEY (kind, until)
    ) STRICT;
    CREATE TABLE job_log (
        job TEXT NOT NULL, number INTEGER NOT NULL, content TEXT NOT NULL, PRIMARY KEY (job, number)
    ) STRICT;
    """,
)


class Database:
    """The opened file. Safe to use from many tasks: transactions take turns, each in a thread."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.path = path
        self._connection = connection
        self._turn = threading.Lock()

    @classmethod
    def open(cls, directory: Path) -> Database:
        """Open `state.db` in `directory`, which is made when it is missing. Raises StateError, ConfigError."""
        path = prepare(directory) / FILE_NAME
        with _mapped(path):
            connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                path.chmod(0o600)
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                _migrate(connection, path)
            except BaseException:
                connection.close()
                raise
        return cls(connection, path)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work` in one transaction; durable when this returns. Raises StateError."""
        return await run_in_thread(self._transaction, work)

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._turn, _mapped(self.path), _transaction(self._connection):
            return work(self._connection)

    def read(self, query: str, *values: str) -> tuple[str, ...] | None:
        """Return the first row of a query, at once: for callers that have no event loop."""
        with self._turn, _mapped(self.path):
            row: tuple[str, ...] | None = self._connection.execute(query, values).fetchone()
            return row

    def close(self) -> None:
        """Close the file; nothing can be read or written afterwards."""
        with self._turn:
            self._connection.close()


@contextlib.contextmanager
def opened_if_there(directory: Path) -> Iterator[Database | None]:
    """Open the memory for a block; None when there is none yet or it cannot be used."""
    database = None
    if (directory / FILE_NAME).exists():
        with contextlib.suppress(StateError):
            database = Database.open(directory)
    try:
        yield database
    finally:
        if database is not None:
            database.close()


def set_aside(directory: Path, now: datetime) -> Path | None:
    """Rename a damaged `state.db`, so that a new one can be made; return its new name, None when it is not damaged.

    Raises StateError.
    """
    path = directory / FILE_NAME
    with _mapped(path):
        if not path.exists() or not _damaged(path):
            return None
        aside = path.with_name(f"{FILE_NAME}{ASIDE}{now:%Y%m%dT%H%M%SZ}")
        path.rename(aside)
        for suffix in ("-wal", "-shm"):
            log = path.with_name(path.name + suffix)
            if log.exists():
                log.rename(aside.with_name(aside.name + suffix))
        return aside


def _damaged(path: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
            return bool(connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",))
    except sqlite3.OperationalError:  # locked, no permission, no space: not damaged
        return False
    except sqlite3.DatabaseError:
        return True


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    with _transaction(connection):
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise StateError(
                f"{path} was written by a newer version of deviceon-backup",
                hint="Install that version again, or move the file away: only history and settings are lost with it.",
            )
        for script in MIGRATIONS[version:]:
            for statement in script.split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StateError(
            f"the service's memory {path} cannot be used: {error}",
            hint="Look for a full disk and for who owns the file. Archives are not concerned.",
        ) from error
