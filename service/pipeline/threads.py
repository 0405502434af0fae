"""Blocking work in threads, such that nobody leaves while a thread still uses what is theirs.

A thread cannot be cancelled. When a task that waits for one is cancelled, the buffers, keys and files that the
thread works on must outlive it, so every wait here lasts until the thread is done and only then lets the
cancellation through. Chunks are small: that is milliseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Final, Self, TypeVar

from service.processors import processors

T = TypeVar("T")

SMALL_BYTES: Final = 4 << 10
"""Handing work to a thread and waiting for it costs some 100 us: more than compressing or opening so few bytes."""


class Threads:
    """A pool of as many threads as this process may use processors, and `more`, for an `async with` block.

    Everything started must be awaited with `finished` or `settled` inside the block.
    """

    def __init__(self, *, more: int = 0) -> None:
        self.count = processors() + more
        self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="pipeline")

    def start(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run `work` in a thread as soon as one is free."""
        return asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)  # short: no work is left, the idle threads are joined


def start_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Run `work` in the event loop's own pool, where no pool of one's own is worth it. Await with `finished`."""
    return asyncio.get_running_loop().run_in_executor(None, work)


def done_here(work: Callable[[], T]) -> asyncio.Future[T]:
    """Do `work` at once, without a thread, and return it finished. For what is quicker than asking a thread."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    try:
        future.set_result(work())
    except Exception as error:  # as in a thread, it is raised where it is awaited
        future.set_exception(error)
    return future


async def settled(*futures: asyncio.Future[T]) -> None:
    """Wait until all are done, without looking at their outcome; a cancellation is raised after that."""
    cancelled: asyncio.CancelledError | None = None
    while waiting := [future for future in futures if not future.done()]:
        try:
            await asyncio.wait(waiting)
        except asyncio.CancelledError as error:
            cancelled = error
    for future in futures:
        if not future.cancelled():
            future.exception()  # marks it as looked at: asyncio then does not report that nobody asked for it
    if cancelled is not None:
        raise cancelled


async def finished(future: asyncio.Future[T]) -> T:
    """Return what the thread returned, or raise what it raised. Cancelled: raised when the thread is done."""
    await settled(future)
    return future.result()


@asynccontextmanager
async def closing(items: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Close `items` on leaving, as `contextlib.aclosing` does, also when it is no generator and cannot be closed."""
    try:
        yield items
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()
