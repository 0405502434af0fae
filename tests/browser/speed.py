"""How long the portal takes to answer with a thousand archives: `python -m tests.browser.speed`.

The archives are real files in a local target, known to the service as they are after its first look. What is measured
is a whole answer, from the request to its last byte, and when Chromium has painted it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from playwright.async_api import Browser, async_playwright

from service.app import opened
from service.config import ConfigFile
from service.ledger import Known
from service.progress import Progress
from storage_backends import open_target
from tests.browser.machine import PortalProcess
from tests.service_process import ServiceProcess, idle

ARCHIVES = 1000
ROUNDS = 10
PAGES = ("/", "/archives", "/jobs")


@asynccontextmanager
async def crowded(directory: Path, count: int = ARCHIVES) -> AsyncIterator[PortalProcess]:
    """Give the portal of a service with many archives and as many backups in its history."""
    archives, tree = directory / "archives", directory / "etc"
    for each in (archives, tree):
        each.mkdir()
    (tree / "server.conf").write_text("port = 80\n" * 1000)
    service = ServiceProcess(
        directory,
        {
            "server": {"version": "5.3.12"},
            "target": {"url": f"file://{archives}"},
            "retention": {"keep_last": 2 * count},
            "schedule": {"frequency": "daily", "at": "02:00"},
            "sealing": {"mode": "off"},
            "sources": [{"type": "tree", "path": str(tree)}],
        },
    )
    await _fill(service, archives, count)
    with service:
        async with service.client() as client:
            await idle(client)
        with PortalProcess(service) as portal:
            yield portal


async def _fill(service: ServiceProcess, archives: Path, count: int) -> None:
    """Make one real archive and backup, and the others like it: one every day, up to now."""
    file = ConfigFile.model_validate(service.complete_document, strict=False)
    url = f"file://{archives}"
    async with opened(file) as app:
        made = await app.jobs.run_now("backup", {}, Progress())
        assert made.result is not None, made
        now, names = made.created, {}
        for ago in range(1, count):
            at = now - timedelta(days=ago)
            name = f"Backup_{at:%Y%m%d_%H%M}Z.zip"
            os.link(archives / made.result["name"], archives / name)
            names[name] = at
            result = made.result | {"name": name}
            await app.history.save_job(
                made.but(id=f"{ago:016x}", origin="schedule", created=at, started=at, ended=at, result=result)
            )
        facts = {
            "server_version": "5.3.12",
            "sealing": "off",
            "fingerprint": None,
            "raw_bytes": 10_240,
            "seconds": 1.0,
        }
        async with open_target(url) as target:
            infos = [info async for info in target.list_objects("Backup_") if info.key in names]
        for info in infos:
            await app.archives.found(url, info.key, info.etag, "verified")
        looked_at = {
            info.key: Known(info.etag, facts=facts | {"created": names[info.key].isoformat(), "seq": number})
            for number, info in enumerate(sorted(infos, key=lambda info: info.key), 2 - count)
        }
        await app.archives.listed(url, looked_at, [])


async def measure(
    browser: Browser, portal: PortalProcess, paths: Sequence[str], *, rounds: int = ROUNDS
) -> dict[str, tuple[float, float]]:
    """Return for each path the medians, in ms: from request to the answer's last byte, and to the first paint."""
    told = {}
    async with portal.visitor(browser) as visitor:
        page = await visitor.page(paths[0])
        for path in paths:
            found = []
            for _ in range(rounds):
                await page.goto(f"{portal.origin}{path}")
                await page.wait_for_function("() => performance.getEntriesByName('first-contentful-paint').length")
                found.append(await page.evaluate(_TIMES))
            told[path] = (statistics.median(one[0] for one in found), statistics.median(one[1] for one in found))
    return told


_TIMES = """() => {
  const [page] = performance.getEntriesByType('navigation');
  const [paint] = performance.getEntriesByName('first-contentful-paint');
  return [page.responseEnd - page.requestStart, paint.startTime - page.requestStart];
}"""


async def main() -> None:
    directory = Path(tempfile.mkdtemp(prefix="deviceon-backup-speed-"))
    try:
        async with crowded(directory) as portal, async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), chromium_sandbox=False)
            for path, (answered, painted) in (await measure(browser, portal, PAGES)).items():
                print(f"{path:10} answered in {answered:4.0f} ms, painted after {painted:4.0f} ms")
            await browser.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    asyncio.run(main())
