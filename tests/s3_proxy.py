"""An HTTP proxy before a real S3 server that answers some requests wrongly on purpose, or loses the answer.

What was planned and never met, fails the test. `operation` of a request is S3's name for it.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web
from yarl import URL

WHILE = 0.5
"""Seconds."""
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "te", "trailer", "upgrade"}


@dataclass(frozen=True)
class Asked:
    """One request, as a fault looks at it."""

    operation: str
    path: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass
class HttpFault:
    """What happens to requests that `match`, `times` times.

    `kind`: `answer` gives `status` and `code` in place of asking the server; `answer-after` asks it first, too;
    `lose` asks the server and then drops the connection; `late` drops the connection and asks the server afterwards;
    `slow` asks the server after a while, also when the client has left meanwhile.
    """

    kind: str
    match: Callable[[Asked], bool]
    status: int = 500
    code: str = "InternalError"
    times: int = 1
    hits: int = 0

    @property
    def answer(self) -> web.Response:
        text = f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>planned</Message></Error>"
        return web.Response(status=self.status, text=text, content_type="application/xml")


class S3Proxy:
    """Passes requests on to `upstream`, http:// only, and notes them in `asked`."""

    def __init__(self, upstream: str, faults: list[HttpFault] | None = None) -> None:
        self.upstream = upstream
        self.faults = faults or []
        self.asked: list[Asked] = []
        self._late: set[asyncio.Task[object]] = set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def operations(self) -> list[str]:
        return [asked.operation for asked in self.asked]

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            connector=aiohttp.TCPConnector(limit=0),
        )
        self._runner = web.ServerRunner(web.Server(self._handle), handler_cancellation=False, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._port: int = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*self._late, return_exceptions=True)
        await self._runner.cleanup()
        await self._session.close()
        if kind is None:
            assert all(fault.hits for fault in self.faults), f"planned, but never met: {self.faults}"

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # as aiohttp does it: no part of the answer was sent
        body = await request.content.read()
        asked = Asked(operation_of(request), request.path, {k.lower(): v for k, v in request.headers.items()}, body)
        self.asked.append(asked)
        fault = next((each for each in self.faults if each.hits < each.times and each.match(asked)), None)
        if fault is None:
            return await self.answer(request, asked)
        fault.hits += 1
        if fault.kind == "answer":
            return fault.answer
        if fault.kind == "slow":
            await asyncio.sleep(WHILE)
            return await self.answer(request, asked)
        if fault.kind == "late":
            _drop(request)
            late = asyncio.create_task(self._ask_later(request, asked))
            self._late.add(late)
            return web.Response()
        async with self.ask(request, body) as answer:
            await answer.read()
        if fault.kind == "lose":
            _drop(request)
        return fault.answer

    async def answer(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        """Pass a request on, and its answer back."""
        async with self.ask(request, asked.body) as answer:
            return await passed_back(request, answer)

    def ask(self, request: web.BaseRequest, body: bytes) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send the request, signature and all, to the server."""
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        url = URL(self.upstream + request.raw_path, encoded=True)
        return self._session.request(
            request.method, url, headers=headers, data=io.BytesIO(body) if body else None, allow_redirects=False
        )

    async def _ask_later(self, request: web.BaseRequest, asked: Asked) -> None:
        await asyncio.sleep(WHILE)
        async with self.ask(request, asked.body) as answer:
            await answer.read()


async def passed_back(
    request: web.BaseRequest, answer: aiohttp.ClientResponse, more: dict[str, str] | None = None
) -> web.StreamResponse:
    """Send the server's answer to the client, with `more` headers."""
    kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
    back = web.StreamResponse(status=answer.status, headers=kept | (more or {}))
    await back.prepare(request)
    if request.method != "HEAD":
        async for piece in answer.content.iter_chunked(1 << 16):
            await back.write(piece)
    await back.write_eof()
    return back


def operation_of(request: web.BaseRequest) -> str:
    """Return S3's name of what is asked for, as far as the tests need it."""
    query, method = request.query, request.method
    if "uploads" in query:
        return "CreateMultipartUpload" if method == "POST" else "ListMultipartUploads"
    if "uploadId" in query:
        return {
            "PUT": "UploadPart",
            "POST": "CompleteMultipartUpload",
            "DELETE": "AbortMultipartUpload",
            "GET": "ListParts",
        }[method]
    if "list-type" in query:
        return "ListObjectsV2"
    return {"PUT": "PutObject", "GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}.get(method, method)


def _drop(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()
