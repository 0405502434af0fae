"""Logging in with a token or at an OpenID Connect provider, logging out, and what a viewer chooses: theme, language."""

from __future__ import annotations

import logging
import time
from typing import Final

from aiohttp import web

from service.portal.access import del_cookie, set_cookie
from service.portal.oidc import Begun, LoginFailed
from service.portal.portal import Portal
from service.portal.rates import Rates
from service.portal.rendering import THEME_COOKIE, THEMES
from service.portal.sessions import User
from service.portal.translation import COOKIE as LANGUAGE_COOKIE
from service.portal.translation import LANGUAGES, N_

log = logging.getLogger(__name__)

YEAR: Final = 365 * 86400
OIDC_COOKIE: Final = "__Host-deviceon-backup-oidc"
OIDC_PURPOSE: Final = "oidc"
CALLBACK: Final = "/login/oidc/callback"


def routes(portal: Portal) -> list[web.RouteDef]:
    """Return the routes of this family."""
    login = _Login(portal)
    found = [
        web.get("/login", login.show),
        web.post("/login", login.with_token),
        web.post("/logout", login.out),
        web.post("/preferences", login.prefer),
    ]
    if portal.access.provider is not None:
        found += [web.get("/login/oidc", login.begin_oidc), web.get(CALLBACK, login.finish_oidc)]
    return found


class _Login:
    """The pages; failures of all ways are counted together."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal
        self._access = portal.access
        self._rates = Rates()

    async def show(self, request: web.Request) -> web.StreamResponse:
        """Show the ways to log in; who is known already goes on."""
        if self._portal.user(request) is not None:
            return self._go_on(request, request.query.get("next", ""))
        return self._page(request, onward=request.query.get("next", ""))

    async def with_token(self, request: web.Request) -> web.StreamResponse:
        """Log in with a token."""
        form = await self._portal.form(request)
        onward = form.get("next", "")
        if (refusal := self._too_many(request, onward)) is not None:
            return refusal
        user = self._access.token_user(form.get("token", "").strip())
        if user is None:
            self._count(request, "its token is wrong")
            wrong = self._portal.text(request, N_("This token is not valid."))
            return self._page(request, status=403, wrong=wrong, onward=onward)
        return self._welcome(request, user, onward, "token")

    async def begin_oidc(self, request: web.Request) -> web.StreamResponse:
        """Send the browser to the provider."""
        assert self._access.provider is not None
        onward = request.query.get("next", "")
        if (refusal := self._too_many(request, onward)) is not None:
            return refusal
        redirect_uri = f"{self._portal.origin(request)}{self._portal.url(CALLBACK)}"
        try:
            begun, url = await self._access.provider.begin(redirect_uri, onward[:1000], now=time.time())
        except LoginFailed as error:
            return self._page(request, status=502, failure=error, onward=onward)
        response = web.Response(status=303, headers={"Location": url})
        set_cookie(response, OIDC_COOKIE, self._access.seal(OIDC_PURPOSE, begun.text()))
        return response

    async def finish_oidc(self, request: web.Request) -> web.StreamResponse:
        """Take who comes back from the provider."""
        assert self._access.provider is not None
        if (refusal := self._too_many(request, "")) is not None:
            return refusal
        sealed = self._access.unseal(OIDC_PURPOSE, request.cookies.get(OIDC_COOKIE, ""))
        begun = None if sealed is None else Begun.of(sealed)
        try:
            user = await self._access.provider.finish(begun, request.query, now=time.time())
        except LoginFailed as error:
            self._count(request, str(error))
            response: web.StreamResponse = self._page(request, status=403, failure=error)
        else:
            response = self._welcome(request, user, begun.onward if begun else "", "oidc")
        del_cookie(response, OIDC_COOKIE)
        return response

    async def out(self, request: web.Request) -> web.StreamResponse:
        """Log out."""
        portal = self._portal
        response = portal.redirect(request, "/login", notice=portal.text(request, N_("You are logged out.")))
        self._access.end(request, response)
        if (user := portal.user(request)) is not None:
            log.info("logged out", extra={"fields": {"user": user.name}})
        return response

    async def prefer(self, request: web.Request) -> web.StreamResponse:
        """Remember theme and language in the browser."""
        form = await self._portal.form(request)
        response = self._go_on(request, form.get("next", ""))
        for cookie, value, known in (
            (THEME_COOKIE, form.get("theme"), THEMES),
            (LANGUAGE_COOKIE, form.get("language"), LANGUAGES),
        ):
            if value in known:
                response.set_cookie(cookie, str(value), max_age=YEAR, path="/", httponly=True, samesite="Lax")
        return response

    def _welcome(self, request: web.Request, user: User, onward: str, way: str) -> web.Response:
        fields = {"user": user.name, "role": user.role, "by": way, "peer": self._access.proxy.client(request)}
        log.info("logged in", extra={"fields": fields})
        response = self._go_on(request, onward)
        self._access.begin(request, response, user)
        return response

    def _too_many(self, request: web.Request, onward: str) -> web.Response | None:
        peer = self._access.proxy.client(request)
        wait = self._rates.wait(peer, now=time.monotonic())
        if not wait:
            return None
        log.warning("a login was refused: too many have failed", extra={"fields": {"peer": peer}})
        wrong = self._portal.text(request, N_("Too many tries. Wait %(seconds)s seconds."), seconds=wait)
        response = self._page(request, status=429, wrong=wrong, onward=onward)
        response.headers["Retry-After"] = str(wait)
        return response

    def _count(self, request: web.Request, why: str) -> None:
        peer = self._access.proxy.client(request)
        self._rates.failed(peer, now=time.monotonic())
        log.warning("a login failed: %s", why, extra={"fields": {"peer": peer}})

    def _page(
        self,
        request: web.Request,
        *,
        status: int = 200,
        wrong: str = "",
        failure: LoginFailed | None = None,
        onward: str = "",
    ) -> web.Response:
        provider = self._access.provider
        return self._portal.render(
            request,
            "login.html",
            status=status,
            wrong=wrong,
            failure=failure,
            next=onward,
            by_token=self._access.by_token,
            provider=provider,
            stranger=self._access.stranger(request),
        )

    def _go_on(self, request: web.Request, onward: str) -> web.Response:
        """Redirect to a page of the portal; whatever else `onward` may be, to the first one."""
        return web.Response(status=303, headers={"Location": safe_path(onward, self._portal.url("/"))})


def safe_path(onward: str, first: str) -> str:
    """Return `onward` if it is a path of ours and nothing else, so that no link leads through here to elsewhere."""
    base = first.rstrip("/")
    path = onward.partition("?")[0]
    ours = path == base or path.startswith(f"{base}/")
    plain = onward.isascii() and onward.isprintable() and "\\" not in onward and len(onward) < 2000
    return onward if ours and plain and onward.startswith("/") and not onward.startswith("//") else first
