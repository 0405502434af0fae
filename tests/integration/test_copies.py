"""Several targets: each gets every archive, one that fails stops nobody and is made good later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from service.app import App
from service.errors import ConfigError
from service.job import Job, JobKind
from service.pipeline.unpack import ArchiveReader
from service.progress import Progress
from storage_backends.base import TargetUnavailable
from tests.service_parts import ADMIN, Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    second = tmp_path / "second"
    second.mkdir()
    return Place(tmp_path, settings={"copies": [{"url": f"file://{second}"}], "retention": {"keep_last": 2}})


@pytest.fixture
async def app(place: Place) -> AsyncIterator[App]:
    async with place.app() as app:
        yield app


def second(place: Place) -> Path:
    return place.root / "second"


def urls(place: Place) -> tuple[str, str]:
    return f"file://{place.target}", f"file://{second(place)}"


async def run(app: App, place: Place, kind: JobKind, **params: Any) -> Job:
    if kind == "backup":
        place.clock.go(days=1)
    return await app.jobs.run_now(kind, params, Progress())


def same(place: Place, name: str) -> bool:
    return (place.target / name).read_bytes() == (second(place) / name).read_bytes()


async def evidence(app: App, url: str) -> dict[str, str]:
    page = await app.api.call("archive.list", {"target": url}, ADMIN)
    return {entry["name"]: entry["evidence"] for entry in page["archives"]}


async def test_every_target_gets_the_archive_and_its_own_proof(place: Place, app: App) -> None:
    job = await run(app, place, "backup")
    assert job.state == "succeeded" and job.result
    name = job.result["name"]
    assert [(each["url"], each["evidence"]) for each in job.result["targets"]] == [
        (url, "verified") for url in urls(place)
    ]
    assert same(place, name)
    assert [await evidence(app, url) for url in urls(place)] == [{name: "verified"}] * 2


async def test_retention_works_on_every_target(place: Place, app: App) -> None:
    names = [str((await run(app, place, "backup")).result["name"]) for _ in range(4)]  # type: ignore[index]
    for directory in (place.target, second(place)):
        assert {path.name for path in directory.iterdir()} == set(names[-2:])


@pytest.mark.parametrize("absent", ["first", "second"])
async def test_a_target_that_is_away_is_told_and_made_good_later(place: Place, app: App, absent: str) -> None:
    directory = place.target if absent == "first" else second(place)
    url = f"file://{directory}"
    directory.rename(directory.with_name("away"))
    job = await run(app, place, "backup")
    assert job.state == "partial" and job.error and job.result
    assert job.error["code"] == "TARGET_MISSING"
    assert url in job.error["message"]
    name = str(job.result["name"])
    assert await app.pending.all() == [(name, url)]
    failed = await run(app, place, "copy", archive=name, target=url)
    assert failed.state == "failed"
    assert await app.pending.all() == [(name, url)], "it is still owed"
    directory.with_name("away").rename(directory)
    copied = await run(app, place, "copy", archive=name, target=url)
    assert copied.state == "succeeded" and copied.result and copied.result["copied"] is True
    assert same(place, name)
    assert await evidence(app, url) == {name: "verified"}
    assert await app.pending.all() == []


@pytest.mark.parametrize("killed", [False, True])
async def test_what_a_target_missed_is_owed_also_when_the_only_other_cannot_be_read_back(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch, *, killed: bool
) -> None:
    second(place).rename(second(place).with_name("away"))

    async def gone(*_: object, **__: object) -> None:
        raise asyncio.CancelledError if killed else TargetUnavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(ArchiveReader, "open", gone)
        if killed:
            with suppress(asyncio.CancelledError):
                await run(app, place, "backup")
        else:
            job = await run(app, place, "backup")
            assert job.state == "partial" and job.result == {"unproven": True}
    (name,) = place.names()
    assert await app.pending.all() == [(name, urls(place)[1])]
    second(place).with_name("away").rename(second(place))
    copied = await run(app, place, "copy", archive=name, target=urls(place)[1])
    assert copied.state == "succeeded" and same(place, name)
    assert await app.pending.all() == []


async def test_when_no_target_has_it_the_backup_failed_and_nothing_is_owed(place: Place, app: App) -> None:
    for directory in (place.target, second(place)):
        directory.rmdir()
    job = await run(app, place, "backup")
    assert job.state == "failed" and job.error and job.error["code"] == "TARGET_UNAVAILABLE"
    assert await app.pending.all() == []


async def test_a_copy_that_is_there_already_is_read_and_not_written_again(place: Place, app: App) -> None:
    name = str((await run(app, place, "backup")).result["name"])  # type: ignore[index]
    before = (second(place) / name).stat().st_ino
    copied = await run(app, place, "copy", archive=name, target=urls(place)[1])
    assert copied.state == "succeeded" and copied.result and copied.result["copied"] is False
    assert (second(place) / name).stat().st_ino == before


async def test_a_damaged_archive_is_not_copied_for_good(place: Place, app: App) -> None:
    name = str((await run(app, place, "backup")).result["name"])  # type: ignore[index]
    (second(place) / name).unlink()
    place.spoil(name)
    copied = await run(app, place, "copy", archive=name, target=urls(place)[1])
    assert copied.state == "failed" and copied.error
    assert copied.error["code"].startswith(("ARCHIVE", "SEAL"))
    assert list(second(place).iterdir()) == [], "what does not pass is removed"
    assert await app.archives.intents() == []


async def test_what_is_gone_everywhere_is_owed_no_more(place: Place, app: App) -> None:
    second(place).rename(second(place).with_name("away"))
    name = str((await run(app, place, "backup")).result["name"])  # type: ignore[index]
    second(place).with_name("away").rename(second(place))
    (place.target / name).unlink()
    copied = await run(app, place, "copy", archive=name, target=urls(place)[1])
    assert copied.state == "failed" and copied.error and copied.error["code"] == "TARGET_NOT_FOUND"
    assert await app.pending.all() == []


async def test_each_method_can_be_asked_of_each_target(place: Place, app: App) -> None:
    name = str((await run(app, place, "backup")).result["name"])  # type: ignore[index]
    there = urls(place)[1]
    await app.api.call("archive.hold", {"archive": name, "target": there}, ADMIN)
    assert (second(place) / f"{name}.hold").exists()
    assert not (place.target / f"{name}.hold").exists()
    await app.api.call("archive.release", {"archive": name, "target": there}, ADMIN)
    assert (await app.api.call("archive.inspect", {"archive": name, "target": there}, ADMIN))["name"] == name
    (place.target / name).unlink()
    assert (await run(app, place, "verify", archive=name, target=there)).state == "succeeded"
    plan = await app.api.call("restore.plan", {"archive": name, "target": there}, ADMIN)
    assert [obstacle["code"] for obstacle in plan["obstacles"]] == []
    (place.tree / "server.conf").write_text("spoilt")
    restored = await run(app, place, "restore", archive=name, target=there)
    assert restored.state == "succeeded", restored.error
    assert (place.tree / "server.conf").read_text() == "port = 80\n" * 10
    assert (await run(app, place, "commit")).state == "succeeded"
    assert (await run(app, place, "delete", archive=name, target=there, even_the_last=True)).state == "succeeded"
    assert list(second(place).iterdir()) == []


async def test_a_restart_settles_every_target(place: Place, app: App) -> None:
    name = str((await run(app, place, "backup")).result["name"])  # type: ignore[index]
    for url in urls(place):
        await app.archives.writing(url, name)
        etag = (await app.archives.known(url))[name].etag
        await app.archives.found(url, name, etag, "written")
    settled = await run(app, place, "settle")
    assert settled.state == "succeeded" and settled.result and settled.result["verified"] == [name, name]
    assert await app.archives.intents() == []
    second(place).rename(second(place).with_name("away"))
    await app.archives.writing(urls(place)[0], name)
    settled = await run(app, place, "settle")
    assert settled.state == "failed", "the one that is away is told"
    assert await app.archives.intents() == [], "and keeps nobody from settling the other"


@pytest.mark.parametrize("url", ["file://{}/", "local://{}", "file:///{}"])
async def test_a_target_that_is_named_twice_is_refused(place: Place, url: str) -> None:
    place.settings = {"copies": [{"url": url.format(place.target)}]}
    async with place.app() as app:
        with pytest.raises(ConfigError, match="more than once"):
            app.config()
