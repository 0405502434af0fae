"""A real browser (Debian's Chromium) before the real portal, service, PostgreSQL, TPM and S3 server.

All tests here run in one event loop, so that they share one browser and one set of servers.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from tests.browser.machine import Machine, PortalProcess
from tests.browser.machine import machine as started
from tests.browser.past import live
from tests.service_process import idle


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Give Debian's Chromium; contexts are the tests' own."""
    program = shutil.which("chromium")
    assert program is not None, "There is no chromium: install the Debian package (apt-get install chromium)"
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=program, chromium_sandbox=False)
        yield chromium
        await chromium.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def machine() -> AsyncIterator[Machine]:
    """Give the machine with its servers and data. Who destroys data makes it again."""
    async with started() as made:
        yield made


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def lived(machine: Machine) -> AsyncIterator[PortalProcess]:
    """Give the portal of a service with three months behind it. What a test changes, it leaves for the others."""
    service = machine.service("lived", copies=[{"url": f"file://{machine.archives('copies')}"}])
    settings = {
        "target": machine.s3_target("lived"),
        "schedule": {"frequency": "daily", "at": "02:00"},
        "retention": {"keep_last": 14},
    }
    await live(service, settings, now=datetime.now(UTC), archives=4)
    with service, PortalProcess(service) as portal:
        async with service.client() as client:
            await idle(client)
        yield portal


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def new(machine: Machine) -> AsyncIterator[PortalProcess]:
    """Give the portal of a service in which nothing is set yet."""
    with machine.service("new") as service, PortalProcess(service) as portal:
        async with service.client() as client:
            await idle(client)
        yield portal
