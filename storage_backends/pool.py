"""Connections that are used by one task at a time, and kept a moment for the next.

Making one costs several answers of the server; one archive is read in many ranges. One that was idle for longer is
closed unused: the network in between may have forgotten it, and that would show only as a call that hangs.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Generic, Protocol, TypeVar

from storage_backends.base import StorageError, TargetUnavailable
from storage_backends.worker import Worker, settled

IDLE_SECONDS = 15.0
IDLE_CONNECTIONS = 4
T = TypeVar("T")


class Connection(Protocol):
    """What a pool keeps. It is used by one thread."""

    @property
    def usable(self) -> bool:
        """Say whether calls may still succeed; must not block."""

    def open(self) -> None:
        """Connect."""

    def close(self) -> None:
        """Disconnect; fine when it never was open."""

    @property
    def break_off(self) -> Callable[[], None] | None:
        """What makes a call that hangs in the thread fail, without blocking who calls it; None if nothing does."""


C = TypeVar("C", bound=Connection)


class Line(Generic[C]):
    """A connection with its thread. `broken` keeps it from being used again."""

    def __init__(self, connection: C, what: str, *, within: float) -> None:
        self.connection = connection
        self.worker = Worker(what, unstick=connection.break_off)
        self.within = within
        self.broken = False
        self.idle_since = 0.0

    async def run(self, function: Callable[[], T], *, within: float | None = None) -> T:
        """Run `function` in the thread and wait for it, by default as long as the target's timeout."""
        return await self.worker.run(function, within=within or self.within)

    async def close(self) -> None:
        """Disconnect, and let the thread end."""
        try:
            with suppress(StorageError):
                await settled(self.worker.start(self.connection.close, within=self.within))
        finally:
            self.worker.close()


class Pool(Generic[C]):
    """Makes connections by `make`; `within` seconds each of their calls has to come back."""

    def __init__(self, make: Callable[[], C], what: str, *, within: float) -> None:
        self._make = make
        self._what = what
        self._within = within
        self._idle: list[Line[C]] = []

    @asynccontextmanager
    async def line(self) -> AsyncGenerator[Line[C], None]:
        """Give a connection to the block alone: one that was kept, or a new one."""
        line = await self._kept() or Line(self._make(), self._what, within=self._within)
        try:
            if not line.connection.usable:
                await line.run(line.connection.open)
            yield line
        except TargetUnavailable:
            line.broken = True
            raise
        finally:
            if line.broken or not line.connection.usable or line.worker.stuck or len(self._idle) >= IDLE_CONNECTIONS:
                await line.close()
            else:
                line.idle_since = time.monotonic()
                self._idle.append(line)

    async def aclose(self) -> None:
        """Close what is kept."""
        while self._idle:
            await self._idle.pop().close()

    async def _kept(self) -> Line[C] | None:
        while self._idle:
            line = self._idle.pop()
            if line.connection.usable and time.monotonic() - line.idle_since < IDLE_SECONDS:
                return line
            await line.close()
        return None
