"""Waiting for threads, and reading ahead."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest

from service.pipeline.ranges import Feed, ahead
from service.pipeline.threads import Threads, closing, done_here, finished, settled, start_thread
from service.processors import processors


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


async def test_there_are_as_many_threads_as_processors_and_so_many_more() -> None:
    async with Threads() as threads, Threads(more=2) as more:
        assert (threads.count, more.count) == (processors(), processors() + 2)
        together = threading.Barrier(more.count)
        await asyncio.gather(*(finished(more.start(lambda: together.wait(10))) for _ in range(more.count)))
        name = await finished(threads.start(lambda: threading.current_thread().name))
    assert name.startswith("pipeline"), "what tests look for, so that no thread is left behind"


async def test_work_in_the_loops_own_threads_and_work_done_at_once_end_alike() -> None:
    def fail() -> None:
        raise LookupError("inside")

    here = threading.get_ident()
    assert await finished(start_thread(threading.get_ident)) != here
    assert done_here(threading.get_ident).done()
    assert await finished(done_here(threading.get_ident)) == here
    for failed in (start_thread(fail), done_here(fail)):
        with pytest.raises(LookupError, match="inside"):
            await finished(failed)


async def test_what_goes_wrong_in_work_that_is_only_settled_is_not_reported_as_forgotten() -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["message"]))

    def fail() -> None:
        raise LookupError("inside")

    cancelled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    cancelled.cancel()
    failed = done_here(fail)
    await settled(failed, cancelled, done_here(lambda: None))
    del failed, cancelled
    gc.collect()
    assert reported == []


async def test_what_can_be_closed_is_closed_and_what_cannot_is_let_go() -> None:
    closed: list[str] = []

    async def generator() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            closed.append("generator")

    class Plain:
        def __aiter__(self) -> AsyncIterator[int]:
            return self

        async def __anext__(self) -> int:
            return 2

    async with closing(generator()) as items:
        assert await anext(items) == 1
    assert closed == ["generator"]
    with pytest.raises(LookupError):
        async with closing(generator()) as items:
            assert await anext(items) == 1
            raise LookupError
    assert closed == ["generator", "generator"]
    async with closing(Plain()) as items:
        assert await anext(items) == 2


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
