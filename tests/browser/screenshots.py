"""Pictures of every state of the portal for docs/images: `make screenshots`.

The chapters of the tests are walked, and each state is taken wide; some on a phone, dark, or in Chinese as well. Names,
versions and times are the same in each run: run by root, this works in a namespace of its own, where the machine has
the paths and the name of a server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, async_playwright

from tests.browser import chapters
from tests.browser.camera import Camera
from tests.browser.machine import Machine, PortalProcess, machine
from tests.browser.past import live
from tests.browser.watched import PHONE
from tests.service_process import ServiceProcess, idle

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
NOW = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
HOST = "deviceon-01"
ARCHIVES = 20
MOST_BYTES = 2_000_000

WAYS: dict[str, dict[str, Any]] = {
    "phone": {"viewport": PHONE, "is_mobile": True, "has_touch": True},
    "dark": {"color_scheme": "dark"},
    "zh": {"locale": "zh-TW", "timezone_id": "Asia/Taipei"},
}
ALSO = {
    "overview": ("phone", "dark", "zh"),
    "job-running": ("dark",),
    "archives": ("phone", "zh"),
    "archive": ("dark",),
    "restore-plan": ("phone", "zh"),
    "restore-pending": ("phone",),
    "settings-retention": ("zh",),
    "jobs": ("phone", "dark"),
}
FONT = "Inter"
"""What people see is their system's own letters; pictures have these, which look much like them everywhere."""


def _fonts() -> str:
    rules = [
        f'<match target="pattern"><test qual="any" name="family"><string>{name}</string></test>'
        f'<edit name="family" mode="prepend" binding="strong"><string>{FONT}</string></edit></match>'
        for name in ("sans", "system-ui", "sans-serif")
    ]
    return "\n".join(["<fontconfig>", "<include>/etc/fonts/fonts.conf</include>", *rules, "</fontconfig>"])


@contextlib.asynccontextmanager
async def _picturing(
    browser: Browser, portal: PortalProcess, camera: Camera
) -> AsyncIterator[tuple[Page, chapters.Show]]:
    """Give a tab to walk in, and what takes the pictures of a state."""
    late = f"const now = Date.now; Date.now = () => now() + {round((portal.ahead or 0) * 1000)};"
    async with contextlib.AsyncExitStack() as stack:
        others = {}
        for way, settings in WAYS.items():
            visitor = await stack.enter_async_context(portal.visitor(browser, **settings))
            await visitor.context.add_init_script(late)
            others[way] = await visitor.context.new_page()
        walker = await stack.enter_async_context(portal.visitor(browser))
        await walker.context.add_init_script(late)

        async def show(page: Page, name: str) -> None:
            await camera.take(page, name)
            for way in ALSO.get(name, ()):
                await others[way].goto(page.url)
                await camera.take(others[way], f"{name}-{way}")

        yield await walker.page("/"), show


async def _new(browser: Browser, machine: Machine, camera: Camera, clock: tuple[float, ...], ahead: float) -> None:
    service = machine.service("new")
    service.clock = clock
    with service, PortalProcess(service, ahead=ahead) as portal:
        await _settled(service)
        async with portal.visitor(browser, None) as stranger:
            await camera.take(await stranger.page("/login"), "login")
        async with (
            _picturing(browser, portal, camera) as (page, show),
            chapters.visit_of(page, portal, machine, show) as visit,
        ):
            await chapters.first_use(visit)


async def _lived(browser: Browser, machine: Machine, camera: Camera, clock: tuple[float, ...], ahead: float) -> None:
    service = machine.service("lived", copies=[{"url": f"file://{machine.archives('copies')}"}])
    settings = {
        "target": machine.s3_target("hall-7"),
        "schedule": {"frequency": "daily", "at": "02:00"},
        "retention": {"keep_last": ARCHIVES},
    }
    await live(service, settings, now=NOW, archives=ARCHIVES, between=machine.grow)
    service.clock = clock
    with service, PortalProcess(service, ahead=ahead) as portal:
        await _settled(service)
        async with _picturing(browser, portal, camera) as (page, show):
            for chapter in (
                chapters.run_now,
                chapters.archives,
                chapters.drill,
                chapters.restore,
                chapters.an_obstacle,
                chapters.reset,
                chapters.a_failed_job,
            ):
                async with chapters.visit_of(page, portal, machine, show) as visit:
                    await chapter(visit)
        async with portal.visitor(browser, "read") as reader:
            page = await reader.page("/archives")
            await camera.take(page, "archives-read")
            reader.expected.append("status 503")
            await asyncio.to_thread(service.stop)
            await page.goto(f"{portal.origin}/archives")
            await camera.take(page, "away")


async def _settled(service: ServiceProcess) -> None:
    async with service.client() as client:
        await idle(client)


async def take(directory: Path, camera: Camera) -> None:
    """Take all pictures; `directory` is where the machine's files lie."""
    ahead = NOW.timestamp() - time.time()
    clock = (time.time(), 1.0, NOW.timestamp())
    async with machine(directory) as made, async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), chromium_sandbox=False, args=["--lang=en-GB"]
        )
        await _new(browser, made, camera, clock, ahead)
        await _lived(browser, made, camera, clock, ahead)
        await browser.close()


def main() -> int:
    """Take the pictures; return 1 when they are too large together."""
    if os.geteuid() == 0 and "--inside" not in sys.argv:
        return subprocess.call(["unshare", "--mount", "--uts", sys.executable, "-m", __spec__.name, "--inside"])
    directory = Path(tempfile.mkdtemp(prefix="deviceon-"))
    if "--inside" in sys.argv and not Path(sys.prefix).is_relative_to("/opt") and not ROOT.is_relative_to("/opt"):
        subprocess.check_call(["mount", "-t", "tmpfs", "-o", "mode=0755", "deviceon", "/opt"])
        socket.sethostname(HOST)
        directory = Path("/opt/advantech")
    IMAGES.mkdir(parents=True, exist_ok=True)
    camera = Camera(IMAGES)
    with tempfile.TemporaryDirectory() as fonts:
        file = Path(fonts) / "fonts.conf"
        file.write_text(_fonts())
        os.environ["FONTCONFIG_FILE"] = str(file)
        asyncio.run(take(directory, camera))
    for old in set(IMAGES.glob("*.webp")) - set(camera.taken):
        old.unlink()
    total = sum(path.stat().st_size for path in camera.taken)
    print(f"{len(camera.taken)} pictures in {IMAGES.relative_to(ROOT)}, {total / 1e6:.2f} MB together")
    return 0 if total <= MOST_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
