"""What a page is given: calls for its user, rendering, redirects, texts."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, unquote, urlencode

from aiohttp import web
from jinja2 import Environment

from service.client import RemoteError
from service.portal.access import VISITOR_COOKIE, Access, del_cookie, set_cookie
from service.portal.gateway import Gateway
from service.portal.rendering import THEME_COOKIE, THEMES, ZONE_COOKIE, Static, environment, zone_of
from service.portal.sessions import User
from service.portal.settings import PortalSettings
from service.portal.translation import LANGUAGES, html_language, language_of, translations

log = logging.getLogger(__name__)

NOTICE_COOKIE: Final = "__Host-deviceon-backup-notice"
LONGEST_NOTICE: Final = 300


@dataclass(slots=True)
class Portal:
    """Everything that pages share. A request's user is `request["user"]`."""

    settings: PortalSettings
    gateway: Gateway
    access: Access
    origins: frozenset[str]
    """What browsers may show in front of the path."""
    static: Static = field(default_factory=Static)
    templates: Environment = field(default_factory=environment)

    def user(self, request: web.BaseRequest) -> User | None:
        """Return who is there; None on the pages before the login."""
        found: User | None = request.get("user")
        return found

    async def call(self, request: web.BaseRequest, method: str, /, **params: Any) -> Any:
        """Call a method of the socket for the request's user. Raises RemoteError (NOT_ALLOWED by his role), ..."""
        user = self.user(request)
        needed = await self.gateway.role_of(method)
        if user is None or (needed != "read" and user.role != "admin"):
            raise RemoteError(
                f"the role {user.role if user else 'of nobody'} may not call {method}",
                {"code": "NOT_ALLOWED", "hint": "Ask an administrator, or log in as one."},
            )
        if needed != "read":
            log.info("%s was asked for", method, extra={"fields": {"user": user.name, "method": method}})
        return await self.gateway.call(method, **params)

    async def begin(self, request: web.BaseRequest, method: str, /, **params: Any) -> web.Response:
        """Have a form's job queued, once however often the form is sent, and go on to the job's page."""
        key = (await self.form(request)).get("idempotency_key")
        job = await self.call(request, method, idempotency_key=key, **params)
        return self.redirect(request, f"/jobs/{job['id']}")

    async def begun(self, request: web.BaseRequest) -> web.Response | None:
        """Go on to the job that this form began when it was sent before; None when it began none.

        Asked before a form is refused: what stands in its way may be the very job that it began.
        """
        key = (await self.form(request)).get("idempotency_key")
        jobs = (await self.call(request, "job.list", idempotency_key=key, limit=1))["jobs"] if key else []
        return self.redirect(request, f"/jobs/{jobs[0]['id']}") if jobs else None

    def may(self, request: web.BaseRequest, method: str) -> bool:
        """Tell whether the request's user may call a method, as far as is known; `call` decides."""
        user = self.user(request)
        return user is not None and (user.role == "admin" or self.gateway.known_role_of(method) == "read")

    def url(self, path: str, /, **query: object) -> str:
        """Return the URL of a path of the portal, with those parts of the query that are not None."""
        given = {key: str(value) for key, value in query.items() if value is not None}
        return f"{self.settings.base_path}{quote(path)}" + (f"?{urlencode(given)}" if given else "")

    def origin(self, request: web.BaseRequest) -> str:
        """Return the origin that a request was made to; its host was checked already."""
        host = request.host.lower()
        return next(origin for origin in sorted(self.origins, reverse=True) if origin.partition("://")[2] == host)

    def text(self, request: web.BaseRequest, text: str, /, **values: object) -> str:
        """Return a text in the request's language."""
        told = translations(self.language(request)).gettext(text)
        return told % values if values else told

    def language(self, request: web.BaseRequest) -> str:
        """Return the language of a request's page."""
        return language_of(request, self.settings.language)

    async def form(self, request: web.BaseRequest) -> dict[str, str]:
        """Return the text fields of a form; of several with one name, the first. Use `request.post()` for lists."""
        fields = await request.post()
        return {key: value for key, value in reversed(list(fields.items())) if isinstance(value, str)}

    def render(self, request: web.BaseRequest, template: str, /, *, status: int = 200, **values: Any) -> web.Response:
        """Return a page. Templates also know what `_context` gives."""
        response = web.Response(status=status, content_type="text/html", charset="utf-8")
        context = self._context(request, response)
        response.text = self.templates.get_template(template).render(context | values)
        return response

    def redirect(self, request: web.BaseRequest, path: str, /, *, notice: str = "", **query: object) -> web.Response:
        """Return the answer to a POST that did its work: go on to `path`, which shows `notice` once."""
        response = web.Response(status=303, headers={"Location": self.url(path, **query)})
        if notice:
            set_cookie(response, NOTICE_COOKIE, quote(notice[:LONGEST_NOTICE]))
        return response

    def _context(self, request: web.BaseRequest, response: web.Response) -> dict[str, Any]:
        language = self.language(request)
        notice = request.cookies.get(NOTICE_COOKIE, "")
        if notice:
            del_cookie(response, NOTICE_COOKIE)
        theme = request.cookies.get(THEME_COOKIE, "auto")
        path = request.path.removeprefix(self.settings.base_path) or "/"
        return {
            "language": language,
            "html_language": html_language(language),
            "languages": {} if self.settings.language else LANGUAGES,
            "theme": theme if theme in THEMES else "auto",
            "themes": THEMES,
            "zone": zone_of(request.cookies.get(ZONE_COOKIE, ""), self.settings.timezone),
            "user": self.user(request),
            "has_session": self.access.session(request, used=False) is not None,
            "may": lambda method: self.may(request, method),
            "url": self.url,
            "static": lambda name: self.url(f"/static/{name}", v=self.static.version(name)),
            "path": path,
            "here": request.path_qs,
            "csrf": self._csrf(request, response),
            "notice": unquote(notice)[:LONGEST_NOTICE],
            "away": self.gateway.away,
            "seen": "{} {}".format(*request.get("seen", self.gateway.position)),
        }

    def _csrf(self, request: web.BaseRequest, response: web.Response) -> str:
        """Return the token for the page's forms; a visitor gets the cookie that ties it to his browser."""
        token = self.access.csrf_token(request)
        if not token:
            visitor = secrets.token_urlsafe(24)
            set_cookie(response, VISITOR_COOKIE, visitor)
            token = self.access.visitor_token(visitor)
        return token
