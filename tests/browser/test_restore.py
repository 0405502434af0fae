"""What a restore asks of a person in a browser: a PIN, a consent, a name; and the states around it that go wrong."""

from __future__ import annotations

import re
import socket

from playwright.async_api import Browser, Page, expect

from tests.browser.accessibility import examine, tab_stops
from tests.browser.machine import Machine, PortalProcess
from tests.browser.watched import PHONE
from tests.service_process import ended

PIN = "a pin of the browser 4711"


async def _job(page: Page, word: str) -> None:
    await page.wait_for_url(re.compile(r"/jobs/[0-9a-f]{16}$"))
    await expect(page.locator("main").get_by_text(word).first).to_be_visible(timeout=120_000)


async def test_a_pin_is_typed_and_sessions_are_consented_to_and_nothing_of_it_stays(
    browser: Browser, machine: Machine
) -> None:
    target, sealing = (
        machine.archives("guarded-archives"),
        {"mode": "tpm", "tcti": machine.tpm.tcti, "recovery": "none"},
    )
    service = machine.service("guarded", target={"url": f"file://{target}"}, sealing=sealing)
    with service, PortalProcess(service) as portal:
        async with service.client() as client, portal.visitor(browser) as visitor:
            await client.call("pin.set", new=PIN)
            made = await ended(client, await client.call("backup.start"))
            assert made["state"] == "succeeded", made["error"]
            name, before = made["result"]["name"], await machine.state()
            page = await visitor.page("/restore")
            await page.get_by_role("link", name=f"Look at the plan of {name}").click()
            await expect(page.get_by_role("heading", name="What opens it")).to_be_visible()
            await page.get_by_text("Open it with a recovery key").click()
            await examine(page, "an archive with a PIN")
            await page.get_by_label("Restore PIN").fill(PIN)
            connection = await machine.server.connect(database="deviceon")
            try:
                await page.get_by_role("button", name="Look at the plan").click()
                await expect(page.get_by_role("heading", name="What would happen")).to_be_visible()
                assert PIN not in await page.content() and PIN not in page.url
                await examine(page, "a plan with a PIN and a consent")
                await page.get_by_label("Name of this server").fill(socket.gethostname())
                await page.get_by_label("Restore PIN").fill(PIN)
                await page.get_by_role("button", name="Begin the restore").click()
                assert await page.evaluate("document.querySelector('[name=allow]').validity.valueMissing")
                await page.locator("[name=allow]").check()
                await page.get_by_role("button", name="Begin the restore").click()
                await _job(page, "Succeeded")
            finally:
                await connection.close()
            await page.goto(f"{portal.origin}/restore/pending")
            await page.get_by_label("Give up the restored state").check()
            await page.get_by_role("button", name="Go back").click()
            await _job(page, "Succeeded")
            assert PIN not in portal.log + service.log
            assert before == await machine.state()


async def test_the_states_that_go_wrong_can_be_read_by_everybody(browser: Browser, lived: PortalProcess) -> None:
    async with lived.service.client() as client:
        targets = (await client.call("system.info"))["targets"]
        name = (await client.call("archive.list", target=targets[1]))["archives"][0]["name"]
    copies = lived.service.directory.parent / "copies"
    async with lived.visitor(browser, viewport=PHONE) as visitor:
        page = await visitor.page("/archives?show=damaged")
        await expect(page.get_by_text("No archive is like that")).to_be_visible()
        await examine(page, "no archive of a kind")
        aside = copies.rename(copies.with_name("unmounted"))
        try:
            for path in ("/archives", "/restore", f"/archives/{name}"):
                await page.goto(f"{lived.origin}{path}?target={targets[1]}")
                await expect(page.get_by_text("The target cannot be looked at")).to_be_visible()
                await examine(page, f"{path} of a target that is away")
        finally:
            aside.rename(copies)
        await page.goto(f"{lived.origin}/archives/{name}?target={targets[1]}")
        stops = await tab_stops(page)
        assert [stop for stop in stops if not (stop.visible and stop.inside and stop.name)] == []


async def test_the_plan_of_a_part_is_chosen_without_script(browser: Browser, lived: PortalProcess) -> None:
    async with lived.visitor(browser, java_script_enabled=False) as visitor:
        page = await visitor.page("/restore")
        await page.get_by_role("link", name=re.compile("Look at the plan of")).first.click()
        await page.get_by_text("Choose what to restore").click()
        await page.get_by_label("grafana_reports").check()
        await page.get_by_role("button", name="Look at the plan of this part").click()
        await expect(page.get_by_text("grafana_reports").first).to_be_visible()
        await expect(page.get_by_label("grafana_reports")).to_be_checked()
        assert "databases=grafana_reports" in page.url
        await expect(page.get_by_role("button", name="Begin the restore")).to_be_visible()
