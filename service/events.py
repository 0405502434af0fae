"""What happens in the service, told to whoever listens: a hub that never waits for a listener.

Durable events are numbered and can be replayed; progress is neither. Each subscription has a bounded queue of its own.
All of this belongs to one event loop: call it from there only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Final, Self

from service.errors import ServiceError

QUEUE: Final = 256
"""Events that wait for one listener at most, besides those that are replayed."""


class SlowConsumer(ServiceError):
    """A listener took its events too slowly; its subscription has ended."""

    code = "SLOW_CONSUMER"
    transient = True


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `seq` grows by one; None for progress. `boot_id` names the service's life."""

    seq: int | None
    boot_id: str
    time: datetime
    type: str
    job_id: str | None = None
    data: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the event that `as_json` has told; members that only another version knows are left out."""
        known = {each.name: value[each.name] for each in fields(cls) if each.name in value}
        return cls(**known | {"time": datetime.fromisoformat(value["time"])})

    def as_json(self) -> dict[str, Any]:
        """Return the event for clients: the time in ISO 8601."""
        return {
            "seq": self.seq,
            "boot_id": self.boot_id,
            "time": self.time.isoformat(),
            "type": self.type,
            "job_id": self.job_id,
            "data": self.data,
        }


class EventHub:
    """Takes events and passes them on; keeps the last `keep` durable ones for those who missed them.

    `history` is durable events of former lives, the oldest first; numbers go on after its last. `clock` gives UTC.
    Whoever publishes makes durable events durable.
    """

    def __init__(
        self, boot_id: str, history: Iterable[Event], keep: int = 1000, *, clock: Callable[[], datetime]
    ) -> None:
        self.boot_id = boot_id
        self._clock = clock
        self._kept: deque[Event] = deque(history, maxlen=keep)
        self.seq = (self._kept[-1].seq or 0) if self._kept else 0
        """Number of the last durable event; 0 before the first."""
        self._subscriptions: set[Subscription] = set()

    @property
    def kept(self) -> tuple[Event, ...]:
        """The durable events that are still known, the oldest first."""
        return tuple(self._kept)

    def publish(self, type: str, *, job_id: str | None = None, data: dict[str, Any] | None = None) -> Event:  # noqa: A002
        """Tell and keep a durable event; return it."""
        self.seq += 1
        event = Event(self.seq, self.boot_id, self._clock(), type, job_id, data or {})
        self._kept.append(event)
        self._tell(event)
        return event

    def progress(self, job_id: str, data: dict[str, Any]) -> None:
        """Tell how far a job is, to those who listen now. Of what still waits for a listener, only the latest stays."""
        self._tell(Event(None, self.boot_id, self._clock(), "progress", job_id, data))

    def subscribe(self, since: int | None) -> Subscription:
        """Listen: to what is new, or first to the kept events after number `since`. Close what is returned."""
        replay: list[Event] = []
        gap = False
        if since is not None:
            replay = [event for event in self._kept if (event.seq or 0) > since]
            oldest = (self._kept[0].seq or 0) if self._kept else self.seq + 1
            gap = since > self.seq or since < oldest - 1
        subscription = Subscription(self.seq, gap, replay, self._subscriptions.discard)
        self._subscriptions.add(subscription)
        return subscription

    def _tell(self, event: Event) -> None:
        for subscription in list(self._subscriptions):
            subscription.offer(event)


class Subscription:
    """An asynchronous iterator of events; also a context manager that closes it.

    `seq` was the last number when it began. With `gap`, events after the number asked for are lost, or that number is
    of another life of the state: read the state anew. It ends when it is closed, and with SlowConsumer when more than
    256 events wait although progress was dropped.
    """

    def __init__(self, seq: int, gap: bool, replay: Iterable[Event], closed: Callable[[Subscription], None]) -> None:
        self.seq = seq
        self.gap = gap
        self.ended = False
        self._closed = closed
        self._replay = deque(replay)
        self._queue: deque[Event] = deque()
        self._news = asyncio.Event()
        self._too_slow = False

    def offer(self, event: Event) -> None:
        """Queue an event for the listener. Does not wait."""
        transient = event.seq is None
        if transient:
            self._drop(lambda queued: queued.seq is None and queued.job_id == event.job_id)
        if len(self._queue) >= QUEUE:
            self._drop(lambda queued: queued.seq is None)
        if len(self._queue) < QUEUE:
            self._queue.append(event)
            self._news.set()
        elif not transient:
            self._too_slow = True
            self.close()

    def close(self) -> None:
        """End the subscription; what still waited is forgotten. May be called again."""
        self.ended = True
        self._replay.clear()
        self._queue.clear()
        self._news.set()
        self._closed(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self.ended:
            if self._replay:
                return self._replay.popleft()
            if self._queue:
                return self._queue.popleft()
            self._news.clear()
            await self._news.wait()
        if self._too_slow:
            self._too_slow = False  # said once
            raise SlowConsumer(
                f"more than {QUEUE} events waited to be read", hint="Subscribe again from the last number that came."
            )
        raise StopAsyncIteration

    def _drop(self, unwanted: Callable[[Event], bool]) -> None:
        self._queue = deque(queued for queued in self._queue if not unwanted(queued))
