"""Work that is not left half-way when its task is cancelled: a request that was sent is waited for, then taken back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

SETTLE_SECONDS = 30.0


async def settled(work: Coroutine[Any, Any, T], *, seconds: float = SETTLE_SECONDS) -> T:
    """Return what `work` returns. When cancelled meanwhile, wait for its end, at most `seconds` more, then raise that.

    Closing the connection of a request that was sent whole does not stop the server from carrying it out, and what
    it did could be neither seen nor taken back. After `seconds`, `work` is cancelled itself.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        deadline = asyncio.get_running_loop().time() + seconds
        while not task.done():
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                task.cancel()
            try:
                await asyncio.wait([task], timeout=max(left, 1.0))
            except asyncio.CancelledError:
                continue
        if not task.cancelled():
            task.exception()  # it is of no interest any more, and has been looked at
        raise
