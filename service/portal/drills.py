"""Drills: restores for practice, their start, and what they have found."""

from __future__ import annotations

import json
from typing import Final

from aiohttp import web

from service.portal.opening import given_secrets
from service.portal.portal import Portal

PAGE: Final = 20


def routes(portal: Portal) -> list[web.RouteDef]:
    """Return the routes of this family."""

    async def table(request: web.Request) -> web.StreamResponse:
        info = await portal.call(request, "system.info")
        page = await portal.call(request, "drill.list", limit=PAGE, before=request.query.get("before"))
        return portal.render(
            request,
            "drills.html",
            page=page,
            info=info,
            before=request.query.get("before"),
            archive=request.query.get("archive", ""),
            target=request.query.get("target", ""),
        )

    async def start(request: web.Request) -> web.StreamResponse:
        form = await portal.form(request)
        return await portal.begin(
            request,
            "drill.start",
            archive=form.get("archive", "").strip() or None,
            target=form.get("target") or None,
            **given_secrets(form),
        )

    async def show(request: web.Request) -> web.StreamResponse:
        report = await portal.call(request, "drill.report", id=request.match_info["id"])
        return portal.render(request, "drills_show.html", report=report)

    async def download(request: web.Request) -> web.StreamResponse:
        report = await portal.call(request, "drill.report", id=request.match_info["id"])
        content = json.dumps(report, indent=2, ensure_ascii=True).encode() + b"\n"  # as the service writes the file
        headers = {"Content-Disposition": f'attachment; filename="{report["id"]}.json"'}
        return web.Response(body=content, content_type="application/json", headers=headers)

    return [
        web.get("/drills", table),
        web.post("/drills", start),
        web.get("/drills/{id}", show),
        web.get("/drills/{id}/report.json", download),
    ]
