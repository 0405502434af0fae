"""The running service in this process: what goes wrong beside its jobs does not end it, and a job that hangs does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from service import jobs as jobs_module
from service import measuring
from service import serve as serve_module
from service.app import App
from service.cli.commander import commanding
from service.client import Client
from service.config import SystemBackup, TargetSettings
from service.errors import ConfigError
from service.job import Job
from service.progress import Progress
from service.serve import _Service
from tests.service_parts import Place, until


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, settings={"service": {"socket": str(tmp_path / "run" / "s.sock"), "stop_timeout": 1.0}})


class Abandoned(Exception):
    """Stands for the end of the process."""


def abandon(why: str) -> NoReturn:
    raise Abandoned(why)


@asynccontextmanager
async def serving(place: Place) -> AsyncIterator[tuple[App, asyncio.Task[None], asyncio.Event]]:
    """The service on a place, ready; it is stopped after the block if it still runs."""
    stop = asyncio.Event()
    async with place.app() as app:
        running = asyncio.create_task(_Service(app, lambda: place.file, stop, asyncio.Event(), abandon).run())
        await until(lambda: app.not_ready is None or running.done())
        try:
            yield app, running, stop
        finally:
            stop.set()
            with contextlib.suppress(BaseExceptionGroup):
                await running


async def test_a_state_that_cannot_be_written_ends_neither_the_service_nor_what_runs(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serve_module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(serve_module, "MEASURE_EVERY", 1)
    gate, begun, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
    async with serving(place) as (app, running, _):
        work = app.jobs.work

        async def slow(job: Job, progress: Progress) -> dict[str, Any]:
            if job.kind != "backup":
                return await work(job, progress)
            begun.set()
            await gate.wait()
            ended.set()
            return {"name": "x"}

        app.jobs.work = slow
        await app.jobs.submit("backup", {}, origin="socket")
        await begun.wait()
        database = app.history._database._connection
        database.execute("PRAGMA query_only = ON")
        app.scheduler.wake()
        await until(lambda: "cannot be used: attempt to write a readonly database" in caplog.text)
        assert not running.done()
        gate.set()
        await ended.wait()
        await until(lambda: app.jobs.active is None)
        database.execute("PRAGMA query_only = OFF")
        async with Client.unix(place.file.service.socket) as client:
            info = await client.call("system.info")
        assert info["not_ready"] is None


async def test_what_goes_wrong_unexpectedly_beside_the_jobs_is_logged_and_tried_again(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serve_module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(serve_module, "MEASURE_EVERY", 1)
    monkeypatch.setattr("service.scheduler.LONGEST_SLEEP", 0.01)

    async def broken(*_: object) -> NoReturn:
        raise KeyError("a defect")

    async with serving(place) as (app, running, _):
        with monkeypatch.context() as defect:
            defect.setattr(measuring, "_target", broken)
            defect.setattr(type(app.scheduler), "_look_at_the_clock", broken)
            app.scheduler.wake()
            await until(lambda: caplog.text.count("looking after the target went wrong unexpectedly") > 1)
            await until(lambda: caplog.text.count("looking at the schedule went wrong unexpectedly") > 1)
        assert not running.done()


async def test_files_of_secrets_that_nobody_names_are_removed_at_the_start_but_for_those_of_rejected_settings(
    place: Place,
) -> None:
    secrets = place.state_dir / "secrets"
    secrets.mkdir(parents=True)
    for name in ("left", "named"):
        (secrets / name).write_text("a secret")
    (place.state_dir / "settings.json.rejected-1").write_text(f'{{"file": "{secrets}/named"}}')
    async with serving(place):
        assert [path.name for path in secrets.iterdir()] == ["named"]


async def test_a_configuration_that_contradicts_what_is_stored_is_not_taken(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.settings["target"] = None
    stop, reload = asyncio.Event(), asyncio.Event()
    async with place.app() as app:
        stored = SystemBackup(target=TargetSettings(url=f"file://{place.target}"))
        await app.stored.store(stored, idle=True)
        before = app.file
        running = asyncio.create_task(_Service(app, lambda: place.file, stop, reload, abandon).run())
        await until(lambda: app.not_ready is None)
        place.settings["copies"] = [{"url": f"file://{place.target}/"}]
        reload.set()
        await until(lambda: "more than once" in caplog.text)
        assert app.file is before
        stop.set()
        await running


async def test_a_wrong_option_is_told_in_the_same_words_with_and_without_a_service(place: Place) -> None:
    told = []
    async with serving(place):
        for here in (False, True):
            async with commanding(place.file, place.file.service.socket, here=here) as commander:
                with pytest.raises(ConfigError) as refused:
                    await commander.call("job.list", limit=0)
            told.append((str(refused.value), refused.value.hint))
    assert told[0] == told[1]
    assert "limit" in told[0][0]
    assert "job.list" not in told[0][0]


async def test_history_is_not_forgotten_while_the_clock_is_in_doubt(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(serve_module, "MEASURE_EVERY", 1)
    async with serving(place) as (app, _, _):
        await until(lambda: app.jobs.active is None and not app.jobs.waiting)
        old = Job(id="a" * 16, kind="verify", origin="socket", state="failed", created=place.clock())
        await app.history.save_job(old)
        place.clock.go(days=3650)
        app.scheduler.wake()
        await until(lambda: app.scheduler.clock_suspect)
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert await app.history.job(old.id) == old
        for _ in range(25):
            place.clock.go(hours=1)
            await app.scheduler.look()
        while await app.history.job(old.id) is not None:
            await asyncio.sleep(0.01)


async def test_a_job_that_does_not_stop_has_the_process_ended_and_is_remembered_as_interrupted(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "LOOK_SECONDS", 0.02)
    free = asyncio.Event()
    async with serving(place) as (app, running, stop):
        await until(lambda: app.jobs.active is None and not app.jobs.waiting)
        begun = asyncio.Event()

        async def hang(job: Job, progress: Progress) -> dict[str, Any]:
            begun.set()
            while not free.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await free.wait()
            return {}

        app.jobs.work = hang
        job = await app.jobs.submit("backup", {}, origin="socket")
        await begun.wait()
        stop.set()
        try:
            with pytest.raises(BaseExceptionGroup) as caught:
                await asyncio.wait_for(asyncio.shield(running), 30)
            abandoned = caught.value.subgroup(Abandoned)
            assert abandoned is not None and job.id in str(_first(abandoned))
        finally:
            free.set()
        ended = await app.history.job(job.id)
        assert ended is not None and ended.state == "interrupted"


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
