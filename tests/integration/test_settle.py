"""What a crash has left, settled: whole archives are proven, and nothing that could be one is removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service import restore as restore_recipe
from service.app import App
from service.config_sources import PostgresqlSettings
from service.drill import UNFINISHED, NotTidied
from service.errors import JobRefused, RestoreError
from service.journal import Journal, journals
from service.ledger import Evidence, Intent
from service.progress import Progress
from service.settle import SettleResult, settle
from service.state_directory import only_job
from storage_backends.base import StorageBackend, TargetUnavailable
from storage_backends.local import LocalBackend
from tests.kills import killed_at
from tests.service_parts import Clock, Place

ABSENT = "Backup_20200101_0000Z.zip"
LEFTOVER = ".deviceon-backup-0123456789abcdef.part"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, Clock(datetime.now(UTC)))


@pytest.fixture
async def app(place: Place) -> AsyncIterator[App]:
    async with place.app() as app:
        yield app


async def settled(place: Place, app: App) -> SettleResult:
    return await settle(place.config, archives=app.archives, clock=place.clock, progress=Progress())


async def crashed_after_publishing(place: Place, app: App) -> str:
    """Leave what a service leaves that is killed between publishing an archive and having read it back."""
    name = await place.backup(app.archives, after=timedelta(minutes=1))
    entry = (await place.archives(app.archives))[name]
    await app.archives.found(url(place), name, entry.etag, "written")
    await app.archives.writing(url(place), name)
    return name


def url(place: Place) -> str:
    return f"file://{place.target}"


def leave(place: Place, *, touched: datetime) -> Path:
    """Leave an unfinished upload in the target, as a writer without O_TMPFILE does that is killed."""
    path = place.target / LEFTOVER
    path.write_bytes(b"half an archive")
    os.utime(path, (touched.timestamp(), touched.timestamp()))
    return path


async def evidence(app: App, place: Place, name: str) -> Evidence | None:
    known = (await app.archives.known(url(place))).get(name)
    return known.evidence if known else None


async def test_nothing_left_is_nothing_done(place: Place, app: App) -> None:
    name = await place.backup(app.archives)
    before = (place.target / name).read_bytes()
    assert await settled(place, app) == SettleResult()
    assert await settled(place, app) == SettleResult()
    assert place.names() == {name} and (place.target / name).read_bytes() == before


async def test_a_write_that_came_to_nothing_is_forgotten(place: Place, app: App) -> None:
    await app.archives.writing(url(place), ABSENT)
    assert await settled(place, app) == SettleResult()
    assert await app.archives.intents() == []
    assert await evidence(app, place, ABSENT) is None


async def test_an_archive_that_was_published_and_not_proven_is_proven(place: Place, app: App) -> None:
    name = await crashed_after_publishing(place, app)
    assert await settled(place, app) == SettleResult(verified=[name])
    assert await evidence(app, place, name) == "verified"
    assert await app.archives.intents() == []


async def test_an_archive_of_which_nothing_is_known_but_the_intent_is_proven(place: Place, app: App) -> None:
    """The process died between the publishing and the memory of it."""
    name = await place.backup(app.archives)
    await app.archives.listed(url(place), {}, [name])
    await app.archives.writing(url(place), name)
    assert await settled(place, app) == SettleResult(verified=[name])
    assert await evidence(app, place, name) == "verified"


async def test_a_damaged_archive_is_told_marked_and_kept(place: Place, app: App) -> None:
    name = await crashed_after_publishing(place, app)
    place.spoil(name)
    content = (place.target / name).read_bytes()
    assert await settled(place, app) == SettleResult(damaged=[name])
    assert await evidence(app, place, name) == "damaged"
    assert await app.archives.intents() == []
    assert (place.target / name).read_bytes() == content


async def test_an_archive_that_was_proven_before_the_crash_is_not_read_again(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await place.backup(app.archives)
    await app.archives.writing(url(place), name)

    async def never(*_: object, **__: object) -> None:
        raise AssertionError("it was read again")

    monkeypatch.setattr("service.settle.verify", never)
    assert await settled(place, app) == SettleResult()
    assert await app.archives.intents() == []
    assert await evidence(app, place, name) == "verified"


async def test_an_archive_that_was_proven_and_then_replaced_is_read_again(place: Place, app: App) -> None:
    name = await place.backup(app.archives)
    await app.archives.writing(url(place), name)
    place.spoil(name)
    assert (await settled(place, app)).damaged == [name]


@pytest.mark.parametrize("gone", [False, True])
async def test_a_removal_that_was_begun_is_left_as_it_is(place: Place, app: App, gone: bool) -> None:
    """Whether it had happened or not: what is still there was good a moment ago, and retention asks again."""
    name = await place.backup(app.archives)
    await app.archives.deleting(url(place), name)
    if gone:
        (place.target / name).unlink()
    assert await settled(place, app) == SettleResult()
    assert await app.archives.intents() == []
    assert (name in place.names()) is not gone
    if not gone:
        assert await evidence(app, place, name) == "verified"


async def test_what_was_begun_in_another_target_waits_for_it(place: Place, app: App) -> None:
    elsewhere = Intent("write", "file:///not mounted now", ABSENT)
    await app.archives.writing(elsewhere.target, elsewhere.name)
    assert await settled(place, app) == SettleResult()
    assert await app.archives.intents() == [elsewhere]


async def test_an_unfinished_upload_is_swept_when_it_was_begun_here_and_no_other(place: Place, app: App) -> None:
    ours = leave(place, touched=place.clock() - timedelta(seconds=10))
    others = ours.with_name(LEFTOVER.replace("0", "f"))
    shutil.copy2(ours, others)
    await app.archives.writing(url(place), ABSENT)
    await app.archives.unfinished(url(place), ABSENT, ours.name)
    await app.archives.unfinished(url(place), ABSENT, ours.name.replace("1", "2"))  # was never made
    assert await settled(place, app) == SettleResult(swept=1)
    assert place.names() == {others.name}, "another machine may be writing it"
    assert await app.archives.intents() == []
    await app.archives.writing(url(place), ABSENT)
    assert [intent.unfinished for intent in await app.archives.intents()] == [()], "what was settled is forgotten"


async def test_an_unfinished_upload_of_which_nothing_is_known_is_left_alone_for_a_day(place: Place, app: App) -> None:
    leftover = leave(place, touched=place.clock() - timedelta(seconds=1))
    await app.archives.deleting(url(place), ABSENT)  # a removal begins no upload
    assert await settled(place, app) == SettleResult()
    place.clock.go(hours=23, minutes=59)
    assert await settled(place, app) == SettleResult()
    assert leftover.exists()
    place.clock.go(minutes=2)
    assert await settled(place, app) == SettleResult(swept=1)
    assert not leftover.exists()


async def test_no_hidden_file_of_anybody_else_is_swept(place: Place, app: App) -> None:
    others = {".deviceon-backup-x.zip", ".other.part", "deviceon-backup-x.part", ".nfs0001"}
    for name in others:
        path = place.target / name
        path.write_text("not ours")
        os.utime(path, (0, 0))
    await app.archives.writing(url(place), ABSENT)
    assert await settled(place, app) == SettleResult()
    assert place.names() == others


async def test_what_could_not_be_settled_can_be_tried_again(
    place: Place, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [await crashed_after_publishing(place, app) for _ in range(2)]
    with monkeypatch.context() as patched:

        async def away(self: LocalBackend, before: datetime) -> int:
            raise TargetUnavailable("away")

        patched.setattr(LocalBackend, "sweep", away)
        with pytest.raises(TargetUnavailable):
            await settled(place, app)
    assert len(await app.archives.intents()) == 2
    with monkeypatch.context() as patched:
        stat = LocalBackend.stat

        async def away_at_the_second(self: LocalBackend, key: str) -> object:
            if key == names[1] and await evidence(app, place, names[0]) == "verified":
                raise TargetUnavailable("away")
            return await stat(self, key)

        patched.setattr(LocalBackend, "stat", away_at_the_second)
        with pytest.raises(TargetUnavailable):
            await settled(place, app)
    assert [intent.name for intent in await app.archives.intents()] == [names[1]]
    assert await settled(place, app) == SettleResult(verified=[names[1]])


async def test_settling_waits_while_another_job_runs(place: Place, app: App) -> None:
    name = await crashed_after_publishing(place, app)
    with only_job(place.state_dir, "a backup"), pytest.raises(JobRefused, match="a backup"):
        await settled(place, app)
    assert await settled(place, app) == SettleResult(verified=[name])


async def test_a_drill_whose_server_is_away_keeps_no_archive_from_being_proven(place: Place, app: App) -> None:
    name = await crashed_after_publishing(place, app)
    drill = Journal.begin(place.state_dir, archive=name, started="2026-03-02T12:00:00+00:00", folder=UNFINISHED)
    drill.add("postgresql", PostgresqlSettings(host=str(place.root)).model_dump(mode="json"), [])
    await drill.save()
    with pytest.raises(NotTidied, match="could not be dropped"):
        await settled(place, app)
    assert await evidence(app, place, name) == "verified"
    assert len(journals(place.state_dir, folder=UNFINISHED)) == 1
    drill.path.unlink()
    assert await settled(place, app) == SettleResult()


async def interrupted_restore(place: Place, archive: str) -> None:
    """Kill a restore of the tree at the last step that leaves it to be undone."""

    async def restore() -> None:
        await restore_recipe.restore(place.config, archive, progress=Progress())

    step = 1
    while killed_at(step, restore):
        waiting = journals(place.state_dir)
        if waiting and waiting[0].state == "swapping":
            return
        await restore_recipe.recover(place.config, progress=Progress())
        step += 1
    raise AssertionError("no kill left a restore half-way")


async def test_a_restore_that_was_interrupted_is_undone(place: Place, app: App) -> None:
    archive = await place.backup(app.archives)
    (place.tree / "server.conf").write_text("newer than the archive")
    await interrupted_restore(place, archive)
    result = await settled(place, app)
    assert result.restores == [archive]
    assert (place.tree / "server.conf").read_text() == "newer than the archive"
    assert journals(place.state_dir) == []
    assert sorted(path.name for path in place.root.iterdir()) == ["archives", "etc", "state"]


async def test_a_restore_that_waits_for_commit_or_rollback_is_left_alone(place: Place, app: App) -> None:
    archive = await place.backup(app.archives)
    (place.tree / "server.conf").write_text("newer than the archive")
    await restore_recipe.restore(place.config, archive, progress=Progress())
    assert await settled(place, app) == SettleResult()
    assert [journal.state for journal in journals(place.state_dir)] == ["swapped"]
    await restore_recipe.rollback(place.config, progress=Progress())
    assert (place.tree / "server.conf").read_text() == "newer than the archive"


async def test_a_journal_that_cannot_be_read_is_told_and_kept(place: Place, app: App) -> None:
    await crashed_after_publishing(place, app)
    broken = place.state_dir / "restores" / "0123abcd.json"
    broken.parent.mkdir()
    broken.write_text("{")
    with pytest.raises(RestoreError, match="cannot be read"):
        await settled(place, app)
    assert broken.read_text() == "{"
    assert len(await app.archives.intents()) == 1


async def test_a_backup_killed_at_any_step_leaves_nothing_that_settling_does_not_end(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 at every change to the disk, with an upload that has a name as on NFS."""
    monkeypatch.setattr("storage_backends.local.LocalBackend.__init__", named_uploads(LocalBackend.__init__))
    step = 1

    async def backed_up() -> None:
        async with place.app() as app:
            await place.backup(app.archives, after=timedelta(minutes=1))

    swept = proven = 0
    while killed_at(step, backed_up):
        place.clock.go(minutes=2)
        async with place.app() as app:
            result = await settled(place, app)
            assert await app.archives.intents() == []
            assert all(path.suffix == ".zip" for path in place.target.iterdir()), "an unfinished upload is left"
            entries = await place.archives(app.archives)
            assert set(result.verified) <= entries.keys() and result.damaged == []
            assert {entry.evidence for entry in entries.values()} <= {"verified"}
        swept, proven = swept + result.swept, proven + len(result.verified)
        step += 1
    assert swept and proven, "no kill left an upload, or none left an archive to be proven: nothing is shown"


def named_uploads(initialise: object) -> object:
    """Have a target write files that have a name from the beginning, as on NFS."""

    def without_tmpfile(self: StorageBackend, directory: Path, **options: bool) -> None:
        initialise(self, directory, **(options | {"unnamed": False}))  # type: ignore[operator]

    return without_tmpfile
