"""One stream of bytes into several targets at once, read once and held once.

The slowest target sets the pace for as long as it keeps up roughly: each target may be some bytes behind the others
(`AHEAD_BYTES`), and may keep the others waiting for some seconds in all (`PATIENCE`). One that is slower is given up,
like one that fails; the others go on. So memory is bounded by the number of targets, and no target stops another.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from contextlib import suppress

from storage_backends.base import ObjectInfo, StorageBackend, StorageError, TargetUnavailable

AHEAD_BYTES = 8 * 1024 * 1024
PATIENCE = 30.0


class FanOut:
    """Puts an object into every target. `outcomes` tells, once `put` has ended, what came of each, in their order."""

    def __init__(self, targets: Sequence[StorageBackend], *, patience: float = PATIENCE) -> None:
        self.url = ", ".join(target.url for target in targets)
        self._targets = tuple(targets)
        self._patience = patience
        self.outcomes: list[ObjectInfo | StorageError] = []

    async def put(self, key: str, data: AsyncIterable[bytes | bytearray]) -> ObjectInfo:
        """Store what `data` yields under `key` in every target; return the first that has it.

        Raises the first target's error when none has it. When `data` fails or this is cancelled, no target gets the
        object, and that exception is raised.
        """
        feeds = [_Feed(target, self._patience) for target in self._targets]
        puts = [feed.start(key) for feed in feeds]
        try:
            await _pump(data, feeds)
            self.outcomes = list(await asyncio.gather(*puts))
        except BaseException:
            for task in puts:
                task.cancel()
            await _all_done(puts)
            raise
        for outcome in self.outcomes:
            if isinstance(outcome, ObjectInfo):
                return outcome
        raise self._first_error()

    def _first_error(self) -> StorageError:
        return next(outcome for outcome in self.outcomes if isinstance(outcome, StorageError))


async def _pump(data: AsyncIterable[bytes | bytearray], feeds: Sequence[_Feed]) -> None:
    async for piece in data:
        for feed in feeds:
            await feed.give(piece, others=any(other.open for other in feeds if other is not feed))
        if not any(feed.open for feed in feeds):
            return  # their errors are in the outcomes
    for feed in feeds:
        feed.end()


async def _all_done(tasks: Sequence[asyncio.Task[ObjectInfo | StorageError]]) -> None:
    """Wait until every target has let go, also when this task is cancelled again meanwhile."""
    while pending := [task for task in tasks if not task.done()]:
        with suppress(asyncio.CancelledError):
            await asyncio.wait(pending)


class _Feed:
    """What one target has still to take."""

    def __init__(self, target: StorageBackend, patience: float) -> None:
        self.target = target
        self.open = True
        self._patience = patience
        self._waiting: deque[bytes | bytearray] = deque()
        self._bytes = 0
        self._ended = False
        self._given_up: TargetUnavailable | None = None
        self._changed = asyncio.Event()
        self._putting: asyncio.Task[ObjectInfo | StorageError] | None = None

    def start(self, key: str) -> asyncio.Task[ObjectInfo | StorageError]:
        """Begin to put what will be given; an error is an outcome like any other."""
        self._putting = asyncio.create_task(self._put(key), name=f"put to {self.target.url}")
        return self._putting

    async def _put(self, key: str) -> ObjectInfo | StorageError:
        try:
            return await self.target.put(key, self._pieces())
        except StorageError as error:
            return error
        except asyncio.CancelledError:
            if self._given_up is not None:
                return self._given_up
            raise
        finally:
            self._close()

    async def give(self, piece: bytes | bytearray, *, others: bool) -> None:
        """Queue a piece; wait for room, but while `others` wait too only as long as this target's patience lasts."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, self._patience) if others else None):
                while self.open and self._bytes >= AHEAD_BYTES:
                    await self._change()
        except TimeoutError:
            self._give_up()
        if others:
            self._patience -= time.monotonic() - began
        if self.open:
            self._waiting.append(piece)
            self._bytes += len(piece)
        self._tell()

    def end(self) -> None:
        """Say that there is no more to come."""
        self._ended = True
        self._tell()

    def _give_up(self) -> None:
        self._given_up = TargetUnavailable(
            f"{self.target.url} is too slow for the other targets and was given up",
            hint="The archive can be copied there from another target.",
        )
        self.open = False
        if self._putting is not None:
            self._putting.cancel()

    def _close(self) -> None:
        self.open = False
        self._waiting.clear()
        self._bytes = 0
        self._tell()

    async def _pieces(self) -> AsyncGenerator[bytes | bytearray, None]:
        while True:
            if self._waiting:
                piece = self._waiting.popleft()
                self._bytes -= len(piece)
                self._tell()
                yield piece
            elif self._ended:
                return
            else:
                await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
