"""The service's status for monitoring: GET /metrics, /healthz and /readyz, and nothing else.

Plain HTTP without authentication, for this machine: it tells how backups go, and takes no orders. aiohttp (15 MiB) is
imported when a server is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from service.config_monitoring import address
from service.errors import ConfigError
from service.secret import redact

if TYPE_CHECKING:
    from aiohttp import web

MOST_CONNECTIONS = 16
IDLE_SECONDS = 15.0
"""A connection that has not brought a whole request in this time is closed."""
MOST_LINE_BYTES = 2048
MOST_HEADERS = 32

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_log = logging.getLogger(__name__)


class Health(Protocol):
    """What the service says of itself. Both are quick; None is good, else the reason why not."""

    def alive(self) -> str | None:
        """Tell whether what works through jobs is not stuck. A supervisor may restart a service that is."""

    def ready(self) -> str | None:
        """Tell whether jobs are accepted."""


class HasText(Protocol):
    """What gives the metrics."""

    def text(self) -> bytes:
        """Return them in Prometheus's text format."""


@contextlib.asynccontextmanager
async def status_server(listen: str, *, metrics: HasText, health: Health) -> AsyncIterator[tuple[str, int]]:
    """Serve while the block runs; give the address that is listened on (port 0 takes a free one).

    Raises ConfigError when `listen` (`host:port`) cannot be had.
    """
    server = _server(_Pages(metrics, health).answer)
    host, port = address(listen)

    def connection() -> asyncio.BaseProtocol:
        return server() if len(server.connections) < MOST_CONNECTIONS else _Refused()

    try:
        listener = await asyncio.get_running_loop().create_server(connection, host, port)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {listen} for monitoring: {error.strerror}",
            hint="Set http.listen to an address of this machine and a free port, or leave it out.",
        ) from error
    try:
        yield listener.sockets[0].getsockname()[:2]
    finally:
        listener.close()
        await server.shutdown(1.0)
        await listener.wait_closed()


class _Pages:
    """The three pages."""

    def __init__(self, metrics: HasText, health: Health) -> None:
        self._pages: dict[str, Callable[[], tuple[int, str, bytes]]] = {
            "/metrics": lambda: (200, METRICS_TYPE, metrics.text()),
            "/healthz": lambda: _told(health.alive()),
            "/readyz": lambda: _told(health.ready()),
        }

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        from aiohttp import web  # noqa: PLC0415

        page = self._pages.get(request.path) if request.method in {"GET", "HEAD"} else None
        try:
            status, kind, body = page() if page else _json(404, {"status": "not found"})
        except Exception:
            _log.exception("%s cannot be answered", request.path)
            status, kind, body = _json(500, {"status": "error"})
        headers = {"Content-Type": kind, "Cache-Control": "no-store"}
        return web.Response(status=status, body=body, headers=headers)


def _told(reason: str | None) -> tuple[int, str, bytes]:
    if reason is None:
        return _json(200, {"status": "ok"})
    return _json(503, {"status": "unavailable", "reason": redact(reason)})


def _json(status: int, content: dict[str, str]) -> tuple[int, str, bytes]:
    return status, "application/json", json.dumps(content).encode() + b"\n"


class _Refused(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


def _server(answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> web.Server:
    """Return aiohttp's plain server: the application around it has routes and middleware that three pages can spare."""
    from aiohttp import web  # noqa: PLC0415

    class Request(web.BaseRequest):
        async def _prepare_hook(self, response: web.StreamResponse) -> None:
            # Also in answers that aiohttp makes itself: the versions of what runs here are nobody's business.
            response.headers.pop("Server", None)

    def request(message, payload, protocol, writer, task):  # type: ignore[no-untyped-def]
        return Request(message, payload, protocol, writer, task, asyncio.get_running_loop())

    quiet = logging.getLogger(f"{__name__}.protocol")
    quiet.setLevel(logging.CRITICAL)  # what strangers send is no error of this service's
    return web.Server(
        answer,
        request_factory=request,
        logger=quiet,
        access_log=None,
        keepalive_timeout=IDLE_SECONDS,
        lingering_time=0,
        max_line_size=MOST_LINE_BYTES,
        max_field_size=MOST_LINE_BYTES,
        max_headers=MOST_HEADERS,
    )
