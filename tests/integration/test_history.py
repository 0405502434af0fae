"""What is remembered of the past: what jobs said, which due times brought no job, and the days that come of both."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from service import log as service_log
from service.api.schema import schema
from service.app import App
from service.job import Job
from service.progress import Progress
from service.rpc.codec import Code
from service.secret import remember
from service.state import Database, Gap, History
from service.state import database as database_module
from service.state import job_logs as job_logs_module
from tests.service_parts import START, Place, until
from tests.service_process import ServiceProcess, ended
from tests.socket_calls import call_checked, refused

Doing = Callable[[Job, Progress], Awaitable[dict[str, Any]]]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
async def app(place: Place) -> AsyncIterator[App]:
    async with place.app() as app:
        yield app


@pytest.fixture
def _listening() -> Iterator[None]:
    """Pass on what is logged to jobs, as the service's own configuration of logging does."""
    root = logging.getLogger()
    before = list(root.handlers)  # a command that ran in this process may have left one
    root.handlers[:] = [each for each in before if not isinstance(each, service_log.JobHandler)]
    root.addHandler(service_log.JobHandler(logging.WARNING))
    yield
    root.handlers[:] = before


async def done(app: App, doing: Doing) -> str:
    """Have a job do something to its end; return its id."""
    app.jobs.work = doing
    working = asyncio.create_task(app.jobs.run())
    job = await app.jobs.submit("backup", {}, origin="socket")
    while not (found := await app.history.job(job.id)) or not found.done:
        await asyncio.sleep(0.005)
    working.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await working
    return job.id


async def said(app: App, job: str, **more: Any) -> list[tuple[str, str, str]]:
    found = await call_checked(app.api)("job.log", id=job, **more)
    return [(line["level"], line["stage"], line["text"]) for line in found["lines"]]


@pytest.mark.usefixtures("_listening")
async def test_a_job_s_log_has_its_steps_its_warnings_and_what_is_logged_on_its_behalf_without_secrets(
    app: App,
) -> None:
    remember("correct-horse-battery")

    async def work(_: Job, progress: Progress) -> dict[str, Any]:
        progress.begin("dump", "Reading everything as correct-horse-battery")
        progress.warn("one table was busy")
        log = logging.getLogger("service.somewhere")
        await asyncio.to_thread(log.warning, "a target said %s", "correct-horse-battery")
        log.info("this is for the service's own log")
        log.error("it could not be tidied up", exc_info=OSError("the disk is gone"))
        raise ValueError("this ends it")

    logging.getLogger("service.somewhere").warning("nobody's job said this")
    job = await done(app, work)
    assert await said(app, job) == [
        ("info", "dump", "Reading everything as ***"),
        ("warning", "dump", "one table was busy"),
        ("warning", "dump", "a target said ***"),
        ("error", "dump", "it could not be tidied up: the disk is gone"),
    ]


async def test_what_a_job_says_is_remembered_while_it_runs(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.jobs.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("service.jobs.REMEMBER_SECONDS", 0.01)

    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        progress.begin("dump", "Reading everything")
        async with asyncio.timeout(30):
            while not await said(app, job.id):
                await asyncio.sleep(0.01)
        progress.say("Somebody has read this")
        return {}

    job = await done(app, work)
    assert [text for _, _, text in await said(app, job)] == ["Reading everything", "Somebody has read this"]


async def test_a_long_log_keeps_its_beginning_and_its_end_and_says_how_much_is_missing(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_logs_module, "FIRST", 3)
    monkeypatch.setattr(job_logs_module, "LAST", 4)

    async def work(_: Job, progress: Progress) -> dict[str, Any]:
        for number in range(1, 31):
            progress.say(f"step {number}" + "x" * 2000 * (number == 30))
        return {}

    job = await done(app, work)
    found = await call_checked(app.api)("job.log", id=job, limit=5)
    assert [line["number"] for line in found["lines"]] == [1, 2, 3, 27, 28]
    assert (found["omitted"], found["more"]) == (23, True)
    rest = await call_checked(app.api)("job.log", id=job, after=28)
    assert [line["number"] for line in rest["lines"]] == [29, 30]
    assert not rest["more"]
    assert len(rest["lines"][-1]["text"]) == 1000


async def test_of_all_logs_the_newest_lines_are_kept_and_a_log_goes_with_its_job(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_logs_module, "KEPT", 3)

    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        for number in range(2):
            progress.say(f"step {number}")
        raise ValueError

    jobs = [await done(app, work) for _ in range(3)]
    assert [len(await said(app, job)) for job in jobs] == [0, 1, 2]
    await app.history.forget(START + timedelta(days=1))
    assert (await refused(app.api, "job.log", id=jobs[2])).reason == "NOT_FOUND"
    assert (await app.history.logs.of(jobs[2], after=0, limit=9)).lines == []


async def test_days_are_told_from_jobs_and_gaps_in_the_schedule_s_time_zone(place: Place) -> None:
    place.settings = {"schedule": {"frequency": "daily", "at": "01:00", "timezone": "Asia/Taipei"}}
    async with place.app() as app:

        async def work(job: Job, _: Progress) -> dict[str, Any]:
            if job.created.day % 2:
                raise ValueError
            return {}

        await app.scheduler.look()
        for _ in range(2):
            place.clock.now = app.scheduler.next_run() or START
            app.jobs.work = work
            working = asyncio.create_task(app.jobs.run())
            await app.scheduler.look()
            await until(lambda: not app.jobs.waiting and not app.jobs.active)
            working.cancel()
        place.clock.go(days=4)  # the machine was off
        await app.scheduler.look()
        told = await call_checked(app.api)("history.days", count=8)
        assert told["timezone"] == "Asia/Taipei"
        assert told["recorded_since"] is not None
        assert [(day["day"], day["state"]) for day in told["days"][1:]] == [
            ("2026-03-02", "none"),
            ("2026-03-03", "succeeded"),
            ("2026-03-04", "failed"),
            ("2026-03-05", "missed"),
            ("2026-03-06", "missed"),
            ("2026-03-07", "missed"),
            ("2026-03-08", "running"),
        ]
        (job,) = told["days"][2]["jobs"]
        assert (await call_checked(app.api)("job.get", id=job))["state"] == "succeeded"
        assert {day["state"] for day in (await call_checked(app.api)("history.days", kind="drill"))["days"]} == {"none"}
        assert len((await call_checked(app.api)("history.days"))["days"]) == 90
        utc = await call_checked(app.api)("history.days", count=8, timezone="UTC")
        assert [day["day"] for day in utc["days"] if day["state"] == "succeeded"] == ["2026-03-02"]
        error = await refused(app.api, "history.days", timezone="Mars/Olympus")
        assert error.code is Code.INVALID_PARAMS
        assert "Mars" not in error.message


async def test_a_baseline_counts_as_a_backup_of_its_day(app: App) -> None:
    job = await app.jobs.submit("baseline", {}, origin="socket")
    await app.history.save_job(job.but(state="succeeded"))
    told = await call_checked(app.api)("history.days", count=1)
    assert [(day["state"], day["jobs"]) for day in told["days"]] == [("succeeded", [job.id])]


async def test_gaps_are_forgotten_with_jobs_and_outlive_a_restart(place: Place) -> None:
    old = Gap("backup", START - timedelta(days=9), START - timedelta(days=8), {"frequency": "daily", "at": "02:00"})
    new = Gap("backup", START - timedelta(days=3), START - timedelta(days=1), {"frequency": "daily", "at": "02:00"})
    async with place.app() as app:
        for gap in (old, new, new):
            await app.history.gaps.add(gap)
    async with place.app() as app:
        assert await app.history.gaps.of("backup", START - timedelta(days=400)) == [old, new]
        assert await app.history.gaps.of("drill", START - timedelta(days=400)) == []
        await app.history.forget(START - timedelta(days=5))
        assert await app.history.gaps.of("backup", START - timedelta(days=400)) == [new]


async def test_a_memory_of_the_version_before_is_taken_over_with_its_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(database_module, "MIGRATIONS", database_module.MIGRATIONS[:2])
        database = Database.open(tmp_path)
        await database.run(
            lambda db: db.execute(
                "INSERT INTO jobs VALUES ('a', 'backup', 'succeeded', '2026-03-01T00:00:00+00:00', 'not json')"
            )
        )
        database.close()
    database = Database.open(tmp_path)
    history = History(database)
    (stub,) = await history.stubs(["backup"], START - timedelta(days=30))
    assert (stub.id, stub.state, stub.due) == ("a", "succeeded", False)
    assert await history.oldest() == datetime.fromisoformat("2026-03-01T00:00:00+00:00")
    assert (await history.logs.of("a", after=0, limit=5)).lines == []
    database.close()


async def test_a_running_backup_tells_how_far_it_is_in_each_target(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.root / "blocked").write_text("a file, where a directory is wanted")
    bad = f"file://{place.root / 'blocked' / 'archives'}"
    place.settings = {"copies": [{"url": bad}]}
    told: list[list[str]] = []
    async with place.app() as app:
        at = Progress.at

        def watched(progress: Progress, *args: Any) -> None:
            at(progress, *args)
            assert app.jobs.active is not None
            how_far = app.jobs.how_far(app.jobs.active.id)
            assert how_far is not None
            jsonschema.validate(how_far, schema()["events"]["progress"]["data"])
            told.append([f"{each['state']} {each['why'][-15:]}".strip() for each in how_far["targets"]])

        monkeypatch.setattr(Progress, "at", watched)
        await done(app, app.jobs.work)
    failed = "failed Not a directory"
    assert told == [["writing"], *([state, failed] for state in ("writing", "written", "reading back", "verified"))]


async def test_the_log_of_a_backup_tells_what_a_target_that_failed_has_said(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "archives").mkdir()
    (tmp_path / "etc" / "server.conf").write_text("port = 80\n")
    (tmp_path / "blocked").write_text("a file, where a directory is wanted")
    service = ServiceProcess(
        tmp_path,
        {
            "server": {"version": "5.4.1"},
            "sealing": {"mode": "off"},
            "target": {"url": f"file://{tmp_path / 'archives'}"},
            "copies": [{"url": f"file://{tmp_path / 'blocked' / 'archives'}"}],
            "sources": [{"type": "tree", "path": str(tmp_path / "etc")}],
        },
    )
    with service:
        async with service.client() as client:
            job = await ended(client, await client.call("backup.start"))
            assert job["state"] == "partial"
            found = await client.call("job.log", id=job["id"])
        warned = [line["text"] for line in found["lines"] if line["level"] == "warning"]
        assert any("blocked" in text for text in warned), found
        assert any(line["stage"] == "read back" for line in found["lines"])
        command = [sys.executable, "-m", "service", "--config", str(service.config_file), "job", "log", job["id"]]
        shown = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
        assert "WARNING: " in shown.stdout
        told = await asyncio.to_thread(subprocess.run, [*command, "--json"], capture_output=True, text=True, check=True)
        assert json.loads(told.stdout)["lines"] == found["lines"]
