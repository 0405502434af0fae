"""Threads with deadlines. The functions that hang here are made to; real hangs are in the integration tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from storage_backends import TargetUnavailable, worker
from storage_backends.worker import Worker, run_once

SHORT = 0.05


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Give what a function can hang at; it is opened after the test."""
    event = threading.Event()
    yield event
    event.set()


async def test_calls_run_in_the_order_in_which_they_were_started() -> None:
    done: list[int] = []
    thread = Worker("it")
    futures = [thread.start(lambda number=number: done.append(number), within=60) for number in range(100)]  # type: ignore[misc]
    await asyncio.gather(*futures)
    thread.close()
    assert done == list(range(100))


async def test_an_error_is_the_callers() -> None:
    def fails() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await run_once(fails, "it", within=60)


async def test_a_call_that_hangs_is_left_behind_and_what_comes_after_it_is_done_when_it_returns(
    gate: threading.Event,
) -> None:
    thread = Worker("the disk")
    with pytest.raises(TargetUnavailable, match=r"the disk did not answer within 0.05 s") as caught:
        await thread.run(gate.wait, within=SHORT)
    assert "left behind" in caught.value.hint
    assert thread.stuck
    cleaned = threading.Event()
    with pytest.raises(TargetUnavailable):
        await thread.run(cleaned.set, within=60)
    thread.close()
    assert not cleaned.is_set()
    gate.set()
    assert await asyncio.to_thread(cleaned.wait, 60)


async def test_what_hangs_is_broken_off_and_then_not_left_behind(gate: threading.Event) -> None:
    def broken_off() -> None:
        gate.wait()
        raise ConnectionResetError

    thread = Worker("the server", unstick=gate.set)
    with pytest.raises(TargetUnavailable, match="did not answer") as caught:
        await thread.run(broken_off, within=SHORT)
    assert "left behind" not in caught.value.hint
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    assert not thread.stuck
    assert await thread.run(lambda: 1, within=60) == 1
    thread.close()


async def test_what_does_not_break_off_is_given_up_a_little_later(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "GRACE_SECONDS", SHORT)
    broken_off: list[bool] = []
    thread = Worker("the server", unstick=lambda: broken_off.append(True))
    with pytest.raises(TargetUnavailable, match="did not answer"):
        await thread.run(gate.wait, within=SHORT)
    assert broken_off == [True]
    assert thread.stuck
    thread.close()


async def test_cancelling_waits_for_the_thread(gate: threading.Event) -> None:
    thread = Worker("it")
    running = asyncio.create_task(thread.run(gate.wait, within=60))
    for _ in range(3):
        await asyncio.sleep(0)
        running.cancel()
    await asyncio.sleep(0.01)
    assert not running.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    thread.close()


async def test_cancelling_what_hangs_ends_at_the_deadline(gate: threading.Event) -> None:
    thread = Worker("it")
    running = asyncio.create_task(thread.run(gate.wait, within=SHORT))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert thread.stuck
    thread.close()


def test_a_thread_that_comes_back_after_its_loop_is_gone_says_nothing(gate: threading.Event) -> None:
    async def leave_behind() -> threading.Thread:
        thread = Worker("it")
        with pytest.raises(TargetUnavailable):
            await thread.run(gate.wait, within=SHORT)
        left = thread._thread
        thread.close()
        assert left is not None
        return left

    left = asyncio.run(leave_behind())
    gate.set()
    left.join(60)
    assert not left.is_alive()
