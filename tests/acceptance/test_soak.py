"""A soak: backups by the minute of a fast clock, retention on, chaos on; memory and descriptors stay where they are.

`DEVICEON_BACKUP_SOAK_SECONDS` says how long (`make scoreboard ONLY=R25 HOURS=2`); in `make test` it is some seconds,
which shows that it works and no slope.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from demo.postgresql_server import PostgresqlServer
from demo.software_tpm import SoftwareTpm
from service.catalog import verify
from service.client import Client
from service.errors import ServiceError
from service.progress import Progress
from service.settings import load
from tests.scoreboard import counted
from tests.service_process import ServiceProcess, idle
from tests.sizes import SEED, size

SECONDS = size("SOAK_SECONDS", 12)
FACTOR = 30.0
"""The service's clock shows a minute for each two seconds, and a backup is due each minute."""
KEEP = 5
SAMPLE_SECONDS = 2.0
WARM = 0.25
"""The part of the samples that does not count: caches fill, pools grow, history comes to its limit."""
MOST_MIB_AN_HOUR = 15.0
MOST_FILES_AN_HOUR = 5.0
"""What a line through two hours of samples that go up and down by 50 MiB and some descriptors may be off."""
LONGEST_WAIT = 2 * 3600 / FACTOR
"""Seconds without a new verified archive: two hours of the service's clock, in which 120 backups are due."""
ENOUGH_SECONDS = 1200
"""A shorter soak says nothing about slopes."""
MOST_MIB = 400.0


@dataclass(slots=True)
class Sample:
    """What the service's process takes at a moment (seconds since the start; MiB)."""

    at: float
    memory: float
    files: int
    threads: int


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return how much the second value grows while the first grows by one, by least squares."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


@dataclass(slots=True)
class Soak:
    """The service, what is done to it, and what was seen."""

    service: ServiceProcess
    server: PostgresqlServer
    tpm: SoftwareTpm
    target: Path
    dice: random.Random
    began: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)
    chaos: Counter[str] = field(default_factory=Counter)
    verified: dict[str, int] = field(default_factory=dict)
    newest_since: float = field(default_factory=time.monotonic)
    """When the newest verified archive was first seen; until there is one, the start."""
    longest_wait: float = 0.0
    looks: int = 0

    @property
    def over(self) -> bool:
        return time.monotonic() - self.began > SECONDS

    def sample(self) -> None:
        process = Path(f"/proc/{self.service.pid}")
        status = (process / "status").read_text()
        self.samples.append(
            Sample(
                at=time.monotonic() - self.began,
                memory=int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024,
                files=len(list((process / "fd").iterdir())),
                threads=int(re.findall(r"Threads:\s+(\d+)", status)[0]),
            )
        )

    async def watch(self) -> None:
        """Take samples, and look at the archives: what was verified stays until newer ones take its place."""
        async with self.service.client() as client:
            while not self.over:
                await asyncio.sleep(SAMPLE_SECONDS)
                self.sample()
                with contextlib.suppress(ServiceError):  # the target is away just now
                    await self.look(client)
                    self.looks += 1

    async def look(self, client: Client) -> None:
        archives: list[dict[str, Any]] = (await client.call("archive.list", limit=500))["archives"]
        broken = [one["name"] for one in archives if one["evidence"] == "damaged"]
        assert broken == []
        before = max(self.verified.values(), default=0)
        for one in archives:
            if one["evidence"] == "verified":
                self.verified[one["name"]] = one["seq"]
        self.wait_for_more()
        if max(self.verified.values(), default=0) > before:
            self.newest_since = time.monotonic()
        newest = sorted(self.verified.values())[-KEEP:]
        there = {one["name"] for one in archives}
        lost = [name for name, seq in self.verified.items() if seq in newest and name not in there]
        assert lost == []

    def wait_for_more(self) -> None:
        """Tell how long there has been no newer verified archive."""
        self.longest_wait = max(self.longest_wait, time.monotonic() - self.newest_since)

    async def disturb(self) -> None:
        """Do something to it every few seconds; count what really happened."""
        kinds: list[Callable[[], Awaitable[bool]]] = [
            self.end_sessions,
            self.cycle_the_tpm,
            self.pause_the_tpm,
            self.move_the_target_away,
            self.cancel_a_job,
            self.be_a_crowd,
            self.ask_for_all_at_once,
            self.leave_a_file_in_the_target,
        ]
        while not self.over:
            await asyncio.sleep(self.dice.uniform(1.0, 4.0))
            what = self.dice.choice(kinds)
            with contextlib.suppress(ServiceError, ConnectionError):
                self.chaos[what.__name__] += await what()

    async def end_sessions(self) -> bool:
        ended = await self.server.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'deviceon-backup'"
        )
        return bool(ended)

    async def cycle_the_tpm(self) -> bool:
        await asyncio.to_thread(self.tpm.restart)
        return True

    async def pause_the_tpm(self) -> bool:
        self.tpm.pause()
        await asyncio.sleep(self.dice.uniform(0.1, 2.0))
        self.tpm.resume()
        return True

    async def move_the_target_away(self) -> bool:
        away = self.target.with_name("away")
        self.target.rename(away)
        await asyncio.sleep(self.dice.uniform(0.0, 1.0))
        away.rename(self.target)
        return True

    async def cancel_a_job(self) -> bool:
        async with self.service.client() as client:
            active = (await client.call("system.info"))["active"]
            if active is not None:
                await client.call("job.cancel", id=active if isinstance(active, str) else active["id"])
        return active is not None

    async def be_a_crowd(self) -> bool:
        """Come and go without a word."""
        came = False
        for _ in range(20):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_unix_connection(str(self.service.socket))
                writer.write(os.urandom(200))
                writer.close()
                came = True
        return came

    async def ask_for_all_at_once(self) -> bool:
        async with self.service.client() as client:
            await asyncio.gather(
                *(client.call(method) for method in ("archive.list", "job.list", "system.info")), return_exceptions=True
            )
        return True

    async def leave_a_file_in_the_target(self) -> bool:
        """Put something small there that is nobody's archive, for a moment."""
        (self.target / f"Backup_20200101_{self.dice.randrange(1000, 2400)}Z.zip").write_bytes(b"no archive")
        await asyncio.sleep(0.5)
        for path in self.target.glob("Backup_20200101_*"):
            path.unlink()
        return True

    def slopes(self) -> tuple[float, float]:
        """Return MiB and descriptors an hour, without the time in which it warmed up."""
        warm = self.samples[int(len(self.samples) * WARM) :]
        return (
            3600 * slope([(one.at, one.memory) for one in warm]),
            3600 * slope([(one.at, float(one.files)) for one in warm]),
        )


@pytest.mark.timeout(5 * 86400)
async def test_a_service_that_is_disturbed_for_long_keeps_its_archives_and_its_size(
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
    with service:
        async with service.client() as client:
            await idle(client)
        soak = Soak(service, sample_server, software_tpm, target, random.Random(SEED))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(soak.watch())
            tasks.create_task(soak.disturb())
        software_tpm.restart()
        async with service.client() as client:
            await idle(client)
            await soak.look(client)
        assert service.stop() == 0
    left = sorted(path.name for path in target.iterdir() if not re.fullmatch(r"Backup_\d{8}_\d{4}Z\.zip", path.name))
    assert left == []
    config = load(service.config_file)
    names = [path.name for path in target.glob("Backup_*.zip")]
    for name in names:
        await verify(config, name, progress=Progress())
    memory, files = soak.slopes()
    quarters = [soak.samples[min(len(soak.samples) - 1, len(soak.samples) * n // 4)].memory for n in range(5)]
    told = (
        f"{SECONDS / 3600:.2f} h, {len(soak.samples)} samples: {memory:+.2f} MiB and {files:+.2f} descriptors an hour, "
        f"{', '.join(f'{one:.0f}' for one in quarters)} MiB at its quarters; {len(names)} archives kept, all verify; "
        f"{soak.longest_wait:.0f} s at most without a new one"
    )
    record_property("counted", counted(soak.chaos.total(), told, soak.chaos, seed=SEED, archives=len(soak.verified)))
    assert soak.verified
    assert soak.longest_wait < LONGEST_WAIT, told
    assert soak.looks > len(soak.samples) / 2
    assert max(one.memory for one in soak.samples) < MOST_MIB, told
    if SECONDS >= ENOUGH_SECONDS:
        assert memory < MOST_MIB_AN_HOUR, told
        assert files < MOST_FILES_AN_HOUR, told


def test_a_slope_is_that_of_the_line_that_fits_best() -> None:
    assert slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)
    assert slope([(0, 5), (1, 5), (2, 5)]) == 0
    assert slope([(0, 0), (1, 1), (2, 0), (3, 1)]) == pytest.approx(0.2)
