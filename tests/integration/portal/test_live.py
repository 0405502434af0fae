"""What happens reaches browsers that look, also after they or the service were away."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from tests.integration.portal.conftest import small_service, wait_until_ready
from tests.integration.portal.visit import PortalProcess, Visitor
from tests.service_process import ServiceProcess, ended, idle


@dataclass
class Stream:
    """Server-sent events as a browser reads them."""

    answer: aiohttp.ClientResponse
    last_id: str = ""
    seen: list[str] = field(default_factory=list)

    async def next(self, *, seconds: float = 30.0) -> tuple[str, str]:
        """Return the next event's name and type; a heartbeat is `("", comment)`."""
        name, data = "", ""
        async with asyncio.timeout(seconds):
            while line := (await self.answer.content.readline()).decode().rstrip("\n"):
                kind, _, value = line.partition(": ")
                if kind == "id":
                    self.last_id = value
                elif kind == "event":
                    name = value
                elif kind == "data":
                    data = json.loads(value).get("type", "")
                elif kind == "":
                    data = value
        self.seen.append(data)
        return name, data

    async def until(self, wanted: str) -> None:
        """Read up to an event of this type."""
        while (await self.next())[1] != wanted:
            assert not self.answer.content.at_eof(), f"ended before {wanted}: {self.seen}"


@asynccontextmanager
async def stream(visitor: Visitor, *, after: str = "") -> AsyncIterator[Stream]:
    headers = {"Last-Event-ID": after} if after else {}
    async with visitor.session.get("/events", headers=headers, timeout=aiohttp.ClientTimeout(total=None)) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/event-stream"
        made = Stream(answer)
        assert await made.next() == ("", "")  # how long to wait before coming again
        yield made


async def until_connected(portal: PortalProcess) -> None:
    """Return when the portal hears of the service's events; one that began before it tries again now and then."""
    async with asyncio.timeout(30), portal.visitor() as visitor:
        while json.loads((await visitor.get("/readyz")).text)["service"] != "ok":
            await asyncio.sleep(0.02)


async def try_in_vain(service: ServiceProcess) -> None:
    """Have the service do a job that fails at once; a backup would wait for the next minute, for its name."""
    async with service.client() as client:
        job = await client.call("archive.verify", archive="Backup_20200101_0000Z.zip")
        assert (await ended(client, job))["state"] == "failed"


async def test_all_browsers_hear_of_a_job_over_one_subscription(service: ServiceProcess, portal: PortalProcess) -> None:
    """The service gives a user 4 subscriptions and 8 connections; here are 12 browsers."""
    async with portal.logged_in("read") as visitor, AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(stream(visitor)) for _ in range(12)]
        await try_in_vain(service)
        for each in streams:
            await each.until("job.failed")
            assert [one for one in each.seen if one.startswith("job.")][:2] == ["job.queued", "job.running"]


async def test_who_comes_again_gets_what_happened_meanwhile(service: ServiceProcess, portal: PortalProcess) -> None:
    async with portal.logged_in() as visitor:
        async with stream(visitor) as first:
            await try_in_vain(service)
            await first.until("job.failed")
        await try_in_vain(service)
        async with stream(visitor, after=first.last_id) as again:
            await again.until("job.failed")
            assert [one for one in again.seen if one.startswith("job.")] == ["job.queued", "job.running", "job.failed"]
        async with stream(visitor, after="another-life 7") as lost:
            assert await lost.next() == ("reset", "")


async def test_logging_out_ends_the_stream(portal: PortalProcess) -> None:
    async with portal.logged_in() as visitor, portal.logged_in() as other:
        async with stream(visitor) as mine:
            cookies = "; ".join(f"{name}={value}" for name, value in visitor.cookies.items())
            async with portal.visitor(Cookie=cookies) as same:
                await same.get("/jobs")
                await same.post("/logout")
            async with asyncio.timeout(60):
                while not mine.answer.content.at_eof():
                    await mine.next(seconds=60)
        assert (await other.get("/jobs")).path == "/jobs"


async def test_a_service_that_goes_away_and_comes_back_is_told_and_needs_no_reload(tmp_path: Path) -> None:
    service = small_service(tmp_path / "service")
    with service, PortalProcess(tmp_path / "portal", service.socket) as portal:
        wait_until_ready(service)
        await until_connected(portal)
        async with portal.logged_in() as visitor, stream(visitor) as events:
            await try_in_vain(service)
            await events.until("job.failed")
            service.kill()
            await events.until("portal.away")
            page = await visitor.get("/jobs")
            assert page.status == 503
            assert "The backup service cannot be reached" in page.words
            assert "Traceback" not in page.text
            assert (await visitor.get("/readyz")).status == 200, "or nobody would see that page"
            service.start()
            await events.until("portal.back")
            wait_until_ready(service)
            assert (await visitor.get("/jobs")).status == 200
            await try_in_vain(service)
            await events.until("job.failed")


async def test_a_portal_starts_before_its_service(tmp_path: Path) -> None:
    service = small_service(tmp_path / "service")
    with PortalProcess(tmp_path / "portal", service.socket) as portal:
        async with portal.visitor() as visitor:
            page = await visitor.log_in("admin-token-of-the-tests-0123456789")
            assert page.status == 503
            assert "cannot be reached" in page.words
            with service:
                wait_until_ready(service)
                async with asyncio.timeout(30):
                    while (await visitor.get("/jobs")).status != 200:
                        await asyncio.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_the_portal_in_good_order_while_browsers_listen(
    service: ServiceProcess, tmp_path: Path, number: signal.Signals
) -> None:
    with PortalProcess(tmp_path, service.socket) as portal:
        async with portal.logged_in() as visitor, stream(visitor) as events:
            began = time.monotonic()
            code = await asyncio.to_thread(portal.stop, number)
            assert code == 0
            assert time.monotonic() - began < 20
            await events.next()
            assert events.answer.content.at_eof()
        assert portal.said("stopping")
        assert "Traceback" not in portal.log


async def test_what_comes_from_outside_stays_text(tmp_path: Path) -> None:
    """Names of the server, of its files and of what goes wrong, as an attacker would choose them."""
    evil = "<img src=x onerror=alert(1)>"
    service = small_service(
        tmp_path / "service",
        server={"product": f"{evil}'\"&", "version": '5.4"><script>alert(2)</script>'},
        sources=[{"type": "tree", "path": str(tmp_path / f"no {evil} here")}],
        target={
            "url": f"file://{tmp_path}/service/archives-{evil.replace('/', '')}",
            "storage_options": {"auto_mkdir": True},
        },
    )
    with service, PortalProcess(tmp_path / "portal", service.socket) as portal:
        wait_until_ready(service)
        async with service.client() as client:
            job = await ended(client, await client.call("backup.start"))
            assert job["state"] == "failed"
            assert "<img" in job["error"]["message"]
            await idle(client)
        seen = ""
        async with portal.logged_in() as visitor:
            for path in ("/", "/settings", "/archives", "/jobs", f"/jobs/{job['id']}", "/restore", "/reset", "/drills"):
                page = await visitor.get(path)
                assert page.status < 500, (path, page.words)
                assert "<img" not in page.text and "<script>" not in page.text, path
                seen += page.text
            page = await visitor.get("/archives/%3Cscript%3Ealert(1)%3C%2Fscript%3E")
            assert "<script>" not in page.text
            page = await visitor.get("/jobs/%3Cscript%3E?before=%3Cscript%3E")
            assert "<script>" not in page.text
        assert seen.count("&lt;img src=x onerror=alert(1)&gt;") >= 2
