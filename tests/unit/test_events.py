"""The hub of events: numbers, replay, gaps, and listeners that are too slow."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from service.events import QUEUE, Event, EventHub, SlowConsumer, Subscription

NOW = datetime(2026, 11, 24, 2, 0, tzinfo=UTC)


def hub(*history: int, keep: int = 1000) -> EventHub:
    """Return a hub whose former life told the events with these numbers."""
    old = [Event(seq, "old", NOW, "job.ended") for seq in history]
    return EventHub("new", old, keep, clock=lambda: NOW)


async def waiting(subscription: Subscription) -> list[Event]:
    """Take all that waits; return when it would have to wait for more, or it ended."""
    found: list[Event] = []
    while True:
        step = asyncio.ensure_future(anext(subscription, None))
        await asyncio.sleep(0)
        if not step.done():
            step.cancel()
            await asyncio.wait({step})
            return found
        event = step.result()
        if event is None:
            return found
        found.append(event)


async def numbers(subscription: Subscription) -> list[int | None]:
    return [event.seq for event in await waiting(subscription)]


async def test_numbers_go_on_after_the_history() -> None:
    events = hub(6, 7)
    assert events.seq == 7
    event = events.publish("job.created", job_id="a", data={"kind": "backup"})
    assert event == Event(8, "new", NOW, "job.created", "a", {"kind": "backup"})
    assert hub().publish("job.created").seq == 1


async def test_a_new_listener_hears_only_what_is_new() -> None:
    events = hub(1, 2)
    with events.subscribe(None) as subscription:
        assert (subscription.seq, subscription.gap) == (2, False)
        events.publish("a")
        events.progress("job", {"bytes": 1})
        assert await numbers(subscription) == [3, None]


async def test_a_listener_is_woken_by_an_event() -> None:
    events = hub()
    with events.subscribe(None) as subscription:
        step = asyncio.ensure_future(anext(subscription))
        await asyncio.sleep(0)
        assert not step.done()
        told = events.publish("a")
        assert await step is told


async def test_what_was_missed_comes_first_and_once() -> None:
    events = hub(1, 2, 3)
    events.progress("job", {"bytes": 1})
    with events.subscribe(1) as subscription:
        events.publish("a")
        assert await numbers(subscription) == [2, 3, 4]


@pytest.mark.parametrize(
    ("history", "since", "gap", "replayed"),
    [
        ([], 0, False, []),
        ([], 1, True, []),
        ([1, 2, 3], 0, False, [1, 2, 3]),
        ([1, 2, 3], 2, False, [3]),
        ([1, 2, 3], 3, False, []),
        ([1, 2, 3], 4, True, []),
        ([5, 6, 7], 4, False, [5, 6, 7]),
        ([5, 6, 7], 3, True, [5, 6, 7]),
        ([5, 6, 7], 0, True, [5, 6, 7]),
    ],
)
async def test_a_gap_is_told(history: list[int], since: int, gap: bool, replayed: list[int]) -> None:
    with hub(*history).subscribe(since) as subscription:
        assert subscription.gap is gap
        assert await numbers(subscription) == replayed


async def test_only_the_last_events_are_kept() -> None:
    events = hub(*range(1, 9), keep=3)
    events.publish("a")
    with events.subscribe(5) as subscription:
        assert subscription.gap
        assert await numbers(subscription) == [7, 8, 9]
    with events.subscribe(6) as subscription:
        assert not subscription.gap


async def test_of_progress_that_waits_only_the_latest_of_each_job_is_kept() -> None:
    events = hub()
    with events.subscribe(None) as subscription:
        events.progress("a", {"bytes": 1})
        events.progress("b", {"bytes": 2})
        events.publish("x")
        events.progress("a", {"bytes": 3})
        found = [(event.seq, event.job_id, event.data) for event in await waiting(subscription)]
    assert found == [(None, "b", {"bytes": 2}), (1, None, {}), (None, "a", {"bytes": 3})]


async def test_progress_gives_way_to_durable_events() -> None:
    events = hub()
    with events.subscribe(None) as subscription:
        for job in range(20):
            events.progress(str(job), {})
        for _ in range(QUEUE):
            events.publish("a")
        events.progress("late", {})
        assert await numbers(subscription) == list(range(1, QUEUE + 1))


async def test_who_lets_more_than_256_durable_events_wait_is_told_and_forgotten() -> None:
    events = hub()
    subscription = events.subscribe(None)
    other = events.subscribe(None)
    for _ in range(QUEUE):
        events.publish("a")
    assert not subscription.ended
    assert len(await waiting(other)) == QUEUE
    events.publish("a")
    assert subscription.ended
    with pytest.raises(SlowConsumer):
        await anext(subscription)
    with pytest.raises(StopAsyncIteration):
        await anext(subscription)
    assert await numbers(other) == [QUEUE + 1]


async def test_a_replay_longer_than_the_queue_is_whole_and_events_meanwhile_follow() -> None:
    events = hub(*range(1, 1001))
    with events.subscribe(0) as subscription:
        for _ in range(QUEUE):
            events.publish("a")
        assert await numbers(subscription) == list(range(1, 1001 + QUEUE))


async def test_a_closed_subscription_ends_for_who_waits_on_it() -> None:
    events = hub()
    subscription = events.subscribe(None)
    step = asyncio.ensure_future(anext(subscription, None))
    await asyncio.sleep(0)
    subscription.close()
    subscription.close()
    assert await step is None
    events.publish("a")
    assert await waiting(subscription) == []
