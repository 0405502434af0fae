"""Retention carried out on real archives: what goes, and everything that must not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service import prune as prune_module
from service.app import App
from service.catalog import HOLD_SUFFIX, verify
from service.config import Config
from service.errors import ArchiveError, JobRefused, NotAuthentic
from service.holding import hold, release
from service.pipeline.sidecar import KEYS_SUFFIX
from service.progress import Progress
from service.prune import PruneResult, preview, prune
from service.state import FILE_NAME
from service.state_directory import only_job
from storage_backends.base import AccessDenied, ObjectInfo, ObjectNotFound, StorageBackend, TargetUnavailable
from storage_backends.local import LocalBackend
from tests.service_parts import Place

KEEP_ONE = {"retention": {"keep_last": 1}}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, settings=dict(KEEP_ONE))


@pytest.fixture
async def app(place: Place) -> AsyncIterator[App]:
    async with place.app() as app:
        yield app


async def made(place: Place, app: App, count: int) -> list[str]:
    return [await place.backup(app.archives) for _ in range(count)]


async def pruned(place: Place, app: App, *, clock_suspect: bool = False) -> PruneResult:
    return await prune(
        place.config, ledger=app.archives, clock=place.clock, progress=Progress(), clock_suspect=clock_suspect
    )


def before_each_removal(monkeypatch: pytest.MonkeyPatch, do: Callable[[str], Any]) -> None:
    """Have something happen after the target was listed and before an archive is looked at for its removal."""
    remove = prune_module._remove

    async def removed(config: Config, target: StorageBackend, entry: Any, *rest: Any) -> None:
        result = do(entry.name)
        if result is not None:
            await result
        await remove(config, target, entry, *rest)

    monkeypatch.setattr(prune_module, "_remove", removed)


async def test_what_no_rule_keeps_is_removed_and_only_that(place: Place, app: App) -> None:
    names = await made(place, app, 4)
    sizes = {name: (place.target / name).stat().st_size for name in names}
    place.settings = {"retention": {"keep_last": 2}}
    result = await pruned(place, app)
    assert result.removed == names[:2]
    assert place.names() == set(names[2:])
    assert result.freed_bytes == sum(sizes[name] for name in names[:2])
    assert {verdict.name: verdict.keep for verdict in result.verdicts} == dict(
        zip(names, [False, False, True, True], strict=True)
    )
    assert all(verdict.reasons for verdict in result.verdicts)
    assert result.kept_by_target == {}
    assert await app.archives.intents() == []


async def test_a_preview_says_what_would_go_and_removes_nothing(place: Place, app: App) -> None:
    names = await made(place, app, 3)
    result = await preview(place.config, ledger=app.archives, now=place.clock())
    assert [verdict.name for verdict in result.verdicts if not verdict.keep] == names[:2]
    assert place.names() == set(names)
    assert result.removed == []


async def test_rules_by_the_calendar_keep_the_newest_of_each_day(place: Place, app: App) -> None:
    names = [await place.backup(app.archives, after=timedelta(hours=12)) for _ in range(6)]
    place.settings = {"retention": {"keep_daily": 2}, "schedule": {"frequency": "daily", "at": "02:30"}}
    result = await pruned(place, app)
    assert len(place.names()) == 2
    assert names[-1] in place.names()
    assert len(result.removed) == 4


async def test_without_a_policy_nothing_is_removed(place: Place, app: App) -> None:
    names = await made(place, app, 3)
    place.settings = {"retention": None}
    result = await pruned(place, app)
    assert place.names() == set(names)
    assert {verdict.keep for verdict in result.verdicts} == {True}


async def test_a_clock_in_doubt_suspends_rules_that_go_by_it(place: Place, app: App) -> None:
    names = await made(place, app, 3)
    place.settings = {"retention": {"keep_within": 1}}
    place.clock.go(days=365)
    assert (await pruned(place, app, clock_suspect=True)).removed == []
    assert place.names() == set(names)
    assert (await pruned(place, app)).removed == names[:2]


async def test_the_last_verified_archive_stays_however_old_it_is(place: Place, app: App) -> None:
    names = await made(place, app, 2)
    place.settings = {"retention": {"keep_within": 1}}
    place.clock.go(days=3650)
    await pruned(place, app)
    assert place.names() == {names[-1]}


async def test_a_held_archive_stays_until_its_hold_ends(place: Place, app: App) -> None:
    names = await made(place, app, 3)
    config = place.config
    await hold(config, names[0], reason="audit", by="me", now=place.clock(), ledger=app.archives)
    assert (await pruned(place, app)).removed == [names[1]]
    assert place.names() == {names[0], names[0] + HOLD_SUFFIX, names[2]}
    await release(config, names[0], ledger=app.archives)
    assert (await pruned(place, app)).removed == [names[0]]
    assert place.names() == {names[2]}


async def test_a_hold_placed_between_listing_and_removal_is_obeyed(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = await made(place, app, 3)

    async def held(name: str) -> None:
        await hold(place.config, name, reason="", by="me", now=place.clock(), ledger=app.archives)

    before_each_removal(monkeypatch, lambda name: held(name) if name == names[0] else None)
    result = await pruned(place, app)
    assert result.removed == [names[1]]
    assert names[0] in place.names()


async def test_an_archive_that_was_replaced_between_listing_and_removal_is_not_removed(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = await made(place, app, 3)

    def replaced(name: str) -> None:
        if name == names[0]:
            fresh = place.target / "fresh"
            fresh.write_bytes((place.target / name).read_bytes())
            fresh.replace(place.target / name)

    before_each_removal(monkeypatch, replaced)
    result = await pruned(place, app)
    assert result.removed == [names[1]]
    assert names[0] in place.names()
    assert (await place.archives(app.archives))[names[0]].evidence == "unknown"


async def test_an_archive_that_is_gone_already_is_not_told_as_removed(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = await made(place, app, 3)
    before_each_removal(monkeypatch, lambda name: (place.target / name).unlink() if name == names[0] else None)
    result = await pruned(place, app)
    assert result.removed == [names[1]]
    assert result.freed_bytes == 0 or result.freed_bytes < 2 * (place.target / names[2]).stat().st_size


async def test_what_the_target_does_not_let_go_is_kept_and_told_and_the_rest_goes(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = await made(place, app, 3)
    delete = LocalBackend.delete

    async def locked(self: LocalBackend, key: str) -> None:
        if key == names[0]:
            raise AccessDenied("this version is locked until 2030")
        await delete(self, key)

    monkeypatch.setattr(LocalBackend, "delete", locked)
    result = await pruned(place, app)
    assert result.kept_by_target == {names[0]: "this version is locked until 2030"}
    assert result.removed == [names[1]]
    assert result.freed_bytes > 0
    assert place.names() == {names[0], names[2]}
    assert await app.archives.intents() == []


async def test_a_target_that_goes_away_ends_the_pruning_and_the_next_one_goes_on(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = await made(place, app, 4)
    with monkeypatch.context() as patched:
        delete = LocalBackend.delete

        async def away(self: LocalBackend, key: str) -> None:
            if key == names[1]:
                raise TargetUnavailable("away")
            await delete(self, key)

        patched.setattr(LocalBackend, "delete", away)
        result = await pruned(place, app)
    assert result.problem is not None and result.problem["code"] == "TARGET_UNAVAILABLE"
    assert result.removed == names[:1]
    assert place.names() == set(names[1:])
    assert (await pruned(place, app)).removed == names[1:3]


async def test_damaged_and_unverified_archives_are_never_removed_and_do_not_count(place: Place, app: App) -> None:
    names = await made(place, app, 4)
    place.spoil(names[0])
    with pytest.raises((ArchiveError, NotAuthentic)):
        await verify(place.config, names[0], progress=Progress(), ledger=app.archives)
    (info,) = [entry for name, entry in (await place.archives(app.archives)).items() if name == names[3]]
    await app.archives.found(f"file://{place.target}", names[3], info.etag, "written")  # newest, but not proven
    result = await pruned(place, app)
    assert result.removed == [names[1]], "the newest that counts is the third"
    assert place.names() == {names[0], names[2], names[3]}


async def test_an_archive_that_a_drill_has_restored_counts_and_the_newest_of_them_stays(place: Place, app: App) -> None:
    names = await made(place, app, 5)
    entries = await place.archives(app.archives)
    for name in (names[0], names[2]):
        await app.archives.found(f"file://{place.target}", name, entries[name].etag, "restorable")
    result = await pruned(place, app)
    assert result.removed == [names[0], names[1], names[3]]
    assert place.names() == {names[2], names[4]}


async def test_an_archive_that_was_changed_behind_our_back_is_not_verified_any_more(place: Place, app: App) -> None:
    names = await made(place, app, 2)
    place.spoil(names[1])  # the newest: if it still counted, the last good one would go
    result = await pruned(place, app)
    assert result.removed == []
    assert place.names() == set(names)


async def test_other_files_in_the_target_are_never_touched(place: Place, app: App) -> None:
    names = await made(place, app, 2)
    others = {
        *("Backup_20200101_0000Z.zip.bak", "Backup_2020.zip", "backup_20200101_0000Z.zip", "notes.txt", "x.zip"),
        *(".hidden", "Backup_20200101_0000Z.zip.hold", "Backup_20209999_0000Z.zip"),
    }
    for name in others:
        (place.target / name).write_text("somebody else's")
    (place.target / "Backup_20200102_0000Z.zip").mkdir()
    (place.target / "Backup_20200103_0000Z.zip").symlink_to(place.target / names[1])
    (place.target / "Backup_20200104_0000Z.zip").write_bytes(b"no archive at all")
    before = place.names()
    assert (await pruned(place, app)).removed == [names[0]]
    assert place.names() == before - {names[0]}


async def test_without_its_memory_the_service_removes_nothing_until_archives_are_proven_again(
    place: Place, app: App
) -> None:
    names = await made(place, app, 3)
    for path in place.state_dir.glob(f"{FILE_NAME}*"):
        path.unlink()
    async with place.app() as fresh:
        assert (await pruned(place, fresh)).removed == []
        for name in names[1:]:
            await verify(place.config, name, progress=Progress(), ledger=fresh.archives)
        assert (await pruned(place, fresh)).removed == [names[1]]
        assert place.names() == {names[0], names[2]}


async def test_a_pruning_waits_for_no_other_job_and_is_refused_beside_it(place: Place, app: App) -> None:
    names = await made(place, app, 2)
    with only_job(place.state_dir, "a backup"), pytest.raises(JobRefused, match="a backup"):
        await pruned(place, app)
    assert place.names() == set(names)


async def test_each_archive_is_looked_at_once_more_right_before_it_goes(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked of the target between looking at an archive and removing it: its hold, and nothing else."""
    await made(place, app, 2)
    await place.archives(app.archives)
    asked: list[str] = []
    for name in ("stat", "delete"):
        ask = getattr(LocalBackend, name)

        async def noted(self: LocalBackend, key: str, *, ask: Any = ask, name: str = name) -> ObjectInfo | None:
            ends = {HOLD_SUFFIX: "hold", KEYS_SUFFIX: "keys"}
            asked.append(f"{name} {next((ends[end] for end in ends if key.endswith(end)), 'archive')}")
            result: ObjectInfo | None = await ask(self, key)
            return result

        monkeypatch.setattr(LocalBackend, name, noted)
    await pruned(place, app)
    assert asked == ["stat archive", "stat hold", "delete archive", "delete keys"]


async def test_an_unsealed_archive_proves_nothing_where_archives_are_sealed(tmp_path: Path) -> None:
    place = Place(tmp_path, settings=dict(KEEP_ONE))
    async with place.app() as app:
        names = await made(place, app, 2)
        place.settings["sealing"] = {"mode": "tpm"}
        await verify(place.config, names[1], progress=Progress(), ledger=app.archives)
        assert (await place.archives(app.archives))[names[1]].evidence == "unknown"
        assert (await pruned(place, app)).removed == [], "neither counts, so nothing goes"
        assert place.names() == set(names)


async def test_a_place_that_is_empty_for_a_while_does_not_lose_its_evidence(place: Place, app: App) -> None:
    (name,) = await made(place, app, 1)
    place.target.rename(place.root / "away")
    place.target.mkdir()
    assert await place.archives(app.archives) == {}
    place.target.rmdir()
    (place.root / "away").rename(place.target)
    assert (await place.archives(app.archives))[name].evidence == "verified"


async def test_a_hold_and_a_removal_never_both_succeed(place: Place, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    names = await made(place, app, 2)
    deleting, begun = app.archives.deleting, asyncio.Event()

    async def slowly(target: str, name: str) -> None:
        await deleting(target, name)
        begun.set()
        await asyncio.sleep(0.3)

    monkeypatch.setattr(app.archives, "deleting", slowly)
    pruning = asyncio.ensure_future(pruned(place, app))
    await begun.wait()
    with pytest.raises(ObjectNotFound):
        await hold(place.config, names[0], reason="", by="me", now=place.clock(), ledger=app.archives)
    assert (await pruning).removed == [names[0]]
    assert place.names() == {names[1]}


async def test_a_number_that_nobody_can_have_reached_does_not_end_the_numbering(place: Place, app: App) -> None:
    (place.state_dir / "sequence").write_text("9007199254740991\n")
    (name,) = await made(place, app, 1)
    assert (await place.archives(app.archives))[name].seq == 1
