"""Logging in at an OpenID Connect provider: authorization code with PKCE, state and nonce (OpenID Connect Core 3.1).

What must come back from the provider unchanged (state, nonce, PKCE's verifier) waits in a sealed cookie of the browser
that began, so that a code that somebody else fetched is worth nothing in it, and strangers fill no memory here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import secrets
import ssl
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import httpx
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import JWKRegistry, KeySet

from service.errors import ConfigError, ServiceError
from service.portal.sessions import User
from service.portal.settings import OidcSettings
from service.secret import read_secret, remember

log = logging.getLogger(__name__)

TIMEOUT_SECONDS: Final = 10.0
LONGEST_ANSWER: Final = 512 * 1024
BEGUN_SECONDS: Final = 600.0
KEPT_SECONDS: Final = 3600.0
"""How long the provider's description and keys are believed."""
KEYS_AGAIN_SECONDS: Final = 10.0
LEEWAY_SECONDS: Final = 60
LONGEST_NAME: Final = 200
ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Asymmetric ones alone: with HS256 whoever knows the client's secret could sign, with `none` anybody."""


class LoginFailed(ServiceError):
    """The provider was not reached, or what came back lets nobody in."""

    code = "LOGIN_FAILED"


@dataclass(frozen=True, slots=True)
class Begun:
    """A login that was begun: what its end is held against."""

    state: str
    nonce: str
    verifier: str
    redirect_uri: str
    onward: str
    at: float

    def text(self) -> str:
        """Return it for the cookie."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Begun:
        """Return what `text` was made of."""
        return cls(**json.loads(text))


class Provider:
    """One provider. It is asked for its description when somebody first logs in, so that it may be away until then."""

    def __init__(self, settings: OidcSettings) -> None:
        """Read the secret and the authority. Raises ConfigError."""
        self._settings = settings
        self._secret = read_secret("client secret of the OpenID Connect provider", file=settings.client_secret_file)
        self._tls = _tls(settings)
        self._described: tuple[float, dict[str, Any]] | None = None
        self._keys: tuple[float, KeySet] | None = None

    @property
    def label(self) -> str | None:
        """Return what the configuration says on the button."""
        return self._settings.label

    @property
    def host(self) -> str:
        """Return the provider's host."""
        return urlsplit(self._settings.issuer).netloc

    async def begin(self, redirect_uri: str, onward: str, *, now: float) -> tuple[Begun, str]:
        """Return what to hold the end against, and the URL to send the browser to. Raises LoginFailed."""
        begun = Begun(
            state=secrets.token_urlsafe(24),
            nonce=secrets.token_urlsafe(24),
            verifier=secrets.token_urlsafe(48),
            redirect_uri=redirect_uri,
            onward=onward,
            at=now,
        )
        described = await self._description(now)
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(self._settings.scopes),
            "state": begun.state,
            "nonce": begun.nonce,
            "code_challenge": _sha256(begun.verifier),
            "code_challenge_method": "S256",
        }
        endpoint = described["authorization_endpoint"]
        return begun, f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"

    async def finish(self, begun: Begun | None, query: Mapping[str, str], *, now: float) -> User:
        """Return who has logged in; `begun` is what this browser began. Raises LoginFailed; the log says why."""
        if begun is None:
            raise LoginFailed("this login was not begun in this browser", hint="Begin it again.")
        if now - begun.at > BEGUN_SECONDS:
            raise LoginFailed("the login took too long", hint="Begin it again.")
        if not hmac.compare_digest(query.get("state", "").encode(), begun.state.encode()):
            raise self._failed("the state that came back is not the one that was sent")
        if query.get("iss", self._settings.issuer) != self._settings.issuer:  # RFC 9207
            raise self._failed("the answer is of another issuer")
        if "error" in query or "code" not in query:
            raise self._failed(f"the provider refused: {query.get('error', 'no code')[:100]}")
        described = await self._description(now)
        tokens = await self._exchange(described, begun, query["code"])
        claims = await self._claims(described, tokens, begun.nonce, now)
        if not self._roles(claims):
            claims = await self._user_info(described, tokens, claims)
        name = str(claims.get(self._settings.name_claim) or claims["sub"])[:LONGEST_NAME]
        role = self._settings.role(name, self._roles(claims))
        if role is None:
            log.warning("a login was refused: the user has no role here", extra={"fields": {"user": name}})
            raise LoginFailed(f"{name} may not use this page", hint="Ask an administrator for access.")
        return User(name, role)

    async def _exchange(self, described: Mapping[str, Any], begun: Begun, code: str) -> dict[str, Any]:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": begun.redirect_uri,
            "code_verifier": begun.verifier,
        }
        headers = {}
        methods = described.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        if self._secret is None:
            form["client_id"] = self._settings.client_id
        elif "client_secret_basic" in methods:
            pair = f"{quote(self._settings.client_id, safe='')}:{quote(self._secret, safe='')}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        else:
            form |= {"client_id": self._settings.client_id, "client_secret": self._secret}
        tokens = await self._ask("POST", described["token_endpoint"], data=form, headers=headers)
        for name in ("access_token", "id_token", "refresh_token"):
            if isinstance(tokens.get(name), str):
                remember(tokens[name])
        return tokens

    async def _claims(
        self, described: Mapping[str, Any], tokens: Mapping[str, Any], nonce: str, now: float
    ) -> dict[str, Any]:
        """Return the claims of the ID token when it is of this provider, for this client, for this login, and fresh."""
        try:
            try:
                token = _decoded(tokens, await self._key_set(described, now))
            except InvalidKeyIdError:
                self._forget_keys(now)
                token = _decoded(tokens, await self._key_set(described, now))
        except (JoseError, KeyError, ValueError, TypeError) as error:
            raise self._failed(f"the ID token is not the provider's: {type(error).__name__} {error}") from error
        claims = token.claims
        registry = jwt.JWTClaimsRegistry(
            now=int(now),
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": self._settings.issuer},
            sub={"essential": True},
            aud={"essential": True, "value": self._settings.client_id},
            exp={"essential": True},
            iat={"essential": True},
            nonce={"essential": True, "value": nonce},
        )
        try:
            registry.validate(claims)
        except JoseError as error:
            raise self._failed(f"the ID token does not hold: {error}") from error
        several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if claims.get("azp", None if several else self._settings.client_id) != self._settings.client_id:
            raise self._failed("the ID token was made for another client")
        wanted = claims.get("at_hash")
        if wanted is not None and not _is_half_hash(wanted, token.header["alg"], str(tokens.get("access_token", ""))):
            raise self._failed("the access token is not the one of the ID token")
        return claims

    async def _user_info(
        self, described: Mapping[str, Any], tokens: Mapping[str, Any], claims: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the claims with what the userinfo endpoint adds: some providers tell groups only there."""
        endpoint, access_token = described.get("userinfo_endpoint"), tokens.get("access_token")
        if not endpoint or not isinstance(access_token, str):
            return claims
        told = await self._ask("GET", endpoint, headers={"Authorization": f"Bearer {access_token}"})
        if told.get("sub") != claims["sub"]:
            raise self._failed("userinfo is of another user")
        return told | claims

    def _roles(self, claims: Mapping[str, Any]) -> list[str]:
        found: Any = claims
        for part in self._settings.roles_claim.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        if isinstance(found, str):
            return found.split()
        return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []

    async def _description(self, now: float) -> dict[str, Any]:
        if self._described is None or now - self._described[0] > KEPT_SECONDS:
            issuer = self._settings.issuer
            told = await self._ask("GET", f"{issuer.rstrip('/')}/.well-known/openid-configuration")
            if told.get("issuer") != issuer:
                raise self._failed("the provider calls itself by another name than access.oidc.issuer")
            for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
                if not _same_safety(issuer, str(told.get(name, ""))):
                    raise self._failed(f"the provider tells no {name} with https")
            self._described = now, told
        return self._described[1]

    async def _key_set(self, described: Mapping[str, Any], now: float) -> KeySet:
        if self._keys is None or now - self._keys[0] > KEPT_SECONDS:
            told = await self._ask("GET", described["jwks_uri"])
            keys = []
            for each in told.get("keys", []):
                if isinstance(each, dict) and each.get("kty") != "oct" and each.get("use", "sig") == "sig":
                    try:
                        keys.append(JWKRegistry.import_key(each))
                    except (JoseError, ValueError, TypeError, KeyError):
                        continue  # of a kind that is not known here
            if not keys:
                raise self._failed("the provider tells no key that is known here")
            self._keys = now, KeySet(keys)
        return self._keys[1]

    def _forget_keys(self, now: float) -> None:
        """Have the keys fetched again for a token of an unknown one: the provider may have a new key since."""
        if self._keys is not None and now - self._keys[0] >= KEYS_AGAIN_SECONDS:
            self._keys = None

    async def _ask(
        self, method: str, url: str, *, data: dict[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Return the JSON object that an endpoint answers with; redirects are not followed."""
        given = {"Accept": "application/json"} | dict(headers or {})
        try:
            async with (
                httpx.AsyncClient(verify=self._tls, timeout=TIMEOUT_SECONDS, follow_redirects=False) as client,
                client.stream(method, url, data=data, headers=given) as answer,
            ):
                content = b""
                async for piece in answer.aiter_bytes():
                    content += piece
                    if len(content) > LONGEST_ANSWER:
                        raise self._failed(f"the answer of {urlsplit(url).path} is too long")
                told = json.loads(content) if answer.status_code == 200 else None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            log.warning("the OpenID Connect provider cannot be reached: %s", error)
            raise LoginFailed(
                f"the provider {self.host} cannot be reached", hint="Try again, or log in in another way."
            ) from error
        except (ValueError, RecursionError) as error:
            raise self._failed(f"the answer of {urlsplit(url).path} is no JSON") from error
        if not isinstance(told, dict):
            raise self._failed(f"{urlsplit(url).path} answers with {answer.status_code}")
        return told

    def _failed(self, why: str) -> LoginFailed:
        log.warning("a login at the OpenID Connect provider failed: %s", why, extra={"fields": {"host": self.host}})
        return LoginFailed(f"the login at {self.host} failed", hint="Begin it again; the portal's log says why.")


def _decoded(tokens: Mapping[str, Any], keys: KeySet) -> jwt.Token:
    return jwt.decode(str(tokens["id_token"]), keys, algorithms=ALGORITHMS)


def _tls(settings: OidcSettings) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the authority in {settings.ca_file} cannot be used: {error}", hint="Give a file with its PEM certificate."
        ) from error


def _same_safety(issuer: str, url: str) -> bool:
    """Tell whether a URL is https, or http like the issuer's own (which only this machine's may be)."""
    parts = urlsplit(url)
    own = urlsplit(issuer)
    return bool(parts.hostname) and (
        parts.scheme == "https" or (own.scheme == "http" == parts.scheme and parts.hostname == own.hostname)
    )


def _sha256(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def _is_half_hash(told: object, algorithm: str, token: str) -> bool:
    """Tell whether `told` is the left half of the token's hash (OpenID Connect Core 3.1.3.6)."""
    name = "sha512" if algorithm == "EdDSA" else f"sha{algorithm[2:]}"
    digest = hashlib.new(name, token.encode()).digest()
    wanted = base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=").decode()
    return isinstance(told, str) and hmac.compare_digest(told.encode(), wanted.encode())
