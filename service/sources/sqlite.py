"""An SQLite database file, such as Grafana's store, as one stream `sqlite.file`.

BACKUP copies the database by SQLite's online backup inside one read transaction, so it is consistent while others
write, and streams the copy while a thread checks it: one that is damaged fails the backup at its end. RESTORE prepares
the file beside the live one, checks it, and exchanges the two. The live file's companions (-wal, -shm, -journal) belong
to the old state and are set aside with it: beside another database SQLite would replay them into it.
"""

# Work by descriptor speaks os, not pathlib.
# ruff: noqa: PTH208

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import sqlite3
import stat
import tempfile
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

from service import terminal
from service.blocking import read_in_thread, run_in_thread, run_until_stopped
from service.config_sources import SqliteSettings
from service.errors import CorruptArchive, Obstacle, SourceError, SourceUnavailable, StageFailed, SwapFailed
from service.progress import Progress
from service.sources import exchange, work_area
from service.sources.attributes import (
    Attributes,
    apply_attributes,
    group_here,
    group_name,
    read_attributes,
    user_here,
    user_name,
)
from service.sources.base import (
    Compared,
    Json,
    PlanItem,
    Record,
    Restorer,
    Room,
    Snapshot,
    Source,
    SourcePlan,
    StoredSource,
    Stream,
    StreamReader,
)
from service.sources.directories import OWN_PREFIX, decode_path, encode_path, mounts_below, opened, opened_whole
from service.sources.read_back import read_back

STREAM = "sqlite.file"
COMPANIONS = ("-wal", "-shm", "-journal")

_PIECE, _PAGES = 1 << 20, 1024
_BUSY_SECONDS = 30.0


class SqliteSource(Source):
    """Backs up one SQLite file. The copy is made in the directory `staging`, and is gone when the snapshot is."""

    type = "sqlite"

    def __init__(self, settings: SqliteSettings, *, staging: Path) -> None:
        self.name = settings.name
        self._settings = settings
        self._staging = staging

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """Make the consistent copy. Raises SourceError, SourceUnavailable (locked for too long)."""
        snapshot = await run_until_stopped(
            lambda stop: _SqliteSnapshot(self.name, self._settings.path, self._staging, stop),
            discard=_SqliteSnapshot.close,
        )
        try:
            yield snapshot
        finally:
            await run_in_thread(snapshot.close)  # it waits for the check, which may take long to notice


class _SqliteSnapshot:
    parallel = 1

    def __init__(self, name: str, path: Path, staging: Path, stop: threading.Event) -> None:
        self._path = path
        self._attributes = _live_attributes(path)
        self._fd, self._copy, self._journal_mode = _consistent_copy(name, path, staging, stop)
        self._checker = ThreadPoolExecutor(1, thread_name_prefix="checking-sqlite")
        self._problem = self._checker.submit(_problem, self._copy)
        self._size = os.fstat(self._fd).st_size
        self.streams = [
            Stream(kind=STREAM, labels={"path": str(path)}, read=self._read, expected_bytes=self._size),
        ]

    def close(self) -> None:
        self._problem.cancel()
        self._copy.interrupt()
        self._checker.shutdown()
        self._copy.close()
        os.close(self._fd)

    async def _read(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(read_in_thread(self._pieces())) as pieces:
            async for piece in pieces:
                yield piece

    def _pieces(self) -> Generator[bytes, None, None]:
        offset = 0
        while piece := os.pread(self._fd, _PIECE, offset):
            offset += len(piece)
            yield piece

    async def facts(self) -> dict[str, Json]:
        """Tell what the file was, once the copy is known to be sound."""
        problem = await asyncio.wrap_future(self._problem)
        if problem:
            raise _damaged(self._path, problem)
        attributes = self._attributes
        return {
            "path": str(self._path),
            "bytes": self._size,
            "journal_mode": self._journal_mode,
            "attributes": attributes.to_json(),
            "user": user_name(attributes.uid),
            "group": group_name(attributes.gid),
            "excluded": [],
            "warnings": [],
        }


def _live_attributes(path: Path) -> Attributes:
    try:
        with opened(os.path.realpath(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC) as fd:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise SourceError(f"{path} is no file.", hint="Correct the source's path.")
            if not status.st_size:
                raise SourceError(
                    f"The SQLite database {path} is empty; that is nothing worth keeping.",
                    hint="Correct the source's path, or mount the volume that the database lies on.",
                )
            return read_attributes(fd)
    except OSError as exc:
        raise SourceError(
            f"The SQLite database {path} cannot be read: {exc.strerror}.",
            hint="Correct the source's path, or mount the volume that the database lies on.",
        ) from exc


def _consistent_copy(
    name: str, path: Path, staging: Path, stop: threading.Event
) -> tuple[int, sqlite3.Connection, str]:
    """Return a copy that has no name any more, as file and as database, and the live database's journal mode."""
    prefix = f"{OWN_PREFIX}{name}."
    try:
        staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in os.listdir(staging):
            if entry.startswith(prefix):  # of a run that was killed
                (staging / entry).unlink()
        fd, copy = tempfile.mkstemp(prefix=prefix, dir=staging)
    except OSError as exc:
        raise SourceError(f"The copy of {path} could not be made in {staging}: {exc.strerror}.") from exc
    with ExitStack() as unless_done:
        unless_done.callback(os.close, fd)
        unless_done.callback(_take_name, copy)
        mode = _copy_database(path, Path(copy), stop)
        database = _opened_copy(path, Path(copy))
        unless_done.callback(database.close)
        if not _take_name(copy):
            raise SourceError(f"The copy of {path} in {staging} cannot be removed; the next backup tries again.")
        unless_done.pop_all()
    return fd, database, mode


def _take_name(copy: str) -> bool:
    """Take the name of a copy away; tell whether it is gone."""
    for suffix in ("", *COMPANIONS):
        with suppress(OSError):
            Path(f"{copy}{suffix}").unlink()
    return not os.path.lexists(copy)


def _opened_copy(path: Path, copy: Path) -> sqlite3.Connection:
    database = _unchanging(copy)
    try:
        database.execute("PRAGMA schema_version").fetchone()  # opens the file, as long as it has a name
    except sqlite3.Error as exc:
        database.close()
        raise _damaged(path, str(exc)) from exc
    return database


def _damaged(path: Path, problem: str) -> SourceError:
    return SourceError(
        f"The SQLite database {path} is damaged: {problem}.",
        hint="Repair it (`sqlite3 FILE .recover`) or restore it; a backup of it would be no good.",
    )


def _copy_database(path: Path, copy: Path, stop: threading.Event) -> str:
    def look(*_: int) -> None:
        if stop.is_set():
            raise InterruptedError

    try:
        with closing(_connect(path)) as live, closing(sqlite3.connect(copy)) as target:
            target.execute("PRAGMA synchronous = OFF")
            target.execute("PRAGMA journal_mode = OFF")
            # Inside this transaction the backup sees one state. Without it, SQLite would begin anew whenever another
            # process writes, and might never end.
            live.execute("BEGIN")
            live.execute("SELECT count(*) FROM sqlite_master").fetchone()
            live.backup(target, pages=_PAGES, progress=look)
            live.execute("COMMIT")
            return str(live.execute("PRAGMA journal_mode").fetchone()[0])
    except InterruptedError:
        raise SourceError(f"The copy of {path} was stopped.") from None
    except sqlite3.Error as exc:
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            raise SourceUnavailable(
                f"The SQLite database {path} was locked by another process for {_BUSY_SECONDS:.0f} seconds.",
                hint="Try again when less is written to it; in WAL mode readers never wait.",
            ) from exc
        raise SourceError(f"The SQLite database {path} cannot be read: {exc}.") from exc


def _connect(path: Path) -> sqlite3.Connection:
    # Read-only first: it never writes to the live database, not even a checkpoint on closing. What a crashed writer
    # left (a hot journal) must be rolled back before anybody can read, and that takes a writable connection.
    for mode in ("ro", "rw"):
        live = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=_BUSY_SECONDS, isolation_level=None
        )
        try:
            live.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as exc:
            live.close()
            code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
            if mode == "ro" and code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}:
                continue
            raise
        return live
    raise AssertionError


def integrity_problem(path: Path) -> str:
    """Check a database file that nobody else has open; empty when it is sound. Makes no file beside it."""
    with closing(_unchanging(path)) as database:
        return _problem(database)


def _unchanging(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False)


def _problem(database: sqlite3.Connection) -> str:
    try:
        found = [str(row[0]) for row in database.execute("PRAGMA integrity_check(3)")]
    except sqlite3.Error as exc:
        return str(exc)
    return "" if found == ["ok"] else "; ".join(found)


class SqliteRestorer(Restorer):
    """Brings one SQLite file back. Whoever uses the database must be stopped before `swap`."""

    kinds = frozenset({STREAM})

    def __init__(self, settings: SqliteSettings) -> None:
        self._settings = settings

    async def plan(self, stored: StoredSource, reader: StreamReader | None = None) -> SourcePlan:
        """Look at the live file and its directory."""
        return await run_in_thread(self._plan, stored.facts)

    def _plan(self, facts: Mapping[str, Any]) -> SourcePlan:
        path = self._path
        above, _ = exchange.missing_parents(path)
        needed = note = terminal.size(facts["bytes"])
        if facts["path"] != str(self._settings.path):
            note += f"; was {facts['path']}"
        items = [PlanItem(str(self._settings.path), "replace" if path.exists() else "create", note)]
        obstacles = []
        usage = os.statvfs(above)
        if usage.f_flag & os.ST_RDONLY or not os.access(above, os.W_OK | os.X_OK, effective_ids=True):
            obstacles.append(Obstacle("SQLITE_NOT_WRITABLE", f"{above} cannot be written to.", "Make it writable."))
        if usage.f_bavail * usage.f_frsize < facts["bytes"]:
            obstacles.append(Obstacle("NO_SPACE", f"The copy needs {needed} at {above}.", "Make room there."))
        if path.exists() and not path.is_file():
            obstacles.append(Obstacle("SQLITE_NO_FILE", f"{path} is no file now.", "Move away what lies there."))
        if mounts_below(path):
            obstacles.append(
                Obstacle(
                    "MOUNTED_FILE",
                    f"{path} is a single mounted file and cannot be replaced.",
                    "Mount its directory instead.",
                )
            )
        owner = _attributes_here(facts)
        if os.geteuid() != 0 and (owner.uid != os.geteuid() or owner.gid not in {os.getegid(), *os.getgroups()}):
            obstacles.append(
                Obstacle("OWNERS_NEED_ROOT", f"Only root can restore the owner of {path}.", "Run as root.")
            )
        return SourcePlan(items, obstacles)

    async def stage(
        self,
        stored: StoredSource,
        reader: StreamReader,
        record: Record,
        save: Callable[[], Awaitable[None]],
        progress: Progress,
    ) -> None:
        """Write the file beside the live one and check it."""
        streams = [stream for stream in stored.streams if stream.kind == STREAM]
        if len(streams) != 1:
            raise CorruptArchive(f"The archive's source {stored.name} has no single stream of the kind {STREAM}.")
        path = self._path
        above, _ = exchange.missing_parents(path)
        area = above / f"{OWN_PREFIX}{record.setdefault('id', secrets.token_hex(8))}-{self._settings.name}"
        if area.is_symlink() or area.exists():
            raise StageFailed(f"There is a work area {area} of this name already.")
        record["path"], record["area"] = encode_path(str(path)), encode_path(str(area))
        await save()
        try:
            await run_in_thread(work_area.make_area, area)
            fd = os.open(area / path.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                async with aclosing(reader.read(streams[0])) as pieces:
                    async for piece in pieces:
                        await run_in_thread(_write_all, fd, piece)
                        progress.raw += len(piece)
                await run_in_thread(_finish, fd, area, area / path.name, stored.facts, progress.say)
            finally:
                os.close(fd)
        except OSError as exc:
            if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise StageFailed(
                    f"There is no room left for the copy of {path}. The live database is as it was.",
                    hint="Make room on the file system that holds it, then restore again.",
                ) from exc
            raise StageFailed(
                f"The copy of {path} could not be made: {exc.strerror or exc}. The live database is as it was."
            ) from exc

    async def room(self, stored: StoredSource) -> Room:
        """Look at the file's size."""
        above, _ = exchange.missing_parents(self._path)
        return Room({above: stored.facts["bytes"]})

    async def compare(self, stored: StoredSource, reader: StreamReader, record: Record, progress: Progress) -> Compared:
        """Read the copy back; its integrity was checked when it was staged."""
        [area] = _areas(record)
        return await run_in_thread(read_back, area / self._path.name, stored.streams[0])

    async def swap(self, record: Record, save: Callable[[], Awaitable[None]]) -> None:
        """Exchange the copy and the live file; set the live file's companions aside first."""
        path, area = Path(decode_path(record["path"])), Path(decode_path(record["area"]))
        try:
            plan = await run_in_thread(_make_plan, path, area)
            record["plan"] = plan.to_json()
            await save()
            await run_in_thread(exchange.carry_out, plan)
        except OSError as exc:
            raise SwapFailed(f"{path} and its restored copy could not be exchanged: {exc.strerror or exc}.") from exc
        record["swapped"] = True
        await save()

    async def undo(self, record: Record) -> None:
        """Bring the old file and its companions back."""
        await run_in_thread(work_area.undo, _plan(record), _areas(record), before=_set_new_companions_aside)

    async def commit(self, record: Record) -> None:
        """Let the old file go."""
        await run_in_thread(work_area.commit, _plan(record) if record.get("swapped") else None, _areas(record))

    @property
    def _path(self) -> Path:
        return Path(os.path.realpath(self._settings.path))


def _plan(record: Record) -> exchange.Plan | None:
    return exchange.Plan.from_json(record["plan"]) if "plan" in record else None


def _areas(record: Record) -> list[Path]:
    return [Path(decode_path(record["area"]))] if "area" in record else []


def _make_plan(path: Path, area: Path) -> exchange.Plan:
    plan = exchange.Plan()
    _, plan.parents = exchange.missing_parents(path)
    group = exchange.Group(str(path.parent), str(area))
    # The companions first, the database last: the new database is never beside the old one's log.
    for name in (*(path.name + suffix for suffix in COMPANIONS), path.name):
        group.units.append(
            exchange.Unit(name, exchange.identity_in(group.live, name), exchange.identity_in(group.staged, name))
        )
    plan.groups.append(group)
    return plan


def _set_new_companions_aside(plan: exchange.Plan) -> None:
    """Move away what the restored database's users have made beside it, before the old database is back there."""
    (group,) = plan.groups
    *companions, database = group.units
    if not os.path.lexists(group.live):
        return
    with opened_whole(group.live) as live, opened_whole(group.staged) as staged:
        if not exchange.is_exchanged(database, live, staged):
            return
        for unit in companions:
            if exchange.identity(unit.name, live) not in {None, unit.live}:
                exchange.move(unit.name, live, f"{secrets.token_hex(8)}.discarded", staged)


def _attributes_here(facts: Mapping[str, Any]) -> Attributes:
    wanted = Attributes.from_json(facts["attributes"])
    uid, gid = user_here(wanted.uid, facts["user"]), group_here(wanted.gid, facts["group"])
    return Attributes(wanted.mode, uid, gid, wanted.mtime_ns, wanted.xattrs)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _finish(fd: int, area: Path, copy: Path, facts: Mapping[str, Any], say: Callable[[str], None]) -> None:
    size = os.fstat(fd).st_size
    if size != facts["bytes"]:
        raise StageFailed(f"The restored copy has {size} bytes where the archive's manifest says {facts['bytes']}.")
    problem = integrity_problem(copy)
    if problem:
        raise StageFailed(f"The restored copy is not a sound SQLite database: {problem}.")
    apply_attributes(fd, _attributes_here(facts), say=say)
    os.fsync(fd)
    with opened(area) as directory:
        os.fsync(directory)
