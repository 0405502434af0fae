"""Blocking work for async callers, in threads that are idle again before control returns, also when cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def run_in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function in a thread; when cancelled, wait for its end first: it is at work on the disk."""
    return await to_the_end(asyncio.to_thread(function, *args, **kwargs))


async def to_the_end(awaited: Coroutine[Any, Any, T]) -> T:
    """Wait for something to its end, also when this task is cancelled meanwhile; that is raised afterwards."""
    work = asyncio.ensure_future(awaited)
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        work.exception()
        raise cancelled
    return work.result()


async def read_in_thread(pieces: Generator[bytes, None, None]) -> AsyncGenerator[bytes, None]:
    """Yield what the generator yields, run in a thread while the last piece is still being worked on.

    However this ends, the generator is closed in that thread and the thread is idle before control returns: nothing
    goes on using the generator's files. Close with `contextlib.aclosing`.
    """
    loop = asyncio.get_running_loop()
    worker = ThreadPoolExecutor(1, thread_name_prefix="reading")
    ahead = loop.run_in_executor(worker, next, pieces, None)
    try:
        while (piece := await asyncio.shield(ahead)) is not None:
            ahead = loop.run_in_executor(worker, next, pieces, None)
            yield piece
    finally:
        # The single thread does this after the piece it may still be at.
        closing = loop.run_in_executor(worker, pieces.close)
        cancelled: asyncio.CancelledError | None = None
        while not closing.done():
            try:
                await asyncio.wait({closing})
            except asyncio.CancelledError as exc:
                cancelled = exc
        worker.shutdown()
        with suppress(asyncio.CancelledError):
            ahead.exception()
        closing.result()
        if cancelled is not None:
            raise cancelled


async def run_until_stopped(function: Callable[[threading.Event], T], *, discard: Callable[[T], None]) -> T:
    """Run a long function in a thread; when cancelled, set its event and wait until it has noticed.

    `discard` is given the result when it comes too late to be returned.
    """
    stop = threading.Event()
    work = asyncio.ensure_future(asyncio.to_thread(function, stop))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        stop.set()
        while not work.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({work})
        if work.exception() is None:
            discard(work.result())
        raise
