"""Every path through the portal, as a person walks it. `show(page, name)` is called in each state worth looking at.

The tests hold each state against what WCAG asks; `make screenshots` takes its picture. What a chapter changes and
others need, it brings back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.async_api import Locator, Page, expect

from demo.compare import diff
from service.client import Client
from tests.browser.accessibility import WATCH_SHIFTS, require_still
from tests.browser.machine import Machine, PortalProcess
from tests.service_process import ended, idle

Show = Callable[[Page, str], Awaitable[None]]
SLOW, CRAWLING = 1_500_000.0, 30_000.0
"""Bytes a second to S3: a backup moves so that one can watch it, or hardly moves while it is looked at."""


@dataclass
class Visit:
    """One tab of a visitor, what is behind the portal, and who looks."""

    page: Page
    portal: PortalProcess
    machine: Machine
    client: Client
    show: Show

    async def go(self, path: str) -> None:
        await self.page.goto(f"{self.portal.origin}{path}")

    def button(self, name: str | re.Pattern[str]) -> Locator:
        return self.page.locator("main").get_by_role("button", name=name).first

    async def press(self, name: str | re.Pattern[str]) -> None:
        """Press a button of the page's content."""
        await self.button(name).click()

    async def follow(self, name: str | re.Pattern[str]) -> None:
        """Follow a link of the page's content."""
        await self.page.locator("main").get_by_role("link", name=name).first.click()

    async def sees(self, text: str | re.Pattern[str]) -> None:
        await expect(self.page.locator("main").get_by_text(text).filter(visible=True).first).to_be_visible()

    async def job(self) -> dict[str, Any]:
        """Wait for the end of the job whose page this is, as the service tells it; the page tells it, too."""
        await self.page.wait_for_url(re.compile(r"/jobs/[0-9a-f]{16}$"))
        job = await ended(self.client, {"id": self.page.url.rpartition("/")[2]})
        word = {"succeeded": "Succeeded", "failed": "Failed", "cancelled": "Cancelled", "partial": "Partly done"}
        await self.sees(word[job["state"]])
        return job

    async def archives(self) -> list[dict[str, Any]]:
        """Return what is in the first target, the newest first."""
        found: list[dict[str, Any]] = (await self.client.call("archive.list"))["archives"]
        return found


async def first_use(visit: Visit) -> None:
    """Find nothing set, set destination, schedule and retention, and make the first backup."""
    page, show = visit.page, visit.show
    target = visit.machine.s3_target("first-use")
    bucket, prefix = target["url"].removeprefix("s3://").split("/")
    options = target["storage_options"]
    await visit.go("/")
    await show(page, "overview-new")
    await visit.go("/archives")
    await visit.sees("There is no target yet")
    await show(page, "archives-new")
    await visit.follow("To the settings")
    await page.get_by_label("S3", exact=True).check()
    await page.get_by_label("Bucket").fill(bucket)
    await page.get_by_label("Prefix").fill(prefix)
    await page.get_by_label("Endpoint").fill(options["endpoint_url"])
    await page.get_by_label("Access key").fill(options["key"]["secret"])
    await page.get_by_label("Secret key").fill("not the secret")
    await visit.press("Test the destination")
    await visit.sees("The destination did not pass its test")
    await visit.sees("refused (SignatureDoesNotMatch)")
    await show(page, "settings-refused")
    secret = options["secret"]["secret"]
    await page.get_by_label("Secret key").fill(secret)
    await visit.press("Test the destination")
    await visit.sees("The destination passed its test")
    assert await page.get_by_label("Secret key").input_value() == secret, "what was typed stays"
    await page.get_by_label("Make backups by schedule").check()
    await page.get_by_label("Every day").check()
    await page.get_by_label("Time", exact=True).fill("02:30")
    await page.get_by_label("Time zone").fill("Asia/Taipei")
    await page.get_by_label("Time zone").press("Tab")
    await expect(page.locator("#runs time").first).to_contain_text(re.compile("(19|20):30"))
    await page.get_by_label("Newest archives to keep").fill("14")
    await show(page, "settings")
    await visit.press("Save the settings")
    await visit.sees("The settings are saved")
    assert secret not in await page.content()
    await visit.go("/")
    await visit.press("Back up now")
    assert (await visit.job())["state"] == "succeeded"
    await visit.go("/settings")
    await page.get_by_label("Newest archives to keep").fill("1")
    await visit.press("Show what this keeps and removes")
    await visit.sees("1 archive would stay")
    await show(page, "settings-retention")


async def run_now(visit: Visit) -> None:
    """Back up now: watched to its end without a jump, cancelled, and found in the history."""
    page, show = visit.page, visit.show
    await visit.go("/")
    await show(page, "overview")
    with slow(visit.machine):
        await visit.press("Back up now")
        await page.wait_for_url("**/jobs/*")
        bar = page.get_by_role("progressbar").first
        await expect(bar).to_have_attribute("value", re.compile(r"^[1-9]\d*$"))
        await page.evaluate(WATCH_SHIFTS)
        told = await page.locator(".progress").inner_text()
        await page.wait_for_function("(t) => document.querySelector('.progress')?.innerText !== t", arg=told)
        await require_still(page, "a running backup")
        visit.machine.s3.rate = CRAWLING
        await show(page, "job-running")
        await visit.go("/")
        await visit.sees("Running")
        await show(page, "overview-running")
        await page.go_back()
    job = await visit.job()
    assert job["state"] == "succeeded", job
    await visit.sees(job["result"]["name"])
    await show(page, "job-succeeded")
    with slow(visit.machine, CRAWLING):
        await visit.go("/")
        await visit.press("Back up now")
        await visit.sees("Running")
        await visit.press("Cancel")
        assert (await visit.job())["state"] == "cancelled"
    await show(page, "job-cancelled")
    await visit.go("/jobs")
    await visit.sees("Cancelled")
    await show(page, "jobs")


async def a_failed_job(visit: Visit) -> None:
    """A backup that fails says why and what to do, on its page and on the overview."""
    page = visit.page
    config = visit.machine.files.config
    away = config.with_name("away")
    config.rename(away)
    try:
        await visit.go("/")
        await visit.press("Back up now")
        job = await visit.job()
    finally:
        away.rename(config)
    assert job["state"] == "failed"
    await visit.sees(job["error"]["message"])
    await visit.sees(job["error"]["hint"])
    await visit.sees(job["error"]["code"])
    await visit.show(page, "job-failed")
    await visit.go("/")
    await visit.sees("The last backup")
    await visit.show(page, "overview-failed")


async def settings(visit: Visit) -> None:
    """Try the destination, another schedule, another policy and another place; nothing of it is saved."""
    page, show = visit.page, visit.show
    before = await visit.client.call("settings.get")
    await visit.go("/settings")
    await show(page, "settings")
    await visit.press("Test the destination")
    await visit.sees("The destination passed its test")
    await show(page, "settings-tested")
    await page.get_by_label("Every month").check()
    await page.get_by_label("Day of the month").fill("31")
    await page.get_by_label("Time zone").fill("Asia/Taipei")
    await expect(page.locator("#runs li").first).to_contain_text("Asia/Taipei")
    await page.get_by_label("Newest archives to keep").fill("1")
    await visit.press("Show what this keeps and removes")
    await visit.sees(re.compile("would be removed"))
    await show(page, "settings-retention")
    await page.get_by_label("This machine").check()
    await page.get_by_label("Directory", exact=True).fill("/no/such/place")
    await visit.press("Test the destination")
    await visit.sees("The destination did not pass its test")
    await show(page, "settings-refused")
    assert await visit.client.call("settings.get") == before


async def archives(visit: Visit) -> None:
    """Look into an archive, prove it, hold it, download it, and delete it by its typed name."""
    page, show = visit.page, visit.show
    ordinary = [each for each in await visit.archives() if not each["held"] and each["evidence"] == "verified"]
    name, copies = ordinary[-1]["name"], visit.machine.directory / "copies"
    assert len(ordinary) > 1, "the last good one is not for this"
    await visit.go("/archives")
    await show(page, "archives")
    await visit.follow(name)
    await expect(page.locator("h1")).to_have_text(name)
    await show(page, "archive")
    await visit.press("Verify")
    assert (await visit.job())["kind"] == "verify"
    await visit.go(f"/archives/{name}")
    await page.get_by_label("Why").fill("before the update to 5.3.13")
    await visit.press("Hold it")
    await visit.sees("It is held")
    assert (copies / f"{name}.hold").exists()
    await show(page, "archive-held")
    await visit.press("End the hold")
    await visit.sees("not held any more")
    await _download(visit, name, (copies / name).read_bytes())
    await page.get_by_label("Name of the archive").fill("something else")
    await visit.press("Delete for good")
    assert await page.evaluate("document.querySelector('#confirm').validity.patternMismatch")
    await page.get_by_label("Name of the archive").fill(name)
    await show(page, "archive-delete")
    await visit.press("Delete for good")
    assert (await visit.job())["state"] == "succeeded"
    await visit.go("/archives")
    await expect(page.locator("main").get_by_role("link", name=name)).to_have_count(0)
    assert (copies / name).exists(), "in the other target it stays"


async def _download(visit: Visit, name: str, content: bytes) -> None:
    async with visit.page.expect_download() as started:
        await visit.page.locator("main").get_by_role("link", name="Download").click()
    download = await started.value
    assert download.suggested_filename == name
    assert Path(await download.path()).read_bytes() == content


async def restore(visit: Visit) -> None:
    """Lose data, restore it by the guided path, go back, restore again and keep it; what was lost is there again."""
    page, show, machine = visit.page, visit.show, visit.machine
    name, before = (await visit.archives())[0]["name"], await machine.state()
    await machine.destroy_data()
    lost = await machine.state()
    await visit.go("/restore")
    await show(page, "restore")
    await page.get_by_role("link", name=f"Look at the plan of {name}").click()
    await expect(page.locator("h1")).to_have_text("Restore")
    await show(page, "restore-plan")
    await page.get_by_label("Name of this server").fill("another-server")
    await visit.press("Begin the restore")
    assert await page.evaluate("document.querySelector('#confirm').validity.patternMismatch")
    await _begin(visit, "Begin the restore")
    assert (await visit.job())["state"] == "succeeded"
    await show(page, "restore-done")
    await visit.go("/")
    await show(page, "overview-restored")
    await visit.go("/restore/pending")
    await show(page, "restore-pending")
    await page.get_by_label("Give up the restored state").check()
    await visit.press(re.compile("^Go back"))
    assert (await visit.job())["kind"] == "rollback"
    assert diff(lost, await machine.state()) == []
    await visit.go(f"/restore/{name}")
    await _begin(visit, "Begin the restore")
    assert (await visit.job())["state"] == "succeeded"
    await visit.go("/restore/pending")
    await page.get_by_label("The server works as it should").check()
    await visit.press(re.compile("^Keep it"))
    assert (await visit.job())["kind"] == "commit"
    assert diff(before, await machine.state()) == []
    await visit.go("/restore/pending")
    await visit.sees("No restore waits")


async def an_obstacle(visit: Visit) -> None:
    """A plan with something in the way shows what and how to remove it, and offers no beginning."""
    page, name = visit.page, (await visit.archives())[0]["name"]
    visit.machine.tpm.stop()
    try:
        await visit.go(f"/restore/{name}")
        await visit.sees("What to do:")
        await expect(page.get_by_role("button", name="Begin the restore")).to_have_count(0)
        await visit.show(page, "restore-obstacle")
    finally:
        visit.machine.tpm.start()


async def _begin(visit: Visit, button: str) -> None:
    """Type the server's name, which the page asks for, and begin."""
    field = visit.page.get_by_label("Name of this server")
    hint = await visit.page.locator("#confirm-hint").inner_text()
    found = re.search(r"Type (\S+) to go ahead", hint)
    assert found, hint
    await field.fill(found[1])
    await visit.press(button)


async def reset(visit: Visit) -> None:
    """Return to the baseline; what was made since is gone until somebody goes back."""
    page, show, machine = visit.page, visit.show, visit.machine
    await machine.server.execute("UPDATE devices SET name = 'changed' WHERE id = 1", database="deviceon")
    before = await machine.state()
    await visit.go("/reset")
    await show(page, "reset")
    await visit.press("Look at the plan")
    await visit.sees("What would happen")
    await show(page, "reset-plan")
    await _begin(visit, "Reset the server")
    assert (await visit.job())["state"] == "succeeded"
    [row] = await machine.server.fetch("SELECT name FROM devices WHERE id = 1", database="deviceon")
    assert row["name"] == "EPC-00001"
    await visit.go("/restore/pending")
    await page.get_by_label("Give up the restored state").check()
    await visit.press(re.compile("^Go back"))
    assert (await visit.job())["kind"] == "rollback"
    assert diff(before, await machine.state()) == []
    await machine.server.execute("UPDATE devices SET name = 'EPC-00001' WHERE id = 1", database="deviceon")


async def drill(visit: Visit) -> None:
    """Restore for practice, watch it, and read the signed report; its file is the service's own."""
    page = visit.page
    await visit.go("/drills")
    await visit.show(page, "drills")
    await visit.press("Begin a drill")
    job = await visit.job()
    assert job["state"] == "succeeded", job
    await visit.follow(re.compile("report"))
    await expect(page.locator("h1")).to_have_text("Report of a drill")
    await visit.sees("Passed")
    await visit.show(page, "drill-report")
    async with page.expect_download() as started:
        await visit.follow("Download JSON")
    report = json.loads(Path(await (await started.value).path()).read_bytes())
    assert report == await visit.client.call("drill.report", id=job["result"]["id"])
    assert report["signature"]


@contextlib.contextmanager
def slow(machine: Machine, rate: float = SLOW) -> Iterator[None]:
    """Make the way to S3 slow, so that there is something to watch."""
    machine.s3.rate = rate
    try:
        yield
    finally:
        machine.s3.rate = None


@contextlib.asynccontextmanager
async def visit_of(page: Page, portal: PortalProcess, machine: Machine, show: Show) -> AsyncIterator[Visit]:
    """Give what a chapter needs; at its end no job is left."""
    async with portal.service.client() as client:
        yield Visit(page, portal, machine, client, show)
        await asyncio.wait_for(idle(client), 120)
