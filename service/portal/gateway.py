"""The way to the service's socket, for all browsers together: few connections for calls, one for events.

The service gives a peer 8 connections with 4 calls at once each, and closes idle ones. Here are at most CALLERS
connections, made when needed and made again when lost, and one subscription whose events go to everybody who listens.
One of the connections is for what the service knows by itself: a target that hangs keeps no other page waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from service.client import Client, ConnectionLost, NoAnswer, RemoteError
from service.errors import ServiceError

log = logging.getLogger(__name__)

CALLERS: Final = 3
AT_ONCE: Final = 4
SLOW_SECONDS: Final = 300.0
SLOW: Final = frozenset(
    [
        "archive.inspect",
        "job.cancel",
        "key.list",
        "key.prove",
        "provision.begin",
        "provision.finish",
        "reset.plan",
        "reset.start",
        "restore.plan",
        "restore.start",
        "restore.tables",
        "retention.preview",
        "settings.update",
        "system.doctor",
        "target.test",
    ]
)
"""Methods that look at targets, databases or the TPM before they answer, and may take long over it."""
OUTSIDE: Final = SLOW | frozenset(
    [
        "archive.get",
        "archive.hold",
        "archive.list",
        "archive.read",
        "archive.release",
        "baseline.get",
        "pin.status",
    ]
)
"""Methods that wait for something outside the service: they share all connections but the first."""
KEPT_EVENTS: Final = 1000
WAITING_EVENTS: Final = 200
RETRY_SECONDS: Final = (0.2, 0.5, 1.0, 2.0, 5.0)

Event = dict[str, Any]


@dataclass(slots=True, eq=False)
class _Caller:
    """One connection for calls."""

    connect: Callable[[], Client]
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    client: Client | None = None
    busy: int = 0
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def opened(self) -> Client:
        async with self.opening:
            if self.client is not None and self.client.lost:
                await self.close()
            if self.client is None:
                client = self.connect()
                await client.__aenter__()
                self.client = client
            return self.client

    async def close(self) -> None:
        client, self.client = self.client, None
        if client is not None:
            await client.__aexit__(None, None, None)


@dataclass(slots=True, eq=False)
class Listener:
    """One browser's share of the events. When it does not take them, they are dropped and `lost` says so."""

    waiting: deque[Event] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    lost: bool = False
    closed: bool = False

    def put(self, event: Event) -> None:
        """Give one more."""
        if event["type"] == "progress":
            for at, other in enumerate(self.waiting):
                if other["type"] == "progress" and other["job_id"] == event["job_id"]:
                    self.waiting[at] = event
                    return
        if len(self.waiting) >= WAITING_EVENTS:
            self.waiting.clear()
            self.lost = True
        self.waiting.append(event)
        self.news.set()

    def take(self) -> list[Event]:
        """Return what waits, and forget it."""
        taken, self.lost = list(self.waiting), False
        self.waiting.clear()
        self.news.clear()
        return taken


class Gateway:
    """`async with Gateway(connect)` is open for calls and events; the service may be away for as long as it likes."""

    def __init__(self, connect: Callable[[float], Client], *, timeout: float) -> None:
        self._timeout = timeout
        self._connect = connect
        self._callers = [_Caller(lambda: connect(SLOW_SECONDS)) for _ in range(CALLERS)]
        self._listeners: set[Listener] = set()
        self._kept: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._roles: dict[str, str] | None = None
        self.boot_id: str | None = None
        self._seq = 0
        self.ended = False
        """Whether the portal stops."""
        self.away: str | None = "not connected yet"
        """Why there are no events now; None while the subscription stands."""

    async def __aenter__(self) -> Gateway:
        self._following = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._following.cancel()
        await asyncio.wait({self._following})
        for caller in self._callers:
            await caller.close()
        self.end_listening()

    @property
    def position(self) -> tuple[str, int]:
        """Return where the events are now, for `listening(after)`; while the service is away, a place before all."""
        return (self.boot_id, self._seq) if self.boot_id is not None and self.away is None else ("-", 0)

    def end_listening(self) -> None:
        """Have all listeners go, for the portal stops."""
        self.ended = True
        for listener in self._listeners:
            listener.closed = True
            listener.news.set()

    async def call(self, method: str, /, **params: Any) -> Any:
        """Return the result of a method.

        Raises RemoteError, and ConnectionLost or NoAnswer when it cannot be known. A call is sent again once when the
        connection was lost under it and it cannot be carried out twice: it only looks, or it has an idempotency key.
        """
        try:
            return await self._call_once(method, params)
        except ConnectionLost:
            looks = (self._roles or {}).get(method) == "read"
            if not looks and "idempotency_key" not in params:
                raise
            return await self._call_once(method, params)

    async def _call_once(self, method: str, params: dict[str, Any]) -> Any:
        seconds = SLOW_SECONDS if method in SLOW else self._timeout
        caller = min(self._callers[1:], key=lambda each: each.busy) if method in OUTSIDE else self._callers[0]
        caller.busy += 1
        try:
            async with asyncio.timeout(seconds), caller.places:
                client = await caller.opened()
                return await client.call(method, **params)
        except TimeoutError as exc:
            raise NoAnswer(
                f"no answer to {method} within {seconds:g} s", hint="Look at the state before asking again."
            ) from exc
        except ValueError as exc:
            raise RemoteError("what was sent is too long for the service", {"code": "TOO_LARGE"}) from exc
        finally:
            caller.busy -= 1

    async def role_of(self, method: str) -> str | None:
        """Return the role that a method needs (read or admin) as the service publishes it; None: there is no such."""
        if self._roles is None:
            schema = await self._call_once("system.schema", {})
            self._roles = {name: told["role"] for name, told in schema["methods"].items()}
        return self._roles.get(method)

    def known_role_of(self, method: str) -> str | None:
        """Return the same from what is known by now; None also when the service was not asked yet."""
        return (self._roles or {}).get(method)

    @contextlib.contextmanager
    def listening(self, after: tuple[str, int] | None = None) -> Iterator[Listener]:
        """Give a listener, with the events after the one with this boot_id and seq; `lost` when they are not kept."""
        listener = Listener()
        if after is not None:
            boot_id, seq = after
            kept = [event for event in self._kept if event["seq"] > seq]
            known = boot_id == self.boot_id and (not self._kept or self._kept[0]["seq"] <= seq + 1)
            for event in kept if known else []:
                listener.put(event)
            listener.lost = not known
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    async def _follow(self) -> None:
        """Listen to the service for ever; connect again when it was away."""
        seq: int | None = None
        failures = 0
        while True:
            why = "the service closed the connection"
            try:
                async for event in self._events(seq):
                    if event["type"] == "subscribed":
                        failures = 0
                        self._came_back(event, known=seq)
                    else:
                        if event["seq"] is not None:
                            self._kept.append(event)
                        self._tell(event)
                    seq = event["seq"] if event["seq"] is not None else seq
                    self._seq = seq or 0
            except ServiceError as error:
                why = str(error)
            except Exception:
                log.exception("listening to the service went wrong unexpectedly")
            if self.away is None:
                self.away = why
                log.warning("the service is away: %s", why)
                self._tell({"type": "portal.away", "seq": None, "job_id": None, "data": {}})
            else:
                self.away = why
            await asyncio.sleep(RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)])
            failures += 1

    async def _events(self, since: int | None) -> AsyncIterator[Event]:
        async with self._connect(self._timeout) as client, contextlib.aclosing(client.events(since)) as events:
            async for event in events:
                yield event

    def _came_back(self, event: Event, *, known: int | None) -> None:
        changed = self.boot_id != event["boot_id"] or event["data"]["gap"] or known is None
        if changed:
            self._roles = None if self.boot_id != event["boot_id"] else self._roles
            self._kept.clear()
        if self.away is not None:
            log.info("connected to the service")
        self.boot_id, self.away = event["boot_id"], None
        self._tell({"type": "portal.back", "seq": None, "job_id": None, "data": {}})

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            listener.put(event)
