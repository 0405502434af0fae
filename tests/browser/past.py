"""Three months of a service's life, made in seconds: real archives at their dates, and a history as jobs leave it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from service.app import App, opened
from service.config import ConfigFile
from service.job import Job
from service.state import Gap
from tests.service_parts import ADMIN
from tests.service_process import ServiceProcess

DAYS = 90
UNREACHABLE: dict[str, Any] = {
    "code": "TARGET_UNREACHABLE",
    "message": "the S3 server does not answer: connection refused",
    "hint": "Look whether the endpoint and the network are up; the backup is tried again at its next time.",
    "transient": True,
}
_FAILED, _MISSED, _CANCELLED = (62, 61, 17), (38, 37), (45,)
"""How many days ago a backup failed, did not run, was cancelled."""


@dataclass
class Hand:
    """A clock that is set by hand and goes on from there."""

    shown: datetime
    set_at: float = 0.0

    def set(self, shown: datetime) -> None:
        self.shown, self.set_at = shown, asyncio.get_running_loop().time()

    def __call__(self) -> datetime:
        return self.shown + timedelta(seconds=asyncio.get_running_loop().time() - self.set_at)


async def live(
    service: ServiceProcess,
    settings: dict[str, Any],
    *,
    now: datetime,
    archives: int,
    between: Callable[[], Any] | None = None,
) -> str:
    """Let a service that does not run have lived until `now`; return its recovery key.

    It was provisioned, took a baseline, and backed up each night at two (UTC). The last `archives` backups are real,
    as are a hold and a drill; the others are in the history only. `between` is awaited between two of them.
    """
    file = ConfigFile.model_validate(service.complete_document, strict=False)
    clock = Hand(now)
    last = (now - timedelta(hours=2)).replace(hour=2, minute=0, second=0, microsecond=0)
    nights = [last - timedelta(days=ago) for ago in range(DAYS)]
    async with opened(file, clock=clock) as app, _working(app):
        clock.set(nights[-1] - timedelta(hours=16))
        begun = await app.api.call("provision.begin", {"recovery": "identity"}, ADMIN)
        await app.api.call("provision.finish", {"token": begun["token"], "answers": [begun["secret"]]}, ADMIN)
        await app.api.call("settings.update", settings, ADMIN)
        clock.set(clock() + timedelta(minutes=4))
        await _done(app, await app.api.call("baseline.take", {}, ADMIN))
        made: list[Job] = []
        for night in reversed(nights[:archives]):
            clock.set(night)
            made.append(await _done(app, (await app.jobs.submit("backup", {}, origin="schedule", scheduled_for=night))))
            if between is not None:
                await between()
        for ago, night in enumerate(nights):
            if ago >= archives:
                await _remember(app, made[0], ago, night)
        clock.set(nights[1] + timedelta(hours=2))
        assert made[-2].result is not None
        await _done(app, await app.api.call("drill.start", {"archive": made[-2].result["name"]}, ADMIN))
        assert made[0].result is not None
        hold = {"archive": made[0].result["name"], "reason": "before the update to 5.3.13"}
        await app.api.call("archive.hold", hold, ADMIN)
    return str(begun["secret"])


@contextlib.asynccontextmanager
async def _working(app: App) -> AsyncIterator[None]:
    app.not_ready = None
    work = asyncio.create_task(app.jobs.run())
    try:
        yield
    finally:
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work


async def _done(app: App, job: Any) -> Job:
    identifier = job["id"] if isinstance(job, dict) else job.id
    async with asyncio.timeout(60):
        while True:
            found = await app.history.job(identifier)
            if found is not None and found.done:
                assert found.state == "succeeded", found
                return found
            await asyncio.sleep(0.01)


async def _remember(app: App, like: Job, ago: int, night: datetime) -> None:
    """Put a backup of long ago into the history: as the real one `like` went, or in another way on some days."""
    if ago in _MISSED:
        due = {"kind": "backup", "due": night.isoformat(), "made_up": None}
        event = app.hub.publish("schedule.missed", job_id=None, data=due)
        assert event.seq is not None
        await app.history.add_event(event.seq, event.as_json() | {"time": night.isoformat()})
        daily = {"frequency": "daily", "at": "02:00"}
        await app.history.gaps.add(Gap("backup", night - timedelta(days=1), night, daily))
        return
    assert like.result is not None
    seconds = like.result["seconds"] * (1 - ago / 400) + (ago * 7 % 13) / 10
    size = round(like.result["size"] * (1 - ago / 300) + (ago * 5 % 11) * 9_000)
    name = f"Backup_{night:%Y%m%d_%H%M}Z.zip"
    old: Job = like.but(
        id=f"{ago:016x}",
        created=night,
        scheduled_for=night,
        started=night,
        ended=night + timedelta(seconds=seconds),
        result=like.result | {"name": name, "size": size, "seconds": seconds},
    )
    if ago in _FAILED:
        old = old.but(state="failed", result=None, error=UNREACHABLE)
    elif ago in _CANCELLED:
        old = old.but(state="cancelled", result=None)
    await app.history.save_job(old)
