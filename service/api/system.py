"""What service this is, how it stands, what happened."""

from __future__ import annotations

import socket
from importlib.metadata import version
from typing import Any

from service.api import params as p
from service.api.context import Family, waiting_restore
from service.api.registry import method
from service.api.views import (
    EventPage,
    JobView,
    RecoveryInfo,
    SystemInfo,
)
from service.doctor import examine
from service.errors import ConfigError
from service.finding import Finding


class System(Family):
    """What service this is, how it stands, what happened."""

    @method("system.info")
    async def info(self, params: p.Nothing) -> SystemInfo:
        """Tell what service this is and how it stands."""
        file = self.context.file()
        return SystemInfo(
            version=version("deviceon-backup"),
            boot_id=self.context.boot_id,
            started=self.context.started,
            now=self.context.clock(),
            host=socket.gethostname(),
            product=file.server.product,
            targets=self._targets(),
            state_dir=str(file.state_dir),
            sealing=file.sealing.mode,
            not_ready=self.context.not_ready(),
            active=None
            if self.context.jobs.active is None
            else JobView.of(self.context.jobs.active, self.context.jobs),
            waiting=len(self.context.jobs.waiting),
            next_run=self.context.scheduler.next_run(),
            last_backup=next(iter(await self.context.history.jobs(limit=1, kinds=["backup"])), None),
            last_success=next(
                iter(await self.context.history.jobs(limit=1, kinds=["backup"], states=["succeeded"])), None
            ),
            next_drill=self.context.scheduler.next_run("drill"),
            last_drill=next(iter(await self.context.history.jobs(limit=1, kinds=["drill"])), None),
            clock_doubted_since=self.context.scheduler.guard.doubted_since,
            restore=waiting_restore(self.context.file()),
            recovery=RecoveryInfo.of(file),
        )

    def _targets(self) -> list[str]:
        try:
            return [target.url for target in self.context.config().targets]
        except ConfigError:
            return []

    @method("system.doctor", admin=True)
    async def doctor(self, params: p.Nothing) -> list[Finding]:
        """Try the TPM, the sources and the target, and say what has to be put right."""
        return await examine(self.context.config())

    @method("system.schema")
    async def describe(self, params: p.Nothing) -> dict[str, Any]:
        """Return the JSON Schema of every method and event."""
        return self.context.schema()

    @method("events.list")
    async def events(self, params: p.Since) -> EventPage:
        """Return the events that are remembered after a number. `events.subscribe` sends them as they happen."""
        found = await self.context.history.events()
        return EventPage([event for event in found if event["seq"] > (params.since or 0)], self.context.boot_id)
