"""What a viewer chooses or his browser tells: language, colours, time zone. Nothing that he tells breaks a page."""

from __future__ import annotations

import pytest

from tests.integration.portal.visit import PortalProcess
from tests.service_process import ServiceProcess


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("zh-TW,zh;q=0.9,en;q=0.8", "zh-Hant-TW"),
        ("en-US,en;q=0.9,zh-TW;q=0.5", "en"),
        ("de-DE,de;q=0.9,zh-Hant;q=0.4,en;q=0.3", "zh-Hant-TW"),
        ("de", "en"),
        ("zh;q=0", "en"),
        (",;q=x,zh-TW;q=nonsense" * 50, "en"),
    ],
)
async def test_the_language_is_the_one_that_the_browser_asks_for(
    portal: PortalProcess, accepted: str, language: str
) -> None:
    async with portal.visitor(Accept_Language=accepted) as visitor:
        page = await visitor.get("/login")
        assert f'<html lang="{language}"' in page.text
        assert ("登入" in page.text) is (language != "en")


async def test_a_choice_of_language_and_colours_stays(portal: PortalProcess) -> None:
    async with portal.logged_in("read") as visitor:
        page = await visitor.post("/preferences", {"language": "zh_TW", "next": "/jobs"})
        assert page.path == "/jobs"
        page = await visitor.post("/preferences", {"theme": "dark", "next": "/jobs"})
        assert '<html lang="zh-Hant-TW" data-theme="dark">' in page.text
        page = await visitor.post("/preferences", {"theme": "auto", "language": "xx", "next": "/jobs"})
        assert '<html lang="zh-Hant-TW">' in page.text


@pytest.mark.parametrize(
    ("cookie", "written"),
    [
        ("deviceon-backup-zone=Asia/Taipei", "UTC+08:00 (Asia/Taipei)"),
        ("deviceon-backup-zone=America/St_Johns", "(America/St_Johns)"),
        ("deviceon-backup-zone=Nowhere/Land", "UTC"),
        ("deviceon-backup-zone=../../etc/passwd", "UTC"),
        ("deviceon-backup-zone=" + "x" * 500, "UTC"),
        ("deviceon-backup-theme=<script>", "UTC"),
        ("deviceon-backup-language=../../x", "UTC"),
        ("__Host-deviceon-backup-session=%00", "UTC"),
    ],
)
async def test_times_are_in_the_zone_that_the_browser_tells_and_nonsense_is_left_aside(
    service: ServiceProcess, portal: PortalProcess, cookie: str, written: str
) -> None:
    async with service.client() as client:
        await client.call("archive.verify", archive="Backup_20200101_0000Z.zip")
    async with portal.logged_in("read") as visitor:
        session = "; ".join(f"{name}={value}" for name, value in visitor.cookies.items())
        async with portal.visitor(Cookie=f"{cookie}; {session}") as with_cookie:
            page = await with_cookie.get("/jobs")
            assert page.status == 200
            assert written in page.text
            assert "<script>" not in page.text


async def test_a_notice_is_shown_once_and_only_as_text(portal: PortalProcess) -> None:
    async with portal.logged_in("read") as visitor:
        page = await visitor.post("/logout")
        assert "You are logged out." in page.words
        assert "You are logged out." not in (await visitor.get("/login")).words
    async with portal.visitor(Cookie="__Host-deviceon-backup-notice=%3Cb%3Ex%3C/b%3E") as visitor:
        assert "<b>x" not in (await visitor.get("/login")).text
