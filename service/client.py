"""The client of the service's socket. One file that needs Python and `service.errors` only, so it can be copied.

    async with Client.unix("/run/deviceon-backup/service.sock") as client:
        job = await client.call("backup.start", idempotency_key="nightly-1")
        async with contextlib.aclosing(client.events()) as events:
            async for event in events:
                ...

Calls may run at the same time. Nothing is tried again and no connection is made again: after ConnectionLost, connect
anew and go on listening with `events(since=...)`, the last number that came.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Self

from service.errors import ServiceError

MAX_LINE: Final = 1024 * 1024 + 4096
"""Bytes of a line that the service sends, and some more."""
MAX_REQUEST: Final = 64 * 1024
MAX_EVENTS: Final = 4096
"""Events that wait here to be taken."""

UNSUBSCRIBE_SECONDS: Final = 5.0

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class ConnectionLost(ServiceError):
    """The service cannot be reached, or went away. Whether a call that was under way was carried out is not known."""

    code = "CONNECTION_LOST"
    transient = True


class NoAnswer(ServiceError):
    """No answer came in time. Whether the call was carried out, or will be, is not known."""

    code = "NO_ANSWER"
    transient = True


class RemoteError(ServiceError):
    """The service's own answer: `code` (stable), message, `hint`, `transient`, and all of its `data`."""

    code: str  # type: ignore[misc]  # the service says which
    transient: bool  # type: ignore[misc]

    def __init__(self, message: str, data: dict[str, Any]) -> None:
        super().__init__(message, hint=str(data.get("hint", "")))
        self.code = str(data.get("code", "ERROR"))
        self.transient = bool(data.get("transient", False))
        self.data = data


class Client:
    """One connection. Made by `unix` or `tls`, opened by `async with`; `timeout` is seconds for each call."""

    def __init__(self, connect: Callable[[], Awaitable[Streams]], *, timeout: float) -> None:
        self._connect = connect
        self._timeout = timeout
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._events: _Events | None = None
        self._lost: str | None = None
        self._last_words: str = ""

    @classmethod
    def unix(cls, path: str | Path, *, timeout: float = 30.0) -> Self:
        """Return a client of the UNIX socket."""

        async def connect() -> Streams:
            return await asyncio.open_unix_connection(sock=await _connected(path), limit=MAX_LINE)

        return cls(connect, timeout=timeout)

    @classmethod
    def tls(
        cls,
        host: str,
        port: int,
        *,
        certificate: str | Path,
        key: str | Path,
        authority: str | Path,
        server_name: str | None = None,
        timeout: float = 30.0,
    ) -> Self:
        """Return a client over TLS 1.3. The service's certificate is of `authority` and for `server_name` or host."""

        async def connect() -> Streams:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.load_verify_locations(cafile=authority)
            context.load_cert_chain(certificate, key)
            return await asyncio.open_connection(
                host, port, ssl=context, server_hostname=server_name or host, limit=MAX_LINE
            )

        return cls(connect, timeout=timeout)

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(self._timeout):
                self._reader, self._writer = await self._connect()
        except OSError as exc:  # TimeoutError and ssl's errors too
            raise ConnectionLost(
                f"the service cannot be reached: {str(exc) or 'no answer in time'}",
                hint="Is it running, and may this user use its socket?",
            ) from exc
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.cancel()
        await asyncio.wait({self._listening})
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    @property
    def lost(self) -> bool:
        """Tell whether the connection is gone, so that every further call raises ConnectionLost."""
        return self._lost is not None

    async def call(self, method: str, /, **params: Any) -> Any:
        """Return the result of a method. Raises RemoteError, NoAnswer, ConnectionLost; ValueError for over 64 KiB."""
        number = next(self._numbers)
        line = json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode() + b"\n"
        if len(line) > MAX_REQUEST:
            raise ValueError(f"a request of {len(line)} bytes, {MAX_REQUEST} are the limit")
        if self._lost is not None:
            raise _lost(self._lost)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._timeout):
                self._writer.write(line)  # not drained: whoever calls waits for the answer anyway
                return await answer
        except TimeoutError as exc:
            raise NoAnswer(
                f"no answer to {method} within {self._timeout:g} s", hint="Look at the state before asking again."
            ) from exc
        finally:
            del self._waiting[number]

    async def events(self, since: int | None = None) -> AsyncGenerator[dict[str, Any], None]:
        """Yield events; with `since`, first those after that number. Close it (`aclosing`) to unsubscribe.

        The first is of type `subscribed`: its `seq` is the last number so far, and when `data["gap"]` is true some
        events are lost, so read the state anew. Only one at a time on a connection. Raises ConnectionLost, and
        RemoteError SLOW_CONSUMER when events are taken too slowly: go on with `events(since=the last number)`, on a new
        connection if this one is lost.
        """
        if self._events is not None:
            raise RuntimeError("this client listens already")
        mine = self._events = _Events()
        try:
            told = await self.call("events.subscribe", since=since)
            yield {
                "seq": told["seq"],
                "boot_id": told["boot_id"],
                "time": None,
                "type": "subscribed",
                "job_id": None,
                "data": {"gap": told["gap"]},
            }
            while True:
                yield await mine.next()
        finally:
            try:
                with contextlib.suppress(ServiceError, TimeoutError):
                    async with asyncio.timeout(UNSUBSCRIBE_SECONDS):
                        await self.call("events.unsubscribe")  # events that are under way come before its answer
            finally:
                self._events = None

    async def _listen(self) -> None:
        why = "the service closed the connection"
        try:
            while True:
                self._take(json.loads(await self._reader.readuntil(b"\n")))
        except asyncio.IncompleteReadError:
            pass
        except asyncio.LimitOverrunError:
            why = f"the service sent a line above {MAX_LINE} bytes"
        except OSError as exc:
            why = f"the connection broke: {exc}"
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            why = f"the service sent what this client cannot read: {exc}"
        finally:
            self._lose(self._last_words or why)

    def _take(self, message: dict[str, Any]) -> None:
        if message.get("method") == "event":
            if self._events is not None:
                self._events.put(message["params"])
            return
        error = message.get("error")
        told = None if error is None else RemoteError(error["message"], error.get("data") or {})
        if message["id"] is None and told is not None:
            if told.code == "SLOW_CONSUMER" and self._events is not None:
                self._events.end(told)
            else:
                self._last_words = str(told)
            return
        answer = self._waiting.get(message["id"])
        if answer is None or answer.done():
            return  # it was not waited for any longer
        if told is not None:
            answer.set_exception(told)
        else:
            answer.set_result(message["result"])

    def _lose(self, why: str) -> None:
        self._lost = why
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(_lost(why))
        if self._events is not None:
            self._events.end(_lost(why))


class _Events:
    """What has come and was not taken yet; at most MAX_EVENTS, because answers come on the same connection."""

    def __init__(self) -> None:
        self._queue: deque[dict[str, Any]] = deque()
        self._news = asyncio.Event()
        self._error: ServiceError | None = None

    def put(self, event: dict[str, Any]) -> None:
        if len(self._queue) >= MAX_EVENTS:
            self._queue.clear()
            self.end(RemoteError(f"more than {MAX_EVENTS} events waited to be taken", {"code": "SLOW_CONSUMER"}))
        if self._error is None:
            self._queue.append(event)
            self._news.set()

    def end(self, error: ServiceError) -> None:
        self._error = self._error or error
        self._news.set()

    async def next(self) -> dict[str, Any]:
        while not self._queue:
            if self._error is not None:
                raise self._error
            self._news.clear()
            await self._news.wait()
        return self._queue.popleft()


def _lost(why: str) -> ConnectionLost:
    return ConnectionLost(why, hint="Connect again.")


async def _connected(path: str | Path) -> socket.socket:
    """Connect by hand: when many stand in line, Linux says EAGAIN, which event loops take for success or failure."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        while True:
            try:
                connection.connect(str(path))
            except BlockingIOError:
                await asyncio.sleep(0.02)
            else:
                return connection
    except BaseException:
        connection.close()
        raise
