"""Who gets to the portal's pages: the portal in the test's own process, before a service that is away."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from service.client import Client
from service.portal.access import Access
from service.portal.app import application
from service.portal.gateway import Gateway
from service.portal.login import OIDC_COOKIE
from service.portal.oidc import LONGEST_ANSWER, Provider
from service.portal.portal import Portal
from service.portal.settings import OidcSettings, PortalSettings

# aiohttp would have keys of its own kind, which its older releases do not know.
pytestmark = pytest.mark.filterwarnings("ignore::aiohttp.web.NotAppKeyWarning")

ORIGIN = "https://portal.example"
TOKEN = "token-of-the-tests-0123456789"


@dataclass
class Issuer:
    """An OpenID Connect provider that answers as the test says."""

    url: str = ""
    described: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, Any] = field(default_factory=dict)
    keys: list[Any] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """The Authorization header and the form's client_secret of each exchange of a code."""

    async def answer(self, request: web.Request) -> web.Response:
        if request.path == "/keys":
            return web.json_response({"keys": self.keys})
        if request.path == "/token":
            form = await request.post()
            self.asked.append((request.headers.get("Authorization", ""), str(form.get("client_secret", ""))))
            return web.json_response(self.tokens)
        ends = {"authorization_endpoint": "authorize?x=1", "token_endpoint": "token", "jwks_uri": "keys"}
        told = {"issuer": self.url} | {name: f"{self.url}/{end}" for name, end in ends.items()}
        return web.json_response(told | self.described)


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    found = Issuer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", found.answer)
    async with TestServer(app) as server:
        found.url = f"http://127.0.0.1:{server.port}"
        yield found


@dataclass
class Browser:
    """Somebody who visits, with cookies."""

    client: TestClient[Any, Any]
    cookies: dict[str, str] = field(default_factory=dict)

    async def ask(self, path: str, *, method: str = "GET", headers: Any = None, data: Any = None) -> tuple[Any, str]:
        sent = {"Host": "portal.example", "Cookie": "; ".join(f"{name}={text}" for name, text in self.cookies.items())}
        answer = await self.client.request(
            method, path, headers=sent | (headers or {}), data=data, allow_redirects=False, skip_auto_headers=["Accept"]
        )
        for line in answer.headers.getall("Set-Cookie", []):
            self.cookies |= {name: morsel.value for name, morsel in SimpleCookie(line).items()}
        return answer, await answer.text()

    async def send(self, path: str, **form: str) -> tuple[Any, str]:
        """Send a form as a page of the portal does."""
        _, page = await self.ask("/backup/login")
        found = re.search(r'name="csrf" value="([^"]+)"', page)
        assert found is not None
        return await self.ask(path, method="POST", headers={"Origin": ORIGIN}, data=form | {"csrf": found[1]})


@asynccontextmanager
async def portal(directory: Path, **access: Any) -> AsyncIterator[Browser]:
    (directory / "token").write_text(TOKEN)
    settings = PortalSettings.model_validate(
        {
            "listen": "127.0.0.1:0",
            "origins": [ORIGIN],
            "base_path": "/backup",
            "service": {"socket": str(directory / "nobody-listens")},
            "proxy": {"peers": ["127.0.0.1"]},
            "access": {"token": {"read_file": str(directory / "token")}} | access,
        }
    )
    async with Gateway(lambda _: Client.unix(settings.service.socket), timeout=5) as gateway:
        app = application(Portal(settings, gateway, Access(settings), settings.allowed_origins()))
        async with TestClient(TestServer(app)) as client:
            yield Browser(client)


async def test_what_looks_after_the_portal_is_told_how_it_is_without_logging_in(tmp_path: Path) -> None:
    async with portal(tmp_path) as browser:
        assert (await browser.ask("/healthz"))[1] == '{"status": "ok"}'
        assert (await browser.ask("/readyz", headers={"Host": "10.0.0.1"}))[1] == '{"status": "ok", "service": "away"}'


async def test_who_the_proxy_names_needs_no_login_and_is_told_when_the_service_is_away(tmp_path: Path) -> None:
    async with portal(tmp_path, header={"admins": ["anna"]}) as browser:
        anna = {"X-Remote-User": "anna"}
        answer, _ = await browser.ask("/backup/login", headers=anna)
        assert (answer.status, answer.headers["Location"]) == (303, "/backup/")
        assert (await browser.ask("/backup", headers=anna))[0].headers["Location"] == "/backup/"
        assert (await browser.ask("/backup/", headers=anna))[0].status == 503
        stranger, _ = await browser.ask("/backup/", headers={"X-Remote-User": "bert"})
        assert stranger.headers["Location"] == "/backup/login"


async def test_a_token_lets_in_until_too_many_were_wrong(tmp_path: Path) -> None:
    async with portal(tmp_path) as browser:
        answer, _ = await browser.send("/backup/login", token=TOKEN, next="/backup/jobs")
        assert answer.headers["Location"] == "/backup/jobs"
        assert (await browser.ask("/backup/jobs"))[0].status == 503, "the service is away, but whoever asks is known"
    async with portal(tmp_path) as browser:
        assert (await browser.send("/backup/login", token="wrong"))[0].status == 403
        while (await browser.send("/backup/login", token="wrong"))[0].status != 429:
            pass
        assert (await browser.send("/backup/login", token=TOKEN))[0].status == 429


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        ("/backup/", {"headers": {"Host": "evil.example"}}, 421),
        ("/backup/login", {"method": "PUT"}, 405),
        ("/backup/login", {"method": "POST", "headers": {"Origin": ORIGIN}, "data": b"{}"}, 415),
        ("/backup/events", {}, 401),
        ("/backup/jobs?before=x", {}, 303),
        ("/backup/static/none.js", {}, 404),
    ],
)
async def test_what_strangers_try_is_refused(tmp_path: Path, path: str, options: dict[str, Any], status: int) -> None:
    async with portal(tmp_path) as browser:
        answer, _ = await browser.ask(path, **options)
        assert answer.status == status
        if status == 303:
            assert answer.headers["Location"] == "/backup/login?next=%2Fbackup%2Fjobs%3Fbefore%3Dx"


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({"Origin": "https://evil.example"}, ": its Origin is not the portal's"),
        ({"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"}, ": Sec-Fetch-Site says that another site has sent it"),
        ({}, ": it does not tell where it comes from"),
        ({"Origin": ORIGIN}, ": its token is not the user's"),
    ],
)
async def test_a_form_of_no_page_of_the_portals_is_refused(
    tmp_path: Path, headers: dict[str, str], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with portal(tmp_path) as browser:
        form = {"csrf": "guessed", "token": TOKEN}
        answer, _ = await browser.ask("/backup/login", method="POST", headers=headers, data=form)
        assert answer.status == 403
        assert f"a form was refused{why}" in caplog.messages


async def back(browser: Browser, **query: str) -> tuple[int, str]:
    """Begin a login at the provider; come back with `query`."""
    answer, _ = await browser.ask("/backup/login/oidc?next=/jobs")
    assert answer.status == 303
    state = parse_qs(urlsplit(answer.headers["Location"]).query)["state"][0]
    answer, page = await browser.ask(
        "/backup/login/oidc/callback?"
        + "&".join(f"{name}={value}" for name, value in ({"state": state} | query).items())
    )
    return answer.status, page


def oidc(issuer: Issuer, **more: Any) -> dict[str, Any]:
    return {"issuer": issuer.url, "client_id": "backup", "admins": ["anna"]} | more


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ({"error": "access_denied"}, "the provider refused: access_denied"),
        ({}, "the provider refused: no code"),
        ({"code": "c", "iss": "http://another"}, "the answer is of another issuer"),
        ({"code": "c", "state": "guessed"}, "the state that came back is not the one that was sent"),
        ({"code": "c"}, "the provider tells no key that is known here"),
    ],
)
async def test_a_login_that_does_not_end_as_it_began_lets_nobody_in(
    tmp_path: Path, issuer: Issuer, query: dict[str, str], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    issuer.keys = [{"kty": "oct", "k": "AAAA"}, {"kty": "RSA"}, "none", {"kty": "RSA", "use": "enc"}]
    issuer.tokens = {"id_token": "x.y.z"}
    async with portal(tmp_path, oidc=oidc(issuer)) as browser:
        status, page = await back(browser, **query)
        assert (status, "failed" in page) == (403, True)
        assert f"a login at the OpenID Connect provider failed: {why}" in caplog.messages


async def test_a_code_that_another_browser_fetched_is_worth_nothing(tmp_path: Path, issuer: Issuer) -> None:
    async with portal(tmp_path, oidc=oidc(issuer)) as browser:
        for cookie in ("", "e30=.forged"):
            browser.cookies[OIDC_COOKIE] = cookie
            answer, page = await browser.ask("/backup/login/oidc/callback?state=s&code=c")
            assert (answer.status, "this login was not begun in this browser" in page) == (403, True)
        assert not issuer.asked
        while (await browser.ask("/backup/login/oidc/callback"))[0].status != 429:
            pass
        assert (await browser.ask("/backup/login/oidc"))[0].status == 429


@pytest.mark.parametrize(
    ("secret", "methods", "asked"),
    [
        (None, None, ("", "")),
        ("s:1", None, ("Basic YmFja3VwOnMlM0Ex", "")),
        ("s:1", ["client_secret_post"], ("", "s:1")),
    ],
)
async def test_the_clients_secret_is_sent_in_the_way_that_the_provider_takes(
    tmp_path: Path, issuer: Issuer, secret: str | None, methods: list[str] | None, asked: tuple[str, str]
) -> None:
    more = {}
    if secret is not None:
        (tmp_path / "secret").write_text(secret)
        more = {"client_secret_file": str(tmp_path / "secret")}
    issuer.described = {} if methods is None else {"token_endpoint_auth_methods_supported": methods}
    async with portal(tmp_path, oidc=oidc(issuer, **more)) as browser:
        await back(browser, code="c")
    assert issuer.asked == [asked]


@pytest.mark.parametrize(
    "described",
    [{"issuer": "http://another"}, {"token_endpoint": "http://far.example/token"}, {"more": "x" * LONGEST_ANSWER}],
)
async def test_a_provider_that_is_not_what_it_should_be_is_not_gone_to(
    tmp_path: Path, issuer: Issuer, described: dict[str, Any]
) -> None:
    issuer.described = described
    async with portal(tmp_path, oidc=oidc(issuer)) as browser:
        assert (await browser.ask("/backup/login/oidc"))[0].status == 502


def test_groups_are_taken_as_a_list_or_as_words_from_where_the_claim_says() -> None:
    settings = {"issuer": "https://login.example", "client_id": "backup", "roles_claim": "realm.roles", "admins": ["a"]}
    provider = Provider(OidcSettings.model_validate(settings))
    for told, roles in (
        ({"realm": {"roles": ["a", 1, "b"]}}, ["a", "b"]),
        ({"realm": {"roles": "a b"}}, ["a", "b"]),
        ({"realm": "a b"}, []),
        ({}, []),
    ):
        assert provider._roles(told) == roles
