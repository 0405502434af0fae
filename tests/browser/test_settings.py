"""The settings page in a real browser: filled in, tried and saved, with script and without; the overview after it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.browser.accessibility import names_missing, require_accessible, require_reflow, tab_stops
from tests.browser.machine import BUCKET, Machine, PortalProcess
from tests.browser.watched import PHONE
from tests.s3_servers import ceph_options
from tests.service_process import ended, idle


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fresh(machine: Machine) -> AsyncIterator[PortalProcess]:
    """Give the portal of a service that nobody has set up yet."""
    service = machine.service("settings", sealing={"mode": "off"})
    with service, PortalProcess(service) as portal:
        async with service.client() as client:
            await idle(client)
        yield portal


async def settings(portal: PortalProcess) -> dict[str, Any]:
    async with portal.service.client() as client:
        found: dict[str, Any] = (await client.call("settings.get"))["settings"]
        return found


async def fill_in_s3(page: Page, machine: Machine, prefix: str) -> str:
    """Choose S3 and fill in its fields; return the secret."""
    options = ceph_options(endpoint_url=machine.s3.endpoint)
    await page.get_by_label("S3").check()
    await page.get_by_label("Bucket").fill(BUCKET)
    await page.locator("#s3-prefix").fill(prefix)
    await page.get_by_label("Endpoint").fill(options["endpoint_url"])
    await page.get_by_label("Region").fill(options.get("region", ""))
    await page.get_by_label("Access key").fill(options["key"])
    await page.get_by_label("Secret key").fill(options["secret"])
    return str(options["secret"])


async def test_somebody_sets_up_backups_to_s3_and_the_overview_is_well_afterwards(
    browser: Browser, machine: Machine, fresh: PortalProcess
) -> None:
    async with fresh.visitor(browser) as visitor:
        page = await visitor.page("/")
        await expect(page.get_by_role("heading", name="Backups are not set up yet")).to_be_visible()
        await require_accessible(page, "the overview before the first settings")
        await page.get_by_role("link", name="Open the settings").click()
        secret = await fill_in_s3(page, machine, "set-up")
        await expect(page.get_by_label("Directory", exact=True)).to_be_hidden()
        await page.get_by_role("button", name="Test the destination").click()
        await expect(page.get_by_role("heading", name="The destination passed its test")).to_be_visible()
        await expect(page.get_by_label("Secret key")).to_have_value(secret)  # the page was not left
        await require_accessible(page, "the settings with findings")

        await page.get_by_label("Every day").check()
        await page.get_by_label("Time", exact=True).fill("03:15")
        await page.get_by_label("Time zone").fill("Asia/Taipei")
        runs = page.locator("#runs li")
        await expect(runs).to_have_count(5)
        await expect(runs.first).to_contain_text("03:15")
        await expect(runs.first).to_contain_text("20:15")  # in Berlin, where the visitor is
        await page.get_by_label("Newest archives to keep").fill("7")
        await page.locator("#settings-form").get_by_role("button", name="Save the settings").click()
        await expect(page.get_by_text("The settings are saved.")).to_be_visible()
        assert secret not in await page.content()
        await expect(page.get_by_label("Secret key")).to_have_value("")
        found = await settings(fresh)
        assert found["target"]["url"] == f"s3://{BUCKET}/set-up"
        assert found["schedule"]["at"] == "03:15"

        await page.goto(f"{fresh.origin}/")
        await page.get_by_role("button", name="Back up now").first.click()
        await page.wait_for_url("**/jobs/*")
        await expect(page.get_by_text("every byte of it was checked")).to_be_visible()
        await expect(page.locator("#log li").first).to_be_visible()
        await page.goto(f"{fresh.origin}/settings")
        await page.get_by_role("button", name="Show what this keeps and removes").click()
        await expect(page.get_by_text("1 archive would stay")).to_be_visible()
        await expect(page.get_by_role("cell", name="one of the 7 newest")).to_be_visible()
        await page.goto(f"{fresh.origin}/")
        await expect(page.get_by_role("heading", name="Backups are in good order")).to_be_visible()


async def test_a_cron_expression_is_held_against_the_clock_while_it_is_typed(
    browser: Browser, fresh: PortalProcess
) -> None:
    before = await settings(fresh)
    async with fresh.visitor(browser) as visitor:
        page = await visitor.page("/settings")
        await page.locator("#schedule summary", has_text="More").first.click()
        await page.get_by_label("By a cron expression").check()
        await page.get_by_label("Cron expression", exact=True).fill("0 2")
        await expect(page.locator("#runs")).to_contain_text("must have five fields: minute, hour")
        await page.get_by_label("Cron expression", exact=True).fill("30 4 1 * *")
        await page.get_by_label("Time zone").fill("UTC")
        await expect(page.locator("#runs li")).to_have_count(5)
        await expect(page.locator("#runs li").first).to_contain_text(re.compile(r"1 \w+ \d{4}, 04:30"))
        await expect(page.get_by_label("Time", exact=True)).to_be_hidden()
    assert await settings(fresh) == before


async def test_a_place_that_fails_its_test_says_why_and_is_not_saved(browser: Browser, fresh: PortalProcess) -> None:
    before = await settings(fresh)
    async with fresh.visitor(browser) as visitor:
        page = await visitor.page("/settings")
        await page.get_by_label("This machine").check()
        await page.get_by_label("Directory", exact=True).fill("/no/such/place")
        await page.get_by_role("button", name="Test the destination").click()
        await expect(page.get_by_role("heading", name="The destination did not pass its test")).to_be_visible()
        await expect(page.locator("#findings")).to_contain_text("does not exist")
        await require_accessible(page, "a test that failed")
        visitor.expected.append("status 422: POST")
        await page.locator("#settings-form").get_by_role("button", name="Save the settings").click()
        await expect(page.get_by_role("alert")).to_contain_text("the target did not pass its test")
        await expect(page.get_by_label("Directory", exact=True)).to_have_value("/no/such/place")
    assert await settings(fresh) == before


async def test_the_page_works_without_script(browser: Browser, machine: Machine, fresh: PortalProcess) -> None:
    directory = machine.directory / "without-script"
    async with fresh.visitor(browser, java_script_enabled=False, viewport=PHONE) as visitor:
        page = await visitor.page("/settings")
        await page.get_by_label("This machine").check()
        await page.get_by_label("Directory", exact=True).fill(str(directory))
        await page.get_by_label("Make the directory when it is missing").locator("visible=true").check()
        await page.get_by_role("button", name="Test the destination").click()
        await expect(page.get_by_role("heading", name="The destination passed its test")).to_be_visible()
        await page.get_by_label("Every month").check()
        await page.get_by_label("Day of the month").fill("31")
        await page.locator("#settings-form").get_by_role("button", name="Save the settings").click()
        await expect(page.get_by_text("The settings are saved.")).to_be_visible()
        await expect(page.locator("#runs li")).to_have_count(5)
        await page.goto(f"{fresh.origin}/")
        await page.get_by_role("button", name="Back up now").first.click()
        job = {"id": page.url.rpartition("/")[2]}
        async with fresh.service.client() as client:
            assert (await ended(client, job))["state"] == "succeeded"
        await page.reload()
        await expect(page.get_by_text("every byte of it was checked")).to_be_visible()
    found = await settings(fresh)
    assert (found["target"]["url"], found["schedule"]["day"]) == (f"file://{directory}", 31)


async def test_every_kind_of_place_is_read_and_reached_by_keyboard_and_fits_a_narrow_screen(
    browser: Browser, fresh: PortalProcess
) -> None:
    async with fresh.visitor(browser) as visitor:
        page = await visitor.page("/settings")
        for kind in ("This machine", "SMB share", "S3", "Any URL"):
            await page.get_by_label(kind).check()
            await require_accessible(page, f"the settings with {kind}")
            await require_reflow(page, f"the settings with {kind}")
            assert names_missing(await page.locator("body").aria_snapshot()) == []
        stops = await tab_stops(page)
        assert [stop for stop in stops if not (stop.visible and stop.inside and stop.name)] == []
        assert "Save the settings" in [stop.name for stop in stops]


async def test_a_reader_finds_nothing_to_press(browser: Browser, lived: PortalProcess) -> None:
    async with lived.visitor(browser, "read") as visitor:
        page = await visitor.page("/settings")
        main = page.get_by_role("main")
        await expect(main.get_by_role("button")).to_have_count(0)
        assert await main.locator("input:enabled:not([type=hidden])").count() == 0
        await main.get_by_role("link", name="Show what this keeps and removes").click()
        await expect(page.locator("#retention-preview tbody tr").first).to_be_attached()
        await require_accessible(page, "the settings of a reader")
        await page.goto(f"{lived.origin}/")
        await expect(page.get_by_role("table")).to_be_visible()
        await expect(main.get_by_role("button")).to_have_count(0)
        await page.locator("#days summary").click()
        await require_accessible(page, "the overview of a reader")
        await require_reflow(page, "the overview")
