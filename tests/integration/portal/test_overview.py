"""The overview, the history and a job's page, as visitors see them before a real service."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.archive.names import archive_name
from tests.integration.portal.conftest import small_service
from tests.integration.portal.visit import Page, PortalProcess, Visitor
from tests.service_process import ServiceProcess, ended, idle


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with small_service(tmp_path_factory.mktemp("overview") / "service") as process:
        yield process


@pytest.fixture(scope="module")
def portal(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PortalProcess]:
    with PortalProcess(tmp_path_factory.mktemp("portal"), service.socket) as process:
        yield process


async def settled(service: ServiceProcess) -> None:
    async with service.client() as client:
        await idle(client)


async def backed_up(visitor: Visitor, service: ServiceProcess) -> Page:
    """Press the button on the overview and return the job's page at its end."""
    await visitor.get("/")
    page = await visitor.post("/jobs/backup")
    async with service.client() as client:
        await ended(client, {"id": page.path.rpartition("/")[2]})
    return await visitor.get(page.path)


async def test_a_backup_is_asked_for_once_however_often_the_button_is_pressed_and_shown_with_its_proof(
    tmp_path: Path,
) -> None:
    with (
        small_service(tmp_path / "service") as service,
        PortalProcess(tmp_path / "portal", service.socket) as portal,
    ):
        await settled(service)
        await pressed_twice(service, portal)


async def pressed_twice(service: ServiceProcess, portal: PortalProcess) -> None:
    async with portal.logged_in() as visitor:
        page = await visitor.get("/")
        assert "Everything is ready for the first backup" in page.words
        form = {name: page.field(name) for name in ("csrf", "idempotency_key")}
        twice = [await visitor.post("/jobs/backup", form) for _ in range(2)]
        assert twice[0].path == twice[1].path
        async with service.client() as client:
            job = await ended(client, {"id": twice[0].path.rpartition("/")[2]})
            assert len((await client.call("job.list", kinds=["backup"]))["jobs"]) == 1
        page = await visitor.get(twice[0].path)
        assert "every byte of it was checked" in page.words
        assert "Reading" in page.words.partition("What it said")[2]
        page = await visitor.get("/")
        assert "Read back and checked in 1 of 1 places" in page.words
        assert job["result"]["name"] in page.words
        assert "Backups work; something needs your attention" in page.words  # nothing runs by itself yet
        assert "No schedule is set" in page.words
        assert "A backup on 1 day." in page.words


async def test_a_reader_sees_everything_and_may_change_nothing(service: ServiceProcess, portal: PortalProcess) -> None:
    await settled(service)
    async with portal.logged_in("admin") as admin:
        job = await backed_up(admin, service)
    async with portal.logged_in("read") as reader:
        for path in ("/", "/jobs", job.path):
            page = await reader.get(path)
            assert page.status == 200
            assert "Back up now" not in page.words
            assert not re.search(r'action="/jobs[^"]*"[^>]*method="post"|method="post" action="/jobs', page.text)
        for path in ("/jobs/backup", f"{job.path}/cancel"):
            refused = await reader.post(path, {"idempotency_key": "x"})
            assert refused.status == 403


async def test_a_failed_backup_says_why_what_to_do_and_what_it_said(
    service: ServiceProcess, portal: PortalProcess
) -> None:
    await settled(service)
    shutil.rmtree(service.directory / "archives")
    async with portal.logged_in() as visitor:
        page = await backed_up(visitor, service)
        assert "It did not work. What it had begun is undone." in page.words
        assert "What to do:" in page.words
        assert "archives" in page.words.partition("What it said")[2]
        page = await visitor.get("/")
        assert "Backups need you now" in page.words
        assert "The last backup failed" in page.words
        (service.directory / "archives").mkdir()
        assert "every byte of it was checked" in (await backed_up(visitor, service)).words
        assert "Backups need you now" not in (await visitor.get("/")).words


async def test_jobs_are_filtered_and_paged_and_a_filter_that_finds_nothing_says_so(
    service: ServiceProcess, portal: PortalProcess
) -> None:
    async with service.client() as client, portal.logged_in() as visitor:
        await idle(client)
        for _ in range(26):
            await ended(client, await client.call("retention.apply"))
        first = await visitor.get("/jobs?kind=prune")
        assert len(set(re.findall(r'id="job-([0-9a-f]{16})"', first.text))) == 25
        older = re.search(r'href="(/jobs\?[^"]*before=[^"]*)"', first.text)
        assert older is not None
        second = await visitor.get(older[1].replace("&amp;", "&"))
        assert "kind=prune" in second.path
        assert len(set(re.findall(r'id="job-([0-9a-f]{16})"', second.text))) == 1
        assert "Newest" in second.words
        assert "No such jobs" in (await visitor.get("/jobs?kind=drill&state=failed")).words
        assert 'id="job-' in (await visitor.get("/jobs?kind=nonsense&state=%27")).text
        assert (await visitor.get("/jobs/0123456789abcdef")).status == 404
        assert (await visitor.get("/jobs/%3Cscript%3E")).status in (400, 404)


async def test_cancelling_too_late_is_told_on_the_job_s_own_page(
    service: ServiceProcess, portal: PortalProcess
) -> None:
    async with service.client() as client, portal.logged_in() as visitor:
        await idle(client)
        job = await ended(client, await client.call("retention.apply"))
        page = await visitor.get(f"/jobs/{job['id']}")
        assert "/cancel" not in page.text
        page = await visitor.post(f"/jobs/{job['id']}/cancel")
        assert page.status == 409
        assert "the job has ended already (succeeded)" in page.words
        assert "What it said" in page.words


async def test_a_running_backup_shows_how_far_it_is_and_is_cancelled_by_its_button(
    service: ServiceProcess, portal: PortalProcess
) -> None:
    await settled(service)
    now = datetime.now(UTC)
    taken = [service.directory / "archives" / archive_name(now + timedelta(minutes=n)) for n in range(3)]
    for path in taken:
        path.touch()  # a backup waits for a minute whose name is free
    async with service.client() as client, portal.logged_in() as visitor:
        job = await client.call("backup.start")
        async with asyncio.timeout(30):
            while "waiting for the next minute" not in (await visitor.get(f"/jobs/{job['id']}")).words:
                await asyncio.sleep(0.05)
        page = await visitor.get(f"/jobs/{job['id']}")
        assert "It is at work." in page.words
        assert f"file://{service.directory}/archives Waiting" in page.words  # its place is there from the start
        overview = await visitor.get("/")
        assert f'href="/jobs/{job["id"]}"' in overview.text
        assert "Back up now" not in overview.words
        page = await visitor.post(f"/jobs/{job['id']}/cancel")
        assert "It is being cancelled" in page.words
        assert (await ended(client, job))["state"] == "cancelled"
        assert "Somebody cancelled it." in (await visitor.get(f"/jobs/{job['id']}")).words
    for path in taken:
        path.unlink()


async def test_a_service_that_is_away_is_a_calm_page_and_comes_back(
    service: ServiceProcess, portal: PortalProcess
) -> None:
    await settled(service)
    async with portal.logged_in() as visitor:
        service.stop()
        for path in ("/", "/jobs"):
            page = await visitor.get(path)
            assert page.status == 503
            assert "Traceback" not in page.text
        service.start()
        await settled(service)
        assert (await visitor.get("/")).status == 200
