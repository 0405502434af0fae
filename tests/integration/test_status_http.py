"""The service's status over real connections: what is answered, what is refused, and that nobody can hold it up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from service import http
from service.config_monitoring import HttpSettings, address
from service.errors import ConfigError
from service.http import MOST_CONNECTIONS, status_server
from service.metrics import Metrics
from service.secret import remember


class Told:
    """Health as the test says."""

    def __init__(self) -> None:
        self.dead: str | None = None
        self.busy: str | None = None

    def alive(self) -> str | None:
        return self.dead

    def ready(self) -> str | None:
        return self.busy


@pytest.fixture
def health() -> Told:
    return Told()


@pytest.fixture
async def port(health: Told) -> AsyncIterator[int]:
    async with status_server("127.0.0.1:0", metrics=Metrics(), health=health) as (_, port):
        yield port


async def raw(port: int, request: bytes) -> bytes:
    """Send bytes, and return all that comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def get(port: int, path: str, *, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    answer = await raw(port, f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


async def test_metrics_are_served_as_text(port: int) -> None:
    status, headers, body = await get(port, "/metrics")
    assert status == 200
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b"deviceon_backup_build_info" in body
    assert (await get(port, "/metrics?x=1"))[0] == 200
    status, _, body = await get(port, "/metrics", method="HEAD")
    assert (status, body) == (200, b"")


async def test_health_is_200_or_503_with_the_reason_and_no_secret(port: int, health: Told) -> None:
    remember("canary-Zx81")
    for path in ("/healthz", "/readyz"):
        status, headers, body = await get(port, path)
        assert (status, json.loads(body)) == (200, {"status": "ok"})
        assert headers["content-type"] == "application/json"
        assert headers["cache-control"] == "no-store"
    health.dead, health.busy = "the worker has not moved for 600 s", "starting with canary-Zx81"
    status, _, body = await get(port, "/healthz")
    assert (status, json.loads(body)["reason"]) == (503, health.dead)
    status, _, body = await get(port, "/readyz")
    assert (status, json.loads(body)["reason"]) == (503, "starting with ***")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", path) for path in ("/", "/metrics/", "//metrics", "/healthz/..", "/Metrics", "/static/%2e%2e/etc")),
        *((method, "/metrics") for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH")),
    ],
)
async def test_everything_else_is_404(port: int, method: str, path: str) -> None:
    assert (await get(port, path, method=method))[0] == 404


async def test_a_check_that_fails_is_500_and_is_logged(
    port: int, health: Told, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> str | None:
        raise ValueError("broken")

    monkeypatch.setattr(health, "alive", broken)
    status, headers, body = await get(port, "/healthz")
    assert status == 500
    assert "server" not in headers
    assert b"broken" not in body
    assert "/healthz cannot be answered" in caplog.text


MALFORMED = {
    "no HTTP": b"hello\r\n\r\n",
    "a long line": b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a long header": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 5000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: x\r\n" % n for n in range(100)) + b"\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "TLS": bytes.fromhex("160301020001000001fc0303") + bytes(64) + b"\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED)
async def test_what_is_malformed_or_too_long_is_400_without_a_word_in_the_log(
    port: int, request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = await raw(port, request_bytes)
    assert answer.startswith(b"HTTP/1.0 400") or answer.startswith(b"HTTP/1.1 400")
    assert b"\r\nserver:" not in answer.lower()
    assert b"aiohttp" not in answer.lower()
    assert b"python" not in answer.lower()
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
    assert (await get(port, "/healthz"))[0] == 200


async def test_no_answer_tells_what_runs_here_and_no_request_is_logged(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for path in ("/metrics", "/healthz", "/nothing"):
        _, headers, _ = await get(port, path)
        assert "server" not in headers
    assert caplog.records == []


async def test_a_body_is_not_waited_for(port: int) -> None:
    request = b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nx"
    answer = await asyncio.wait_for(raw(port, request), http.IDLE_SECONDS / 2)
    assert answer.startswith(b"HTTP/1.1 404")


async def test_of_too_many_connections_the_last_are_dropped_and_the_rest_go_on(port: int) -> None:
    async with contextlib.AsyncExitStack() as stack:
        first = []
        for _ in range(MOST_CONNECTIONS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            first.append((reader, writer))
        with contextlib.suppress(ConnectionError):
            assert await raw(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        reader, writer = first[0]
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 20)).count(b"HTTP/1.1 200") == 1


async def test_a_request_that_never_ends_is_dropped(health: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "IDLE_SECONDS", 0.3)
    async with status_server("127.0.0.1:0", metrics=Metrics(), health=health) as (_, port):
        assert await raw(port, b"") == b""
        assert await raw(port, b"GET /healthz HTTP/1.1\r\nHost:") == b""
        # Kept alive after an answer, and then idle.
        assert (await raw(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_leaving_closes_idle_connections_and_lets_go_of_the_port(health: Told) -> None:
    before = asyncio.all_tasks()
    async with status_server("127.0.0.1:0", metrics=Metrics(), health=health) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await reader.readline()
    await asyncio.wait_for(reader.read(), http.IDLE_SECONDS / 2)
    writer.close()
    async with status_server(f"127.0.0.1:{port}", metrics=Metrics(), health=health) as (host, again):
        assert (host, again) == ("127.0.0.1", port)
        with pytest.raises(ConfigError, match="cannot listen on") as caught:
            async with status_server(f"127.0.0.1:{port}", metrics=Metrics(), health=health):
                pass
        assert "http.listen" in caught.value.hint
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_it_listens_on_ipv6_too(health: Told) -> None:
    async with status_server("[::1]:0", metrics=Metrics(), health=health) as (host, _):
        assert host == "::1"


async def test_it_works_on_uvloop() -> None:
    program = """
import asyncio, urllib.request, uvloop
from service.http import status_server
from service.metrics import Metrics
class Good:
    def alive(self): return None
    def ready(self): return None
async def main():
    async with status_server("127.0.0.1:0", metrics=Metrics(), health=Good()) as (host, port):
        answer = await asyncio.to_thread(urllib.request.urlopen, f"http://{host}:{port}/healthz")
        with answer:
            print(answer.status)
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "200\n", "")


@pytest.mark.parametrize("listen", ["127.0.0.1", ":9847", "127.0.0.1:", "127.0.0.1:65536", "::1:80", "a b:1", "[::1]"])
def test_an_address_without_host_or_port_is_refused(listen: str) -> None:
    with pytest.raises(ValueError, match="must be an address and a port"):
        HttpSettings(listen=listen)


def test_addresses_are_understood() -> None:
    assert address("127.0.0.1:9847") == ("127.0.0.1", 9847)
    assert address("[::1]:1") == ("::1", 1)
    assert HttpSettings(listen="localhost:9847").listen == "localhost:9847"
    assert HttpSettings().listen is None


def test_importing_it_does_not_import_aiohttp() -> None:
    program = "import sys, service.http, service.notify; print([m for m in ('aiohttp', 'apprise') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
