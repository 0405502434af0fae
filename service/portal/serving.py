"""The recipe of `deviceon-backup portal`: listen, serve, stop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Final, cast

from aiohttp import web

from service.client import Client
from service.config_monitoring import address
from service.errors import ConfigError
from service.portal.access import Access
from service.portal.app import application
from service.portal.gateway import Gateway
from service.portal.portal import Portal
from service.portal.settings import PortalSettings
from service.rpc.unix_socket import listening

log = logging.getLogger(__name__)

STOP_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 20.0
"""A connection that has not brought a whole request in this time is closed."""
LINGERING_SECONDS: Final = 5.0
STALLED_SECONDS: Final = 30.0
"""A connection whose client has taken nothing of what waits for it in this time is closed."""
MOST_CONNECTIONS: Final = 512
MOST_LINE_BYTES: Final = 8190

_quiet = logging.getLogger(f"{__name__}.protocol")
_quiet.setLevel(logging.CRITICAL)  # what strangers send is no error of this service's


async def serve(settings: PortalSettings, *, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises ConfigError when it cannot begin."""
    access = Access(settings)
    with _listener(settings) as listener:
        port = None if settings.socket else listener.getsockname()[1]
        connect = lambda timeout: Client.unix(settings.service.socket, timeout=timeout)  # noqa: E731
        async with Gateway(connect, timeout=settings.service.timeout) as gateway:
            app = application(Portal(settings, gateway, access, settings.allowed_origins(port)))
            runner = web.AppRunner(
                app,
                access_log=None,
                logger=_quiet,
                handle_signals=False,
                shutdown_timeout=STOP_SECONDS,
                keepalive_timeout=IDLE_SECONDS,
                lingering_time=LINGERING_SECONDS,
                max_line_size=MOST_LINE_BYTES,
                max_field_size=MOST_LINE_BYTES,
            )
            await runner.setup()
            try:
                await _listen(runner, listener)
                where = settings.socket or f"http://{settings.listen}"
                log.info("ready on %s", where, extra={"fields": {"port": port}})
                await stop.wait()
                log.info("stopping")
                gateway.end_listening()
            finally:
                listener.close()
                await runner.cleanup()


async def _listen(runner: web.AppRunner, listener: socket.socket) -> None:
    """Take connections, at most MOST_CONNECTIONS at once."""
    server = runner.server
    assert server is not None
    # Also in answers that aiohttp makes itself, to what is no request: the versions of what runs here.
    make: Callable[..., web.BaseRequest] = server.request_factory
    server.request_factory = functools.partial(make, _cls=_Request)

    def connection() -> asyncio.BaseProtocol:
        return _Watched(server()) if len(server.connections) < MOST_CONNECTIONS else _Refused()

    loop = asyncio.get_running_loop()
    if listener.family == socket.AF_UNIX:
        await loop.create_unix_server(connection, sock=listener)
    else:
        await loop.create_server(connection, sock=listener)


class _Request(web.Request):
    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        await super()._prepare_hook(response)
        response.headers.pop("Server", None)


class _Watched(asyncio.Protocol):
    """A connection that is closed when its client takes nothing: answers wait for it, and so would the connection."""

    def __init__(self, served: web.RequestHandler) -> None:
        self._served = served
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._served.connection_made(transport)
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by what it does, not by its class
        self._look()

    def _look(self) -> None:
        left = self._transport.get_write_buffer_size()
        if left and left == self._left:
            self._transport.abort()
            return
        self._left = left
        self._next = asyncio.get_running_loop().call_later(STALLED_SECONDS, self._look)

    def data_received(self, data: bytes) -> None:
        self._served.data_received(data)

    def eof_received(self) -> bool | None:
        self._served.eof_received()
        return None

    def pause_writing(self) -> None:
        self._served.pause_writing()

    def resume_writing(self) -> None:
        self._left = 0  # some was taken, also when as much waits again
        self._served.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._next.cancel()
        self._served.connection_lost(exc)


class _Refused(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()


@contextlib.contextmanager
def _listener(settings: PortalSettings) -> Iterator[socket.socket]:
    if settings.socket is not None:
        with listening(settings.socket, group=settings.socket_group) as listener:
            yield listener
        return
    assert settings.listen is not None
    host, port = address(settings.listen)
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {settings.listen}: {error.strerror}",
            hint="Set listen to an address of this machine and a free port.",
        ) from error
    with listener:
        listener.setblocking(False)
        yield listener
