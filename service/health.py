"""Whether the server works: a program, an answer over HTTP, a port; tried again until it does or the time is up."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import urlsplit

from service.config_restore import HealthSettings
from service.errors import HookFailed, Unhealthy
from service.progress import Progress

PAUSE_SECONDS = 1.0
"""Between two tries."""
_STATUS_LINE_BYTES = 1024

Check = Callable[[], Awaitable[None]]


async def wait_until_healthy(settings: HealthSettings, command: Check | None, progress: Progress) -> None:
    """Return once everything that is asked for held in one try. Raises Unhealthy when none did within the time.

    `command` runs the program of the settings, and raises HookFailed.
    """
    last = "no try ended"
    try:
        async with asyncio.timeout(settings.within):
            with progress.part("health", quiet=True):
                while True:
                    try:
                        await _try(settings, command)
                    except (Unhealthy, HookFailed) as error:
                        last = str(error)
                    else:
                        return
                    await asyncio.sleep(PAUSE_SECONDS)
    except TimeoutError:
        raise Unhealthy(
            f"the server did not work within {settings.within:g} seconds: {last}",
            hint="Look at the server's log, and at restore.hooks.health in the configuration.",
        ) from None


async def _try(settings: HealthSettings, command: Check | None) -> None:
    if settings.tcp is not None:
        host, _, port = settings.tcp.rpartition(":")
        await _connect(host.strip("[]"), int(port), settings.timeout)
    if settings.url is not None:
        status = await _status(settings, settings.url)
        if status != settings.status:
            raise Unhealthy(f"{settings.url} answers with status {status} instead of {settings.status}")
    if command is not None:
        await command()


async def _connect(host: str, port: int, seconds: float) -> None:
    async with _bounded(f"{host} port {port}", seconds), _opened(host, port, None):
        pass


async def _status(settings: HealthSettings, url: str) -> int:
    """Ask for a URL and return the answer's status; the rest is not read."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    secure = parts.scheme == "https"
    tls = _tls(verified=settings.verify_certificate) if secure else None
    path = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
    async with (
        _bounded(url, settings.timeout),
        _opened(parts.hostname, parts.port or (443 if secure else 80), tls) as (reader, writer),
    ):
        request = f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUser-Agent: deviceon-backup\r\nAccept: */*\r\n"
        writer.write(f"{request}Connection: close\r\n\r\n".encode())
        await writer.drain()
        words = (await reader.readline())[:_STATUS_LINE_BYTES].split()
        if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
            raise Unhealthy(f"what answers at {url} does not speak HTTP")
        return int(words[1])


def _tls(*, verified: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@contextlib.asynccontextmanager
async def _opened(
    host: str, port: int, tls: ssl.SSLContext | None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()  # no waiting for the other side's goodbye


@contextlib.asynccontextmanager
async def _bounded(what: str, seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Unhealthy(f"{what} does not answer within {seconds:g} seconds") from None
    except (OSError, ValueError, EOFError) as error:
        raise Unhealthy(f"{what} cannot be reached: {error}") from error
