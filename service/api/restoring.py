"""Restoring, and keeping or undoing what was restored."""

from __future__ import annotations

from service.api import params as p
from service.api.context import Family, waiting_restore
from service.api.registry import method
from service.api.views import (
    Pending,
)
from service.catalog import archive_at
from service.job import Job
from service.restore_plan import RestorePlan, plan_restore
from service.selection import Selection


class RestoreMethods(Family):
    """Restoring, and keeping or undoing what was restored."""

    @method("restore.plan", admin=True)
    async def plan(self, params: p.RestorePlanOf) -> RestorePlan:
        """Tell what a restore would replace, and every obstacle in its way. Touches nothing."""
        config = self.context.config().opened_with(p.opening(params))
        archive = archive_at(config, params.archive, params.target)
        select = Selection.of_params(params.model_dump())
        return await plan_restore(config, archive, select=select, history=self.context.history)

    @method("restore.start", admin=True)
    async def restore(self, params: p.RestoreStart) -> Job:
        """Queue a restore. The state before is kept until restore.commit or restore.rollback."""
        return await self.context.submit("restore", "restore.start", params)

    @method("restore.tables", admin=True)
    async def tables(self, params: p.RestoreTables) -> Job:
        """Queue a restore of tables into a new database of the same server. Nothing that is live is touched."""
        return await self.context.submit("tables", "restore.tables", params)

    @method("restore.pending")
    async def pending(self, params: p.Nothing) -> Pending | None:
        """Return the restore that waits for commit or rollback; null when there is none."""
        return waiting_restore(self.context.file())

    @method("restore.commit", admin=True)
    async def commit(self, params: p.Mutation) -> Job:
        """Queue the removal of the state before the restore, for good."""
        return await self.context.submit("commit", "restore.commit", params)

    @method("restore.rollback", admin=True)
    async def rollback(self, params: p.Mutation) -> Job:
        """Queue the return to the state before the restore."""
        return await self.context.submit("rollback", "restore.rollback", params)
