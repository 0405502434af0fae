"""Worker connections that read inside an exported snapshot, and COPY turned from the driver's push into a pull."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from service.config_sources import PostgresqlSettings
from service.sources.postgresql.connect import Connection, connect

_TABLES_PER_TRANSACTION = 200
"""After this many tables a worker takes the snapshot anew, so that it fills little of the server's table of locks."""

_MIB = 1 << 20
_GATHER_BYTES = 128 << 10
_GATHER_SECONDS = 0.002
"""A reader that is quicker than the server would be woken for each 8 KiB that it sends. After a piece smaller than
_GATHER_BYTES nothing is read for this long, while the socket's buffer fills: half the processor time to receive a
table. A buffer of 256 KiB takes 128 MB/s meanwhile. Not in the first MiB, so that small tables are not held up."""


class SnapshotHolder(Protocol):
    """A database whose snapshot another connection holds."""

    @property
    def name(self) -> str:
        """The database."""
        ...

    @property
    def snapshot(self) -> str:
        """What pg_export_snapshot returned."""
        ...

    def require_snapshot(self) -> None:
        """Raise SourceError when the snapshot is not held any more."""


async def pull(
    copy: Callable[..., Any], *, abort: Callable[[], None], delay: float = 0.0
) -> AsyncGenerator[bytes | str, None]:
    """Turn the driver's push into a pull: yield the data, then the command's status, two pieces ahead at most.

    The server then sends no faster than it is read, and than `delay` seconds a MiB. `abort` ends the connection when
    the reader leaves early. Without it the driver would ask the server to cancel and wait for its answer, for ever
    when the server is gone.
    """
    pieces: asyncio.Queue[bytes | str | None] = asyncio.Queue()
    room = asyncio.Semaphore(2)
    total = 0

    async def put(piece: bytes) -> None:
        nonlocal total
        await room.acquire()
        pieces.put_nowait(piece)
        total += len(piece)
        pause = delay * len(piece) / _MIB
        if len(piece) < _GATHER_BYTES and total > _MIB:
            pause = max(pause, _GATHER_SECONDS)
        if pause:
            await asyncio.sleep(pause)

    async def push() -> None:
        try:
            pieces.put_nowait(await copy(output=put))
        finally:
            pieces.put_nowait(None)  # never waits: nobody may be reading any more

    task = asyncio.create_task(push())
    try:
        while (piece := await pieces.get()) is not None:
            yield piece
            room.release()
        await task
    finally:
        if not task.done():
            abort()
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # what the driver says of a connection that was ended under it is no news


class Connections:
    """Worker connections, each inside the snapshot of its database; at most `limit` are open."""

    def __init__(self, settings: PostgresqlSettings, *, limit: int) -> None:
        self.delay = settings.delay
        self._settings = settings
        self._idle: list[_Worker] = []
        self._places = asyncio.Semaphore(limit)

    @contextlib.asynccontextmanager
    async def reading(self, database: SnapshotHolder, *, tables: int = 1) -> AsyncIterator[Connection]:
        """Borrow a connection that sees the snapshot of `database`, to read so many tables.

        A failed one is not used again.
        """
        async with self._places:
            worker = await self._take(database, tables)
            try:
                yield worker.connection
            except BaseException:
                worker.connection.terminate()
                raise
            self._idle.append(worker)

    async def _take(self, database: SnapshotHolder, tables: int) -> _Worker:
        for worker in self._idle:
            if worker.database is database:
                self._idle.remove(worker)
                break
        else:
            if self._idle:  # of another database: its place is needed
                await self._idle.pop(0).connection.close(timeout=10)
            worker = _Worker(await connect(self._settings, database.name), database)
        try:
            await worker.enter_snapshot(tables)
        except BaseException:
            worker.connection.terminate()
            raise
        return worker

    async def close(self) -> None:
        """Close what is idle; borrowed connections are closed by their borrowers."""
        for worker in self._idle:
            worker.connection.terminate()
        self._idle.clear()


@dataclass(slots=True)
class _Worker:
    connection: Connection
    database: SnapshotHolder
    locks: int = _TABLES_PER_TRANSACTION
    """Tables that were locked in this transaction; as many as may be when there is none yet."""

    async def enter_snapshot(self, tables: int) -> None:
        """Take the snapshot when this worker is not in it, or has collected many locks."""
        if self.locks + tables > _TABLES_PER_TRANSACTION:
            if self.connection.is_in_transaction():
                await self.connection.execute("ROLLBACK")
            await self.connection.execute(
                f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{self.database.snapshot}'"
            )
            self.locks = 0
        self.locks += tables
