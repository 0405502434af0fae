"""The harness finds what it is there to find: each kind of problem is shown to it first."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser

from tests.browser.accessibility import (
    WATCH_SHIFTS,
    names_missing,
    require_accessible,
    require_reflow,
    require_still,
    tab_stops,
)
from tests.browser.watched import visiting

GOOD = '<h1>Good</h1><p>Text</p><a href="/x">A link</a><button>Do it</button>'
POLICY = {"Content-Security-Policy": "default-src 'self'"}


def page_of(content: str) -> str:
    head = '<meta name="viewport" content="width=device-width"><title>T</title>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body><main>{content}</main></body></html>'


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pages() -> AsyncIterator[tuple[str, dict[str, str]]]:
    """Give an address, and what it serves by path: tests put pages there."""
    served: dict[str, str] = {"/favicon.ico": ""}

    async def serve(request: web.Request) -> web.Response:
        if request.path not in served:
            return web.Response(status=404)
        kind = mimetypes.guess_type(request.path)[0] or "text/html"
        return web.Response(text=served[request.path], content_type=kind, headers=POLICY)

    application = web.Application()
    application.router.add_get("/{path:.*}", serve)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", served
    await runner.cleanup()


Pages = tuple[str, dict[str, str]]


async def test_a_good_page_passes_everything(browser: Browser, pages: Pages) -> None:
    origin, served = pages
    served["/good"] = page_of(GOOD)
    async with visiting(browser, origin) as visitor:
        page = await visitor.page("/good")
        await require_accessible(page, "good")
        await require_reflow(page, "good")
        stops = await tab_stops(page)
        assert [(stop.name, stop.visible, stop.inside) for stop in stops] == [
            ("A link", True, True),
            ("Do it", True, True),
        ]
        assert names_missing(await page.locator("body").aria_snapshot()) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('<img src="/missing.png" alt="">', "status 404: GET .*/missing.png"),
        ('<img src="http://127.0.0.2:9/elsewhere.png" alt="">', "left the portal: GET http://127.0.0.2:9/"),
        ("<script>alert(1)</script>", "Content Security Policy"),
        ('<p style="color: red">red</p>', "Content Security Policy"),
        ('<script src="/fails.js"></script>', "a script failed: .*planned"),
        ('<script src="/says.js"></script>', r"console says \(error, .*\): planned"),
    ],
)
async def test_what_goes_wrong_in_the_browser_fails_the_test(
    browser: Browser, pages: Pages, content: str, problem: str
) -> None:
    origin, served = pages
    served["/fails.js"] = "throw new Error('planned');"
    served["/says.js"] = "console.error('planned');"
    served["/bad"] = page_of(GOOD + content)
    with pytest.raises(AssertionError, match=problem):
        async with visiting(browser, origin) as visitor:
            await visitor.page("/bad")


async def test_an_expected_problem_that_does_not_come_fails_the_test(browser: Browser, pages: Pages) -> None:
    origin, served = pages
    served["/good"] = page_of(GOOD)
    with pytest.raises(AssertionError, match="never came"):
        async with visiting(browser, origin) as visitor:
            visitor.expected.append("status 503")
            await visitor.page("/good")


@pytest.mark.parametrize(
    ("content", "scheme", "problem"),
    [
        ('<input name="unlabelled">', "light", "label"),
        ('<link rel="stylesheet" href="/dark.css"><p>faint</p>', "dark", "color-contrast"),
    ],
)
async def test_axe_finds_a_violation_and_says_where(
    browser: Browser, pages: Pages, content: str, scheme: str, problem: str
) -> None:
    origin, served = pages
    served["/dark.css"] = "@media (prefers-color-scheme: dark) { body { background: #555; color: #777 } }"
    served["/page"] = page_of(GOOD + content)
    async with visiting(browser, origin) as visitor:
        page = await visitor.page("/page")
        with pytest.raises(AssertionError, match=rf"(?s)page, {scheme}:.*{problem}.* at "):
            await require_accessible(page, "page")


async def test_a_page_that_scrolls_sideways_is_found(browser: Browser, pages: Pages) -> None:
    origin, served = pages
    served["/wide"] = page_of(GOOD + f"<p>{'W' * 80}</p>")
    async with visiting(browser, origin) as visitor:
        page = await visitor.page("/wide")
        with pytest.raises(AssertionError, match=r"wider than 320 pixels:\n.*\n.*<p>WWW"):
            await require_reflow(page, "wide")


async def test_focus_that_cannot_be_seen_is_found(browser: Browser, pages: Pages) -> None:
    origin, served = pages
    served["/focus.css"] = "button:focus { outline: none }"
    served["/focus"] = page_of(GOOD + '<link rel="stylesheet" href="/focus.css">')
    served["/covered.css"] = "body::after { content: ''; position: fixed; inset: 0; background: #fff }"
    served["/covered"] = page_of(GOOD + '<link rel="stylesheet" href="/covered.css">')
    async with visiting(browser, origin) as visitor:
        stops = await tab_stops(await visitor.page("/focus"))
        assert [stop.name for stop in stops if not stop.visible] == ["Do it"]
        stops = await tab_stops(await visitor.page("/covered"))
        assert [stop.name for stop in stops if not stop.inside] == ["A link", "Do it"]


async def test_names_that_are_missing_are_found(browser: Browser, pages: Pages) -> None:
    origin, served = pages
    served["/names"] = page_of(GOOD + '<button></button><progress value="1" max="2"></progress>')
    async with visiting(browser, origin) as visitor:
        page = await visitor.page("/names")
        missing = names_missing(await page.locator("body").aria_snapshot())
        assert [re.split(r"\W", line.removeprefix("- "))[0] for line in missing] == ["button", "progressbar"]


async def test_a_jump_of_the_layout_is_found(browser: Browser, pages: Pages) -> None:
    origin, served = pages
    served["/jumps"] = page_of(GOOD)
    async with visiting(browser, origin) as visitor:
        page = await visitor.page("/jumps")
        await page.evaluate(WATCH_SHIFTS)
        await require_still(page, "still")
        await page.evaluate("() => document.querySelector('h1').insertAdjacentHTML('beforebegin', '<br>'.repeat(20))")
        await page.wait_for_function("() => window.shifts.length > 0")
        with pytest.raises(AssertionError, match="jumps by"):
            await require_still(page, "jumping")
