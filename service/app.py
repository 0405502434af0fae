"""The service put together: memory, jobs, schedule and methods, made once and handed to each other.

`opened` gives all of it without anything running: the command line works with that when no service runs.
`service.serve` runs it.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from service.announcer import Announcer
from service.api import Api, Context
from service.api.schema import schema
from service.backup import utc_now
from service.blocking import run_in_thread
from service.config import Config, ConfigFile, complete
from service.events import Event, EventHub
from service.jobs import Jobs
from service.pending_copies import PendingCopies
from service.schedule import ScheduleSettings
from service.scheduler import Occasion, Scheduler
from service.settings import StoredSettings
from service.state import Archives, Database, History, Values, set_aside
from service.targets_at_hand import TargetsAtHand
from service.work import Work

log = logging.getLogger(__name__)

INSTALLATION = "installation"
UNREMEMBERED_EVENTS = 100
"""Numbers that are left out at a start: a killed service may have told events that it had not remembered yet, and a
client that saw their numbers must not take others for them."""


@dataclass(slots=True)
class App:
    """Everything that a service consists of, for one state directory."""

    file: ConfigFile
    clock: Callable[[], datetime]
    boot_id: str
    started: datetime
    hub: EventHub
    history: History
    values: Values
    archives: Archives
    stored: StoredSettings
    pending: PendingCopies
    announcer: Announcer
    targets: TargetsAtHand = field(default_factory=TargetsAtHand)
    jobs: Jobs = field(init=False)
    scheduler: Scheduler = field(init=False)
    api: Api = field(init=False)
    not_ready: str | None = "starting"

    def config(self) -> Config:
        """Return the configuration for jobs as it is now. Raises ConfigError when there is no target."""
        return complete(self.file, self.stored.value)


@contextlib.asynccontextmanager
async def opened(file: ConfigFile, *, clock: Callable[[], datetime] = utc_now) -> AsyncIterator[App]:
    """Open the memory in the state directory and put everything together. Raises StateError, ConfigError."""
    aside = await run_in_thread(set_aside, file.state_dir, clock())
    database = await run_in_thread(Database.open, file.state_dir)
    try:
        app = await _assembled(file, database, clock)
        if aside is not None:
            log.error("the service's memory was damaged; it was kept as %s, and history begins anew", aside)
            await app.announcer.tell("state.damaged", {"file": str(aside)})
        if app.stored.rejected is not None:
            await app.announcer.tell("settings.rejected", {"file": str(app.stored.rejected)})
        try:
            yield app
        finally:
            await app.targets.aclose()
    finally:
        database.close()


async def _assembled(file: ConfigFile, database: Database, clock: Callable[[], datetime]) -> App:
    history, values, archives = History(database), Values(database), Archives(database, clock)
    stored = StoredSettings(values, file.state_dir)
    await stored.load(clock())
    boot_id = secrets.token_hex(8)
    hub = EventHub(boot_id, _events(await history.events()), clock=clock)
    hub.seq += UNREMEMBERED_EVENTS if hub.seq else 0
    announcer = Announcer(hub, history)
    app = App(file, clock, boot_id, clock(), hub, history, values, archives, stored, PendingCopies(values), announcer)
    work = Work(
        app.config,
        archives,
        app.pending,
        clock,
        lambda: app.scheduler.clock_suspect,
        lambda job: app.jobs.opening(job.id),
    )
    app.jobs = Jobs(history, announcer, work, lambda: app.file.service, clock)
    app.scheduler = Scheduler(
        app.jobs,
        values,
        announcer,
        [
            Occasion("backup", lambda: _backup_schedule(app)),
            Occasion("drill", lambda: app.file.drill.schedule),
            Occasion("selftest", lambda: _selftest_schedule(app)),
        ],
        clock,
        seed=await _installation(values),
    )
    await app.scheduler.load()
    app.api = Api(
        Context(
            file=lambda: app.file,
            stored=stored,
            jobs=app.jobs,
            history=history,
            ledger=archives,
            scheduler=app.scheduler,
            announcer=announcer,
            clock=clock,
            boot_id=boot_id,
            started=app.started,
            not_ready=lambda: app.not_ready,
            schema=schema,
            targets=app.targets,
        )
    )
    return app


def _backup_schedule(app: App) -> ScheduleSettings | None:
    settings = app.file.system_backup(app.stored.value)
    return settings.schedule if settings.enabled else None


def _selftest_schedule(app: App) -> ScheduleSettings | None:
    sealing = app.file.sealing
    has_target = app.file.system_backup(app.stored.value).target is not None
    return sealing.self_test if sealing.mode == "tpm" and has_target else None


async def _installation(values: Values) -> str:
    """Return a word that is this installation's own, made at the first start."""
    known = await values.get(INSTALLATION)
    if known is None:
        known = secrets.token_hex(8)
        await values.set(INSTALLATION, known)
    return str(known)


def _events(remembered: Iterable[dict[str, Any]]) -> Iterator[Event]:
    for content in remembered:
        try:
            yield Event.from_json(content)
        except (KeyError, ValueError, TypeError) as error:
            log.error("an event that is remembered cannot be read: %r", error)
