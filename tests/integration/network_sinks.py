"""Servers on loopback that take what is sent to them: HTTP requests and mail."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class HttpSink:
    """Answers every request with `status`; `hang` lets it wait for ever. Keeps (method, path, body)."""

    url: str = ""
    status: int = 200
    statuses: list[int] = field(default_factory=list)
    """Of the first answers, before `status`."""
    hang: bool = False
    look: Callable[[], None] = field(default=lambda: None)
    """Called before an answer, while the one who asked waits for it."""
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.seen.append((request.method, request.path_qs, await request.text()))
        self.agents.append(request.headers.get("User-Agent", ""))
        self.look()
        if self.hang:
            await asyncio.Event().wait()
        return web.Response(status=self.statuses.pop(0) if self.statuses else self.status)


@contextlib.asynccontextmanager
async def http_sink(**options: object) -> AsyncIterator[HttpSink]:
    sink = HttpSink(**options)  # type: ignore[arg-type]
    server = web.Server(sink.answer)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    sink.url = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield sink
    finally:
        listener.close()
        await server.shutdown(0.1)  # 0 is for ever
        await listener.wait_closed()


@dataclass
class MailSink:
    """An SMTP server that takes every mail and password."""

    port: int = 0
    mails: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 sink\r\n")
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                self.said.append(line.decode().strip())
                match line.split()[0].upper():
                    case b"EHLO":
                        writer.write(b"250-sink\r\n250 AUTH PLAIN\r\n")
                    case b"AUTH":
                        writer.write(b"235 welcome\r\n")
                    case b"DATA":
                        writer.write(b"354 go on\r\n")
                        self.mails.append((await reader.readuntil(b"\r\n.\r\n")).decode())
                        writer.write(b"250 taken\r\n")
                    case b"QUIT":
                        writer.write(b"221 bye\r\n")
                        break
                    case _:
                        writer.write(b"250 ok\r\n")
        writer.close()


@contextlib.asynccontextmanager
async def mail_sink() -> AsyncIterator[MailSink]:
    sink = MailSink()
    server = await asyncio.start_server(sink.talk, "127.0.0.1", 0)
    sink.port = server.sockets[0].getsockname()[1]
    async with server:
        yield sink
