"""The baseline, and the way back to it."""

from __future__ import annotations

from service.api import params as p
from service.api.context import Family
from service.api.registry import method
from service.baseline import Baseline, find_baseline
from service.job import Job


class ResetMethods(Family):
    """The baseline, and the way back to it."""

    @method("baseline.get")
    async def baseline(self, params: p.Nothing) -> Baseline | None:
        """Return the baseline of this server; null when there is none."""
        return await find_baseline(self.context.config(), self.context.ledger)

    @method("baseline.take", admin=True)
    async def take(self, params: p.BaselineTake) -> Job:
        """Queue a backup that becomes the baseline: it is held for ever. The one before is released afterwards."""
        return await self.context.submit("baseline", "baseline.take", params)
