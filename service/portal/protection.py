"""What every request must have, and what every answer gets.

Order: the host is one of ours; who is there; a change comes from a page of ours, with its token; a page needs a login.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from service.client import ConnectionLost, NoAnswer
from service.errors import ServiceError
from service.portal.portal import Portal
from service.portal.translation import N_

log = logging.getLogger(__name__)

MOST_BODY_BYTES: Final = 256 * 1024
BODY_SECONDS: Final = 30.0
"""Within which the whole of a form must have come."""
SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
BY_ITSELF: Final = "X-Refresh"
"""A header of requests that a page makes by itself: they do not make a session last longer."""

_STATUS: Final = {
    "NOT_ALLOWED": 403,
    "NOT_FOUND": 404,
    "TARGET_NOT_FOUND": 404,
    "INVALID_PARAMS": 400,
    "JOB_REFUSED": 409,
    "TOO_LATE": 409,
    "BUSY": 503,
    "METHOD_NOT_FOUND": 501,
}


def middlewares(
    portal: Portal, *, public: Collection[object], for_monitoring: Collection[object]
) -> Sequence[Middleware]:
    """Return the middlewares, the outermost first.

    `public` are the handlers that need no login, `for_monitoring` those that may be asked under any name of the host.
    They are told by what answers, not by their paths, so that no way to write a path leads around.
    """
    origins = portal.origins
    hosts = {origin.partition("://")[2] for origin in origins}

    def own_page(request: web.Request) -> bool:
        """Tell whether somebody asked for a page, and not a page for what is new."""
        return BY_ITSELF not in request.headers and request.path != portal.url("/events")

    @web.middleware
    async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            return _refusal(portal, request, error.status)
        except ServiceError as error:
            return _failure(portal, request, error)
        except Exception:
            log.exception("%s %s cannot be answered", request.method, request.path)
            return _refusal(portal, request, 500)

    @web.middleware
    async def known_host(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.host.lower() not in hosts and request.match_info.handler not in for_monitoring:
            return web.Response(status=421, text="This name is not one of the portal's (origins in portal.yaml).\n")
        return await handler(request)

    @web.middleware
    async def somebody(request: web.Request, handler: Handler) -> web.StreamResponse:
        request["user"] = portal.access.user(request, used=own_page(request))
        request["seen"] = portal.gateway.position
        return await handler(request)

    @web.middleware
    async def own_forms(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method in SAFE_METHODS:
            return await handler(request)
        if request.method != "POST":
            raise web.HTTPMethodNotAllowed(request.method, ["GET", "HEAD", "POST"])
        if why := _foreign(request, origins):
            log.warning("a form was refused: %s", why)
            raise web.HTTPForbidden
        token, expected = await _token(request), portal.access.csrf_token(request)
        if not expected or not hmac.compare_digest(token.encode(), expected.encode()):
            log.warning("a form was refused: its token is not the user's")
            raise web.HTTPForbidden
        return await handler(request)

    @web.middleware
    async def logged_in(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request["user"] is not None or request.match_info.handler in public:
            return await handler(request)
        if not own_page(request) or request.method not in SAFE_METHODS:
            raise web.HTTPUnauthorized
        first = request.path in (portal.url("/"), portal.settings.base_path)
        return portal.redirect(request, "/login", next=None if first else request.path_qs)

    made: list[Middleware] = [errors, known_host, somebody, own_forms, logged_in]
    return made


def headers(portal: Portal) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Return the signal handler that completes every answer's headers."""
    ancestors = " ".join(["'self'", *portal.settings.embed_in])
    policy = "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "font-src 'self'",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            f"frame-ancestors {ancestors}",
        ]
    )

    async def complete(_: web.Request, response: web.StreamResponse) -> None:
        response.headers.pop("Server", None)  # the versions of what runs here are nobody's business
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "same-origin"  # no-referrer would make the Origin of our own forms null
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers.setdefault("Cache-Control", "no-store")

    return complete


def _foreign(request: web.Request, origins: frozenset[str]) -> str | None:
    """Say why a form is not of a page of ours; None when it is. Every browser tells one of the two."""
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site")
    if origin is not None and origin.lower() not in origins:
        return "its Origin is not the portal's"
    if site is not None and site != "same-origin":
        return "Sec-Fetch-Site says that another site has sent it"
    return "it does not tell where it comes from" if origin is None and site is None else None


async def _token(request: web.Request) -> str:
    # As our pages send forms; what else there is (parts, files, other character sets) is work for strangers.
    if request.content_type != "application/x-www-form-urlencoded" or (request.charset or "utf-8").lower() != "utf-8":
        raise web.HTTPUnsupportedMediaType
    try:
        async with asyncio.timeout(BODY_SECONDS):
            found = (await request.post()).get("csrf", "")
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    except ValueError:  # what says to be a form is none
        raise web.HTTPBadRequest from None
    return found if isinstance(found, str) else ""


_REFUSALS: Final = {
    401: (N_("You are not logged in any more"), N_("Log in again.")),
    403: (N_("This was refused"), N_("It did not come from a page of yours, or from an old one. Open it again.")),
    404: (N_("There is no such page"), N_("The address may be mistyped, or what it showed is gone.")),
    413: (N_("That is too large"), N_("Send less.")),
    429: (N_("Too many tries"), N_("Wait a little before you try again.")),
    500: (N_("The portal has made a mistake"), N_("Its log tells more. The backups are not affected.")),
}  # fmt: skip


def _refusal(portal: Portal, request: web.Request, status: int) -> web.StreamResponse:
    title, hint = _REFUSALS.get(status, (N_("This cannot be answered"), N_("Go back and try something else.")))
    request.setdefault("user", None)
    try:
        return portal.render(
            request,
            "refused.html",
            status=status,
            title=portal.text(request, title),
            hint=portal.text(request, hint),
            error=None,
        )
    except Exception:
        log.exception("the page that tells of a mistake cannot be made")
        return web.Response(status=500, text="The portal has made a mistake; its log tells more.\n")


def _failure(portal: Portal, request: web.Request, error: ServiceError) -> web.StreamResponse:
    if isinstance(error, ConnectionLost | NoAnswer):
        unknown = request.method not in SAFE_METHODS
        return portal.render(request, "away.html", status=503, error=error, unknown=unknown)
    status = _STATUS.get(error.code, 502)
    title = N_("This was refused") if status == 403 else N_("The service could not do this")
    return portal.render(
        request, "refused.html", status=status, title=portal.text(request, title), hint="", error=error
    )
