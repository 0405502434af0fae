"""Every path through the portal is walked in the real browser, and each state on it is held against WCAG 2.2 AA."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from playwright.async_api import Browser

from tests.browser import chapters
from tests.browser.accessibility import examine
from tests.browser.machine import Machine, PortalProcess

OF_ONE_WHO_HAS_LIVED = [
    chapters.run_now,
    chapters.a_failed_job,
    chapters.settings,
    chapters.archives,
    chapters.drill,
    chapters.restore,
    chapters.an_obstacle,
    chapters.reset,
]


@pytest.mark.parametrize("chapter", OF_ONE_WHO_HAS_LIVED, ids=lambda chapter: str(chapter.__name__))
async def test_a_path_leads_to_its_end(
    browser: Browser,
    machine: Machine,
    lived: PortalProcess,
    chapter: Callable[[chapters.Visit], Awaitable[None]],
) -> None:
    async with lived.visitor(browser) as visitor:
        page = await visitor.page("/")
        async with chapters.visit_of(page, lived, machine, examine) as visit:
            await chapter(visit)


async def test_a_new_service_is_set_up_and_makes_its_first_backup(
    browser: Browser, machine: Machine, new: PortalProcess
) -> None:
    async with new.visitor(browser) as visitor:
        page = await visitor.page("/")
        async with chapters.visit_of(page, new, machine, examine) as visit:
            await chapters.first_use(visit)
