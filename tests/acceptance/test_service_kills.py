"""The service is killed at random moments of scheduled runs; what counts is what the next start leaves.

`DEVICEON_BACKUP_KILLS` says how often (eight times by default; 200 and more for a release).
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from demo.postgresql_server import PostgresqlServer
from demo.software_tpm import SoftwareTpm
from service.catalog import list_archives, verify
from service.client import Client
from service.progress import Progress
from service.settings import load
from storage_backends import open_target
from tests.conformance.target_place import LocalPlace, SmbPlace, make_place
from tests.scoreboard import counted
from tests.service_process import ServiceProcess, idle
from tests.sizes import SEED

KILLS = int(os.environ.get("DEVICEON_BACKUP_KILLS", "8"))
TARGETS = os.environ.get("DEVICEON_BACKUP_KILL_TARGETS", "local").split(",")
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


@dataclass(frozen=True, slots=True)
class Target:
    """Where the archives go: what the configuration says of it, and what writers left there."""

    settings: dict[str, Any]
    left: Callable[[], list[str]]


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest, workspace: Path) -> Target:
    place = make_place(request.param, workspace, request.getfixturevalue)
    if isinstance(place, LocalPlace):
        return Target({"url": f"file://{place.directory}"}, place.unfinished)
    url = place.url if isinstance(place, SmbPlace) else f"s3://{place.bucket}/{place.prefix}"  # type: ignore[attr-defined]
    options: dict[str, Any] = dict(place.options)  # type: ignore[attr-defined]
    for name in {"password", "secret"} & options.keys():
        (workspace / name).write_text(options[name])
        (workspace / name).chmod(0o600)
        options[name] = {"file": str(workspace / name)}
    return Target({"url": url, "storage_options": options}, place.unfinished)


async def test_killed_at_random_moments_the_service_loses_no_good_archive_and_leaves_nothing(
    workspace: Path,
    target: Target,
    sample_server: PostgresqlServer,
    software_tpm: SoftwareTpm,
    record_property: Callable[[str, object], None],
) -> None:
    document = {
        "server": {"version": "5.4.1"},
        "target": target.settings,
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
    assert target.left() == []
    config = load(service.config_file)
    async with open_target(config.target.url, config.target.options()) as opened:
        names = [entry.name for entry in await list_archives(opened)]
        assert sorted([info.key async for info in opened.list_objects()]) == sorted(names)
    for name in names:
        await verify(config, name, progress=Progress())
    assert len(names) >= min(KEEP, len(seen.verified))
    record_property(
        "counted",
        counted(
            KILLS,
            f"{len(names)} archives are kept and verify, 0 broken, 0 lost, 0 leftovers; jobs: {seen.jobs}",
            seed=SEED,
            in_the_middle_of_a_job=in_work,
            archives_proven=len(seen.verified),
        ),
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
