"""The first page: whether the backups are well, what needs attention, what runs, and the last 90 days."""

from __future__ import annotations

import asyncio
from functools import partial

from aiohttp import web

from service.job import ADDING, ENDED
from service.portal.attention import last_proven, notices, verdict
from service.portal.calendar import calendar
from service.portal.portal import Portal
from service.portal.translation import locale_of

LOOKED_AT = 20
"""Backups among which the last proven one is looked for, before the last one that has succeeded in everything."""


def routes(portal: Portal) -> list[web.RouteDef]:
    """Return the routes of this family."""

    async def show(request: web.Request) -> web.StreamResponse:
        info, found, days, page = await asyncio.gather(
            portal.call(request, "system.info"),
            portal.call(request, "settings.get"),
            portal.call(request, "history.days"),
            portal.call(request, "job.list", limit=LOOKED_AT, kinds=sorted(ADDING), states=sorted(ENDED)),
        )
        ended = page["jobs"]
        proven = last_proven([*ended, *filter(None, [info["last_success"]])])
        settings, say = found["settings"], partial(portal.text, request)
        told = notices(info, settings, days["days"], next(iter(ended), None), proven, say)
        schedule = settings["schedule"] if settings["enabled"] else None
        return portal.render(
            request,
            "overview.html",
            info=info,
            proven=proven,
            settings=settings,
            copies=found["copies"],
            verdict=verdict(told, info, settings, proven, say),
            notices=told,
            calendar=calendar(days, locale_of(portal.language(request))),
            schedule_zone=schedule["timezone"] if schedule else None,
        )

    return [web.get("/", show)]
