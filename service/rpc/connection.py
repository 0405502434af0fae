"""One client's connection: its requests are carried out side by side, its events are passed on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

from service.errors import ServiceError
from service.events import EventHub, SlowConsumer, Subscription
from service.rpc.codec import Code, Request, RpcError, encode_error, encode_event, encode_result, failed, parse
from service.rpc.limits import Limits
from service.rpc.lines import Lines, LineTooLong
from service.rpc.peers import Peer
from storage_backends.base import StorageError

SMALL: Final = 64 * 1024
"""Bytes of an answer that is not counted against a peer's unread ones: their number is bounded already."""
STALLED: Final = 1.0
"""Seconds after which unread answers are the client's fault."""

logger = logging.getLogger(__name__)


class Dispatcher(Protocol):
    """Carries out the methods."""

    async def call(self, method: str, params: dict[str, Any], peer: Peer) -> Any:
        """Return a JSON value. Raises RpcError; a ServiceError or StorageError reaches the client as FAILED."""


class Connection:
    """One client. `others` gives all connections of the same peer that are open, this one too."""

    def __init__(
        self,
        lines: Lines,
        peer: Peer,
        *,
        dispatcher: Dispatcher,
        hub: EventHub,
        limits: Limits,
        others: Callable[[Peer], list[Connection]],
    ) -> None:
        self.lines = lines
        self.peer = peer
        self.spoke = False
        self.last_active = asyncio.get_running_loop().time()
        self.unread_bytes = 0
        """Bytes of large answers that were not taken yet."""
        self._dispatcher = dispatcher
        self._hub = hub
        self._limits = limits
        self._others = others
        self._slots = asyncio.Semaphore(limits.requests_in_flight)
        self._running = 0
        self._subscription: Subscription | None = None

    @property
    def subscribed(self) -> bool:
        """Tell whether the client listens to events."""
        return self._subscription is not None and not self._subscription.ended

    @property
    def occupied(self) -> bool:
        """Tell whether a request is being carried out, or events are subscribed to. Unread answers do not count."""
        return self._running > 0 or self.subscribed

    async def run(self) -> None:
        """Serve until the client has gone or is sent away. What it had asked for by then is carried out to its end."""
        try:
            async with asyncio.TaskGroup() as tasks:
                try:
                    await self._read(tasks)
                finally:
                    if self._subscription is not None:
                        self._subscription.close()
        finally:
            await self.lines.close()

    def dismiss(self, why: RpcError) -> None:
        """Send the client away: it is told why if it reads, and no further request is taken."""
        self.lines.end(encode_error(why))

    def stop(self) -> None:
        """Take no further request; those in flight are answered, then the connection is closed."""
        self.lines.end_input()

    def overdue(self, now: float) -> RpcError | None:
        """Return why the client has to go, if it has."""
        lines, limits = self.lines, self._limits
        if lines.unread_since is not None and now - lines.unread_since > limits.unread_seconds:
            return RpcError(Code.SLOW_CONSUMER, f"nothing was read for {limits.unread_seconds:g} s")
        if lines.partial_since is not None and now - lines.partial_since > limits.partial_line_seconds:
            return RpcError(Code.TIMED_OUT, f"a line was not ended within {limits.partial_line_seconds:g} s")
        if not self.occupied and now - self.last_active > limits.idle_seconds:
            return RpcError(Code.TIMED_OUT, f"nothing was asked for {limits.idle_seconds:g} s")
        return None

    async def _read(self, tasks: asyncio.TaskGroup) -> None:
        malformed = 0
        while malformed < self._limits.malformed_lines:
            await self._slots.acquire()  # before reading: what cannot be begun yet stays with the client
            try:
                line = await self.lines.line()
            except LineTooLong:
                text = f"a line is longer than {self._limits.line_bytes} bytes"
                await self.lines.send(encode_error(RpcError(Code.PARSE_ERROR, text)))
                return
            if line is None:
                return
            try:
                request = parse(line)
            except RpcError as error:
                malformed += 1
                await self.lines.send(encode_error(error))
                self._slots.release()
                continue
            self.spoke = True
            self.last_active = asyncio.get_running_loop().time()
            self._running += 1
            tasks.create_task(self._serve(request, tasks))
        text = f"{malformed} lines were no requests"
        await self.lines.send(encode_error(RpcError(Code.INVALID_REQUEST, text)))

    async def _serve(self, request: Request, tasks: asyncio.TaskGroup) -> None:
        subscription = None
        try:
            if request.method == "events.subscribe":
                line, subscription = self._subscribe(request)
            else:
                line = await self._carry_out(request)
        finally:
            self._running -= 1
            self.last_active = asyncio.get_running_loop().time()
        await self._answer(request, line)
        self._slots.release()
        if subscription is not None:  # after the answer, so that no event comes before it
            tasks.create_task(self._pass_on(subscription))

    async def _carry_out(self, request: Request) -> bytes:
        try:
            return encode_result(request.id, await self._call(request))
        except RpcError as error:
            return encode_error(error, request.id)
        except (ServiceError, StorageError) as error:
            return encode_error(failed(error), request.id)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            logger.exception("%r of %s waited for what was cancelled", request.method, self.peer.name)
        except Exception:
            logger.exception("%r of %s failed unexpectedly", request.method, self.peer.name)
        text = "the service failed at this unexpectedly"
        return encode_error(RpcError(Code.INTERNAL_ERROR, text, hint="Its log says more."), request.id)

    async def _call(self, request: Request) -> Any:
        if request.method == "events.unsubscribe":
            _no_others(request.params, set())
            if self._subscription is not None:
                self._subscription.close()
            return {}
        return await self._dispatcher.call(request.method, request.params, self.peer)

    async def _answer(self, request: Request, line: bytes) -> None:
        size = len(line) if len(line) > SMALL else 0
        if size and not self._room_for(size):
            text = "earlier answers have not been read yet"
            line = encode_error(
                RpcError(Code.BUSY, text, hint="Read them, then ask again.", transient=True), request.id
            )
            size = 0
        self.unread_bytes += size
        try:
            await self.lines.send(line)
        finally:
            self.unread_bytes -= size

    def _room_for(self, size: int) -> bool:
        """Tell whether an answer may wait to be read; a connection of this peer that has stalled makes room for it."""
        now = asyncio.get_running_loop().time()
        connections = [other for other in self._others(self.peer) if other.unread_bytes]
        for other in sorted(connections, key=lambda each: each.lines.unread_since or now):
            if sum(each.unread_bytes for each in connections) + size <= self._limits.unread_bytes_per_peer:
                break
            if other.lines.unread_since is not None and now - other.lines.unread_since > STALLED:
                other.lines.end()
                connections.remove(other)
        return sum(each.unread_bytes for each in connections) + size <= self._limits.unread_bytes_per_peer

    def _subscribe(self, request: Request) -> tuple[bytes, Subscription | None]:
        try:
            since = self._may_subscribe(request.params)
        except RpcError as error:
            return encode_error(error, request.id), None
        self._subscription = self._hub.subscribe(since)
        told = {"boot_id": self._hub.boot_id, "seq": self._subscription.seq, "gap": self._subscription.gap}
        return encode_result(request.id, told), self._subscription

    def _may_subscribe(self, params: dict[str, Any]) -> int | None:
        _no_others(params, {"since"})
        since = params.get("since")
        if since is not None and (type(since) is not int or since < 0):
            raise RpcError(Code.INVALID_PARAMS, "since is the number of an event, or null")
        if self.subscribed:
            raise RpcError(Code.BUSY, "this connection is subscribed already", hint="Call events.unsubscribe first.")
        most = self._limits.subscribers_per_peer
        if sum(other.subscribed for other in self._others(self.peer)) >= most:
            raise RpcError(
                Code.BUSY, f"{most} subscriptions are the limit", hint="Close one of the others.", transient=True
            )
        return since

    async def _pass_on(self, subscription: Subscription) -> None:
        try:
            async for event in subscription:
                await self.lines.send(encode_event(event))
        except SlowConsumer as error:
            told = RpcError(Code.SLOW_CONSUMER, str(error), hint=error.hint, transient=error.transient)
            await self.lines.send(encode_error(told))


def _no_others(params: dict[str, Any], known: set[str]) -> None:
    unknown = params.keys() - known
    if unknown:
        raise RpcError(Code.INVALID_PARAMS, f"there is no parameter {min(unknown)[:64]!r}")
