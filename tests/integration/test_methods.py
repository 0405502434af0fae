"""Every method of the socket: what it takes and gives, for whom, and what a request that is repeated does."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from service.api.schema import schema
from service.app import App
from service.rpc.codec import Code
from tests.service_parts import READER, Place
from tests.socket_calls import DAILY, METHODS, SECRET, call_checked, refused, target_at

ARCHIVE = "Backup_20200101_0000Z.zip"
TARGET = "the target's URL"
HARMLESS: dict[str, dict[str, Any]] = {
    "archive.copy": {"archive": ARCHIVE, "target": TARGET},
    "archive.delete": {"archive": ARCHIVE, "even_the_last": True},
    "archive.get": {"archive": ARCHIVE},
    "archive.hold": {"archive": ARCHIVE, "reason": "why"},
    "archive.inspect": {"archive": ARCHIVE},
    "archive.list": {"limit": 10, "before": ARCHIVE, "evidence": ["verified"], "held": False, "trend_days": 90},
    "archive.read": {"archive": ARCHIVE, "offset": 10, "length": 100},
    "archive.release": {"archive": ARCHIVE},
    "archive.verify": {"archive": ARCHIVE},
    "backup.start": {},
    "baseline.get": {},
    "baseline.take": {},
    "drill.list": {"limit": 5, "before": None},
    "drill.report": {"id": "20260302T120000Z-00000000"},
    "drill.start": {"archive": ARCHIVE, "target": TARGET},
    "events.list": {"since": 0},
    "history.days": {"kind": "backup", "count": 5, "timezone": "Asia/Taipei"},
    "job.cancel": {"id": "0" * 16},
    "job.get": {"id": "0" * 16},
    "job.log": {"id": "0" * 16, "after": 0, "limit": 10},
    "job.list": {"limit": 5, "before": None, "kinds": ["backup"], "states": ["succeeded", "failed"]},
    "key.add": {"recipients": ["age1ypup0f2ay0qmdzk0nemktcjlfsx9rwpg5uznwlpqtcqxjms3s97sfzleqy"]},
    "key.list": {"archive": ARCHIVE},
    "key.prove": {"recovery": {"identity": "AGE-SECRET-KEY-1"}},
    "key.remove": {"whom": ["TPM AAAA-AAAA-AAAA-AAAA"]},
    "pin.change": {"pin": "a pin there is", "new": "another pin"},
    "pin.remove": {"pin": "a pin there is"},
    "pin.set": {"new": "another pin"},
    "pin.status": {},
    "provision.begin": {"recovery": "none"},
    "provision.finish": {"token": "0" * 32},
    "provision.status": {},
    "reset.plan": {},
    "reset.start": {},
    "restore.commit": {},
    "restore.pending": {},
    "restore.plan": {"archive": ARCHIVE, "only": "config", "sources": [], "databases": []},
    "restore.rollback": {},
    "restore.start": {"archive": ARCHIVE, "allow": ["LOCALE_MISSING"]},
    "restore.tables": {
        "archive": ARCHIVE,
        "database": "app",
        "tables": ["a.b"],
        "into": "elsewhere",
        "source_name": "a",
    },
    "retention.apply": {},
    "retention.preview": {"retention": {"keep_last": 1}, "schedule": DAILY},
    "schedule.preview": {"count": 3, "schedule": DAILY},
    "selftest.start": {},
    "settings.get": {},
    "settings.update": {"enabled": True},
    "system.doctor": {},
    "system.info": {},
    "system.schema": {},
    "target.test": {},
}


NEEDS_MORE = frozenset(
    {"pin.change", "pin.remove", "pin.set", "pin.status", "key.prove", "provision.begin", "provision.finish"}
    | {"drill.report", "reset.plan"}
)
"""Methods that fail here, where archives are not sealed and there is no drill and no baseline: others call them."""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, settings={"target": None})


@pytest.fixture
async def app(place: Place) -> AsyncIterator[App]:
    async with place.app() as app:
        yield app


@pytest.fixture
async def busy(place: Place) -> AsyncIterator[tuple[App, str]]:
    """A service with a target, one archive and some history; return it with the archive's name."""
    place.settings = {}
    async with place.app() as app:
        name = await place.backup(app.archives)
        await app.announcer.tell("settings.changed", {"changed": []})
        yield app, name


def test_every_published_method_is_tried_here() -> None:
    assert sorted(HARMLESS) == sorted(METHODS)
    assert {
        name for name, told in METHODS.items() if not told["description"] or told["role"] not in {"read", "admin"}
    } == (set())


@pytest.mark.parametrize("method", sorted(METHODS))
async def test_what_a_method_takes_and_gives_is_what_the_schema_says(busy: tuple[App, str], method: str) -> None:
    app, name = busy
    real = {ARCHIVE: name, TARGET: app.config().target.url}
    params: dict[str, Any] = {
        key: real.get(value, value) if isinstance(value, str) else value for key, value in HARMLESS[method].items()
    }
    if method in {"job.get", "job.log", "job.cancel"}:
        params = {"id": (await app.jobs.submit("verify", {"archive": name}, origin="socket")).id}
    if method in NEEDS_MORE:
        jsonschema.validate(params, METHODS[method]["params"])
        assert (await refused(app.api, method, **params)).code is Code.FAILED
        return
    await call_checked(app.api)(method, **params)


@pytest.mark.parametrize("method", sorted(METHODS))
async def test_a_reader_may_look_and_not_touch(busy: tuple[App, str], method: str) -> None:
    app, name = busy
    before = (await app.history.jobs(limit=100), app.jobs.waiting, await app.history.events())
    params = {key: name if value == ARCHIVE else value for key, value in HARMLESS[method].items()}
    if METHODS[method]["role"] == "admin":
        error = await refused(app.api, method, READER, **params)
        assert (error.code, error.reason) == (Code.NOT_ALLOWED, "NOT_ALLOWED")
    elif method not in {"job.get", "job.log"} and method not in NEEDS_MORE:
        await call_checked(app.api)(method, READER, **params)
    assert (await app.history.jobs(limit=100), app.jobs.waiting, await app.history.events()) == before


def test_what_changes_anything_is_for_admins_only() -> None:
    looks = {name for name, told in METHODS.items() if told["role"] == "read"}
    assert looks == {
        *("archive.get", "archive.inspect", "archive.list", "events.list", "job.get", "job.list", "restore.pending"),
        *("history.days", "job.log"),
        *("baseline.get", "drill.list", "drill.report", "key.list", "pin.status"),
        *("retention.preview", "schedule.preview", "settings.get", "system.info", "system.schema"),
    }


@pytest.mark.parametrize("method", sorted(METHODS))
async def test_an_unknown_parameter_is_refused_by_name_and_without_its_value(app: App, method: str) -> None:
    error = await refused(app.api, method, **HARMLESS[method] | {"surprise": SECRET})
    assert error.code is Code.INVALID_PARAMS
    assert "surprise" in error.message and SECRET not in str(error.data)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(HARMLESS[method] | {"surprise": SECRET}, METHODS[method]["params"])


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        ("job.get", {}),
        ("job.get", {"id": f"{SECRET}"}),
        ("job.get", {"id": 5}),
        ("job.list", {"limit": 0}),
        ("job.list", {"limit": 501}),
        ("job.list", {"limit": True}),
        ("job.list", {"kinds": [SECRET]}),
        ("archive.verify", {"archive": f"../{SECRET}"}),
        ("archive.verify", {"archive": f"file:///{SECRET}/Backup_20200101_0000Z.zip"}),
        ("archive.hold", {"archive": ARCHIVE, "reason": SECRET * 100}),
        ("restore.start", {"archive": ARCHIVE, "allow": [f"{SECRET}"]}),
        ("backup.start", {"idempotency_key": SECRET * 10}),
        ("backup.start", {"idempotency_key": f"{SECRET} with spaces"}),
        ("events.list", {"since": -1}),
        ("schedule.preview", {"count": 101}),
    ],
)
async def test_a_wrong_parameter_is_refused_without_repeating_it(app: App, method: str, wrong: dict[str, Any]) -> None:
    error = await refused(app.api, method, **wrong)
    assert error.code is Code.INVALID_PARAMS
    assert SECRET not in str(error.data)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, METHODS[method]["params"])


async def test_what_opens_an_archive_is_remembered_with_no_job(busy: tuple[App, str]) -> None:
    app, name = busy
    given = {"pin": SECRET, "recovery": {"passphrase": SECRET}}
    job = await call_checked(app.api)("restore.start", archive=name, idempotency_key="k", **given)
    assert SECRET not in json.dumps(job)
    assert not given.keys() & job["params"].keys()
    assert app.jobs.opening(job["id"]).as_params() == given
    await app.jobs.cancel(job["id"])
    assert app.jobs.opening(job["id"]).as_params() == {}
    stored = b"".join(path.read_bytes() for path in app.file.state_dir.rglob("*") if path.is_file())
    assert SECRET.encode() not in stored


async def test_a_method_that_is_not_there_is_told(app: App) -> None:
    assert (await refused(app.api, "backup.stop")).code is Code.METHOD_NOT_FOUND
    assert (await refused(app.api, "rpc")).code is Code.METHOD_NOT_FOUND


@pytest.mark.parametrize("method", ["backup.start", "archive.verify", "archive.delete", "restore.start"])
async def test_the_same_request_again_gets_its_job_and_queues_no_other(busy: tuple[App, str], method: str) -> None:
    app, name = busy
    params = {key: name if value == ARCHIVE else value for key, value in HARMLESS[method].items()}
    call = call_checked(app.api)
    first = await call(method, **params, idempotency_key="k")
    assert await call(method, **params, idempotency_key="k") == first
    assert len(app.jobs.waiting) == 1
    assert [job["id"] for job in (await call("job.list", idempotency_key="k"))["jobs"]] == [first["id"]]
    assert (await call("job.list", idempotency_key="never"))["jobs"] == []
    assert (await call(method, **params, idempotency_key="l"))["id"] != first["id"]
    assert (await call(method, **params))["id"] != first["id"]
    error = await refused(app.api, "retention.apply", idempotency_key="k")
    assert "used for another request" in error.message


async def test_a_key_of_settings_tells_left_out_from_null(place: Place, app: App) -> None:
    call = call_checked(app.api)
    await call("settings.update", retention={"keep_last": 3})
    await call("settings.update", enabled=True, idempotency_key="k")
    assert (
        "another request"
        in (await refused(app.api, "settings.update", enabled=True, retention=None, idempotency_key="k")).message
    )
    await call("settings.update", enabled=True, retention=None, idempotency_key="l")
    assert app.stored.value.retention is None


async def test_settings_that_were_changed_since_are_not_changed_back_by_a_repeated_request(app: App) -> None:
    call = call_checked(app.api)
    await call("settings.update", enabled=False, idempotency_key="k")
    await call("settings.update", enabled=True)
    again = await call("settings.update", enabled=False, idempotency_key="k")
    assert again["settings"]["enabled"] is True, "the answer is how it stands now"
    assert app.stored.value.enabled is True


async def test_a_request_that_failed_may_be_repeated_with_its_key(place: Place, app: App) -> None:
    absent = place.root / "later"
    assert await refused(app.api, "settings.update", target=target_at(absent), idempotency_key="k")
    absent.mkdir()
    await call_checked(app.api)("settings.update", target=target_at(absent), idempotency_key="k")
    assert app.config().target.url == f"file://{absent}"


async def test_pages_of_archives_and_jobs_say_whether_there_is_more(place: Place, busy: tuple[App, str]) -> None:
    app, first = busy
    call = call_checked(app.api)
    names = [first, await place.backup(app.archives), await place.backup(app.archives)]
    page = await call("archive.list", limit=2)
    assert [entry["name"] for entry in page["archives"]] == names[:0:-1]
    assert (page["total"], page["more"]) == (3, True)
    page = await call("archive.list", limit=2, before=page["archives"][-1]["name"])
    assert [entry["name"] for entry in page["archives"]] == [first]
    assert page["more"] is False
    assert {entry["evidence"] for entry in page["archives"]} == {"verified"}
    for _ in range(3):
        await call("backup.start")
    assert (await call("job.list", limit=3))["more"] is False
    assert (await call("job.list", limit=2))["more"] is True


def test_the_schema_is_json_and_each_part_of_it_is_a_valid_schema() -> None:
    published = json.loads(json.dumps(schema()))
    for told in published["methods"].values():
        jsonschema.Draft202012Validator.check_schema(told["params"])
        jsonschema.Draft202012Validator.check_schema(told["result"])
    for told in published["events"].values():
        jsonschema.Draft202012Validator.check_schema(told["data"])
    assert os.linesep not in "".join(published["methods"])
