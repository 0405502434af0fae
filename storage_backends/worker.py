"""A thread for calls that block, each with a deadline: what a target does can hang for ever, its caller must not.

A call that is overdue is told to break off (`unstick`: close the socket it waits on). One that does not come back even
then cannot be ended: a thread that waits for a dead mount is in the kernel's hands. It is left behind, its caller gets
`TargetUnavailable`, and what is still to be cleaned up is done by that thread if it ever returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from storage_backends.base import TargetUnavailable

T = TypeVar("T")

GRACE_SECONDS = 5.0
JOIN_SECONDS = 0.2
BATCH_BYTES = 1 << 20
BATCH_PIECES = 512


@dataclass(eq=False)
class _Call:
    function: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    seconds: float
    timer: asyncio.TimerHandle | None = None
    overdue: bool = False


class Worker:
    """One daemon thread that runs calls in the order in which they were started. Started by the first call.

    `what` is what the calls work on, for messages. `unstick` is called from the event loop, must not block, and may be
    called when nothing hangs any more. Close it when done.
    """

    def __init__(self, what: str, *, unstick: Callable[[], None] | None = None) -> None:
        self._what = what
        self._unstick = unstick
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread: Thread | None = None
        self.stuck = False

    def start(self, function: Callable[[], T], *, within: float) -> asyncio.Future[T]:
        """Run `function` in the thread. What is returned is done `within` these and a few more seconds, in any case."""
        loop = asyncio.get_running_loop()
        call = _Call(function, loop, loop.create_future(), within)
        call.future.add_done_callback(_seen)
        if self._thread is None:
            self._thread = Thread(target=self._work, name=f"target {self._what}", daemon=True)
            self._thread.start()
        if self.stuck:  # it is done if the thread ever comes back, but nobody waits for that
            self._give_up(call)
        else:
            call.timer = loop.call_later(within, self._too_late, call)
        self._calls.put(call)
        return call.future

    async def run(self, function: Callable[[], T], *, within: float) -> T:
        """Run `function` in the thread and wait for it, also when cancelled. TargetUnavailable when it is overdue."""
        return await settled(self.start(function, within=within))

    def close(self) -> None:
        """Let the thread end after the calls that were started."""
        if self._thread is not None:
            self._calls.put(None)
            if not self.stuck:
                self._thread.join(JOIN_SECONDS)  # blocks the loop: it is idle, or at something nobody waits for
            self._thread = None

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            result, error = None, None
            try:
                result = call.function()
            except BaseException as exc:
                error = exc
            try:
                call.loop.call_soon_threadsafe(_deliver, call, result, error, self._late(call))
            except RuntimeError:  # the loop was closed meanwhile: a thread that was left behind has come back
                return
            del call, result, error

    def _too_late(self, call: _Call) -> None:
        if call.future.done():
            return
        call.overdue = True
        if self._unstick is None:
            self._give_up(call)
        else:
            self._unstick()
            call.timer = call.loop.call_later(GRACE_SECONDS, self._give_up, call)

    def _give_up(self, call: _Call) -> None:
        if not call.future.done():
            self.stuck = True
            call.future.set_exception(self._late(call, left_behind=True))

    def _late(self, call: _Call, *, left_behind: bool = False) -> TargetUnavailable:
        return TargetUnavailable(
            f"{self._what} did not answer within {call.seconds:g} s",
            hint="See whether the server, the network and the disk are well, or raise storage_options: {timeout: ...}."
            + (" A thread that still waits for it was left behind." if left_behind else ""),
        )


def _deliver(call: _Call, result: Any, error: BaseException | None, late: TargetUnavailable) -> None:
    if call.timer is not None:
        call.timer.cancel()
    if call.future.done():
        return
    if error is None:
        call.future.set_result(result)
    elif call.overdue:
        late.__cause__ = error
        call.future.set_exception(late)
    elif isinstance(error, StopIteration):  # a future refuses it
        call.future.set_exception(RuntimeError("StopIteration"))
    else:
        call.future.set_exception(error)


async def run_once(function: Callable[[], T], what: str, *, within: float) -> T:
    """Run one function in a thread of its own, as `Worker.run` does."""
    worker = Worker(what)
    try:
        return await worker.run(function, within=within)
    finally:
        worker.close()


def _seen(future: asyncio.Future[Any]) -> None:
    """Look at the error of a call that nobody waits for any more because something else failed first."""
    if not future.cancelled():
        future.exception()


async def settled(future: asyncio.Future[T]) -> T:
    """Wait for a thread's result; when cancelled, until the thread is done with our descriptors and buffers."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue
        raise


async def fill(
    worker: Worker,
    write: Callable[[list[bytes | bytearray]], None],
    data: AsyncIterable[bytes | bytearray],
    *,
    within: float,
) -> None:
    """Give `write` what `data` yields, in batches. While one batch is written the next is pulled, and no more."""
    writing: asyncio.Future[None] | None = None
    async with aclosing(_batches(data)) as batches:
        async for batch in batches:
            if writing is not None:
                await settled(writing)
            writing = worker.start(partial(write, batch), within=within)
    if writing is not None:
        await settled(writing)


async def _batches(data: AsyncIterable[bytes | bytearray]) -> AsyncGenerator[list[bytes | bytearray], None]:
    batch: list[bytes | bytearray] = []
    size = 0
    async for piece in data:
        batch.append(piece)
        size += len(piece)
        if size >= BATCH_BYTES or len(batch) >= BATCH_PIECES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
