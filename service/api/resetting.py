"""The baseline, and the way back to it."""

from __future__ import annotations

from service.api import params as p
from service.api.context import Family
from service.api.registry import method
from service.baseline import Baseline, find_baseline
from service.job import Job
from service.reset import ResetPlan, plan_reset


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

    @method("reset.plan", admin=True)
    async def plan(self, params: p.ResetPlanOf) -> ResetPlan:
        """Tell what a reset to the baseline would replace, what stays, and every obstacle. Touches nothing."""
        config = self.context.config().opened_with(p.opening(params))
        return await plan_reset(config, remove_new=params.remove_new_databases, ledger=self.context.ledger)

    @method("reset.start", admin=True)
    async def reset(self, params: p.ResetStart) -> Job:
        """Queue the return to the baseline. The state before is kept until restore.commit or restore.rollback."""
        return await self.context.submit("reset", "reset.start", params)
