"""What the running service tells its metrics: what it remembers at the start, and what a look around finds.

Looking never fails for one thing that cannot be seen: that is logged, and its metric stays as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import get_args

from service import settings
from service.app import App
from service.catalog import CatalogEntry, list_archives
from service.config import Config
from service.errors import ConfigError, ServiceError
from service.ledger import PROVEN, Evidence
from service.metrics import Metrics
from service.recovery_choice import without_recovery
from service.restore import pending
from service.rpc.tls import expiry
from service.schedule import ScheduleSettings, longest_pause
from service.state import ASIDE, FILE_NAME
from storage_backends import open_target
from storage_backends.base import StorageBackend, StorageError

log = logging.getLogger(__name__)

SET_ASIDE = {"history": f"{FILE_NAME}{ASIDE}*[0-9]Z", "settings": f"{settings.COPY}{settings.REJECTED}*"}
"""Patterns of the files that were kept since they could not be used."""


async def seed(app: App, metrics: Metrics) -> None:
    """Tell what was before this start: the last job of each kind and result, and what was missed."""
    metrics.seed(*await app.history.last_ended())
    for event in app.hub.kept:
        if event.type == "schedule.skipped" or (event.type == "schedule.missed" and not event.data.get("made_up")):
            metrics.missed(str(event.data.get("kind")), event.time)


async def measure(app: App, metrics: Metrics) -> None:
    """Look at the schedules, the state directory and every target. Raises ServiceError when the memory fails."""
    _schedules(app, metrics)
    metrics.recovery_missing(without_recovery(app.file))
    metrics.clock_suspect(app.scheduler.clock_suspect)
    with _logged("the state directory"):
        await asyncio.to_thread(_state_directory, app, metrics)
    with _logged("the certificate of the TLS socket"):
        tls = app.file.service.tls
        metrics.certificate_expires(await asyncio.to_thread(expiry, tls.certificate_file) if tls else None)
    try:
        config = app.config()
    except ConfigError:
        return
    owed = [target for _, target in await app.pending.all()]
    metrics.keep_targets({target.url for target in config.targets})
    metrics.copies_owed({target.url: owed.count(target.url) for target in config.targets})
    for one in config.each():
        await _target(app, metrics, one)


async def archives(app: App, config: Config) -> list[CatalogEntry]:
    """Return the archives in the target of `config`, with what is known of them. Raises as `list_archives`."""
    async with open_target(config.target.url, config.target.options()) as target:
        return await list_archives(target, app.archives)


def _schedules(app: App, metrics: Metrics) -> None:
    next_run = app.scheduler.next_run()
    metrics.next_run(next_run)
    metrics.schedule_enabled(next_run is not None)
    metrics.next_drill(app.scheduler.next_run("drill"))
    for occasion in app.scheduler.occasions:
        schedule = occasion.schedule()
        pause = _pause(schedule.model_dump_json(), app.clock().strftime("%Y-%m-%d")) if schedule else None
        metrics.longest_pause(occasion.kind, pause)


@lru_cache(maxsize=8)
def _pause(schedule: str, day: str) -> timedelta:
    """Look a year ahead once a day: it takes some milliseconds."""
    start = datetime.fromisoformat(day).replace(tzinfo=UTC)
    return longest_pause(ScheduleSettings.model_validate_json(schedule), start)


def _state_directory(app: App, metrics: Metrics) -> None:
    directory: Path = app.file.state_dir
    usage = shutil.disk_usage(directory)
    aside = {what: len(list(directory.glob(pattern))) for what, pattern in SET_ASIDE.items()}
    metrics.state_directory(free=usage.free, size=usage.total, set_aside=aside)
    journal = pending(app.file)
    metrics.restore_pending(datetime.fromisoformat(journal.swapped or journal.started) if journal else None)


async def _target(app: App, metrics: Metrics, config: Config) -> None:
    url = config.target.url
    try:
        async with open_target(url, config.target.options()) as target:
            found = await list_archives(target, app.archives)
            free = await _free(target)
    except (ServiceError, StorageError) as error:
        metrics.target_up(url, False)
        log.warning("the target %s cannot be listed: %s", url, error)
        return
    metrics.target_up(url, True)
    metrics.target_free(url, free)
    counted = dict.fromkeys(get_args(Evidence), 0)
    for entry in found:
        counted[entry.evidence] += 1
    proven = [entry for entry in found if entry.evidence in PROVEN and entry.created]
    restorable = [entry for entry in proven if entry.evidence == "restorable"]
    metrics.archives(url, counted, _newest(proven), _newest(restorable), sum(entry.size for entry in found))


async def _free(target: StorageBackend) -> int | None:
    try:
        return await target.free_bytes()
    except StorageError as error:  # it was listed: it works
        log.info("how much room the target %s has cannot be seen: %s", target.url, error)
        return None


def _newest(entries: list[CatalogEntry]) -> datetime | None:
    return max((entry.created for entry in entries if entry.created), default=None)


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    try:
        yield
    except (ServiceError, OSError, ValueError) as error:
        log.warning("%s cannot be looked at: %s", what, error)
