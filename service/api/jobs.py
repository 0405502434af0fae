"""Backups that are asked for, and jobs of every kind."""

from __future__ import annotations

from service.api import params as p
from service.api.context import Family
from service.api.registry import method
from service.api.views import (
    JobPage,
    JobView,
)
from service.errors import NotFound
from service.job import Job


class JobMethods(Family):
    """Backups that are asked for, and jobs of every kind."""

    @method("backup.start", admin=True)
    async def backup(self, params: p.Mutation) -> Job:
        """Queue a backup."""
        return await self.context.submit("backup", "backup.start", params)

    @method("job.get")
    async def job(self, params: p.JobId) -> JobView:
        """Return a job, and how far it is when it runs."""
        known = await self.context.history.job(params.id)
        if known is None:
            raise NotFound(f"there is no job {params.id}", hint="`job.list` tells which there are.")
        return JobView.of(known, self.context.jobs)

    @method("job.list")
    async def list_jobs(self, params: p.JobList) -> JobPage:
        """Return a page of jobs, the newest first."""
        jobs = await self.context.history.jobs(
            limit=params.limit + 1,
            before=params.before,
            kinds=params.kinds,
            states=params.states,
            key=params.idempotency_key,
        )
        return JobPage(jobs[: params.limit], more=len(jobs) > params.limit)

    @method("job.cancel", admin=True)
    async def cancel(self, params: p.JobId) -> Job:
        """Cancel a job. It has the state `cancelled` when what it began is undone; too late gives an error."""
        return await self.context.jobs.cancel(params.id)
