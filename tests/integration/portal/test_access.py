"""Who comes in and who does not: tokens, sessions, roles, forms of others, other names of the host."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from service.portal.access import Access
from service.portal.app import application
from service.portal.portal import Portal
from service.portal.settings import read
from tests.integration.portal.visit import TOKENS, PortalProcess
from tests.service_process import ServiceProcess

SESSION = "__Host-deviceon-backup-session"
PAGES = ["/", "/settings", "/archives", "/jobs", "/restore", "/restore/pending", "/reset", "/drills"]


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_without_a_login_leads_to_the_login_and_back(portal: PortalProcess, path: str) -> None:
    async with portal.visitor() as visitor:
        page = await visitor.get(path)
        assert page.path.startswith("/login")
        assert "Log in" in page.words
        after = await visitor.post("/login", {"token": TOKENS["read"], "next": path})
        assert (after.status, after.path) == (200, path)


async def test_a_wrong_token_opens_nothing_and_is_neither_shown_nor_logged(portal: PortalProcess) -> None:
    async with portal.visitor() as visitor:
        page = await visitor.log_in("wrong-token-of-somebody-0123456789")
        assert page.status == 403
        assert "not valid" in page.words
        assert "wrong-token-of-somebody" not in page.text + portal.log
        assert SESSION not in visitor.cookies


async def test_the_session_cookie_is_for_this_host_alone_and_out_of_reach_of_scripts(portal: PortalProcess) -> None:
    async with portal.visitor() as visitor:
        await visitor.get("/login")
        answer = await visitor.post("/login", {"token": TOKENS["admin"]}, follow=False)
        cookie = next(each for each in answer.headers.getall("Set-Cookie") if each.startswith(SESSION))  # type: ignore[attr-defined]
        for part in ("HttpOnly", "Secure", "SameSite=Lax", "Path=/"):
            assert part in cookie
        assert "Domain" not in cookie


async def test_a_login_begins_a_new_session_and_ends_the_one_before(portal: PortalProcess) -> None:
    async with portal.logged_in() as visitor:
        first = visitor.cookies[SESSION]
        await visitor.post("/login", {"token": TOKENS["admin"]})
        assert visitor.cookies[SESSION] != first
        async with portal.visitor(Cookie=f"{SESSION}={first}") as thief:
            assert (await thief.get("/jobs")).path.startswith("/login")


async def test_an_id_that_was_planted_before_the_login_is_not_the_session(portal: PortalProcess) -> None:
    async with portal.visitor() as visitor:
        visitor.jar.update_cookies({SESSION: "planted-by-somebody-else"})
        await visitor.log_in(TOKENS["admin"])
        assert visitor.cookies[SESSION] != "planted-by-somebody-else"


async def test_logging_out_ends_the_session_not_only_the_cookie(portal: PortalProcess) -> None:
    async with portal.logged_in() as visitor:
        session = visitor.cookies[SESSION]
        page = await visitor.post("/logout")
        assert "You are logged out." in page.words
    async with portal.visitor(Cookie=f"{SESSION}={session}") as thief:
        assert (await thief.get("/jobs")).path.startswith("/login")


async def test_a_session_ends_when_idle_and_in_any_case(service: ServiceProcess, tmp_path: Path) -> None:
    settings = {"sessions": {"idle_minutes": 4 / 60, "absolute_hours": 8 / 3600}}
    with PortalProcess(tmp_path, service.socket, settings) as portal:
        async with portal.logged_in() as busy, portal.logged_in() as idle, portal.logged_in() as refreshing:
            for _ in range(5):
                await asyncio.sleep(1)
                assert (await busy.get("/jobs")).path == "/jobs"
                refreshed = await refreshing.get("/jobs", X_Refresh="1")
            assert (await idle.get("/jobs")).path.startswith("/login")
            assert refreshed.status == 401, "a page that refreshes itself makes no session last"
            await asyncio.sleep(3.2)
            assert (await busy.get("/jobs")).path.startswith("/login")


async def test_after_some_wrong_tokens_a_visitor_has_to_wait(service: ServiceProcess, tmp_path: Path) -> None:
    with PortalProcess(tmp_path, service.socket) as portal:
        async with portal.visitor() as visitor:
            await visitor.get("/login")
            answers = [await visitor.post("/login", {"token": f"wrong-token-{n}"}) for n in range(6)]
            assert [page.status for page in answers] == [403] * 5 + [429]
            assert 0 < int(answers[-1].headers["Retry-After"]) <= 60
            right = await visitor.post("/login", {"token": TOKENS["admin"]})
            assert right.status == 429, "who guesses does not learn that he was right"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": None},
        {"Origin": "null", "Sec-Fetch-Site": None},
        {"Origin": None, "Sec-Fetch-Site": "cross-site"},
        {"Origin": None, "Sec-Fetch-Site": "same-site"},
        {"Origin": None, "Sec-Fetch-Site": None},
    ],
    ids=str,
)
async def test_a_form_of_another_site_is_refused(portal: PortalProcess, headers: dict[str, str | None]) -> None:
    async with portal.logged_in() as visitor:
        page = await visitor.post("/logout", headers=headers)
        assert page.status == 403
        assert (await visitor.get("/jobs")).path == "/jobs", "nobody was logged out"


async def test_a_form_without_its_token_or_with_another_users_is_refused(portal: PortalProcess) -> None:
    async with portal.logged_in() as visitor, portal.logged_in() as other:
        assert other.last is not None
        for token in ("", "x" * 64, other.last.field("csrf")):
            page = await visitor.post("/logout", {"csrf": token})
            assert page.status == 403
        visitor.last = None
        assert (await visitor.post("/logout")).status == 403
        assert (await visitor.get("/jobs")).path == "/jobs"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example"])
async def test_another_name_of_the_host_is_refused(portal: PortalProcess, host: str) -> None:
    """A page of evil.example whose name suddenly leads to this machine (DNS rebinding) learns nothing."""
    async with portal.logged_in() as visitor:
        page = await visitor.get("/jobs", Host=host)
        assert page.status == 421
        assert "Jobs" not in page.text


@pytest.mark.parametrize(
    "onward",
    ["https://evil.example/", "//evil.example/", "/\\evil.example", "\\\\evil.example", "a:b", "//[", "/a\nb"],
)  # fmt: skip
async def test_a_login_leads_to_no_other_site(portal: PortalProcess, onward: str) -> None:
    async with portal.visitor() as visitor:
        await visitor.get("/login")
        answer = await visitor.post("/login", {"token": TOKENS["read"], "next": onward}, follow=False)
        assert (answer.status, answer.headers["Location"]) == (303, "/")


async def test_every_answer_has_the_headers_that_protect_it(portal: PortalProcess) -> None:
    async with portal.logged_in() as visitor:
        for path in ("/", "/login", "/nothing-here", "/static/portal.css", "/healthz"):
            answer = await visitor.get(path, follow=False)
            policy = answer.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; ")
            assert "unsafe" not in policy and "*" not in policy and "http" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Referrer-Policy"] == "same-origin"
            assert "Server" not in answer.headers
            if not path.startswith("/static/"):
                assert answer.headers["Cache-Control"] == "no-store"


async def test_a_reader_changes_nothing_by_any_form(service: ServiceProcess, portal: PortalProcess) -> None:
    """Every POST that there is, with a token of his own: what is on the page, or not, decides nothing."""
    settings = read(portal.directory / "portal.yaml")
    made = application(Portal(settings, cast(Any, None), Access(settings), frozenset()))
    posts = {route.resource.canonical for route in made.router.routes() if route.method == "POST" and route.resource}
    posts -= {"/login", "/logout", "/preferences"}
    assert len(posts) > 10
    refused = 0
    values = {"name": "Backup_20200101_0000Z.zip", "id": "0123456789abcdef"}
    async with service.client() as client:
        before = await client.call("job.list"), await client.call("settings.get")
        async with portal.logged_in("read") as visitor:
            for path in sorted(posts):
                await visitor.get("/jobs")
                page = await visitor.post(
                    path.format_map(values), {"confirm": "DeviceOn", "enabled": "on"}, follow=False
                )
                assert 400 <= page.status < 500, (path, page.status, page.words[:300])
                refused += page.status == 403
        assert (await client.call("job.list"), await client.call("settings.get")) == before
    assert refused >= len(posts) / 2, "the others ask for what is not there"


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded; charset=rot13",
        "application/x-www-form-urlencoded; charset=nobody-knows",
        "text/plain",
        "application/json",
    ],
)
async def test_a_form_that_no_page_of_ours_would_send_is_refused_before_it_is_read(
    portal: PortalProcess, kind: str
) -> None:
    async with portal.visitor() as visitor:
        headers = {"Origin": portal.origin, "Content-Type": kind}
        async with visitor.session.post("/login", data=b"--x\r\n\r\n", headers=headers) as answer:
            assert answer.status == 415
    assert "Traceback" not in portal.log


async def test_a_form_without_an_idempotency_key_is_no_mistake_of_the_portal(portal: PortalProcess) -> None:
    async with portal.logged_in("read") as visitor:
        await visitor.get("/jobs")
        assert visitor.last is not None
        fields, headers = {"csrf": visitor.last.field("csrf")}, {"Origin": portal.origin}
        async with visitor.session.post("/jobs/backup", data=fields, headers=headers) as answer:
            assert answer.status == 403
    assert "Traceback" not in portal.log
