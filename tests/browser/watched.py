"""A browser context in which whatever a visitor would not see, and a developer would be ashamed of, fails the test.

That is: messages of the console (violations of the content security policy are told there), errors in scripts, requests
that fail, answers with a status of 400 and more, and any request to another origin than the portal's.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request, Response, expect

WIDE = {"width": 1280, "height": 860}
PHONE = {"width": 360, "height": 740}
PATIENCE = 20_000
"""Milliseconds that an element is waited for: a backup may have to end first."""

expect.set_options(timeout=PATIENCE)

_HARMLESS = ("net::ERR_ABORTED",)
"""What is left when a page with a stream of events is left, and when an answer turns out to be a download."""


@dataclass
class Watched:
    """One visitor: a context of the browser at the portal's address `origin`, and what went wrong in it."""

    context: BrowserContext
    origin: str
    problems: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    """Parts of problems that a test brings about on purpose. One that never came fails the test."""

    def __post_init__(self) -> None:
        self.context.set_default_timeout(PATIENCE)
        self.context.on("console", self._console)
        self.context.on("weberror", lambda error: self.problems.append(f"a script failed: {error.error}"))
        self.context.on("request", self._request)
        self.context.on("requestfailed", self._failed)
        self.context.on("response", self._response)

    async def page(self, path: str = "/") -> Page:
        """Open a tab at a path of the portal."""
        page = await self.context.new_page()
        await page.goto(f"{self.origin}{path}")
        return page

    def check(self) -> None:
        """Fail when something went wrong that was not expected, or the other way round."""
        found = [problem for problem in self.problems if not any(part in problem for part in self.expected)]
        assert not found, "\n".join(["in the browser:", *found])
        missing = [part for part in self.expected if not any(part in problem for problem in self.problems)]
        assert not missing, f"expected, and it never came: {missing}"
        self.problems.clear()
        self.expected.clear()

    def _console(self, message: ConsoleMessage) -> None:
        # A status of 400 and more is told twice; the response says which address it was.
        if message.type in {"error", "warning"} and "Failed to load resource" not in message.text:
            self.problems.append(
                f"the console says ({message.type}, {message.page and message.page.url}): {message.text}"
            )

    def _request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in {"data", "blob"} and f"{parts.scheme}://{parts.netloc}" != self.origin:
            self.problems.append(f"a request left the portal: {request.method} {request.url}")

    def _failed(self, request: Request) -> None:
        if request.failure not in _HARMLESS:
            self.problems.append(f"a request failed: {request.method} {request.url}: {request.failure}")

    def _response(self, response: Response) -> None:
        if response.status >= 400:
            self.problems.append(f"status {response.status}: {response.request.method} {response.url}")


@contextlib.asynccontextmanager
async def visiting(browser: Browser, origin: str, **settings: Any) -> AsyncIterator[Watched]:
    """Give a visitor whose problems fail the test at the end. `settings` are those of a context of the browser."""
    fixed: dict[str, Any] = {"viewport": WIDE, "locale": "en-GB", "timezone_id": "Europe/Berlin"}
    context = await browser.new_context(**(fixed | settings))
    try:
        visitor = Watched(context, origin)
        yield visitor
        visitor.check()
    finally:
        await context.close()
