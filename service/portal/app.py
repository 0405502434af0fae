"""The application: routes of all families below the base path, and the middlewares around them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from service.portal import archives, drills, jobs, live, login, overview, reset, restore, settings_page
from service.portal.portal import Portal
from service.portal.protection import MOST_BODY_BYTES, headers, middlewares

FAMILIES: Final[tuple[Callable[[Portal], list[web.RouteDef]], ...]] = (
    live.routes,
    overview.routes,
    settings_page.routes,
    jobs.routes,
    archives.routes,
    restore.routes,
    reset.routes,
    drills.routes,
)


def application(portal: Portal) -> web.Application:
    """Return the application."""
    base = portal.settings.base_path
    before_login = [*login.routes(portal), web.get("/static/{name}", portal.static.serve)]
    after_login = [route for family in FAMILIES for route in family(portal)]
    status = [web.get("/healthz", _healthy), web.get("/readyz", _ready(portal))]
    public = frozenset(route.handler for route in (*before_login, *status))
    made = web.Application(
        middlewares=middlewares(portal, public=public, for_monitoring=frozenset(route.handler for route in status)),
        client_max_size=MOST_BODY_BYTES,
    )
    made.on_response_prepare.append(headers(portal))
    made.add_routes(status)
    for route in (*before_login, *after_login):
        made.add_routes([web.RouteDef(route.method, f"{base}{route.path}", route.handler, route.kwargs)])
    if base:
        made.router.add_get(base, _to_first_page(portal))
    return made


async def _healthy(_: web.Request) -> web.StreamResponse:
    return web.json_response({"status": "ok"})


def _ready(portal: Portal) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def ready(_: web.Request) -> web.StreamResponse:
        """Tell whether pages are served. They are while the service is away, and say so; taking them away is worse."""
        if portal.gateway.ended:
            return web.json_response({"status": "unavailable", "reason": "stopping"}, status=503)
        return web.json_response({"status": "ok", "service": "away" if portal.gateway.away else "ok"})

    return ready


def _to_first_page(portal: Portal) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def go_on(request: web.Request) -> web.StreamResponse:
        return portal.redirect(request, "/")

    return go_on
