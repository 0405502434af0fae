"""Waiting for threads, and reading ahead."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from service.pipeline.ranges import Feed, ahead
from service.pipeline.threads import Threads, finished, settled


async def test_a_cancelled_wait_ends_only_when_the_thread_has_let_go() -> None:
    go, done = threading.Event(), threading.Event()

    def work() -> None:
        go.wait(10)
        done.set()

    async with Threads() as threads:
        waiting = asyncio.ensure_future(finished(threads.start(work)))
        await asyncio.sleep(0.01)
        for _ in range(3):  # also when cancelled again and again
            waiting.cancel()
            await asyncio.sleep(0.01)
        assert not waiting.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert done.is_set()


async def test_a_cancelled_wait_for_several_threads_ends_with_the_last_of_them() -> None:
    ended: list[float] = []

    def work(seconds: float) -> None:
        time.sleep(seconds)
        ended.append(seconds)

    async with Threads() as threads:
        jobs = [threads.start(lambda seconds=seconds: work(seconds)) for seconds in (0.01, 0.05)]  # type: ignore[misc]
        waiting = asyncio.ensure_future(settled(*jobs))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert ended == [0.01, 0.05]


async def test_what_a_thread_raises_is_raised() -> None:
    def work() -> None:
        raise LookupError("inside")

    async with Threads() as threads:
        with pytest.raises(LookupError, match="inside"):
            await finished(threads.start(work))


async def test_no_thread_is_left_behind() -> None:
    before = threading.active_count()
    async with Threads() as threads:
        await finished(threads.start(lambda: None))
    assert threading.active_count() == before


async def test_reading_ahead_fetches_one_item_while_the_caller_has_another() -> None:
    fetched: list[int] = []

    async def items() -> AsyncGenerator[int, None]:
        for number in range(4):
            fetched.append(number)
            yield number

    seen = []
    async with aclosing(ahead(items())) as following:
        async for number in following:
            await asyncio.sleep(0)
            seen.append((number, list(fetched)))
    assert seen == [(0, [0, 1]), (1, [0, 1, 2]), (2, [0, 1, 2, 3]), (3, [0, 1, 2, 3])]


async def test_reading_ahead_passes_an_error_on_after_the_items_before_it() -> None:
    async def items() -> AsyncGenerator[int, None]:
        yield 1
        raise LookupError("then")

    seen = []
    with pytest.raises(LookupError, match="then"):
        async for number in ahead(items()):
            seen.append(number)
    assert seen == [1]


async def test_closing_early_ends_what_was_on_its_way() -> None:
    closed = asyncio.Event()

    async def items() -> AsyncGenerator[int, None]:
        try:
            yield 1
            await asyncio.sleep(60)
            yield 2
        finally:
            closed.set()

    async with aclosing(ahead(items())) as following:
        assert await anext(following) == 1
        await asyncio.sleep(0)
    assert closed.is_set()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_feed_takes_exact_amounts_out_of_pieces_of_any_size() -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        for piece in (b"a", b"", b"bcdef", b"gh", b"i"):
            yield piece

    feed = Feed(pieces())
    assert [bytes(await feed.take(length)) for length in (0, 2, 3, 4)] == [b"", b"ab", b"cde", b"fghi"]
