"""A TCP proxy on loopback that breaks connections on purpose: each plan so many times, and counted."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

PIECE = 1 << 16


@dataclass
class Fault:
    """Something done to one connection after `after` bytes were sent in one direction, counted over all connections.

    With `on`, it is done when these bytes come.

    `reset` sends RST to both sides; `stall` passes on nothing more; `close` ends the answer as if it were complete;
    `corrupt` changes a bit.
    """

    kind: str
    after: int = 0
    to_server: bool = True
    times: int = 1
    on: bytes = b""
    hits: int = 0


@dataclass
class TcpProxy:
    """Passes connections on to `upstream`, an http:// or https:// address. `rate` is bytes a second to the server."""

    upstream: str
    faults: list[Fault] = field(default_factory=list)
    rate: float | None = None
    connections: int = 0

    def __post_init__(self) -> None:
        self.passed = {True: 0, False: 0}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def endpoint(self) -> str:
        return f"{urlsplit(self.upstream).scheme}://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        listener = socket.socket()
        # Small, so that what a sender was rid of is not far from what the server has.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # FTP ends a transfer by an urgent byte
        listener.bind(("127.0.0.1", 0))
        self._port: int = listener.getsockname()[1]
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=PIECE)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if kind is None:
            assert all(fault.hits for fault in self.faults), f"planned, but never met: {self.faults}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        address = urlsplit(self.upstream)
        try:
            server_reader, server_writer = await asyncio.open_connection(address.hostname, address.port)
        except OSError:
            writer.transport.abort()
            return

        def reset() -> None:
            for each in (writer, server_writer):
                _reset(each)

        pipes = [
            asyncio.create_task(self._pipe(reader, server_writer, reset, to_server=True)),
            asyncio.create_task(self._pipe(server_reader, writer, reset, to_server=False)),
        ]
        self._tasks.update(pipes)
        try:
            await asyncio.gather(*pipes, return_exceptions=True)
        finally:
            self._tasks.difference_update(pipes)
            for each in (writer, server_writer):
                each.transport.abort()

    async def _pipe(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        reset: Callable[[], None],
        *,
        to_server: bool,
    ) -> None:
        while piece := await reader.read(PIECE):
            self.passed[to_server] += len(piece)
            if self.rate and to_server:
                await asyncio.sleep(len(piece) / self.rate)
            fault = self._due(to_server, piece)
            if fault == "reset":
                reset()
                return
            if fault == "stall":
                await asyncio.Event().wait()
            if fault == "corrupt":
                piece = piece[:-1] + bytes([piece[-1] ^ 1])
            if fault == "close":
                writer.write(piece[: len(piece) // 2])
                await writer.drain()
                writer.close()
                return
            writer.write(piece)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    def _due(self, to_server: bool, piece: bytes) -> str | None:
        for fault in self.faults:
            passed = self.passed[fault.to_server]
            if fault.to_server == to_server and fault.hits < fault.times and passed > fault.after and fault.on in piece:
                fault.hits += 1
                return fault.kind
        return None


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST in place of FIN
    writer.transport.abort()
