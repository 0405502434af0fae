"""The settings page before a real service: what is typed is tried, told, saved; no secret ever comes back."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.smb_server import SHARE, SambaServer
from tests.integration.portal.conftest import small_service, wait_until_ready
from tests.integration.portal.visit import PortalProcess
from tests.s3_servers import ceph, ceph_options
from tests.service_process import ServiceProcess, ended, idle

DAILY = {"frequency": "daily", "at": "02:30", "timezone": "Asia/Taipei", "jitter": "0", "catch_up": "24"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service whose settings are all the page's to set."""
    process = small_service(tmp_path_factory.mktemp("settings") / "service")
    del process.document["target"]
    with process:
        wait_until_ready(process, set_up=False)
        yield process


@pytest.fixture(scope="module")
def portal(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PortalProcess]:
    with PortalProcess(tmp_path_factory.mktemp("portal"), service.socket) as process:
        yield process


async def settings(service: ServiceProcess) -> dict[str, Any]:
    async with service.client() as client:
        await idle(client)
        found: dict[str, Any] = (await client.call("settings.get"))["settings"]
        return found


def local(service: ServiceProcess, **more: str) -> dict[str, str]:
    directory = str(service.directory / "archives")
    return {"kind": "local", "local:directory": directory, "enabled": "1", "keep_last": "7", **DAILY, **more}


async def test_what_the_manual_s_page_sets_is_saved_once_and_shown_again(
    service: ServiceProcess, portal: PortalProcess
) -> None:
    async with portal.logged_in() as visitor:
        await visitor.get("/settings")
        page = await visitor.post("/settings", local(service) | {"action": "save"})
        assert page.status == 200
        assert "The settings are saved." in page.words
        found = await settings(service)
        assert found["target"] == {"url": f"file://{service.directory}/archives", "storage_options": {}}
        assert (found["schedule"]["at"], found["schedule"]["timezone"]) == ("02:30", "Asia/Taipei")
        assert found["retention"]["keep_last"] == 7
        for text in (f'value="{service.directory}/archives"', 'value="02:30"', 'value="Asia/Taipei"', 'value="7"'):
            assert text in page.text
        assert page.words.count("Asia/Taipei") >= 5  # the next runs in the schedule's zone
        page = await visitor.post("/settings", local(service) | {"action": "save"})
        assert "Nothing was changed." in page.words


async def test_a_page_with_only_the_schedule_filled_in_is_saved_without_a_place(tmp_path: Path) -> None:
    process = small_service(tmp_path / "service")
    del process.document["target"]
    with process as service, PortalProcess(tmp_path / "portal", service.socket) as portal:
        await settings(service)
        async with portal.logged_in() as visitor:
            await visitor.get("/settings")
            page = await visitor.post("/settings", {"kind": "local", "action": "save", **DAILY})
            assert "The settings are saved." in page.words
            found = await settings(service)
            assert (found["target"], found["enabled"], found["schedule"]["at"]) == (None, False, "02:30")


async def test_what_makes_no_sense_is_told_at_its_field_and_nothing_is_saved(
    service: ServiceProcess, portal: PortalProcess
) -> None:
    before = await settings(service)
    wrong: list[tuple[dict[str, str], str, str]] = [
        ({"local:directory": "relative"}, "local-directory", "Give the whole path, which begins with a slash."),
        ({"keep_last": "many"}, "keep_last", "Give a whole number."),
        ({"frequency": "weekly"}, "weekdays", "Choose at least one day of the week."),
        ({"frequency": "cron", "cron": "61 * * * *"}, "cron", "is not a cron expression"),
        ({"at": "25:99"}, "at", "must be a time of day, such as 02:00"),
        ({"timezone": "Mars/Olympus"}, "timezone", "is not a known time zone"),
    ]
    async with portal.logged_in() as visitor:
        await visitor.get("/settings")
        for fields, field, words in wrong:
            page = await visitor.post("/settings", local(service, **fields) | {"action": "save"})
            assert page.status == 422, fields
            assert words in page.words
            assert f'href="#{field}"' in page.text
            assert f'id="{field}' in page.text
            assert "CONFIGURATION.md" not in page.text, "it is told once, at its field, not as a mistake of a file"
            value = next(iter(fields.values()))
            assert value in page.text
        page = await visitor.post("/settings", local(service, **{"local:directory": "/no/such/place"}))
        assert page.status == 422
        assert "the target did not pass its test" in page.words
        assert 'value="/no/such/place"' in page.text
    assert await settings(service) == before


async def test_a_test_shows_what_it_has_found_and_saves_nothing(service: ServiceProcess, portal: PortalProcess) -> None:
    before = await settings(service)
    elsewhere = service.directory / "elsewhere"
    elsewhere.mkdir()
    async with portal.logged_in() as visitor:
        await visitor.get("/settings")
        page = await visitor.post("/settings", local(service, **{"local:directory": str(elsewhere), "action": "test"}))
        assert page.status == 200
        assert "The destination passed its test" in page.words
        assert "a second object of the same name is refused" in page.words
        gone = str(elsewhere / "gone")
        page = await visitor.post("/settings", local(service, **{"local:directory": gone, "action": "test"}))
        assert "The destination did not pass its test" in page.words
        assert "does not exist" in page.words
        assert "What to do:" in page.words
    assert await settings(service) == before
    assert list(elsewhere.iterdir()) == []


async def test_what_a_policy_would_keep_and_remove_is_shown_with_reasons_before_it_is_saved(tmp_path: Path) -> None:
    with small_service(tmp_path / "service") as service, PortalProcess(tmp_path / "portal", service.socket) as portal:
        async with service.client() as client, portal.logged_in() as visitor:
            await idle(client)
            made = await ended(client, await client.call("backup.start"))
            page = await visitor.get("/settings")
            assert made["result"]["name"] not in page.text
            assert "The configuration file on the server says this" in page.words
            page = await visitor.post("/settings", {"action": "retention", "keep_last": "1", **DAILY})
            assert "1 archive would stay, 0 would be removed." in page.words
            assert "the newest" in page.words
            assert (await client.call("settings.get"))["settings"]["retention"] is None
            (service.directory / "archives").rename(service.directory / "gone")
            page = await visitor.post("/settings", {"action": "retention", "keep_last": "1", **DAILY})
            assert page.status == 200
            assert "does not exist" in page.words


async def test_what_the_file_fixes_is_shown_as_fixed_and_stays_although_a_form_says_otherwise(tmp_path: Path) -> None:
    fixed = {"schedule": {"frequency": "daily", "at": "04:00"}, "retention": {"keep_last": 9}, "enabled": True}
    with (
        small_service(tmp_path / "service", **fixed) as service,
        PortalProcess(tmp_path / "portal", service.socket) as portal,
    ):
        await settings(service)
        async with portal.logged_in() as visitor:
            page = await visitor.get("/settings")
            assert page.words.count("The configuration file on the server says this") == 4
            assert 'name="frequency"' not in page.text
            assert "Save the settings" not in page.words
            page = await visitor.post("/settings", local(service, keep_last="1") | {"action": "save"})
            assert "Nothing was changed." in page.words
            page = await visitor.post("/settings", {"action": "test"})
            assert "The destination passed its test" in page.words
        assert (await settings(service))["retention"]["keep_last"] == 9


async def test_a_reader_sees_the_settings_and_what_retention_keeps_and_changes_nothing(
    service: ServiceProcess, portal: PortalProcess
) -> None:
    async with portal.logged_in("read") as reader:
        page = await reader.get("/settings?show=retention")
        assert page.status == 200
        assert "Save the settings" not in page.words
        assert "Test the destination" not in page.words
        assert "<fieldset disabled>" in page.text
        for action in ("save", "test"):
            refused = await reader.post("/settings", local(service, keep_last="3") | {"action": action})
            assert refused.status == (422 if action == "save" else 200)
            assert "may not call" in refused.words
    assert (await settings(service))["retention"]["keep_last"] == 7


async def test_a_secret_is_typed_once_kept_in_a_file_and_in_no_page(
    service: ServiceProcess, portal: PortalProcess
) -> None:
    ceph().create_bucket("settings-page")
    options = ceph_options()
    secret = options["secret"]
    fields = {
        "kind": "s3",
        "s3:bucket": "settings-page",
        "s3:prefix": "one",
        "s3:endpoint_url": options["endpoint_url"],
        "s3:region": str(options.get("region", "")),
        "s3:key": options["key"],
        "keep_last": "7",
        "enabled": "1",
        **DAILY,
    }
    pages = []
    async with portal.logged_in() as visitor:
        await visitor.get("/settings")
        typed = {"secret:s3:secret": secret}
        pages.append(await visitor.post("/settings", fields | typed | {"action": "test"}))
        assert "The destination passed its test" in pages[-1].words
        pages.append(await visitor.post("/settings", fields | typed | {"action": "retention"}))
        pages.append(await visitor.post("/settings", fields | typed | {"keep_last": "x", "action": "save"}))
        pages.append(await visitor.post("/settings", fields | typed | {"action": "save"}))
        assert "The settings are saved." in pages[-1].words
        # kept, as long as it goes where it went
        pages.append(await visitor.post("/settings", fields | {"s3:prefix": "two", "action": "save"}))
        assert "The settings are saved." in pages[-1].words
        pages.append(await visitor.post("/settings", fields | {"s3:prefix": "two", "action": "test"}))
        assert "The destination passed its test" in pages[-1].words
        elsewhere = {"s3:endpoint_url": "http://127.0.0.1:9", "action": "save"}
        pages.append(await visitor.post("/settings", fields | elsewhere))
        assert pages[-1].status == 422
        assert "Type it again: the place or one of its options has changed." in pages[-1].words
    found = await settings(service)
    assert found["target"]["url"] == "s3://settings-page/two"
    file = Path(found["target"]["storage_options"]["secret"]["file"])
    assert file.read_text() == secret
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for page in pages:
        assert secret not in page.text
        assert str(file) not in page.text
    assert secret not in portal.log
    assert secret not in service.log


async def test_a_share_is_tried_and_saved_and_takes_the_next_backup(
    service: ServiceProcess, portal: PortalProcess
) -> None:
    with SambaServer() as samba:
        fields = {
            "kind": "smb",
            "smb:server": f"{samba.host}:{samba.port}",
            "smb:share": SHARE,
            "smb:directory": "hall-7",
            "smb:username": samba.username,
            "smb:auto_mkdir": "1",
            "keep_last": "7",
            **DAILY,
        }
        async with portal.logged_in() as visitor:
            await visitor.get("/settings")
            wrong = await visitor.post("/settings", fields | {"secret:smb:password": "wrong", "action": "save"})
            assert wrong.status == 422
            assert "refuses the credentials" in wrong.words
            right = {"secret:smb:password": samba.password}
            tried = await visitor.post("/settings", fields | right | {"action": "test"})
            assert "The destination passed its test" in tried.words
            saved = await visitor.post("/settings", fields | right | {"action": "save"})
            assert "The settings are saved." in saved.words
            assert samba.password not in tried.text + saved.text
        async with service.client() as client:
            made = await ended(client, await client.call("backup.start"))
        assert made["state"] == "succeeded", made
        assert (samba.share / "hall-7" / made["result"]["name"]).exists()
