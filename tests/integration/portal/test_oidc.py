"""Logging in at a real OpenID Connect provider, and what a crooked one cannot do."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import web
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from demo.s3_server import free_ports
from service.portal.oidc import Begun, LoginFailed, Provider
from service.portal.settings import OidcSettings
from tests.integration.portal.visit import PortalProcess, Visitor
from tests.oidc_provider import CLIENT, SECRET, OidcProvider
from tests.service_process import ServiceProcess

CALLBACK = "/login/oidc/callback"


@dataclass
class Plant:
    """A provider, and a portal that trusts it."""

    provider: OidcProvider
    portal: PortalProcess
    visitors: int = 0

    def visitor(self, **headers: str) -> Visitor:
        """Return a visitor from an address of its own: failures of several tests together would have to wait."""
        self.visitors += 1
        return self.portal.visitor(X_Forwarded_For=f"192.0.2.{self.visitors}", **headers)

    async def begin(self, visitor: Visitor, *, onward: str = "") -> str:
        """Click on the button; return where the browser is sent."""
        await visitor.get("/login")
        page = await visitor.get(f"/login/oidc?next={onward}", follow=False)
        assert page.status == 303, page.text
        return page.headers["Location"]

    async def back(self, visitor: Visitor, user: str) -> str:
        """Log in as a user at the provider; return the path that it sends the browser to, which was not visited."""
        parts = urlsplit(await self.provider.log_in(user, await self.begin(visitor)))
        return f"{parts.path}?{parts.query}"


@pytest.fixture(scope="module")
def plant(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    directory = tmp_path_factory.mktemp("oidc")
    (directory / "secret").write_text(SECRET)
    port = free_ports(1)[0]
    users = {"alice": ["plant", "backup-admins"], "rita": ["backup-readers"], "bob": ["plant"]}
    with OidcProvider(directory / "provider", f"http://127.0.0.1:{port}{CALLBACK}", users) as provider:
        oidc = {
            "issuer": provider.issuer,
            "client_id": CLIENT,
            "client_secret_file": str(directory / "secret"),
            "scopes": ["openid"],
            "admin_roles": ["backup-admins"],
            "reader_roles": ["backup-readers"],
        }
        settings = {"listen": f"127.0.0.1:{port}", "proxy": {"peers": ["127.0.0.1"]}, "access": {"oidc": oidc}}
        with PortalProcess(directory / "portal", service.socket, settings) as portal:
            yield Plant(provider, portal)


@pytest.mark.parametrize(("user", "role"), [("alice", "and change."), ("rita", "change nothing")])
async def test_who_logs_in_at_the_provider_gets_the_role_of_his_group(plant: Plant, user: str, role: str) -> None:
    async with plant.visitor() as visitor:
        url = await plant.begin(visitor, onward="/jobs?before=x")
        back = urlsplit(await plant.provider.log_in(user, url))
        answer = await visitor.get(f"{back.path}?{back.query}", follow=False)
        assert answer.headers["Location"] == "/jobs?before=x"
        page = await visitor.get("/jobs")
        assert user in page.words and role in page.words
        code = parse_qs(back.query)["code"][0]
        assert code not in page.text + plant.portal.log
        assert "eyJ" not in page.text + plant.portal.log, "no token is shown or logged"


async def test_what_is_asked_for_is_bound_to_the_login(plant: Plant) -> None:
    async with plant.visitor() as visitor:
        query = parse_qs(urlsplit(await plant.begin(visitor)).query)
        assert query["response_type"] == ["code"]
        assert query["code_challenge_method"] == ["S256"]
        assert len(query["code_challenge"][0]) == 43
        assert len(query["state"][0]) >= 32 and len(query["nonce"][0]) >= 32
        again = parse_qs(urlsplit(await plant.begin(visitor)).query)
        assert all(again[name] != query[name] for name in ("state", "nonce", "code_challenge"))


async def test_a_user_without_a_role_is_told_so_and_stays_outside(plant: Plant) -> None:
    async with plant.visitor() as visitor:
        page = await visitor.get(await plant.back(visitor, "bob"))
        assert page.status == 403
        assert "bob may not use this page" in page.words
        assert (await visitor.get("/jobs")).path.startswith("/login")


async def test_a_login_ends_only_in_the_browser_that_began_it(plant: Plant) -> None:
    """Else somebody could send a link that logs others in as himself, and read what they do."""
    async with plant.visitor() as mallory, plant.visitor() as victim:
        path = await plant.back(mallory, "alice")
        page = await victim.get(path)
        assert page.status == 403
        assert "not begun in this browser" in page.words
        await plant.begin(victim)
        assert (await victim.get(path)).status == 403, "the victim has begun another login"


async def test_a_code_that_was_stolen_is_worth_nothing_in_another_login(plant: Plant) -> None:
    """PKCE: the code is bound to the verifier, which never left the portal and the browser that began."""
    async with plant.visitor() as alice, plant.visitor() as mallory:
        code = parse_qs(urlsplit(await plant.back(alice, "alice")).query)["code"][0]
        state = parse_qs(urlsplit(await plant.begin(mallory)).query)["state"][0]
        page = await mallory.get(f"{CALLBACK}?state={state}&code={code}")
        assert page.status == 403
        assert (await mallory.get("/jobs")).path.startswith("/login")


async def test_the_end_of_a_login_works_once(plant: Plant) -> None:
    async with plant.visitor() as visitor:
        path = await plant.back(visitor, "rita")
        cookies = "; ".join(f"{name}={value}" for name, value in visitor.cookies.items())
        assert (await visitor.get(path)).status == 200
        async with plant.visitor(Cookie=cookies) as again:
            assert (await again.get(path)).status == 403, "also with the cookies of then"


async def test_a_refusal_of_the_provider_is_told(plant: Plant) -> None:
    async with plant.visitor() as visitor:
        state = parse_qs(urlsplit(await plant.begin(visitor)).query)["state"][0]
        page = await visitor.get(f"{CALLBACK}?state={state}&error=access_denied%3Cscript%3E")
        assert page.status == 403
        assert "<script>" not in page.text
        assert "the login at" in page.words


async def test_a_provider_that_is_away_is_told_and_tokens_still_work(service: ServiceProcess, tmp_path: Path) -> None:
    oidc = {"issuer": f"http://localhost:{free_ports(1)[0]}/api", "client_id": CLIENT, "others": "read"}
    token = tmp_path / "token"
    token.write_text("token-of-this-test-0123456789")
    settings = {"access": {"oidc": oidc, "token": {"read_file": str(token)}}}
    with PortalProcess(tmp_path / "portal", service.socket, settings) as portal:
        async with portal.visitor() as visitor:
            page = await visitor.get("/login/oidc")
            assert page.status == 502
            assert "cannot be reached" in page.words
            assert (await visitor.post("/login", {"token": token.read_text()})).status == 200


# A crooked provider: it may answer what it likes, but not let anybody in.


@dataclass
class Crooked:
    """A provider whose answers a test changes."""

    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "one"}))
    told_keys: list[RSAKey] | None = None
    claims: dict[str, Any] = field(default_factory=dict)
    """Claims that differ; None takes one away."""
    description: dict[str, Any] = field(default_factory=dict)
    user_info: dict[str, Any] = field(default_factory=dict)
    encode: Callable[[Crooked, dict[str, Any]], str] | None = None
    nonce: str = ""
    issuer: str = ""

    def id_token(self) -> str:
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": "alice",
            "aud": CLIENT,
            "exp": now + 300,
            "iat": now,
            "nonce": self.nonce,
            "groups": ["backup-admins"],
        }
        claims = {name: value for name, value in (claims | self.claims).items() if value is not None}
        if self.encode is not None:
            return self.encode(self, claims)
        return jwt.encode({"alg": "RS256", "kid": self.key.kid}, claims, self.key)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Provider]:
        """Give the portal's side of it."""
        app = web.Application()
        app.router.add_get("/.well-known/openid-configuration", self._describe)
        app.router.add_get("/keys", self._keys)
        app.router.add_post("/token", self._token)
        app.router.add_get("/userinfo", self._user_info)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        self.issuer = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
        settings = OidcSettings(issuer=self.issuer, client_id=CLIENT, admin_roles=["backup-admins"])
        try:
            yield Provider(settings)
        finally:
            await runner.cleanup()

    async def log_in(self, provider: Provider) -> str:
        """Go the whole way; return the name and the role."""
        now = time.time()
        begun, url = await provider.begin("http://127.0.0.1:1/login/oidc/callback", "", now=now)
        self.nonce = parse_qs(urlsplit(url).query)["nonce"][0]
        user = await provider.finish(begun, {"code": "x", "state": begun.state}, now=now)
        return f"{user.name}: {user.role}"

    async def _describe(self, _: web.Request) -> web.Response:
        told = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/auth",
            "token_endpoint": f"{self.issuer}/token",
            "userinfo_endpoint": f"{self.issuer}/userinfo",
            "jwks_uri": f"{self.issuer}/keys",
        }
        port = self.issuer.rpartition(":")[2]
        changed = {name: value.replace("PORT", port) for name, value in self.description.items()}
        return web.json_response(told | changed)

    async def _keys(self, _: web.Request) -> web.Response:
        keys = [self.key] if self.told_keys is None else self.told_keys
        return web.json_response({"keys": [key.as_dict(private=False) for key in keys]})

    async def _token(self, _: web.Request) -> web.Response:
        return web.json_response({"access_token": "access", "token_type": "Bearer", "id_token": self.id_token()})

    async def _user_info(self, _: web.Request) -> web.Response:
        return web.json_response(self.user_info)


def unsigned(_: Crooked, claims: dict[str, Any]) -> str:
    parts = [json.dumps(part).encode() for part in ({"alg": "none"}, claims)]
    return ".".join([*(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts), ""])


def signed_with_the_public_key(crooked: Crooked, claims: dict[str, Any]) -> str:
    key = OctKey.import_key(crooked.key.as_pem(private=False))
    return jwt.encode({"alg": "HS256", "kid": "one"}, claims, key, algorithms=["HS256"])


def signed_by_another(_: Crooked, claims: dict[str, Any]) -> str:
    return jwt.encode({"alg": "RS256", "kid": "one"}, claims, RSAKey.generate_key(2048))


HALF_HASH = base64.urlsafe_b64encode(hashlib.sha256(b"access").digest()[:16]).rstrip(b"=").decode()

BAD: dict[str, dict[str, Any]] = {
    "signed by another": {"encode": signed_by_another},
    "not signed": {"encode": unsigned},
    "signed with the public key": {"encode": signed_with_the_public_key},
    "no token": {"encode": lambda *_: "x.y.z"},
    "of another issuer": {"claims": {"iss": "https://evil.example"}},
    "for another client": {"claims": {"aud": "somebody-else"}},
    "for several, made for another": {"claims": {"aud": [CLIENT, "other"], "azp": "other"}},
    "for several, made for nobody": {"claims": {"aud": [CLIENT, "other"]}},
    "of another login": {"claims": {"nonce": "another"}},
    "of no login": {"claims": {"nonce": None}},
    "too old": {"claims": {"exp": int(time.time()) - 3600}},
    "without an end": {"claims": {"exp": None}},
    "not yet": {"claims": {"nbf": int(time.time()) + 86400}},
    "without a user": {"claims": {"sub": None}},
    "of another access token": {"claims": {"at_hash": "x" * 22}},
    "user info of another": {"claims": {"groups": None}, "user_info": {"sub": "mallory", "groups": ["backup-admins"]}},
    "describes another issuer": {"description": {"issuer": "https://evil.example"}},
    "sends the code elsewhere in clear": {"description": {"token_endpoint": "http://localhost:PORT/token"}},
}


@pytest.mark.parametrize("name", BAD)
async def test_a_token_that_does_not_hold_lets_nobody_in(name: str) -> None:
    crooked = Crooked(**BAD[name])
    async with crooked.serving() as provider:
        with pytest.raises(LoginFailed):
            await crooked.log_in(provider)


GOOD: dict[str, dict[str, Any]] = {
    "as it should be": {},
    "for several, made for this one": {"claims": {"aud": ["other", CLIENT], "azp": CLIENT}},
    "with the access token's hash": {"claims": {"at_hash": HALF_HASH}},
    "groups in user info": {"claims": {"groups": None}, "user_info": {"sub": "alice", "groups": ["backup-admins"]}},
}


@pytest.mark.parametrize("name", GOOD)
async def test_a_token_that_holds_lets_its_user_in(name: str) -> None:
    crooked = Crooked(**GOOD[name])
    async with crooked.serving() as provider:
        assert await crooked.log_in(provider) == "alice: admin"


async def test_a_new_key_of_the_provider_is_fetched_when_it_is_first_used(monkeypatch: pytest.MonkeyPatch) -> None:
    crooked = Crooked()
    async with crooked.serving() as provider:
        assert await crooked.log_in(provider) == "alice: admin"
        crooked.key = RSAKey.generate_key(2048, {"kid": "two"})
        with pytest.raises(LoginFailed):
            await crooked.log_in(provider)  # not at once: tokens of unknown keys must not make the portal ask and ask
        monkeypatch.setattr("service.portal.oidc.KEYS_AGAIN_SECONDS", 0.0)
        assert await crooked.log_in(provider) == "alice: admin"


async def test_a_state_that_was_not_sent_is_refused_before_the_provider_is_asked() -> None:
    crooked = Crooked()
    async with crooked.serving() as provider:
        begun, url = await provider.begin("http://127.0.0.1:1/login/oidc/callback", "", now=time.time())
        crooked.nonce = parse_qs(urlsplit(url).query)["nonce"][0]
        for state in ("", "x", f"{begun.state}x"):
            with pytest.raises(LoginFailed):
                await provider.finish(begun, {"code": "x", "state": state}, now=time.time())
        user = await provider.finish(begun, {"code": "x", "state": begun.state}, now=time.time())
        assert user.role == "admin"


async def test_a_login_that_took_too_long_has_to_be_begun_again() -> None:
    async with Crooked().serving() as provider:
        begun = Begun(state="s", nonce="n", verifier="v", redirect_uri="r", onward="", at=time.time() - 601)
        with pytest.raises(LoginFailed, match="too long"):
            await provider.finish(begun, {"code": "x", "state": "s"}, now=time.time())
