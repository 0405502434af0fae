"""What clients of the portal can take from others: nothing for long."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest

from service.portal.gateway import AT_ONCE, CALLERS
from service.portal.live import MOST_STREAMS, STREAMS_OF_A_USER
from service.portal.protection import MOST_BODY_BYTES
from service.portal.rates import MOST_PEERS, Rates
from service.portal.sessions import MOST_OF_A_USER, MOST_SESSIONS, Sessions, User
from tests.hanging_mounts import dead_mount
from tests.integration.portal.conftest import small_service, wait_until_ready
from tests.integration.portal.visit import TOKENS, PortalProcess, Visitor
from tests.service_process import ServiceProcess


@asynccontextmanager
async def stream(portal: PortalProcess, cookie: str) -> AsyncIterator[tuple[asyncio.StreamReader, int]]:
    """Open the events as a browser does; give what comes and the status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", portal.port)
    try:
        writer.write(f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{portal.port}\r\nCookie: {cookie}\r\n\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        yield reader, int(head.split()[1])
    finally:
        writer.close()


def cookie_of(visitor: Visitor) -> str:
    return "; ".join(f"{name}={value}" for name, value in visitor.cookies.items())


async def test_a_thousand_that_listen_leave_room_for_those_who_look(service: ServiceProcess, tmp_path: Path) -> None:
    with PortalProcess(tmp_path, service.socket) as portal:
        async with portal.logged_in() as visitor, contextlib.AsyncExitStack() as stack:
            cookie = cookie_of(visitor)

            async def listen() -> int:
                try:
                    return (await stack.enter_async_context(stream(portal, cookie)))[1]
                except (OSError, asyncio.IncompleteReadError):
                    return 0  # too many connections: closed at once

            statuses = [status for _ in range(10) for status in await asyncio.gather(*(listen() for _ in range(100)))]
            assert statuses.count(200) == STREAMS_OF_A_USER < MOST_STREAMS
            assert set(statuses) <= {200, 503, 0}
        async with portal.logged_in() as another:
            began = time.monotonic()
            assert (await another.get("/jobs")).status == 200
            assert time.monotonic() - began < 10
        assert portal.stop() == 0


async def test_a_stream_that_was_refused_may_come_again_when_another_ends(portal: PortalProcess) -> None:
    async with portal.logged_in() as visitor, contextlib.AsyncExitStack() as stack:
        cookie = cookie_of(visitor)
        for _ in range(STREAMS_OF_A_USER - 1):
            await stack.enter_async_context(stream(portal, cookie))
        async with stream(portal, cookie) as (_, status):
            assert status == 200
            async with stream(portal, cookie) as (_, refused):
                assert refused == 503
        async with asyncio.timeout(30):
            while True:
                async with stream(portal, cookie) as (_, status):
                    if status == 200:
                        return
                await asyncio.sleep(0.05)


async def test_a_form_that_is_too_large_is_refused(portal: PortalProcess) -> None:
    async with portal.logged_in() as visitor:
        page = await visitor.post("/preferences", {"next": "x" * MOST_BODY_BYTES})
        assert page.status == 413
        assert "too large" in page.words
        assert (await visitor.get("/jobs")).status == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /jobs HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST /login HTTP/1.1\r\nHost: %b\r\nOrigin: http://%b\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        b"Content-Length: 9\r\n\r\n",
    ],
    ids=["nothing", "half a head", "a head and no body"],
)
async def test_who_does_not_go_on_is_closed(service: ServiceProcess, tmp_path: Path, sent: bytes) -> None:
    with PortalProcess(tmp_path, service.socket, module="tests.integration.portal.hasty") as portal:
        reader, writer = await asyncio.open_connection("127.0.0.1", portal.port)
        writer.write(sent.replace(b"%b", f"127.0.0.1:{portal.port}".encode()))
        async with asyncio.timeout(30):
            while await reader.read(65536):
                pass
        writer.close()


async def test_many_connections_that_say_nothing_end_by_themselves(service: ServiceProcess, tmp_path: Path) -> None:
    with PortalProcess(tmp_path, service.socket, module="tests.integration.portal.hasty") as portal:
        idle = [socket.create_connection(("127.0.0.1", portal.port)) for _ in range(700)]
        try:
            async with asyncio.timeout(60):
                while True:
                    with contextlib.suppress(OSError, aiohttp.ClientError):
                        async with portal.visitor() as visitor:
                            if (await visitor.log_in(TOKENS["read"])).status == 200:
                                break
                    await asyncio.sleep(0.1)
        finally:
            for each in idle:
                each.close()
        assert "Traceback" not in portal.log


async def test_who_takes_no_answer_is_closed(service: ServiceProcess, tmp_path: Path) -> None:
    with PortalProcess(tmp_path, service.socket, module="tests.integration.portal.hasty") as portal:
        before = _sockets_of(portal)
        with socket.socket() as greedy:
            greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            greedy.connect(("127.0.0.1", portal.port))
            greedy.setblocking(False)
            asked = f"GET /static/portal.css HTTP/1.1\r\nHost: 127.0.0.1:{portal.port}\r\n\r\n".encode()
            with contextlib.suppress(BlockingIOError):  # it sends more than anybody takes in
                for _ in range(100):
                    greedy.send(asked * 100)
            async with asyncio.timeout(30):
                while _sockets_of(portal) == before:
                    await asyncio.sleep(0.02)
                while _sockets_of(portal) > before:
                    await asyncio.sleep(0.05)
        assert "Traceback" not in portal.log


async def test_who_takes_a_long_answer_slowly_gets_all_of_it(service: ServiceProcess, tmp_path: Path) -> None:
    with PortalProcess(tmp_path, service.socket, module="tests.integration.portal.hasty") as portal:
        reader, writer = await asyncio.open_connection("127.0.0.1", portal.port, limit=4096)
        head = f"GET /static/portal.css HTTP/1.1\r\nHost: 127.0.0.1:{portal.port}\r\n"
        most = 200
        writer.write(f"{head}\r\n".encode() * (most - 1) + f"{head}Connection: close\r\n\r\n".encode())
        answers, until = 0, time.monotonic() + 60
        last = b""
        while piece := await reader.read(256 * 1024):
            answers += (last + piece).count(b"HTTP/1.1 200 OK") - last.count(b"HTTP/1.1 200 OK")
            last = piece[-14:]
            await asyncio.sleep(0.01)
            assert time.monotonic() < until
        writer.close()
        assert answers == most


async def test_a_target_that_hangs_keeps_no_other_page_waiting(workspace: Path) -> None:
    """However many look at it: all other pages are those of a service that is well."""
    with contextlib.ExitStack() as stack:
        dead = stack.enter_context(dead_mount(workspace / "dead"))
        service = stack.enter_context(small_service(workspace / "service", copies=[{"url": f"file://{dead}"}]))
        wait_until_ready(service)
        portal = stack.enter_context(PortalProcess(workspace / "portal", service.socket))
        async with portal.logged_in() as visitor, asyncio.TaskGroup() as looking:
            hung = f"/archives?target={quote(f'file://{dead}', safe='')}"
            many = [looking.create_task(visitor.get(hung)) for _ in range(2 * CALLERS * AT_ONCE)]
            await asyncio.sleep(1)  # each has asked by now, or the pages below find it easier
            async with asyncio.timeout(15):
                for path in ("/", "/jobs", "/drills"):
                    assert (await visitor.get(path)).status == 200
            assert not any(task.done() for task in many)
            for task in many:
                task.cancel()


def _sockets_of(portal: PortalProcess) -> int:
    assert portal.process is not None
    count = 0
    for file in Path(f"/proc/{portal.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += str(file.readlink()).startswith("socket:")
    return count


@pytest.mark.parametrize("sent", [b"garbage\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 20000 + b"\r\n\r\n"])
async def test_what_is_no_request_learns_nothing_of_what_runs_here(portal: PortalProcess, sent: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", portal.port)
    writer.write(sent)
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    assert b" 400 " in answer.partition(b"\r\n")[0]
    assert b"aiohttp" not in answer and b"Server:" not in answer


def test_failures_are_counted_for_each_and_for_all_and_come_back_with_time() -> None:
    rates = Rates(a_peer=5, all_peers=20)
    for _ in range(5):
        assert rates.wait("a", now=100.0) == 0
        rates.failed("a", now=100.0)
    assert rates.wait("a", now=100.0) == 12
    assert rates.wait("b", now=100.0) == 0
    assert rates.wait("a", now=112.0) == 0
    for number in range(20):
        rates.failed(f"{number}", now=112.0)
    assert rates.wait("somebody new", now=112.0) > 0
    assert rates.wait("somebody new", now=172.0) == 0
    assert rates.wait("a", now=1e6) == 0


def test_neither_peers_nor_sessions_grow_without_end() -> None:
    rates, sessions = Rates(), Sessions(idle=60.0, absolute=600.0)
    for number in range(MOST_PEERS + 100):
        rates.failed(f"{number}", now=float(number) * 100)
    assert len(rates._peers) == MOST_PEERS
    first = sessions.begin(User("first", "read"), now=0.0)
    for number in range(MOST_SESSIONS + 99):
        sessions.begin(User(f"somebody {number}", "read"), now=0.0)
    assert len(sessions._sessions) == MOST_SESSIONS
    assert sessions.find(first.id, now=0.0, used=False) is None


def test_who_logs_in_again_and_again_ends_no_session_of_others() -> None:
    sessions = Sessions(idle=60.0, absolute=600.0)
    admin = sessions.begin(User("admin", "admin"), now=0.0)
    his = [sessions.begin(User("reader", "read"), now=0.0) for _ in range(MOST_SESSIONS + 1)]
    assert sessions.find(admin.id, now=0.0, used=False) is not None
    lasting = [each for each in his if sessions.find(each.id, now=0.0, used=False)]
    assert lasting == his[-MOST_OF_A_USER:]
