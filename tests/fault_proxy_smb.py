"""A proxy before an SMB server that breaks one connection at a planned message. Loopback only.

SMB frames its messages (4 bytes of length before each), also when they are encrypted, so that a fault can be planned
for each of them. A fault that was planned and never happened is an error when the proxy is left.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

Direction = Literal["request", "answer"]
REQUEST: Direction = "request"
ANSWER: Direction = "answer"


@dataclass(frozen=True)
class Fault:
    """What happens to the `number`th message (from 1, of all connections together) in that direction.

    `reset`: both ends get RST. `stall`: nothing passes any more in either direction, nor is it read. `half-close`: the
    receiver gets FIN, the other direction stays. `deaf`: nothing is read from this message on. `forge`: `forged` goes
    in the message's place. Of the first three, `part` of the message passes before.
    """

    what: Literal["reset", "stall", "half-close", "deaf", "forge"]
    direction: Direction
    number: int
    part: float = 0.0
    forged: bytes = b""


class FaultProxy:
    """`port` is where clients connect. Use it in the loop that the client's tasks run in.

    `narrow` lets the kernel keep little of what was sent and is not yet read.
    """

    def __init__(self, server_port: int, fault: Fault | None = None, *, narrow: bool = False) -> None:
        self._server_port = server_port
        self._narrow = narrow
        self._connections: set[asyncio.Task[None]] = set()
        self.plan(fault)
        self.seen = bytearray()
        self.keep = False
        self.refuse_after_fault = False

    def plan(self, fault: Fault | None) -> None:
        """Plan another fault; counting begins anew."""
        self.fault = fault
        self.hit = False
        self.counts = {REQUEST: 0, ANSWER: 0}

    async def __aenter__(self) -> Self:
        listener = socket.socket()
        if self._narrow:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        self.port = int(listener.getsockname()[1])
        self._server = await asyncio.start_server(self._serve, sock=listener)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if kind is None:
            assert self.fault is None or self.hit, f"{self.fault} never happened, of {self.counts}"

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        with suppress(asyncio.CancelledError):  # asyncio's streams complain of a handler that ends cancelled
            await self._carry(from_client, to_client)
        self._connections.discard(task)

    async def _carry(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        writers = [to_client]
        try:
            if self.refuse_after_fault and self.hit:
                raise _Broken  # noqa: TRY301
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
            writers.append(to_server)
            passing = asyncio.Event()
            passing.set()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_on(from_client, to_server, REQUEST, passing))
                group.create_task(self._pass_on(from_server, to_client, ANSWER, passing))
        except* (OSError, _Broken, asyncio.IncompleteReadError):
            for writer in writers:
                _reset(writer)
        finally:
            for writer in writers:
                writer.transport.abort()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction, passing: asyncio.Event
    ) -> None:
        while True:
            header = await reader.read(4)
            if not header:
                writer.write_eof()
                return
            header += await reader.readexactly(4 - len(header))
            self.counts[direction] += 1
            fault = self.fault
            due = bool(
                fault and not self.hit and (direction, self.counts[direction]) == (fault.direction, fault.number)
            )
            if fault and due and fault.what == "deaf":
                self.hit = True
                passing.clear()
            await passing.wait()
            frame = header + await reader.readexactly(int.from_bytes(header, "big"))
            if self.keep:
                self.seen += frame
            if fault and due:
                self.hit = True
                if fault.what == "forge":
                    writer.write(len(fault.forged).to_bytes(4, "big") + fault.forged)
                    continue
                writer.write(frame[: int(len(frame) * fault.part)])
                await writer.drain()
                if fault.what == "reset":
                    await asyncio.sleep(0.01 if fault.part else 0)  # so that the part arrives before the RST
                    raise _Broken
                if fault.what == "half-close":
                    writer.write_eof()
                    return
                passing.clear()
            else:
                writer.write(frame)
                await writer.drain()
            await passing.wait()


class _Broken(Exception):
    """A reset is due."""


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
