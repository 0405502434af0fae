"""Who is there, and what ties a form to him."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from typing import Final

from aiohttp import web

from service.errors import ConfigError
from service.portal.oidc import Provider
from service.portal.proxy import Proxy
from service.portal.sessions import Session, Sessions, User
from service.portal.settings import PortalSettings
from service.rpc.peers import Role
from service.secret import read_secret

SESSION_COOKIE: Final = "__Host-deviceon-backup-session"
VISITOR_COOKIE: Final = "__Host-deviceon-backup-visitor"
SHORTEST_TOKEN: Final = 20


class Access:
    """Who a request comes from: whom the reverse proxy names, else by the session."""

    def __init__(self, settings: PortalSettings) -> None:
        """Read the tokens and secrets. Raises ConfigError."""
        self._key = secrets.token_bytes(32)
        self._header = settings.access.header
        self._tokens = dict(self._read_tokens(settings))
        self.proxy = Proxy(settings.proxy)
        self.provider = Provider(settings.access.oidc) if settings.access.oidc else None
        self.sessions = Sessions(
            idle=settings.sessions.idle_minutes * 60, absolute=settings.sessions.absolute_hours * 3600
        )

    def _read_tokens(self, settings: PortalSettings) -> list[tuple[Role, bytes]]:
        token = settings.access.token
        files: list[tuple[Role, object]] = (
            [] if token is None else [("admin", token.admin_file), ("read", token.read_file)]
        )
        found: list[tuple[Role, bytes]] = []
        for role, file in files:
            text = read_secret(f"portal's token of the role {role}", file=file)  # type: ignore[arg-type]
            if text is None:
                continue
            if len(text) < SHORTEST_TOKEN:
                raise ConfigError(
                    f"the portal's token in {file} has fewer than {SHORTEST_TOKEN} characters",
                    hint="Make one with `openssl rand -hex 32`.",
                )
            found.append((role, self._hash(text)))
        if len(found) == 2 and found[0][1] == found[1][1]:
            raise ConfigError("the portal's two tokens are the same", hint="Make another one for the role read.")
        return found

    @property
    def by_token(self) -> bool:
        """Tell whether tokens are taken."""
        return bool(self._tokens)

    def token_user(self, token: str) -> User | None:
        """Return whom a token lets in. What is compared are keyed hashes, all of them, whatever matches."""
        given = self._hash(token)
        matching = [role for role, known in self._tokens.items() if hmac.compare_digest(known, given)]
        return User(matching[0], matching[0]) if matching else None

    def session(self, request: web.BaseRequest, *, used: bool) -> Session | None:
        """Return the session that a request belongs to."""
        session_id = request.cookies.get(SESSION_COOKIE, "")
        return self.sessions.find(session_id, now=time.monotonic(), used=used)

    def user(self, request: web.BaseRequest, *, used: bool) -> User | None:
        """Return who a request comes from; `used`: it was made by him, not by a page that refreshes itself."""
        if (named := self._named(request)) is not None:
            return named[1]
        session = self.session(request, used=used)
        return None if session is None else session.user

    def stranger(self, request: web.BaseRequest) -> str | None:
        """Return the name that the reverse proxy tells of somebody who has no role here."""
        named = self._named(request)
        return None if named is None or named[1] is not None else named[0]

    def owner(self, request: web.BaseRequest) -> str:
        """Return what tells this request's session, named user or visitor from others; empty for a new visitor."""
        if (named := self._named(request)) is not None:
            return f"named {named[0]}"
        session = self.session(request, used=False)
        if session is not None:
            return f"session {session.id}"
        visitor = request.cookies.get(VISITOR_COOKIE, "")
        return f"visitor {visitor}" if visitor else ""

    def csrf_token(self, request: web.BaseRequest) -> str:
        """Return what a form of this request's user or visitor must bring; empty for a visitor without a cookie."""
        owner = self.owner(request)
        return self._hash(owner).hex() if owner else ""

    def _named(self, request: web.BaseRequest) -> tuple[str, User | None] | None:
        return None if self._header is None else self.proxy.user(request, self._header)

    def seal(self, purpose: str, text: str) -> str:
        """Return a text for a cookie that can be held against changes; who has the cookie can read it."""
        encoded = base64.urlsafe_b64encode(text.encode()).decode()
        return f"{encoded}.{self._hash(f'{purpose} {encoded}').hex()}"

    def unseal(self, purpose: str, sealed: str) -> str | None:
        """Return the text that was sealed here for this purpose; None when it was not."""
        encoded, _, mark = sealed.rpartition(".")
        if not hmac.compare_digest(mark.encode(), self._hash(f"{purpose} {encoded}").hex().encode()):
            return None
        return base64.urlsafe_b64decode(encoded).decode()

    def visitor_token(self, visitor: str) -> str:
        """Return what a form must bring from a browser with this visitor's cookie."""
        return self._hash(f"visitor {visitor}").hex()

    def begin(self, request: web.BaseRequest, response: web.StreamResponse, user: User) -> None:
        """Log somebody in: a new session, and its cookie. The one before ends."""
        self.end(request, response)
        session = self.sessions.begin(user, now=time.monotonic())
        set_cookie(response, SESSION_COOKIE, session.id)

    def end(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Log out."""
        self.sessions.end(request.cookies.get(SESSION_COOKIE, ""))
        del_cookie(response, SESSION_COOKIE)

    def _hash(self, text: str) -> bytes:
        return hmac.digest(self._key, text.encode("utf-8", "surrogatepass"), hashlib.sha256)


def set_cookie(response: web.StreamResponse, name: str, value: str) -> None:
    """Set a cookie for this host alone, out of reach of scripts and of other sites' forms."""
    response.set_cookie(name, value, path="/", secure=True, httponly=True, samesite="Lax")


def del_cookie(response: web.StreamResponse, name: str) -> None:
    """Take a cookie away."""
    response.del_cookie(name, path="/", secure=True, httponly=True, samesite="Lax")
