"""The download of an archive: read over the socket in pieces, no faster than the browser takes them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
import re
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from aiohttp import web

from service.client import ConnectionLost, RemoteError
from service.errors import ServiceError
from service.portal.portal import Portal
from service.portal.translation import N_

log = logging.getLogger(__name__)

PIECE: Final = 384 * 1024
IN_FLIGHT: Final = 2
"""Pieces of one download that are asked for at once."""
AT_ONCE: Final = 2
"""Downloads. All pieces together stay within what the service lets a peer leave unread (2 MiB)."""
PATIENCE: Final = 15.0
"""Seconds that one piece is tried again for, when the service is busy or starts anew."""
PAUSE: Final = 0.1

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class CannotSatisfy(Exception):
    """The range that is asked for is not within the archive."""


def asked_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return where the one range that a request asks for begins and ends (exclusive); None: all of it.

    Several ranges and what cannot be read are answered with all of it, as RFC 9110 allows. Raises CannotSatisfy.
    """
    found = _RANGE.fullmatch((header or "").replace(" ", ""))
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:  # the last so many bytes
        if int(last) == 0:
            raise CannotSatisfy
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise CannotSatisfy
    return int(first), min(size, int(last) + 1) if last else size


class Downloads:
    """Answers requests for archives; AT_ONCE at the same time."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal
        self._running = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Send an archive, or the range of it that is asked for."""
        name, target = request.match_info["name"], request.query.get("target")
        about = {"archive": name, "target": target}
        told = await self._portal.call(request, "archive.read", **about, length=0)
        etag: str = told["etag"]
        tag = '"' + hashlib.sha256(etag.encode()).hexdigest()[:32] + '"'
        unchanged = request.headers.get("If-Range", tag) == tag
        try:
            asked = asked_range(request.headers.get("Range") if unchanged else None, told["size"])
        except CannotSatisfy:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{told['size']}", "ETag": tag})
        begin, end = asked or (0, told["size"])
        headers = {
            "Content-Type": "application/zip",
            "Content-Disposition": f'attachment; filename="{name}"',
            "Content-Length": str(end - begin),
            "Accept-Ranges": "bytes",
            "ETag": tag,
        }
        if asked is not None:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{told['size']}"
        response = web.StreamResponse(status=200 if asked is None else 206, headers=headers)
        if request.method == "HEAD":
            await response.prepare(request)
            return response
        if self._running >= AT_ONCE:
            raise RemoteError(
                self._portal.text(request, N_("other downloads are running")),
                {"code": "BUSY", "hint": self._portal.text(request, N_("Wait until one of them has ended."))},
            )
        user = self._portal.user(request)
        told = {"user": user.name if user else "", "archive": name, "target": target or "", "begin": begin, "end": end}
        log.info("an archive is downloaded", extra={"fields": told})
        self._running += 1
        try:
            await self._send(request, response, about | {"etag": etag}, begin, end)
        finally:
            self._running -= 1
        return response

    async def _send(
        self, request: web.Request, response: web.StreamResponse, about: dict[str, Any], begin: int, end: int
    ) -> None:
        async with aclosing(self._pieces(about, begin, end)) as pieces:
            await response.prepare(request)
            try:
                async for piece in pieces:
                    await response.write(piece)
                await response.write_eof()
            except ServiceError:
                # The answer has begun: only a connection that breaks tells the browser that this is not all of it.
                if request.transport is not None:
                    request.transport.abort()
                raise

    async def _pieces(self, about: dict[str, Any], begin: int, end: int) -> AsyncGenerator[bytes, None]:
        """Yield the bytes in order, IN_FLIGHT pieces asked for ahead."""
        window: deque[tuple[int, asyncio.Task[bytes]]] = deque()
        offset = begin
        try:
            while window or offset < end:
                while offset < end and len(window) < IN_FLIGHT:
                    length = min(PIECE, end - offset)
                    window.append((length, asyncio.create_task(self._piece(about, offset, length))))
                    offset += length
                length, task = window.popleft()
                try:
                    piece = await task
                finally:
                    task.cancel()  # does nothing when it has ended
                if len(piece) != length:
                    raise RemoteError("the archive ends too soon", {"code": "TARGET_CHANGED"})
                yield piece
        finally:
            for _, task in window:
                task.cancel()
            await asyncio.gather(*(task for _, task in window), return_exceptions=True)

    async def _piece(self, about: dict[str, Any], offset: int, length: int) -> bytes:
        """Read a piece; again when the service is busy or was away for a moment: all pieces are of one object."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        while True:
            try:
                # Not Portal.call: that asked for the role, and wrote it down, once for the whole download.
                told = await self._portal.gateway.call("archive.read", **about, offset=offset, length=length)
                return base64.b64decode(told["data"], validate=True)
            except (RemoteError, ConnectionLost) as error:
                if error.code not in ("BUSY", ConnectionLost.code) or loop.time() >= deadline:
                    raise
            except binascii.Error as error:
                raise RemoteError("the service has sent what is no base64", {"code": "ERROR"}) from error
            await asyncio.sleep(PAUSE)
