"""One stream of bytes into several targets at once, read once and held once.

The slowest target sets the pace for as long as it keeps up roughly: each may be some bytes behind (`AHEAD_BYTES`), and
may leave others with nothing to do for some seconds in all (`PATIENCE`). One that is slower is given up, like one that
fails; the others go on. So memory is bounded by the number of targets, and no target stops another.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from contextlib import suppress
from typing import Any

from storage_backends.base import Announce, ObjectInfo, StorageBackend, StorageError, TargetUnavailable

log = logging.getLogger(__name__)

AHEAD_BYTES = 8 * 1024 * 1024
PATIENCE = 30.0


class FanOut:
    """Puts an object into every target. `outcomes` tells, once `put` has ended, what came of each, in their order."""

    def __init__(self, targets: Sequence[StorageBackend], *, patience: float = PATIENCE) -> None:
        self.url = ", ".join(target.url for target in targets)
        self._targets = tuple(targets)
        self._patience = patience
        self.outcomes: list[ObjectInfo | StorageError] = []

    async def put(
        self,
        key: str,
        data: AsyncIterable[bytes | bytearray],
        *,
        announce: Callable[[StorageBackend], Announce] | None = None,
    ) -> ObjectInfo:
        """Store what `data` yields under `key` in every target; return the first that has it.

        `announce` gives what each target's `put` announces its unfinished things to.

        Raises the first target's error when none has it. When `data` fails or this is cancelled, no target gets the
        object, and that exception is raised.
        """
        changed = asyncio.Event()
        feeds = [_Feed(target, self._patience, changed) for target in self._targets]
        puts = [feed.start(key, announce(feed.target) if announce else None) for feed in feeds]
        try:
            await _pump(data, feeds, changed)
            self.outcomes = list(await asyncio.gather(*puts))
        except BaseException:
            for task in puts:
                task.cancel()
            await _all_done(puts)
            await _all_done(
                [asyncio.create_task(_take_back(feed.target, key, put)) for feed, put in zip(feeds, puts, strict=True)]
            )
            raise
        for outcome in self.outcomes:
            if isinstance(outcome, ObjectInfo):
                return outcome
        raise self._first_error()

    def _first_error(self) -> StorageError:
        return next(outcome for outcome in self.outcomes if isinstance(outcome, StorageError))


async def _pump(data: AsyncIterable[bytes | bytearray], feeds: Sequence[_Feed], changed: asyncio.Event) -> None:
    async for piece in data:
        await _room(feeds, changed)
        for feed in feeds:
            feed.give(piece)
        if not any(feed.open for feed in feeds):
            return  # their errors are in the outcomes
    for feed in feeds:
        feed.end()


async def _room(feeds: Sequence[_Feed], changed: asyncio.Event) -> None:
    """Wait until every target has room. Time in which another has nothing left to do is taken from their patience."""
    while full := [feed for feed in feeds if feed.open and feed.full]:
        changed.clear()
        idle = any(feed.open and feed.idle for feed in feeds)
        began = time.monotonic()
        try:
            async with asyncio.timeout(min(feed.patience for feed in full) if idle else None):
                await changed.wait()
        except TimeoutError:
            pass
        if idle:
            waited = time.monotonic() - began
            for feed in full:
                feed.keep_waiting(waited)


async def _take_back(target: StorageBackend, key: str, put: asyncio.Task[ObjectInfo | StorageError]) -> None:
    """Remove what a target had published before the others failed."""
    if not put.cancelled() and put.exception() is None and isinstance(put.result(), ObjectInfo):
        with suppress(StorageError):
            await target.delete(key)


async def _all_done(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Wait until every target has let go, also when this task is cancelled again meanwhile."""
    while pending := [task for task in tasks if not task.done()]:
        with suppress(asyncio.CancelledError):
            await asyncio.wait(pending)


class _Feed:
    """What one target has still to take. `changed` is set whenever it has taken something, or takes no more."""

    def __init__(self, target: StorageBackend, patience: float, changed: asyncio.Event) -> None:
        self.target = target
        self.open = True
        self.patience = patience
        self._waiting: deque[bytes | bytearray] = deque()
        self._bytes = 0
        self._ended = False
        self._given_up: TargetUnavailable | None = None
        self._changed = changed
        self._news = asyncio.Event()
        self._putting: asyncio.Task[ObjectInfo | StorageError] | None = None

    @property
    def full(self) -> bool:
        """Tell whether it is too far behind to get more."""
        return self._bytes >= AHEAD_BYTES

    @property
    def idle(self) -> bool:
        """Tell whether it has nothing left to take."""
        return not self._waiting

    def start(self, key: str, announce: Announce | None) -> asyncio.Task[ObjectInfo | StorageError]:
        """Begin to put what will be given; an error is an outcome like any other."""
        self._putting = asyncio.create_task(self._put(key, announce), name=f"put to {self.target.url}")
        return self._putting

    async def _put(self, key: str, announce: Announce | None) -> ObjectInfo | StorageError:
        try:
            return await self.target.put(key, self._pieces(), announce=announce)
        except StorageError as error:
            return error
        except asyncio.CancelledError:
            if self._given_up is not None:
                return self._given_up
            raise
        except Exception as error:
            log.exception("%s failed in a way that nobody thought of", self.target.url)
            return StorageError(
                f"{self.target.url} failed unexpectedly: {type(error).__name__}",
                hint="The log has the details; report it with them.",
            )
        finally:
            self._close()

    def give(self, piece: bytes | bytearray) -> None:
        """Queue a piece, unless the target takes no more."""
        if self.open:
            self._waiting.append(piece)
            self._bytes += len(piece)
            self._news.set()

    def end(self) -> None:
        """Say that there is no more to come."""
        self._ended = True
        self._news.set()

    def keep_waiting(self, seconds: float) -> None:
        """Say that another target had nothing to do because of this one; give it up when that was too long."""
        self.patience -= seconds
        if self.patience > 0 or not self.open:
            return
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
        self._changed.set()

    async def _pieces(self) -> AsyncGenerator[bytes | bytearray, None]:
        while True:
            if self._given_up is not None:
                raise self._given_up
            if self._waiting:
                piece = self._waiting.popleft()
                self._bytes -= len(piece)
                self._changed.set()
                yield piece
            elif self._ended:
                return
            else:
                self._news.clear()
                await self._news.wait()
