"""What is to be sent in the background: a bounded queue and the one task that empties it, in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Outbox(Generic[T]):
    """Sends items one after the other with `send`; whatever that raises is logged and the next item is sent."""

    def __init__(self, send: Callable[[T], Awaitable[None]], *, most: int = 32) -> None:
        self._send = send
        self._waiting: asyncio.Queue[T] = asyncio.Queue(most)
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to send; the task is this object's until `close`."""
        self._task = asyncio.create_task(self._run(), name="outbox")

    def put(self, item: T) -> bool:
        """Queue an item; False when too many wait already, or nothing is sent (any more)."""
        if self._task is None:
            return False
        try:
            self._waiting.put_nowait(item)
        except asyncio.QueueFull:
            return False
        return True

    async def close(self, seconds: float) -> None:
        """Send what waits, for at most `seconds`; then nothing is being sent any more. Also when cancelled."""
        task, self._task = self._task, None
        if task is None:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._waiting.join()
        except TimeoutError:
            _log.error("%d messages were not sent before the service stopped", self._waiting.qsize() + 1)
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        while True:
            item = await self._waiting.get()
            try:
                await self._send(item)
            except Exception:
                _log.exception("a message could not be sent")
            finally:
                self._waiting.task_done()
