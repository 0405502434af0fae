"""Holds, and removal by hand: the wrong archive does not go, whoever asks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service import holding
from service.app import App
from service.catalog import HOLD_SUFFIX, verify
from service.errors import JobRefused
from service.holding import delete, hold, release
from service.progress import Progress
from service.state_directory import only_job
from storage_backends.base import AccessDenied, ObjectNotFound
from storage_backends.local import LocalBackend
from tests.service_parts import Place

ABSENT = "Backup_20200101_0000Z.zip"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
async def app(place: Place) -> AsyncIterator[App]:
    async with place.app() as app:
        yield app


async def held(place: Place, app: App, name: str, reason: str = "") -> None:
    await hold(place.config, name, reason=reason, by="me", now=place.clock(), ledger=app.archives)


async def deleted(place: Place, app: App, name: str, *, even_the_last: bool = False) -> str:
    return (await delete(place.config, name, even_the_last=even_the_last, ledger=app.archives)).name


async def test_a_hold_is_an_object_beside_the_archive_that_says_who_and_why(place: Place, app: App) -> None:
    name = await place.backup(app.archives)
    await held(place, app, name, "an audit")
    content = json.loads((place.target / (name + HOLD_SUFFIX)).read_bytes())
    assert content == {"reason": "an audit", "by": "me", "since": place.clock().isoformat()}
    assert (await place.archives())[name].held, "also for somebody who has no memory of it"
    await held(place, app, name, "another audit")
    assert json.loads((place.target / (name + HOLD_SUFFIX)).read_bytes())["reason"] == "another audit"


async def test_an_archive_that_goes_just_before_it_is_held_is_not_told_as_held(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await place.backup(app.archives)
    put = LocalBackend.put

    async def too_late(self: LocalBackend, key: str, *arguments: Any, **options: Any) -> Any:
        (place.target / name).unlink()
        return await put(self, key, *arguments, **options)

    monkeypatch.setattr(LocalBackend, "put", too_late)
    with pytest.raises(ObjectNotFound):
        await held(place, app, name)
    assert place.names() == set()


async def test_a_hold_ends_once_and_for_all(place: Place, app: App) -> None:
    name = await place.backup(app.archives)
    await held(place, app, name)
    for _ in range(2):
        await release(place.config, name, ledger=app.archives)
    assert place.names() == {name}
    assert not (await place.archives())[name].held


async def test_what_is_not_there_can_be_neither_held_nor_released_nor_deleted(place: Place, app: App) -> None:
    await place.backup(app.archives)
    before = place.names()
    for asked in (
        held(place, app, ABSENT),
        release(place.config, ABSENT, ledger=app.archives),
        deleted(place, app, ABSENT, even_the_last=True),
    ):
        with pytest.raises(ObjectNotFound, match=ABSENT):
            await asked
    assert place.names() == before


async def test_an_archive_is_removed_by_hand_with_nothing_else(place: Place, app: App) -> None:
    names = [await place.backup(app.archives) for _ in range(3)]
    assert await deleted(place, app, names[1]) == names[1]
    assert place.names() == {names[0], names[2]}
    assert await app.archives.intents() == []


async def test_a_held_archive_is_not_removed_by_hand_even_when_the_last_may_go(place: Place, app: App) -> None:
    names = [await place.backup(app.archives) for _ in range(2)]
    for name in names:
        await held(place, app, name)
        with pytest.raises(JobRefused, match="is held"):
            await deleted(place, app, name, even_the_last=True)
    assert set(names) <= place.names()


async def test_a_hold_placed_while_the_target_is_looked_through_is_obeyed(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [await place.backup(app.archives) for _ in range(2)]
    last_good = holding.last_good

    def meanwhile(*arguments: Any) -> str:
        (place.target / f"{names[0]}.hold").write_text("{}")
        return last_good(*arguments)

    monkeypatch.setattr(holding, "last_good", meanwhile)
    with pytest.raises(JobRefused, match="is held"):
        await deleted(place, app, names[0])
    assert names[0] in place.names()


async def test_the_last_good_archive_is_removed_only_when_that_is_said(place: Place, app: App) -> None:
    names = [await place.backup(app.archives) for _ in range(2)]
    with pytest.raises(JobRefused, match="newest archive that is known to be good"):
        await deleted(place, app, names[1])
    assert place.names() == set(names)
    await deleted(place, app, names[1], even_the_last=True)
    with pytest.raises(JobRefused, match="newest archive that is known to be good"):
        await deleted(place, app, names[0])
    assert place.names() == {names[0]}


async def test_the_only_archive_that_a_drill_has_restored_is_removed_only_when_that_is_said(
    place: Place, app: App
) -> None:
    names = [await place.backup(app.archives) for _ in range(3)]
    entries = await place.archives(app.archives)
    await app.archives.found(f"file://{place.target}", names[0], entries[names[0]].etag, "restorable")
    with pytest.raises(JobRefused, match="the only archive that a drill has restored"):
        await deleted(place, app, names[0])
    await app.archives.found(f"file://{place.target}", names[1], entries[names[1]].etag, "restorable")
    assert await deleted(place, app, names[0]) == names[0], "there is another one now"
    assert await deleted(place, app, names[1], even_the_last=True) == names[1]


async def test_the_newest_is_the_one_that_was_proven_not_the_one_made_last(place: Place, app: App) -> None:
    names = [await place.backup(app.archives) for _ in range(2)]
    entry = (await place.archives(app.archives))[names[1]]
    await app.archives.found(f"file://{place.target}", names[1], entry.etag, "written")
    with pytest.raises(JobRefused, match="newest archive that is known to be good"):
        await deleted(place, app, names[0])
    await deleted(place, app, names[1])
    await verify(place.config, names[0], progress=Progress(), ledger=app.archives)
    assert place.names() == {names[0]}


async def test_a_target_that_does_not_let_go_is_told_and_nothing_is_left_open(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [await place.backup(app.archives) for _ in range(2)]

    async def locked(self: LocalBackend, key: str) -> None:
        raise AccessDenied("locked")

    monkeypatch.setattr(LocalBackend, "delete", locked)
    with pytest.raises(AccessDenied):
        await deleted(place, app, names[0])
    assert place.names() == set(names)
    assert await app.archives.intents() == []


async def test_a_removal_is_refused_beside_another_job(place: Place, app: App) -> None:
    names = [await place.backup(app.archives) for _ in range(2)]
    with only_job(place.state_dir, "a restore"), pytest.raises(JobRefused, match="a restore"):
        await deleted(place, app, names[0])
    assert place.names() == set(names)
