"""The service is killed at random moments of scheduled runs; what counts is what the next start leaves.

`DEVICEON_BACKUP_KILLS` says how often (a dozen by default; 200 and more for a release).
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.postgresql_server import PostgresqlServer
from demo.software_tpm import SoftwareTpm
from service.catalog import list_archives, verify
from service.client import Client
from service.progress import Progress
from service.settings import load
from storage_backends import open_target
from tests.service_process import ServiceProcess, idle

KILLS = int(os.environ.get("DEVICEON_BACKUP_KILLS", "12"))
SEED = int(os.environ.get("DEVICEON_BACKUP_SEED", "20261124"))
FACTOR = 60.0
"""The service's clock shows a minute for each second, and a backup is due each minute."""
KEEP = 4


@dataclass(slots=True)
class Seen:
    """What was seen of archives over all lives of the service: names that were ever verified, by their number."""

    verified: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    jobs: dict[str, int] = field(default_factory=dict)

    async def look(self, client: Client) -> list[dict[str, Any]]:
        archives: list[dict[str, Any]] = (await client.call("archive.list", limit=500))["archives"]
        for entry in archives:
            if entry["evidence"] == "verified":
                self.verified[entry["name"]] = entry["seq"]
        return archives

    def lost(self, there: set[str]) -> list[str]:
        """Return archives that were good and are gone, though no newer ones took their place."""
        newest = sorted(self.verified.values(), reverse=True)[:KEEP]
        return [name for name, seq in self.verified.items() if name not in there and seq in newest]


async def test_killed_at_random_moments_the_service_loses_no_good_archive_and_leaves_nothing(
    workspace: Path,
    sample_server: PostgresqlServer,
    software_tpm: SoftwareTpm,
    record_property: Callable[[str, object], None],
) -> None:
    target = workspace / "archives"
    target.mkdir()
    document = {
        "server": {"version": "5.4.1"},
        "target": {"url": f"file://{target}"},
        "schedule": {"frequency": "cron", "cron": "* * * * *"},
        "retention": {"keep_last": KEEP},
        "sealing": {"mode": "tpm", "tcti": software_tpm.tcti},
        "sources": [sample_server.source_settings()],
    }
    service = ServiceProcess(workspace, document, clock=(time.time(), FACTOR))
    moments, seen = random.Random(SEED), Seen()
    in_work = 0
    with service:
        for _ in range(KILLS):
            async with service.client() as client:
                await seen.look(client)
                await asyncio.sleep(moments.uniform(0.0, 3.0))
                info = await client.call("system.info")
                in_work += info["active"] is not None
                await seen.look(client)
            service.kill()
            software_tpm.restart()  # the kernel frees what a killed process held in a TPM; this one has no kernel
            await _nothing_is_left_running(sample_server)
            service.start()
            async with service.client() as client:
                await idle(client)
                archives = await seen.look(client)
                assert [entry["name"] for entry in archives if entry["problem"] or entry["evidence"] == "damaged"] == []
                assert seen.lost({entry["name"] for entry in archives}) == []
        async with service.client() as client:
            seen.jobs = await _outcomes(client)
        assert service.stop() == 0
    left = sorted(path.name for path in target.iterdir() if not re.fullmatch(r"Backup_\d{8}_\d{4}Z\.zip", path.name))
    assert left == []
    config = load(service.config_file)
    async with open_target(config.target.url) as opened:
        names = [entry.name for entry in await list_archives(opened)]
    for name in names:
        await verify(config, name, progress=Progress())
    assert len(names) >= min(KEEP, len(seen.verified))
    record_property(
        "counted",
        f"{KILLS} kills (seed {SEED}), {in_work} in the middle of a job; {len(seen.verified)} archives were proven, "
        f"{len(names)} are kept and verify, 0 broken, 0 lost, 0 leftovers; jobs: {seen.jobs}",
    )


async def _outcomes(client: Client) -> dict[str, int]:
    """Count all backups by how they ended; none may be open."""
    counted: dict[str, int] = {}
    before: dict[str, str] = {}
    while True:
        page = await client.call("job.list", limit=500, kinds=["backup"], **before)
        for job in page["jobs"]:
            counted[job["state"]] = counted.get(job["state"], 0) + 1
        if not page["more"]:
            return counted
        before = {"before": page["jobs"][-1]["id"]}


async def _nothing_is_left_running(server: PostgresqlServer) -> None:
    """Wait until the killed service's sessions are gone: no child of it may go on working."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'deviceon-backup'"
    deadline = time.monotonic() + 20
    while (await server.fetch(query))[0][0]:
        assert time.monotonic() < deadline, "sessions of the killed service stay"
        await asyncio.sleep(0.05)
