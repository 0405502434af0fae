"""Drills of files alone: by themselves when they are due, loud when they fail, and strict in what they compare."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service import drill_report
from service.app import App
from service.drill import drill
from service.errors import StageFailed
from service.job import Job
from service.metrics import Metrics
from service.notify_message import job_message
from service.progress import Progress
from service.settle import settle
from service.sources.base import Restorer
from service.sources.config_tree import TreeRestorer
from service.sources.sqlite import SqliteRestorer
from tests.service_parts import Place, until

DAILY = {"schedule": {"frequency": "daily", "at": "04:00"}, "min_free_share": 0}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, settings={"drill": DAILY})


async def next_morning(place: Place, app: App) -> Job:
    """Let the next drill become due, and wait for its end."""
    due = app.scheduler.next_run("drill")
    assert due is not None
    place.clock.now = due
    await app.scheduler.look()
    [queued] = app.jobs.waiting
    assert (queued.kind, queued.origin, queued.scheduled_for) == ("drill", "schedule", due)
    working = asyncio.create_task(app.jobs.run())
    await until(lambda: not app.jobs.waiting and not app.jobs.active)
    working.cancel()
    await asyncio.wait({working})
    job = await app.history.job(queued.id)
    assert job is not None
    return job


async def test_each_due_drill_restores_the_newest_archive_that_none_has_and_retention_knows_it(place: Place) -> None:
    async with place.app() as app:
        await app.scheduler.look()
        names = [await place.backup(app.archives) for _ in range(3)]
        for expected in (names[2], names[1], names[0], names[2]):
            job = await next_morning(place, app)
            assert job.state == "succeeded", job.error
            assert job.result is not None and job.result["archive"] == expected
        assert {entry.evidence for entry in (await place.archives(app.archives)).values()} == {"restorable"}
        assert len(drill_report.listed(place.state_dir)) == 4
        assert job.result is not None and job.result["counts"]["read_back_digests"] == 1
        assert not job.result["signed"], "where archives are not sealed there is no key to sign with"
    async with place.app() as again:
        assert {entry.evidence for entry in (await place.archives(again.archives)).values()} == {"restorable"}


async def test_a_drill_that_fails_is_loud(place: Place) -> None:
    async with place.app() as app:
        await app.scheduler.look()
        name = await place.backup(app.archives)
        good = await next_morning(place, app)
        etag = (await place.archives())[name].etag
        place.spoil(name)
        spoiled = (await place.archives())[name].etag
        assert spoiled != etag
        await app.archives.found(f"file://{place.target}", name, spoiled, "verified")  # it has decayed since
        bad = await next_morning(place, app)
        assert bad.state == "failed" and bad.error is not None and bad.error["code"].startswith("ARCHIVE")
        assert any(note.startswith("report: ") for note in bad.error["notes"])
        assert (await place.archives(app.archives))[name].evidence == "damaged"
        told = [event["data"]["kind"] for event in await app.history.events() if event["type"] == "job.failed"]
        assert told == ["drill"]
        message = job_message(bad, good, on=["failure"], server="edge-7")
        assert message is not None and message.title == "edge-7: drill of an archive failed"
        metrics = Metrics()
        for job in (good, bad):
            metrics.job_ended(job)
        assert good.ended is not None
        value = metrics.registry.get_sample_value
        assert value("deviceon_backup_last_drill_success_timestamp_seconds") == good.ended.timestamp()
        assert value("deviceon_backup_runs_total", {"kind": "drill", "result": "failed"}) == 1
        assert [report["result"] for report in drill_report.listed(place.state_dir)] == ["failed", "passed"]


async def test_without_a_verified_archive_a_drill_says_what_to_do(place: Place) -> None:
    async with place.app() as app:
        await app.scheduler.look()
        job = await next_morning(place, app)
        assert job.error is not None and job.error["code"] == "NOT_FOUND"
        assert "Make a backup first" in job.error["hint"]


async def test_the_newest_drill_that_passed_is_remembered_however_old_it_is(place: Place) -> None:
    async with place.app() as app:
        await app.scheduler.look()
        await place.backup(app.archives)
        first, second = [await next_morning(place, app) for _ in range(2)]
        await app.history.forget(place.clock() + timedelta(days=1))
        assert await app.history.job(first.id) is None
        assert await app.history.job(second.id) == second


async def test_files_that_are_not_what_was_archived_fail_the_drill_and_other_times_are_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.tree / "more").mkdir()
    (place.tree / "more" / "big").write_bytes(os.urandom(1 << 21))
    with contextlib.closing(sqlite3.connect(place.root / "grafana.db")) as database:
        database.execute("CREATE TABLE t (a)")
    place.settings["sources"] = [
        {"type": "tree", "path": str(place.tree)},
        {"type": "sqlite", "path": str(place.root / "grafana.db")},
    ]

    async def practise(kind: type[Restorer], tamper: Callable[[Path], object]) -> dict[str, Any]:
        compare = kind.compare

        async def tampered(self: Any, stored: Any, *more: Any) -> Any:
            [area] = (place.state_dir / "drills").glob(f"scratch/*/{stored.name}/.deviceon*")
            tamper(area)
            return await compare(self, stored, *more)

        with monkeypatch.context() as patch:
            patch.setattr(kind, "compare", tampered)
            await drill(place.config, name, progress=Progress(), ledger=app.archives, clock=place.clock)
        return drill_report.listed(place.state_dir)[0]

    async with place.app() as app:
        name = await place.backup(app.archives)
        report = await practise(TreeRestorer, lambda area: os.utime(next(area.glob("*/more/big")), (1, 1)))
        assert report["counts"]["read_back_digests"] == 1, "the SQLite file's alone"
        assert "times or attributes of 1 names are others than archived: more/big" in report["notes"][0]
        with pytest.raises(StageFailed, match="other content than was archived: more/big"):
            await practise(TreeRestorer, lambda area: next(area.glob("*/more/big")).write_bytes(os.urandom(1 << 21)))
        with pytest.raises(StageFailed, match="other names than were archived: more/big"):
            await practise(TreeRestorer, lambda area: next(area.glob("*/more/big")).unlink())
        with pytest.raises(StageFailed, match="other names than were archived: more/added"):
            await practise(TreeRestorer, lambda area: (next(area.glob("*/more")) / "added").touch())
        with pytest.raises(StageFailed, match="reads back with another content"):
            await practise(SqliteRestorer, lambda area: os.truncate(area / "grafana.db", 4096))
        assert list((place.state_dir / "drills" / "scratch").iterdir()) == []


async def test_settling_again_drops_nothing_that_is_not_a_drills(place: Place) -> None:
    async with place.app() as app:
        await place.backup(app.archives)
        (place.state_dir / "drills" / "scratch" / "mine").mkdir(parents=True)
        result = await settle(place.config, archives=app.archives, clock=place.clock, progress=Progress())
        assert result.drills == []
        assert (place.state_dir / "drills" / "scratch" / "mine").exists()
