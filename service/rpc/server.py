"""The server: listens, finds out who came, gives them a seat, and sends away who is overdue.

Its life is its `async with` block, which owns every task in one task group. Leaving the block closes the sockets, lets
requests in flight end for a while, and cancels the rest. An error of the server's own ends the block.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from service.events import EventHub
from service.rpc import tls, unix_socket
from service.rpc.codec import Code, RpcError, encode_error
from service.rpc.connection import Connection, Dispatcher
from service.rpc.limits import DEFAULTS, Limits
from service.rpc.lines import Lines
from service.rpc.peers import AllowedNames, AllowedUsers, Peer, user_of
from service.rpc.seats import Seats

logger = logging.getLogger(__name__)


class RpcServer:
    """Carries requests to a dispatcher, and events of a hub to whoever subscribes.

    `async with RpcServer(dispatcher, hub) as server: await server.serve_unix(path, allowed); ...`
    """

    def __init__(self, dispatcher: Dispatcher, hub: EventHub, *, limits: Limits = DEFAULTS) -> None:
        self._dispatcher = dispatcher
        self._hub = hub
        self._limits = limits
        self._seats: Seats[Connection] = Seats(limits)
        self._tasks = asyncio.TaskGroup()
        self._sockets = ExitStack()
        self._accepting: list[asyncio.Task[None]] = []
        self._clients: set[asyncio.Task[None]] = set()
        self._handshakes: dict[asyncio.Task[None], None] = {}
        self._strangers: set[str] = set()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._accepting.append(self._tasks.create_task(self._watch()))
        return self

    async def __aexit__(self, *raised: Any) -> None:
        try:
            await self._stop()
        finally:
            for task in self._clients:
                task.cancel()
            try:
                await self._tasks.__aexit__(*raised)
            finally:
                self._sockets.close()

    async def serve_unix(
        self,
        path: Path,
        allowed: AllowedUsers,
        *,
        group: str | int | None = None,
        given: socket.socket | None = None,
    ) -> None:
        """Listen on a UNIX socket (mode 0660, in a directory with 0750); clients can connect when this returns.

        `given` is that socket when somebody else listens on it already; it is closed at the end.
        Raises JobRefused when another service runs on this socket, ConfigError when the path or group cannot be used.
        """
        listener = self._sockets.enter_context(unix_socket.listening(path, group=group, given=given))

        def welcome(client: socket.socket) -> None:
            self._welcome_user(client, allowed)

        self._accept_from(listener, welcome)

    async def serve_tls(self, host: str, port: int, files: tls.TlsFiles, allowed: AllowedNames) -> int:
        """Listen for TLS 1.3 with client certificates on an IP address; return the port (useful when 0 was given).

        Raises ConfigError when certificates or address cannot be used.
        """
        context = tls.server_context(files)
        listener = self._sockets.enter_context(tls.listening(host, port))

        def welcome(client: socket.socket) -> None:
            self._welcome_handshake(client, context, allowed)

        self._accept_from(listener, welcome)
        return int(listener.getsockname()[1])

    # Coming

    def _accept_from(self, listener: socket.socket, welcome: Callable[[socket.socket], None]) -> None:
        self._accepting.append(self._tasks.create_task(self._accept(listener, welcome)))

    async def _accept(self, listener: socket.socket, welcome: Callable[[socket.socket], None]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:  # no more descriptors, say
                logger.warning("a connection could not be accepted: %s", error)
                await asyncio.sleep(0.1)
                continue
            try:
                welcome(client)
            except OSError:  # the client has gone already
                client.close()
            await asyncio.sleep(0)  # sock_accept does not wait when many stand in line: others have their turn

    def _welcome_user(self, client: socket.socket, allowed: AllowedUsers) -> None:
        uid = user_of(client)
        peer = allowed.peer(uid)
        try:
            if peer is None:
                raise self._stranger(f"user {uid}")
            connection = self._seat(Lines(self._limits.line_bytes, half_open=True), peer)
        except RpcError as error:
            _refuse(client, error)
            return
        self._start(self._serve_user(client, connection), client)

    def _welcome_handshake(self, client: socket.socket, context: ssl.SSLContext, allowed: AllowedNames) -> None:
        if len(self._handshakes) >= self._limits.connections:
            longest = next(iter(self._handshakes))
            del self._handshakes[longest]
            longest.cancel()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        task = self._start(self._serve_certificate(client, context, allowed), client)
        self._handshakes[task] = None
        task.add_done_callback(lambda done: self._handshakes.pop(done, None))

    def _start(self, serving: Coroutine[Any, Any, None], client: socket.socket) -> asyncio.Task[None]:
        task = self._tasks.create_task(serving)
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)
        task.add_done_callback(lambda _: client.close())  # also when it was cancelled before it began
        return task

    def _seat(self, lines: Lines, peer: Peer) -> Connection:
        connection = Connection(
            lines, peer, dispatcher=self._dispatcher, hub=self._hub, limits=self._limits, others=self._seats.of
        )
        loser = self._seats.take(connection)
        if loser is not None:
            loser.dismiss(RpcError(Code.BUSY, "another connection took the place of this idle one", transient=True))
        return connection

    def _stranger(self, who: str) -> RpcError:
        if who not in self._strangers:  # said once: whoever comes often must not fill the log
            self._strangers.add(who)
            logger.warning("%s tried to connect, and is not allowed to", who)
        return RpcError(Code.NOT_ALLOWED, f"{who} may not use this service", hint="Ask its administrator.")

    # Being served

    async def _serve_user(self, client: socket.socket, connection: Connection) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection.lines, client)
            await self._run(connection)
        finally:
            self._seats.leave(connection)

    async def _serve_certificate(self, client: socket.socket, context: ssl.SSLContext, allowed: AllowedNames) -> None:
        lines = Lines(self._limits.line_bytes, half_open=False)
        try:
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                lambda: lines,
                client,
                ssl=context,
                ssl_handshake_timeout=self._limits.handshake_seconds,
                ssl_shutdown_timeout=self._limits.handshake_seconds,
            )
        except OSError as error:  # of ssl too; whoever knocks without a certificate is not worth a line in the log
            logger.debug("a TLS handshake failed: %s", error)
            return
        self._handshakes.pop(_this_task(), None)
        certificate = transport.get_extra_info("peercert")
        try:
            peer = allowed.peer(certificate)
            if peer is None:
                names = [value for _, value in (certificate or {}).get("subjectAltName", ())]
                raise self._stranger(f"certificate {', '.join(names) or 'without a name'}")
            connection = self._seat(lines, peer)
        except RpcError as error:
            lines.end(encode_error(error))
            await lines.close()
            return
        try:
            await self._run(connection)
        finally:
            self._seats.leave(connection)

    async def _run(self, connection: Connection) -> None:
        try:
            await connection.run()
        except Exception:
            logger.exception("the connection of %s failed", connection.peer.name)

    # Going

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._limits.look_every)
            for connection in list(self._seats):
                why = connection.overdue(loop.time())
                if why is not None:
                    connection.dismiss(why)

    async def _stop(self) -> None:
        for task in self._accepting:
            task.cancel()
        await asyncio.wait(self._accepting)
        self._sockets.close()
        for task in list(self._handshakes):
            task.cancel()
        for connection in self._seats:
            connection.stop()
        if self._clients:
            await asyncio.wait(self._clients, timeout=self._limits.stop_seconds)


def _refuse(client: socket.socket, why: RpcError) -> None:
    """Say one line to a new client, without waiting, and close: it costs nothing more, however many come."""
    with client, suppress(OSError):
        os.set_blocking(client.fileno(), False)
        client.send(encode_error(why))


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task
