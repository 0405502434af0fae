"""When backups come and which archives go."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from service.api import params as p
from service.api.context import Family
from service.api.registry import method
from service.api.views import (
    RetentionVerdicts,
)
from service.job import Job
from service.prune import preview
from service.schedule import preview as upcoming
from service.settings import parsed


class Planning(Family):
    """When backups come and which archives go."""

    @method("retention.preview")
    async def preview_retention(self, params: p.RetentionPreview) -> RetentionVerdicts:
        """Tell which archives would be kept and removed, and why, in each target. Removes nothing."""
        config = self.context.chosen(params)
        tried = {"retention": params.retention, "schedule": params.schedule}
        changes = {name: _checked(name, document) for name, document in tried.items() if document is not None}
        config = config.model_copy(update=changes)
        suspect = self.context.scheduler.clock_suspect
        return RetentionVerdicts(
            [
                await preview(one, ledger=self.context.ledger, now=self.context.clock(), clock_suspect=suspect)
                for one in config.each()
            ]
        )

    @method("retention.apply", admin=True)
    async def apply_retention(self, params: p.RetentionApply) -> Job:
        """Queue the removal of the archives that no rule keeps."""
        return await self.context.submit("prune", "retention.apply", params)

    @method("schedule.preview")
    async def preview_schedule(self, params: p.SchedulePreview) -> list[datetime]:
        """Return when the next backups would start, in UTC; an empty list without a schedule."""
        settings = self.context.file().system_backup(self.context.stored.value)
        schedule = settings.schedule if settings.enabled else None
        if params.schedule is not None:
            schedule = _checked("schedule", params.schedule)
        return (
            []
            if schedule is None
            else upcoming(schedule, self.context.clock(), params.count, self.context.scheduler.seed)
        )


def _checked(name: str, document: dict[str, Any]) -> Any:
    """Return one System Backup setting that is only tried. Raises ConfigError."""
    return getattr(parsed({name: document}), name)
