"""The baseline: one archive, proven before it is held, held for ever, and let go only for the next one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service import baseline as module
from service.app import App
from service.baseline import BASELINE, find_baseline
from service.catalog import HOLD_SUFFIX, opened
from service.errors import JobRefused
from service.holding import hold, release
from service.ledger import NoLedger
from service.progress import Progress
from service.reset import plan_reset, reset
from service.rpc.codec import RpcError
from storage_backends.base import TargetUnavailable
from storage_backends.local import LocalBackend
from tests.service_parts import ADMIN, READER, Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "copies").mkdir()
    return Place(tmp_path, settings={"retention": {"keep_last": 1}, "copies": [{"url": f"file://{tmp_path}/copies"}]})


@pytest.fixture
async def app(place: Place) -> AsyncIterator[App]:
    async with place.app() as app:
        yield app


async def taken(place: Place, app: App, **params: Any) -> dict[str, Any]:
    """Take a baseline as a job, a day after the last archive; return how the job ended."""
    place.clock.go(days=1)
    return (await app.jobs.run_now("baseline", params, Progress())).as_json()


async def name_of(place: Place, app: App) -> str | None:
    found = await find_baseline(place.config, app.archives)
    return found.archive if found else None


async def test_the_baseline_is_proven_and_outlives_retention_in_every_target(place: Place, app: App) -> None:
    assert await find_baseline(place.config, app.archives) is None
    job = await taken(place, app)
    assert job["state"] == "succeeded", job["error"]
    name = job["result"]["name"]
    for _ in range(2):
        place.clock.go(days=1)
        assert (await app.jobs.run_now("backup", {}, Progress())).state == "succeeded"
    found = await find_baseline(place.config, app.archives)
    assert found is not None
    assert (found.archive, found.evidence, len(found.targets), found.superseded) == (name, "verified", 2, [])
    for directory in (place.target, place.root / "copies"):
        assert {name, name + HOLD_SUFFIX} <= {path.name for path in directory.iterdir()}
        assert len(list(directory.glob("*.zip"))) == 2, "retention went by, and left it"


async def test_a_second_one_has_to_be_asked_for_and_takes_its_place(place: Place, app: App) -> None:
    first = (await taken(place, app))["result"]["name"]
    refused = await taken(place, app)
    assert (refused["state"], refused["error"]["code"]) == ("failed", "JOB_REFUSED")
    assert "--replace" in refused["error"]["hint"]
    assert place.names() == {first, first + HOLD_SUFFIX}, "nothing was made"
    second = (await taken(place, app, replace=True))["result"]["name"]
    assert await name_of(place, app) == second
    assert place.names() == {second, second + HOLD_SUFFIX}, "the old one is not held, and retention had its way"


async def test_the_old_one_stays_held_when_the_new_one_cannot_be_made(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = (await taken(place, app))["result"]["name"]
    (place.tree / "server.conf").unlink()
    assert (await taken(place, app, replace=True))["state"] == "failed"
    assert await name_of(place, app) == first
    (place.tree / "server.conf").write_text("port = 81\n")

    async def no_hold(*_: Any, **__: Any) -> None:
        raise TargetUnavailable("the disk is gone")

    monkeypatch.setattr(module, "hold", no_hold)
    job = await taken(place, app, replace=True)
    assert job["state"] == "partial", "it is made, but it is not the baseline"
    assert await name_of(place, app) == first


async def test_the_old_one_stays_held_too_while_a_target_lacks_the_new_one(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = (await taken(place, app))["result"]["name"]
    put = LocalBackend.put

    async def broken(self: LocalBackend, key: str, *arguments: Any, **options: Any) -> Any:
        if self.url.endswith("/copies") and key.endswith(".zip"):
            raise TargetUnavailable("the disk is gone")
        return await put(self, key, *arguments, **options)

    monkeypatch.setattr(LocalBackend, "put", broken)
    job = await taken(place, app, replace=True)
    assert job["state"] == "partial"
    found = await find_baseline(place.config, app.archives)
    assert found is not None
    assert (found.archive, found.superseded) == (job["result"]["name"], [first])
    monkeypatch.undo()
    copied = await app.jobs.run_now(
        "copy", {"archive": found.archive, "target": f"file://{place.root}/copies"}, Progress()
    )
    assert copied.state == "succeeded"
    assert (place.root / "copies" / (found.archive + HOLD_SUFFIX)).exists(), "the copy is held as well"
    third = (await taken(place, app, replace=True))["result"]["name"]
    again = await find_baseline(place.config, app.archives)
    assert again is not None
    assert (again.archive, again.superseded) == (third, []), "the next one releases all before it"


async def test_its_hold_is_not_for_a_person_to_change(place: Place, app: App) -> None:
    name = (await taken(place, app))["result"]["name"]
    for method, more in (("archive.release", {}), ("archive.hold", {"reason": "mine"})):
        with pytest.raises(RpcError, match="is the baseline of this server"):
            await app.api.call(method, {"archive": name, **more}, ADMIN)
    assert await name_of(place, app) == name


async def test_a_stop_while_it_is_held_tells_that_the_archive_is_there(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio  # noqa: PLC0415

    async def stopped(*_: Any, **__: Any) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(module, "hold", stopped)
    job = await taken(place, app)
    assert job["state"] == "partial"
    assert job["result"]["name"] in place.names()


async def test_a_target_out_of_reach_is_not_taken_for_one_without_a_baseline(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(self: LocalBackend, *_: Any, **__: Any) -> Any:
        raise TargetUnavailable("the disk is gone")
        yield

    monkeypatch.setattr(LocalBackend, "list_objects", away)
    with pytest.raises(TargetUnavailable):
        await find_baseline(place.config, app.archives)
    assert (await taken(place, app))["state"] == "failed"


async def test_a_hold_that_is_no_baseline_is_none(place: Place, app: App) -> None:
    name = await place.backup(app.archives)
    await hold(place.config, name, reason="an audit", by="me", now=place.clock(), ledger=app.archives)
    assert await name_of(place, app) is None
    (place.target / (name + HOLD_SUFFIX)).write_text("no json")
    assert await name_of(place, app) is None
    await hold(place.config, name, reason=BASELINE, by="me", now=place.clock(), ledger=app.archives)
    assert await name_of(place, app) == name
    await release(place.config, name, ledger=app.archives)
    with pytest.raises(JobRefused, match="no baseline"):
        await module.require_baseline(place.config, app.archives)


async def test_over_the_socket_everybody_may_look_and_admins_may_take(place: Place, app: App) -> None:
    assert await app.api.call("baseline.get", {}, READER) is None
    with pytest.raises(RpcError, match="may look"):
        await app.api.call("baseline.take", {}, READER)
    job = await app.api.call("baseline.take", {"idempotency_key": "a"}, ADMIN)
    assert (job["kind"], job["state"]) == ("baseline", "queued")
    assert (await app.api.call("baseline.take", {"idempotency_key": "a"}, ADMIN))["id"] == job["id"]
    found_name = (await taken(place, app))["result"]["name"]
    found = await app.api.call("baseline.get", {}, READER)
    assert (found["archive"], found["evidence"]) == (found_name, "verified")


async def test_a_damaged_copy_neither_hides_the_baseline_nor_is_restored_while_there_is_another(
    place: Place, app: App
) -> None:
    first = (await taken(place, app))["result"]["name"]
    kept = (place.target / first).read_bytes(), (place.root / "copies" / first).read_bytes()
    second = (await taken(place, app, replace=True))["result"]["name"]
    for directory, content in zip((place.target, place.root / "copies"), kept, strict=True):  # two are held
        (directory / first).write_bytes(content)
    await hold(place.config, first, reason=BASELINE, by="baseline", now=place.clock(), ledger=app.archives)
    good = (place.target / second).read_bytes()
    for damaged, whole in ((place.target, place.root / "copies"), (place.root / "copies", place.target)):
        (whole / second).write_bytes(good)
        (damaged / second).write_bytes(b"no archive")
        found = await find_baseline(place.config, NoLedger())
        assert found is not None
        assert (found.archive, found.superseded) == (second, [first])
        assert found.created is not None, "what the whole copy says"
        assert found.targets[0].rstrip("/").endswith(whole.name), found.targets
        async with opened(place.config, module.named(place.config, found)):
            pass


async def test_nobody_makes_another_archive_the_baseline_by_holding_it(place: Place, app: App) -> None:
    name = (await taken(place, app))["result"]["name"]
    other = await place.backup(app.archives)
    with pytest.raises(RpcError, match="baseline"):
        await app.api.call("archive.hold", {"archive": other, "reason": "baseline"}, ADMIN)
    assert await name_of(place, app) == name


async def test_a_reset_says_that_a_newer_baseline_may_be_in_a_target_out_of_reach(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = (await taken(place, app))["result"]["name"]
    assert (await plan_reset(place.config, ledger=NoLedger())).plan.warnings == []
    listing = LocalBackend.list_objects

    def away(self: LocalBackend, *arguments: Any, **options: Any) -> Any:
        if self.url.endswith("/copies"):
            raise TargetUnavailable("the disk is gone")
        return listing(self, *arguments, **options)

    monkeypatch.setattr(LocalBackend, "list_objects", away)
    planned = await plan_reset(place.config, ledger=NoLedger())
    assert planned.baseline.archive == name
    assert [told for told in planned.plan.warnings if "newer baseline" in told and "the disk is gone" in told]
    progress = Progress()
    await reset(place.config, ledger=NoLedger(), progress=progress)
    assert [told for told in progress.warnings if "newer baseline" in told]
