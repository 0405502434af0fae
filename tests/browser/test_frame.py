"""What all pages have in common: they can be used by everybody, in every way, and stay right while things happen."""

from __future__ import annotations

import asyncio

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser.accessibility import WATCH_SHIFTS, examine, require_still, tab_stops
from tests.browser.machine import PortalProcess
from tests.browser.watched import PHONE
from tests.service_process import ended, idle

PAGES = ("/", "/archives", "/jobs", "/restore", "/drills", "/reset", "/settings")
BANNER = "#service-state p"


async def go(page: Page, portal: PortalProcess, path: str) -> None:
    """Go on to a path in the same tab."""
    await page.goto(f"{portal.origin}{path}")


@pytest.mark.parametrize("role", ["admin", "read"])
async def test_every_page_can_be_read_zoomed_and_heard_in_both_schemes(
    browser: Browser, lived: PortalProcess, role: str
) -> None:
    async with lived.visitor(browser, role) as visitor:
        page = await visitor.page("/")
        for path in PAGES:
            await go(page, lived, path)
            await examine(page, f"{path} as {role}")
            assert await page.locator("h1").count() == 1, path
            assert "System Backup" in await page.title()


async def test_every_page_is_used_by_the_keyboard_alone(browser: Browser, lived: PortalProcess) -> None:
    async with lived.visitor(browser) as visitor:
        page = await visitor.page("/")
        for path in PAGES:
            await go(page, lived, path)
            stops = await tab_stops(page)
            assert stops[0].name == "Skip to the content"
            assert [stop for stop in stops if not (stop.visible and stop.inside and stop.name)] == [], path
            buttons = await page.locator("main").get_by_role("button").filter(visible=True).count()
            assert len(stops) > len(PAGES) + buttons, path
        await go(page, lived, "/archives")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        assert await page.evaluate("document.activeElement.id") == "main"
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.closest('main') !== null")


async def test_the_menu_opens_and_closes_by_the_keyboard_and_keeps_the_choice(
    browser: Browser, lived: PortalProcess
) -> None:
    async with lived.visitor(browser, color_scheme="light") as visitor:
        page = await visitor.page("/")
        menu = page.locator("details.menu")
        await menu.locator("summary").focus()
        await page.keyboard.press("Enter")
        await expect(menu.get_by_role("button", name="Log out")).to_be_visible()
        await examine(page, "the menu")
        await page.keyboard.press("Escape")
        await expect(menu.get_by_role("button", name="Log out")).to_be_hidden()
        assert await page.evaluate("document.activeElement.tagName") == "SUMMARY"
        light = await page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        await page.keyboard.press("Enter")
        await menu.get_by_role("button", name="Dark").press("Enter")
        await expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        assert await page.evaluate("getComputedStyle(document.documentElement).backgroundColor") != light
        await menu.locator("summary").press("Enter")
        await menu.get_by_role("button", name="繁體中文").press("Enter")
        await expect(page.locator("html")).to_have_attribute("lang", "zh-Hant-TW")
        await menu.locator("summary").press("Enter")
        await menu.locator("form[action$='/logout'] button").press("Enter")
        await page.wait_for_url("**/login")


async def test_a_browser_in_taiwan_gets_traditional_chinese_and_its_own_time(
    browser: Browser, lived: PortalProcess
) -> None:
    async with lived.visitor(browser, locale="zh-TW", timezone_id="Asia/Taipei", viewport=PHONE) as visitor:
        page = await visitor.page("/jobs")
        await expect(page.locator("html")).to_have_attribute("lang", "zh-Hant-TW")
        night = page.locator("time[datetime$='T02:00:00Z']").first
        await expect(night).to_contain_text("10:00")
        await examine(page, "jobs in Chinese, on a phone")


async def test_everything_is_there_without_javascript(browser: Browser, lived: PortalProcess) -> None:
    async with lived.visitor(browser, java_script_enabled=False) as visitor:
        page = await visitor.page("/")
        for path in PAGES:
            await go(page, lived, path)
            await expect(page.locator("h1")).to_be_visible()
            await expect(page.get_by_role("link", name="Archives", exact=True).first).to_be_visible()
        await page.locator("details.menu summary").click()
        await page.get_by_role("button", name="Dark").click()
        await expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        await page.locator("details.menu summary").click()
        await page.get_by_role("button", name="Log out").click()
        await page.wait_for_url("**/login")


async def test_a_wrong_token_and_a_wrong_address_are_told_calmly(browser: Browser, lived: PortalProcess) -> None:
    async with lived.visitor(browser, None) as visitor:
        page = await visitor.page("/archives")
        await page.wait_for_url("**/login?next=*")
        await examine(page, "login")
        visitor.expected.append("status 403: POST")
        await page.get_by_label("Token").fill("a token that nobody has")
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("This token is not valid.")).to_be_visible()
        await examine(page, "a refused login")
        assert await page.get_by_label("Token").input_value() == ""
    async with lived.visitor(browser) as visitor:
        visitor.expected.append("status 404: GET")
        page = await visitor.page("/no/such/page")
        await expect(page.locator("h1")).to_have_text("There is no such page")
        await examine(page, "no such page")


async def test_a_page_follows_a_job_without_a_jump(browser: Browser, lived: PortalProcess) -> None:
    async with lived.visitor(browser) as visitor, lived.service.client() as client:
        page = await visitor.page("/")
        await expect(page.get_by_text("Running", exact=True)).to_have_count(0)
        loaded = await page.evaluate("performance.timeOrigin")
        await page.evaluate(WATCH_SHIFTS)
        job = await client.call("drill.start")
        await expect(page.get_by_text("Running", exact=True).first).to_be_visible()
        await examine(page, "a running job")
        assert (await ended(client, job))["state"] == "succeeded"
        await expect(page.get_by_text("Running", exact=True)).to_have_count(0)
        await require_still(page, "the overview", most=0.05)  # a card comes and goes
        assert await page.evaluate("performance.timeOrigin") == loaded, "the page was loaded anew"


async def test_a_service_that_is_away_is_told_and_the_page_goes_on_when_it_is_back(
    browser: Browser, lived: PortalProcess
) -> None:
    service = lived.service
    async with lived.visitor(browser) as visitor:
        open_page = await visitor.page("/")
        await asyncio.to_thread(service.stop)
        try:
            await expect(open_page.locator(BANNER)).to_be_visible()
            await examine(open_page, "the service went away")
            visitor.expected.append("status 503: GET")
            new_page = await visitor.page("/archives")
            await expect(new_page.get_by_role("heading", name="cannot be reached")).to_be_visible()
            await examine(new_page, "the service is away")
        finally:
            service.start()
            async with service.client() as client:
                await idle(client)
        await expect(open_page.locator(BANNER)).to_have_count(0)
        await expect(new_page.locator("h1")).to_have_text("Archives")
        await expect(new_page.get_by_role("table")).to_be_visible()


async def test_nothing_moves_for_those_who_asked_for_that(browser: Browser, lived: PortalProcess) -> None:
    async with lived.visitor(browser, reduced_motion="reduce") as visitor:
        page = await visitor.page("/")
        moving = await page.evaluate(
            "() => [...document.querySelectorAll('*')].filter((e) => { const s = getComputedStyle(e);"
            " return s.animationName !== 'none' || parseFloat(s.transitionDuration) > 0 }).length"
        )
        assert moving == 0
        nested = await page.evaluate(
            "() => [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules])"
            ".filter((rule) => rule instanceof CSSStyleRule && rule.cssRules.length).map((rule) => rule.selectorText)"
        )
        assert nested == [], "a rule of the style sheet that was not closed swallows those after it"


async def test_who_may_only_look_finds_nothing_that_changes_and_is_refused_what_he_sends(
    browser: Browser, lived: PortalProcess
) -> None:
    async with lived.visitor(browser, "read") as visitor, lived.service.client() as client:
        name = (await client.call("archive.list"))["archives"][0]["name"]
        job = (await client.call("job.list"))["jobs"][0]["id"]
        page = await visitor.page("/")
        for path in (*PAGES, f"/archives/{name}", f"/jobs/{job}"):
            await go(page, lived, path)
            forms = await page.locator("main form[method=post] button").filter(visible=True).count()
            assert forms == 0, f"{path} has a button that changes something"
        csrf = await page.locator("form[action$='/logout'] input[name=csrf]").input_value()
        for path in ("/jobs/backup", f"/archives/{name}/delete", f"/restore/{name}/start"):
            answer = await visitor.context.request.post(
                f"{lived.origin}{path}",
                form={"csrf": csrf, "idempotency_key": "k", "confirm": name, "sure": "1", "token": "t", "id": "i"},
                headers={"Origin": lived.origin},
            )
            assert answer.status == 403, path
        assert (await client.call("job.list"))["jobs"][0]["id"] == job


async def test_a_screen_reader_finds_landmarks_headings_and_what_changes(
    browser: Browser, lived: PortalProcess
) -> None:
    async with lived.visitor(browser) as visitor:
        page = await visitor.page("/")
        await expect(page.locator("body")).to_match_aria_snapshot(
            """
            - link "Skip to the content"
            - banner:
              - navigation "Pages"
            - main:
              - heading "Overview" [level=1]
              - region /Backups/:
                - heading /Backups/ [level=2]
              - region "The last 90 days":
                - table /A column for each week/
              - region "Does it restore?"
              - region "Who can open the archives?"
            - status
            """
        )
        await go(page, lived, "/archives")
        await expect(page.get_by_role("table", name="Archives, the newest first")).to_be_visible()
        await expect(page.get_by_role("columnheader", name="Evidence")).to_be_visible()
