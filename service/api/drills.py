"""Restores for practice, and their reports."""

from __future__ import annotations

import asyncio
from typing import Any

from service import drill_report
from service.api import params as p
from service.api.context import Family
from service.api.registry import method
from service.api.views import DrillPage, DrillSummary
from service.job import Job


class DrillMethods(Family):
    """Restores for practice, and their reports."""

    @method("drill.start", admin=True)
    async def drill(self, params: p.DrillStart) -> Job:
        """Queue a drill: an archive is restored beside the live data, compared, and dropped again."""
        return await self.context.submit("drill", "drill.start", params)

    @method("drill.list")
    async def drills(self, params: p.DrillList) -> DrillPage:
        """Return a page of what drills have found, the newest first."""
        found = await asyncio.to_thread(drill_report.listed, self.context.file().state_dir)
        page = found if params.before is None else [each for each in found if each["id"] < params.before]
        return DrillPage([DrillSummary.of(each) for each in page[: params.limit]], more=len(page) > params.limit)

    @method("drill.report")
    async def report(self, params: p.DrillId) -> dict[str, Any]:
        """Return the report of a drill, as it was signed."""
        return await asyncio.to_thread(drill_report.load, self.context.file().state_dir, params.id)
