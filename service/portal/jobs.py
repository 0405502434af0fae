"""Jobs: the history, one of them while it runs and after, backing up now, and cancelling."""

from __future__ import annotations

import asyncio
from typing import Any, Final, get_args

from aiohttp import web

from service.client import RemoteError
from service.job import ADDING, ENDED, JobKind, JobState
from service.portal.plan import LIVE
from service.portal.portal import Portal
from service.portal.translation import N_

PAGE: Final = 25
LOG_LINES: Final = 500


def routes(portal: Portal) -> list[web.RouteDef]:
    """Return the routes of this family."""

    async def history(request: web.Request) -> web.StreamResponse:
        kind, state = _one_of(request, "kind", KINDS), _one_of(request, "state", STATES)
        before = request.query.get("before")
        page = await portal.call(
            request,
            "job.list",
            limit=PAGE,
            before=before,
            kinds=None if kind is None else [kind],
            states=None if state is None else [state],
        )
        return portal.render(
            request, "jobs.html", page=page, kind=kind, state=state, before=before, kinds=KINDS, states=STATES
        )

    async def show(request: web.Request) -> web.StreamResponse:
        return await _page(request, 200)

    async def _page(request: web.Request, status: int, error: RemoteError | None = None) -> web.StreamResponse:
        identifier = request.match_info["id"]
        job, log = await asyncio.gather(
            portal.call(request, "job.get", id=identifier),
            portal.call(request, "job.log", id=identifier, limit=LOG_LINES),
        )
        pending: Any = None
        if job["kind"] in LIVE and job["state"] in ENDED:
            pending = await portal.call(request, "restore.pending")
        places: list[Any] = (job.get("progress") or {}).get("targets") or []
        if job["kind"] in ADDING and job["state"] not in ENDED and not places:
            info = await portal.call(request, "system.info")
            places = [{"url": url, "state": "waiting", "why": ""} for url in info["targets"]]
        told = {"job": job, "log": log, "error": error, "pending": pending, "places": places, "ended": ENDED}
        return portal.render(request, "jobs_show.html", status=status, **told)

    async def backup(request: web.Request) -> web.StreamResponse:
        return await portal.begin(request, "backup.start")

    async def cancel(request: web.Request) -> web.StreamResponse:
        identifier = request.match_info["id"]
        try:
            await portal.call(request, "job.cancel", id=identifier)
        except RemoteError as error:
            if error.code != "TOO_LATE":
                raise
            return await _page(request, 409, error)
        told = portal.text(request, N_("It is being cancelled; what it has begun is undone first."))
        return portal.redirect(request, f"/jobs/{identifier}", notice=told)

    return [
        web.get("/jobs", history),
        web.get("/jobs/{id}", show),
        web.post("/jobs/backup", backup),
        web.post("/jobs/{id}/cancel", cancel),
    ]


KINDS: Final[tuple[str, ...]] = get_args(JobKind)
STATES: Final[tuple[str, ...]] = get_args(JobState)


def _one_of(request: web.Request, name: str, allowed: tuple[str, ...]) -> str | None:
    """Return what the query asks for; None for everything."""
    value = request.query.get(name, "")
    return value if value in allowed else None
