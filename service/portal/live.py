"""What happens, sent to browsers as server-sent events: GET /events.

    id: BOOT_ID SEQ            so that a browser that reconnects gets what it has missed; a page begins with ?after=,
                               the place at which it was asked for, so nothing is lost between the page and its events
    event: change | reset      reset: some are lost, look at everything anew
    data: {"type": "job.running", "job_id": "..."}

The data is small on purpose: a page fetches what concerns it. `portal.away` and `portal.back` tell of the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import Counter
from typing import Final

from aiohttp import web

from service.portal.gateway import Event, Listener
from service.portal.portal import Portal

HEARTBEAT_SECONDS: Final = 15.0
PROGRESS_SECONDS: Final = 1.0
STREAM_SECONDS: Final = 900.0
"""A stream ends after this time, and its browser comes again: who it is and whether it is there is seen anew."""
LOOK_SECONDS: Final = 2.0
"""How often is looked whether the browser is still there."""
MOST_STREAMS: Final = 200
STREAMS_OF_A_USER: Final = 20
"""Streams of one session (or of one user whom the reverse proxy names). Only pages that are seen have one."""

_ID = re.compile(r"([A-Za-z0-9-]{1,64}) ([0-9]{1,18})")


def routes(portal: Portal) -> list[web.RouteDef]:
    """Return the route of the events."""
    streams: Counter[str] = Counter()

    async def events(request: web.Request) -> web.StreamResponse:
        owner = portal.access.owner(request)
        if streams[owner] >= STREAMS_OF_A_USER or streams.total() >= MOST_STREAMS:
            return web.Response(status=503, headers={"Retry-After": "30"})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
        streams[owner] += 1
        try:
            with portal.gateway.listening(_after(request)) as listener:
                async with asyncio.timeout(STREAM_SECONDS):
                    await response.prepare(request)
                    await response.write(b"retry: 3000\n\n")
                    await _send(portal, request, response, listener)
        except (ConnectionResetError, TimeoutError):
            pass  # the browser went away, or has to come again
        finally:
            streams[owner] -= 1
            if not streams[owner]:
                del streams[owner]
        return response

    return [web.get("/events", events)]


def _after(request: web.Request) -> tuple[str, int] | None:
    found = _ID.fullmatch(request.headers.get("Last-Event-ID") or request.query.get("after", ""))
    return (found[1], int(found[2])) if found else None


async def _send(portal: Portal, request: web.Request, response: web.StreamResponse, listener: Listener) -> None:
    """Send until the browser goes away, the session ends, or the portal stops."""
    if portal.gateway.away is not None:
        listener.lost = False  # there is nothing to look at anew before it is back, and that will be told
        await response.write(_line(portal, {"type": "portal.away", "seq": None, "job_id": None}))
    while not listener.closed and portal.access.user(request, used=False) is not None:
        lost = listener.lost
        told = listener.take()
        if lost:
            await response.write(b"event: reset\ndata: {}\n\n")
        for event in told:
            await response.write(_line(portal, event))
        progress_only = bool(told) and all(event["type"] == "progress" for event in told)
        if progress_only:
            await asyncio.sleep(PROGRESS_SECONDS)
        if not await _news(portal, request, listener):
            await response.write(b": still here\n\n")


async def _news(portal: Portal, request: web.Request, listener: Listener) -> bool:
    """Wait for something to send, or for its user to go; False when there was nothing and a heartbeat is due."""
    for _ in range(round(HEARTBEAT_SECONDS / LOOK_SECONDS)):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await listener.news.wait()
            return True
        if request.transport is None or request.transport.is_closing():
            raise ConnectionResetError
        if portal.access.user(request, used=False) is None:
            return True
    return False


def _line(portal: Portal, event: Event) -> bytes:
    data = json.dumps({"type": event["type"], "job_id": event["job_id"]})
    name = f"id: {portal.gateway.boot_id} {event['seq']}\n" if event["seq"] is not None else ""
    return f"{name}event: change\ndata: {data}\n\n".encode()
