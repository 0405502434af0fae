"""The System Backup settings over the socket: what is in force, what is refused, where secrets go."""

from __future__ import annotations

import asyncio
import json
import logging
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.app import App
from service.config import SystemBackup
from service.errors import ConfigError, StateError
from service.job import Job
from service.progress import Progress
from service.settings import read_stored
from service.state import FILE_NAME
from service.state_directory import only_job
from tests.service_parts import Place
from tests.socket_calls import DAILY, SECRET, call_checked, refused, target_at


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, settings={"target": None})


@pytest.fixture
async def app(place: Place) -> AsyncIterator[App]:
    async with place.app() as app:
        yield app


def everything_written(place: Place) -> dict[str, str]:
    """Return the files of the state directory that contain the secret in any plain form."""
    found = {}
    for path in place.state_dir.rglob("*"):
        if path.is_file() and SECRET.encode() in path.read_bytes():
            found[str(path.relative_to(place.state_dir))] = oct(stat.S_IMODE(path.stat().st_mode))
    return found


async def test_settings_that_are_set_are_in_force_at_once_and_after_a_restart(place: Place, app: App) -> None:
    call = call_checked(app.api)
    assert (await call("settings.get"))["settings"]["target"] is None
    given = {"target": target_at(place.target), "schedule": DAILY, "retention": {"keep_last": 3}, "enabled": False}
    await call("settings.update", **given)
    async with place.app() as again:
        for each in (app, again):
            found = (await call_checked(each.api)("settings.get"))["settings"]
            assert found["target"]["url"] == f"file://{place.target}"
            assert found["schedule"]["at"] == "02:30"
            assert found["retention"]["keep_last"] == 3
            assert found["enabled"] is False
            assert each.config().retention is not None
    events = [event for event in await app.history.events() if event["type"] == "settings.changed"]
    assert events[-1]["data"] == {"changed": ["enabled", "retention", "schedule", "target"]}


async def test_what_is_left_out_stays_and_null_takes_away(place: Place, app: App) -> None:
    call = call_checked(app.api)
    await call("settings.update", target=target_at(place.target), schedule=DAILY)
    await call("settings.update", enabled=False)
    settings = (await call("settings.get"))["settings"]
    assert settings["schedule"] is not None and settings["target"] is not None and settings["enabled"] is False
    await call("settings.update", schedule=None, target=None)
    settings = (await call("settings.get"))["settings"]
    assert settings["schedule"] is None and settings["target"] is None and settings["enabled"] is False
    with pytest.raises(ConfigError, match="no target is set"):
        app.config()
    assert (await refused(app.api, "backup.start")).reason == "CONFIG"


async def test_the_file_wins_over_what_is_stored_and_gives_way_when_it_no_longer_says(place: Place) -> None:
    async with place.app() as app:
        await call_checked(app.api)("settings.update", retention={"keep_last": 3}, schedule=DAILY)
    place.settings |= {"retention": {"keep_last": 9}, "schedule": DAILY | {"at": "05:00"}}
    async with place.app() as app:
        found = await call_checked(app.api)("settings.get")
        assert found["settings"]["retention"]["keep_last"] == 9
        assert found["settings"]["schedule"]["at"] == "05:00"
        assert found["fixed"] == ["retention", "schedule"]
    place.settings["retention"] = None
    async with place.app() as app:
        found = await call_checked(app.api)("settings.get")
        assert found["settings"]["retention"]["keep_last"] == 3
        assert found["fixed"] == ["schedule"]


async def test_a_setting_that_the_file_gives_is_refused_by_name_and_nothing_else_of_the_request_is_done(
    place: Place,
) -> None:
    place.settings |= {"retention": {"keep_last": 9}, "schedule": DAILY}
    async with place.app() as app:
        error = await refused(app.api, "settings.update", retention={"keep_last": 1}, enabled=False)
        assert error.message == "retention is fixed by the configuration file"
        error = await refused(app.api, "settings.update", schedule=None, retention={"keep_last": 1})
        assert error.message == "retention and schedule are fixed by the configuration file"
        assert (await call_checked(app.api)("settings.get"))["settings"]["enabled"] is True
        assert await app.values.get("system_backup") is None


WRONG: list[dict[str, Any]] = [
    {"target": {"url": f"file://{SECRET}:{SECRET}@x/", "storage_options": {}}},
    {"target": {"url": "file:///x", "storage_options": {"password": SECRET}}},
    {"target": {"url": "file:///x", "storage_options": {"client": {"secret_key": SECRET}}}},
    {"target": {"url": "file:///x", "storage_options": {"clients": [{"secret": SECRET}]}}},
    {"target": {"url": "file:///x", "storage_options": {"passwords": [SECRET]}}},
    {"target": {"url": "file:///x", "storage_options": {"password": {"secret": 12345678}}}},
    {"target": {"url": "file:///x", "storage_options": {"password": 12345678}}},
    {"target": {"url": "file:///x", "storage_options": {"a": {"secret": SECRET}}, SECRET[:8]: 1}},
    {"target": {"url": SECRET}},
    {"target": {}},
    {"schedule": {"frequency": SECRET}},
    {"schedule": {"frequency": "daily"}},
    {"schedule": {"frequency": "cron", "cron": f"{SECRET} * * * *"}},
    {"schedule": DAILY | {"timezone": SECRET}},
    {"retention": {}},
    {"retention": {"keep_last": 0}},
    {"retention": {"keep_lust": 3}},
    {"enabled": None},
    {"enabled": "no"},
]


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_wrong_value_is_refused_in_plain_words_that_do_not_repeat_it_and_changes_nothing(
    place: Place, app: App, wrong: dict[str, Any]
) -> None:
    await call_checked(app.api)("settings.update", enabled=False)
    error = await refused(app.api, "settings.update", **wrong)
    assert error.reason in {"CONFIG", "INVALID_PARAMS"}, "it went as far as the target"
    assert SECRET not in str(error.data) and "12345678" not in str(error.data)
    (key,) = wrong
    assert key in error.message
    assert "pydantic" not in error.message and "Traceback" not in str(error.data)
    assert await app.values.get("system_backup") == {"enabled": False}
    assert everything_written(place) == {}
    assert not list(place.state_dir.glob("secrets/*"))


async def test_the_unknown_key_that_was_meant_is_told(app: App) -> None:
    error = await refused(app.api, "settings.update", retention={"keep_lust": 3})
    assert "did you mean keep_last?" in error.message


async def test_a_secret_goes_to_a_file_that_only_the_owner_reads_and_comes_back_nowhere(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr("service.api.settings._require_good", accepted)
    call = call_checked(app.api)
    options = {"password": {"secret": SECRET}, "client": {"token": {"secret": SECRET + "2"}}, "user": "me"}
    key = "one-request"
    answers = [
        await call("settings.update", target=target_at(place.target, **options), idempotency_key=key),
        await call("settings.update", target=target_at(place.target, **options), idempotency_key=key),
        await call("settings.get"),
        await call("system.info"),
        await call("job.list"),
        await call("events.list"),
    ]
    assert SECRET not in json.dumps(answers)
    written = everything_written(place)
    assert sorted(written.values()) == ["0o600", "0o600"]
    assert {Path(name).parent.name for name in written} == {"secrets"}
    assert stat.S_IMODE((place.state_dir / "secrets").stat().st_mode) == 0o700
    assert app.config().target.options() == {"password": SECRET, "client": {"token": SECRET + "2"}, "user": "me"}
    assert SECRET not in caplog.text
    assert SECRET not in repr(app.stored.value) + str(app.config())


async def nothing_found(*_: object) -> list[Any]:
    """Stand in for the test of a server that is not there."""
    return []


async def accepted(*_: object) -> None:
    """Stand in for the test of a target: a directory of this machine takes no secrets."""


async def test_files_of_secrets_that_are_in_no_use_any_more_are_removed_and_the_others_stay(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.settings._require_good", accepted)
    call = call_checked(app.api)
    await call("settings.update", target=target_at(place.target, password={"secret": SECRET}))
    (first,) = (place.state_dir / "secrets").iterdir()
    await call("settings.update", enabled=False, schedule=DAILY)
    assert list((place.state_dir / "secrets").iterdir()) == [first]
    await call("settings.update", target=target_at(place.target, password={"secret": SECRET + "2"}))
    (second,) = (place.state_dir / "secrets").iterdir()
    assert second != first and second.read_text() == SECRET + "2"
    await call("settings.update", target=None)
    assert list((place.state_dir / "secrets").iterdir()) == []


async def test_a_secret_that_was_set_is_kept_by_sending_back_what_was_shown(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.settings._require_good", accepted)
    call = call_checked(app.api)
    await call("settings.update", target=target_at(place.target, client={"password": {"secret": SECRET}}))
    shown = (await call("settings.get"))["settings"]["target"]
    await call("settings.update", target=shown | {"url": shown["url"] + "/"})
    assert app.config().target.options() == {"client": {"password": SECRET}}


@pytest.mark.parametrize("method", ["settings.update", "target.test"])
@pytest.mark.parametrize(
    "elsewhere",
    [
        {"url": "smb://nas.evil/share"},
        {"url": "ftp://nas/share"},
        {"url": "smb://me@nas/share"},
        {"storage_options": {"endpoint_url": "http://evil"}},
        {"storage_options": {"client_kwargs": {"endpoint_url": "http://evil", "region_name": "x"}}},
    ],
)
async def test_a_secret_that_was_set_is_never_sent_elsewhere(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch, elsewhere: dict[str, Any], method: str
) -> None:
    monkeypatch.setattr("service.api.settings._require_good", accepted)
    monkeypatch.setattr("service.api.settings.try_target", nothing_found)
    secrets = {"password": {"secret": SECRET}, "client_kwargs": {"endpoint_url": "http://good"}}
    call = call_checked(app.api)
    await call("settings.update", target={"url": "smb://nas/share", "storage_options": secrets})
    shown = (await call("settings.get"))["settings"]["target"]
    await call(method, target=shown | {"url": "smb://nas/other"})
    options = shown["storage_options"] | elsewhere.get("storage_options", {})
    error = await refused(app.api, method, target=shown | elsewhere | {"storage_options": options})
    assert "of this machine" in error.message
    assert "again" in str(error.data)
    renewed = options | {"password": {"secret": SECRET}}
    await call(method, target=shown | elsewhere | {"storage_options": renewed})


async def test_the_secrets_of_the_configuration_file_may_be_tried_where_they_belong_and_not_elsewhere(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.settings.try_target", nothing_found)
    target = {"url": "smb://nas/share", "storage_options": {"password": {"env": "HOME"}}}
    place.settings["target"] = target
    async with place.app() as app:
        assert await call_checked(app.api)("target.test", target=target) == []
        await refused(app.api, "target.test", target=target | {"url": "smb://evil/share"})


async def test_a_target_that_already_gets_the_copies_is_refused_before_it_is_stored(place: Place) -> None:
    place.settings["copies"] = [{"url": f"file://{place.target}"}]
    async with place.app() as app:
        error = await refused(app.api, "settings.update", target=target_at(place.target))
        assert "more than once" in error.message
        assert app.stored.value.target is None
        assert await app.values.get("system_backup") is None


async def test_secrets_of_old_settings_stay_while_a_job_may_still_read_them(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.settings._require_good", accepted)
    call = call_checked(app.api)
    secrets = place.state_dir / "secrets"
    await call("settings.update", target=target_at(place.target, password={"secret": SECRET}))
    (first,) = secrets.iterdir()
    begun, gate = asyncio.Event(), asyncio.Event()

    async def slow(job: Job, progress: Progress) -> dict[str, Any]:
        begun.set()
        await gate.wait()
        return {}

    app.jobs.work = slow
    running = asyncio.create_task(app.jobs.run_now("verify", {}, Progress()))
    await begun.wait()
    await call("settings.update", target=target_at(place.target, password={"secret": SECRET + "2"}))
    assert len(list(secrets.iterdir())) == 2
    gate.set()
    await running
    with only_job(place.state_dir, "a job of another process"):
        await call("settings.update", enabled=True)
        assert first in secrets.iterdir()
    await call("settings.update", enabled=False)
    assert first not in secrets.iterdir() and len(list(secrets.iterdir())) == 1


@pytest.mark.parametrize("reference", [{"file": "/etc/shadow"}, {"env": "HOME"}])
@pytest.mark.parametrize("method", ["settings.update", "target.test"])
async def test_no_client_has_other_files_or_variables_of_this_machine_read(
    place: Place, app: App, method: str, reference: dict[str, str]
) -> None:
    for options in ({"password": reference}, {"client": {"password": reference}}):
        both = {"token": {"secret": SECRET}} | options
        error = await refused(app.api, method, target=target_at(place.target, **both))
        assert "of this machine" in error.message
    assert everything_written(place) == {}, "the secret beside it was not put away"
    assert await app.values.get("system_backup") is None


async def test_a_target_is_tried_before_it_is_accepted_and_nothing_changes_when_it_fails(
    place: Place, app: App
) -> None:
    call = call_checked(app.api)
    await call("settings.update", target=target_at(place.target))
    missing = place.root / "not mounted"
    error = await refused(
        app.api, "settings.update", target=target_at(missing, password={"secret": SECRET}), enabled=False
    )
    assert error.reason == "TARGET_TEST_FAILED"
    error = await refused(app.api, "settings.update", target=target_at(missing), enabled=False)
    assert "does not exist" in error.message and error.hint
    settings = (await call("settings.get"))["settings"]
    assert (settings["target"]["url"], settings["enabled"]) == (f"file://{place.target}", True)
    assert everything_written(place) == {}
    assert place.names() == set(), "the test has left something in the target"


async def test_a_target_whose_secret_cannot_be_had_is_a_finding_and_no_failure(place: Place, app: App) -> None:
    findings = await call_checked(app.api)("target.test", target=target_at(place.target, password={"secret": ""}))
    assert [(found["ok"], bool(found["remedy"])) for found in findings] == [(False, True)]


async def test_a_target_that_was_only_tried_leaves_nothing_behind(place: Place, app: App) -> None:
    findings = await call_checked(app.api)("target.test", target=target_at(place.target))
    tried = {"write", "read back", "list", "overwrite protection", "delete"}
    promised = {"whole or not at all", "never replaced", "durable"}
    assert {found["name"] for found in findings if found["ok"] is True} == tried
    assert {found["name"] for found in findings if found["ok"] is None} == promised
    await call_checked(app.api)("target.test", target=target_at(place.target, password={"secret": SECRET}))
    assert place.names() == set()
    assert everything_written(place) == {}
    assert app.stored.value.target is None


async def test_settings_are_stored_even_when_their_copy_cannot_be(
    place: Place, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    (place.state_dir / "settings.json").mkdir()
    await call_checked(app.api)("settings.update", retention={"keep_last": 3})
    assert "copy" in caplog.text
    async with place.app() as again:
        assert again.stored.value.retention is not None


async def test_without_a_service_the_stored_settings_are_read_also_from_the_copy(place: Place) -> None:
    assert read_stored(place.state_dir).retention is None
    async with place.app() as app:
        await call_checked(app.api)("settings.update", retention={"keep_last": 3})
    stored = read_stored(place.state_dir).retention
    assert stored is not None and stored.keep_last == 3
    (place.state_dir / FILE_NAME).write_bytes(b"damaged" * 1000)
    stored = read_stored(place.state_dir).retention
    assert stored is not None and stored.keep_last == 3
    assert (place.state_dir / FILE_NAME).read_bytes() == b"damaged" * 1000
    (place.state_dir / FILE_NAME).unlink()
    (place.state_dir / FILE_NAME).write_bytes(b"")
    stored = read_stored(place.state_dir).retention
    assert stored is not None and stored.keep_last == 3


async def test_a_copy_that_makes_no_sense_does_not_keep_the_service_from_starting(place: Place) -> None:
    place.state_dir.mkdir()
    (place.state_dir / "settings.json").write_text("{broken")
    async with place.app() as app:
        assert app.stored.value.retention is None


@pytest.mark.parametrize("lost", [True, False], ids=["the copy", "the state"])
async def test_settings_that_make_no_sense_any_more_are_kept_elsewhere_and_the_others_are_in_force(
    place: Place, lost: bool, caplog: pytest.LogCaptureFixture
) -> None:
    document = {"schedule": DAILY | {"timezone": "Mars/Olympus"}, "retention": {"keep_last": 3}, "tomorrow": 1}
    place.state_dir.mkdir()
    if lost:
        (place.state_dir / "settings.json").write_text(json.dumps(document))
    else:
        async with place.app() as app:
            await app.values.set("system_backup", document)
        assert read_stored(place.state_dir).retention is not None
    for _ in range(2):
        async with place.app() as app:
            assert app.stored.value.schedule is None
            assert app.stored.value.retention is not None and app.stored.value.retention.keep_last == 3
            events = [event for event in await app.history.events() if event["type"] == "settings.rejected"]
    (kept,) = place.state_dir.glob("settings.json.rejected-*")
    assert json.loads(kept.read_text()) == document
    assert [event["data"] for event in events] == [{"file": str(kept)}]
    assert "timezone" in caplog.text and str(kept) in caplog.text


async def test_a_copy_that_is_no_object_is_kept_elsewhere_too(place: Place) -> None:
    place.state_dir.mkdir()
    (place.state_dir / "settings.json").write_text("[1]")
    async with place.app() as app:
        assert app.stored.value == SystemBackup()
    assert len(list(place.state_dir.glob("settings.json.rejected-*"))) == 1


async def test_a_state_of_a_newer_version_is_not_read_around(place: Place) -> None:
    async with place.app() as app:
        await app.history._database.run(lambda db: db.execute("PRAGMA user_version = 99"))
    with pytest.raises(StateError, match="newer version"):
        read_stored(place.state_dir)
    with pytest.raises(StateError, match="newer version"):
        async with place.app():
            pass
