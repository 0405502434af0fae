"""Jobs with work of the test's own: whatever it does, each comes to an end that is true, told and remembered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from service import allocator, jobs
from service import jobs as jobs_module
from service.announcer import Announcer
from service.config import ServiceSettings
from service.errors import JobRefused, NotFound, Obstacle, RestoreRefused, SourceUnavailable, StateError, TooLate
from service.events import EventHub
from service.job import Job
from service.jobs import LONGEST_QUEUE, VERIFYING_STAGE, Jobs, Partial, Stuck
from service.progress import Progress
from service.state import Database, History, Values
from service.state.history import Request
from storage_backends.base import TargetUnavailable
from tests.service_parts import START, Clock, until

Doing = Callable[[Job, Progress], Awaitable[dict[str, Any]]]
QUICK = ServiceSettings.model_construct(no_progress_timeout=0.1, quiet_timeout=600.0)
PATIENT = ServiceSettings.model_construct(no_progress_timeout=600.0, quiet_timeout=600.0)


@pytest.fixture(autouse=True)
def _quick_undoing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "UNDO_SECONDS", QUICK.no_progress_timeout)


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "LOOK_SECONDS", 0.01)


async def nothing(job: Job, progress: Progress) -> dict[str, Any]:
    return {"did": job.kind}


@dataclass
class Bench:
    """Jobs on a real state. `doing` is what the next job does; `gate` lets work wait for the test."""

    jobs: Jobs
    database: Database
    hub: EventHub
    clock: Clock
    settings: ServiceSettings = PATIENT
    doing: Doing = nothing
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    looked: asyncio.Event = field(default_factory=asyncio.Event)
    began: list[str] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)
    working: asyncio.Task[None] | None = None

    async def work(self, job: Job, progress: Progress) -> dict[str, Any]:
        self.began.append(job.id)
        assert self.jobs._running is not None
        self.jobs._running.watchdog = self.jobs._watchdog()  # a slow disk under the state is not what is watched here
        return await self.doing(job, progress)

    def start(self) -> asyncio.Task[None]:
        self.working = asyncio.create_task(self.jobs.run())
        return self.working

    async def submit(self, **more: Any) -> Job:
        return await self.jobs.submit("backup", {}, **({"origin": "socket"} | more))

    async def running(self, doing: Doing) -> Job:
        """Submit a job that does this, and wait until it does."""
        self.doing = doing
        if self.working is None:
            self.start()
        job = await self.submit()
        await until(lambda: job.id in self.began)
        return job

    async def looked_at(self) -> None:
        """Wait until the job that runs was looked at once more."""
        self.looked.clear()
        await self.looked.wait()

    async def ended(self, job: Job) -> Job:
        async with asyncio.timeout(30):
            while not (found := await self.jobs.history.job(job.id)) or not found.done:
                assert self.working is not None
                if self.working.done():
                    self.working.result()
                await asyncio.sleep(0.002)
        return found

    async def waits(self, job: Job, progress: Progress) -> dict[str, Any]:
        """Work that waits, and takes some turns of the loop to undo what it began."""
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            for _ in range(5):
                await asyncio.sleep(0)
            self.undone.append(job.id)
            raise
        return {}

    async def told(self) -> list[str]:
        """Types of the events that are remembered."""
        return [event["type"] for event in await self.jobs.history.events()]


class Watched(Announcer):
    """Notes when the job that runs was looked at."""

    def __init__(self, hub: EventHub, history: History) -> None:
        super().__init__(hub, history)
        self.looked: asyncio.Event | None = None

    def progress(self, job_id: str, data: Mapping[str, Any]) -> None:
        super().progress(job_id, data)
        if self.looked is not None and "message" not in data:
            self.looked.set()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    database, clock = Database.open(tmp_path), Clock()
    history = History(database)
    hub = EventHub("boot", [], clock=clock)

    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        return await made.work(job, progress)

    announcer = Watched(hub, history)
    jobs = Jobs(history, announcer, work, lambda: made.settings if made.began else PATIENT, clock)
    made = Bench(jobs, database, hub, clock)
    announcer.looked = made.looked
    yield made
    if made.working is not None:
        made.gate.set()
        made.working.cancel()
        with contextlib.suppress(asyncio.CancelledError, Stuck):
            await made.working
    database.close()


async def test_jobs_run_one_after_the_other_in_the_order_they_were_asked_for(bench: Bench) -> None:
    submitted = [await bench.submit() for _ in range(3)]
    assert bench.jobs.waiting == submitted
    bench.start()
    ended = [await bench.ended(job) for job in submitted]
    assert bench.began == [job.id for job in submitted]
    assert [(job.state, job.result) for job in ended] == [("succeeded", {"did": "backup"})] * 3
    assert await bench.told() == ["job.queued"] * 3 + ["job.running", "job.succeeded"] * 3


async def test_too_many_waiting_jobs_are_refused_and_not_remembered(bench: Bench) -> None:
    request = Request("key", "backup.start", {})
    first = await bench.submit(request=request)
    for _ in range(LONGEST_QUEUE - 1):
        await bench.submit()
    with pytest.raises(JobRefused, match="too many"):
        await bench.submit()
    with pytest.raises(JobRefused, match="too many"):
        await bench.submit(request=Request("another key", "backup.start", {}))
    assert (await bench.submit(request=request)).id == first.id, "it was asked for before, and waits"
    assert len(bench.jobs.waiting) == len(await bench.jobs.history.jobs(limit=100)) == LONGEST_QUEUE


async def test_a_repeated_request_gets_its_job_and_runs_once(bench: Bench) -> None:
    request = Request("key", "backup.start", {})
    job = await bench.submit(request=request)
    bench.start()
    ended = await bench.ended(job)
    assert await bench.submit(request=request) == ended
    assert await bench.submit(request=request) == ended
    assert bench.began == [job.id]
    assert (await bench.told()).count("job.queued") == 1


async def test_a_job_cancelled_while_it_waits_never_runs(bench: Bench) -> None:
    running = await bench.running(bench.waits)
    waiting = await bench.submit()
    assert (await bench.jobs.cancel(waiting.id)).state == "cancelled"
    bench.gate.set()
    assert (await bench.ended(running)).state == "succeeded"
    assert (await bench.ended(waiting)).state == "cancelled"
    assert bench.began == [running.id]


async def test_a_job_cancelled_while_it_runs_has_undone_its_work_when_it_is_told_as_cancelled(bench: Bench) -> None:
    job = await bench.running(bench.waits)
    state_when_undone = []

    async def on_end(ended: Job) -> None:
        state_when_undone.append((ended.state, list(bench.undone)))

    bench.jobs.on_end = on_end
    assert (await bench.jobs.cancel(job.id)).state == "running"
    ended = await bench.ended(job)
    assert (ended.state, ended.error, ended.result) == ("cancelled", None, None)
    await until(lambda: state_when_undone == [("cancelled", [job.id])])
    next_one = await bench.running(nothing)
    assert (await bench.ended(next_one)).state == "succeeded"


async def test_cancelling_twice_does_not_cut_the_undoing_short(bench: Bench) -> None:
    undoing = asyncio.Event()

    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        try:
            await asyncio.Event().wait()
        finally:
            undoing.set()
            await bench.gate.wait()
            bench.undone.append(job.id)
        return {}

    job = await bench.running(work)
    await bench.jobs.cancel(job.id)
    await undoing.wait()
    assert (await bench.jobs.cancel(job.id)).id == job.id
    bench.gate.set()
    assert (await bench.ended(job)).state == "cancelled"
    assert bench.undone == [job.id]


async def test_a_job_past_the_point_is_not_cancelled_and_goes_on(bench: Bench) -> None:
    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        progress.past_cancelling = True
        return await bench.waits(job, progress)

    job = await bench.running(work)
    with pytest.raises(TooLate, match="past the point"):
        await bench.jobs.cancel(job.id)
    bench.gate.set()
    assert (await bench.ended(job)).state == "succeeded"
    assert bench.undone == []


async def test_a_job_that_ended_or_was_never_there_cannot_be_cancelled(bench: Bench) -> None:
    job = await bench.running(nothing)
    await bench.ended(job)
    with pytest.raises(TooLate, match=r"ended already .succeeded"):
        await bench.jobs.cancel(job.id)
    with pytest.raises(NotFound):
        await bench.jobs.cancel("0" * 16)


async def test_work_that_ends_in_spite_of_being_cancelled_is_told_as_done(bench: Bench) -> None:
    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return {"done": True}

    job = await bench.running(work)
    await bench.jobs.cancel(job.id)
    ended = await bench.ended(job)
    assert (ended.state, ended.result) == ("succeeded", {"done": True})


async def test_a_job_that_begins_can_be_cancelled_before_its_work_began(bench: Bench) -> None:
    """Between the queue and the work nothing may be lost: it is announced there, which takes time."""
    hold, announced = asyncio.Event(), asyncio.Event()

    async def on_start(job: Job) -> None:
        announced.set()
        await hold.wait()

    bench.jobs.on_start = on_start
    bench.start()
    job = await bench.submit()
    await announced.wait()
    assert bench.jobs.active is not None and bench.jobs.active.id == job.id
    assert (await bench.jobs.cancel(job.id)).id == job.id
    hold.set()
    assert (await bench.ended(job)).state == "cancelled"
    assert bench.began == []


async def test_cancelled_work_that_nobody_cancelled_has_failed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        raise asyncio.CancelledError

    ended = await bench.ended(await bench.running(work))
    assert ended.state == "failed"
    assert ended.error is not None and ended.error["code"] == "UNEXPECTED"


async def test_a_partial_job_has_its_result_and_its_error(bench: Bench) -> None:
    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        raise Partial({"name": "x"}, TargetUnavailable("the target went away", hint="Look at it."))

    ended = await bench.ended(await bench.running(work))
    assert (ended.state, ended.result) == ("partial", {"name": "x"})
    assert ended.error == {
        "code": "TARGET_UNAVAILABLE",
        "message": "the target went away",
        "hint": "Look at it.",
        "transient": True,
    }


@pytest.mark.parametrize("grouped", [False, True])
async def test_an_expected_error_is_told_in_its_own_words(bench: Bench, grouped: bool) -> None:
    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        error = SourceUnavailable("the server is away", hint="Start it.")
        raise ExceptionGroup("tasks", [error]) if grouped else error

    ended = await bench.ended(await bench.running(work))
    assert ended.state == "failed"
    assert ended.error == {
        "code": "SOURCE_UNAVAILABLE",
        "message": "the server is away",
        "hint": "Start it.",
        "transient": True,
    }


async def test_the_obstacles_of_a_refused_restore_are_told(bench: Bench) -> None:
    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        raise RestoreRefused([Obstacle("SPACE", "no room", "Make room.")])

    ended = await bench.ended(await bench.running(work))
    assert ended.error is not None
    assert ended.error["obstacles"] == [{"code": "SPACE", "message": "no room", "remedy": "Make room."}]


async def test_an_unexpected_error_shows_no_internals_and_leaves_its_traceback_in_the_log(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        raise ZeroDivisionError("internal: /etc/shadow")

    job = await bench.running(work)
    ended = await bench.ended(job)
    assert ended.state == "failed" and ended.error is not None
    assert ended.error["code"] == "UNEXPECTED"
    assert "shadow" not in str(ended.as_json())
    (record,) = [record for record in caplog.records if record.exc_info]
    assert isinstance(record.exc_info, tuple) and isinstance(record.exc_info[1], ZeroDivisionError)
    assert (await bench.ended(await bench.running(nothing))).state == "succeeded"


async def test_a_service_that_stops_interrupts_its_job_once_that_is_undone(bench: Bench) -> None:
    job = await bench.running(bench.waits)
    waiting = await bench.submit()
    assert bench.working is not None
    bench.working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bench.working
    assert bench.undone == [job.id]
    ended = await bench.jobs.history.job(job.id)
    assert ended is not None and ended.state == "interrupted"
    assert ended.error is not None and ended.error["code"] == "INTERRUPTED"
    left = await bench.jobs.history.job(waiting.id)
    assert left is not None and left.state == "queued"


async def test_a_service_that_stops_just_as_a_job_ends_still_tells_the_end(bench: Bench) -> None:
    """The event and the hook that notifies people are not lost between the job's end and the service's."""
    heard = []

    async def on_end(job: Job) -> None:
        heard.append(job.state)

    bench.jobs.on_end = on_end
    saving, go_on = asyncio.Event(), asyncio.Event()
    announce = bench.jobs.announcer.job

    class Slow(Announcer):
        async def job(self, job: Job) -> None:
            if job.done:
                saving.set()
                await go_on.wait()
            await announce(job)

    bench.jobs.announcer = Slow(bench.hub, bench.jobs.history)
    job = await bench.running(nothing)
    await saving.wait()
    assert bench.working is not None
    bench.working.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await bench.working
    ended = await bench.jobs.history.job(job.id)
    assert ended is not None and ended.state == "succeeded"
    assert heard == ["succeeded"]
    assert (await bench.told())[-1] == "job.succeeded"


async def test_a_job_that_does_not_stop_when_the_service_has_to_is_abandoned(bench: Bench) -> None:
    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        while not bench.gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await bench.gate.wait()
        return {}

    job = await bench.running(work)
    working = bench.working
    assert working is not None
    working.cancel()
    await asyncio.wait({working}, timeout=0.05)
    assert not working.done()
    bench.jobs.abandon()
    working.cancel()
    with pytest.raises(Stuck):
        await working
    ended = await bench.jobs.history.job(job.id)
    assert ended is not None and ended.state == "interrupted"


async def test_a_job_of_the_command_line_ends_like_any_other(bench: Bench) -> None:
    progress = Progress()
    ended = await bench.jobs.run_now("verify", {"archive": "x"}, progress)
    assert (ended.state, ended.origin, ended.params) == ("succeeded", "command line", {"archive": "x"})
    assert await bench.jobs.history.job(ended.id) == ended


async def test_a_job_of_the_command_line_that_is_interrupted_is_undone_and_told_as_cancelled(bench: Bench) -> None:
    bench.doing = bench.waits
    command = asyncio.create_task(bench.jobs.run_now("backup", {}, Progress()))
    await until(lambda: bench.began)
    command.cancel()
    with pytest.raises(asyncio.CancelledError):
        await command
    (job,) = await bench.jobs.history.jobs(limit=10)
    assert (job.state, bench.undone) == ("cancelled", [job.id])


async def test_what_stands_still_is_given_up_and_told_as_stalled(bench: Bench) -> None:
    bench.settings = QUICK

    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        progress.begin("dump", "Writing")
        try:
            return await bench.waits(job, progress)
        finally:
            progress.begin("undo", "Undoing")

    job = await bench.running(work)
    ended = await bench.ended(job)
    assert ended.state == "failed" and ended.error is not None
    assert (ended.error["code"], ended.error["transient"]) == ("STALLED", True)
    assert "while dump" in ended.error["message"]
    assert bench.undone == [job.id]
    assert (await bench.ended(await bench.running(nothing))).state == "succeeded"


@pytest.mark.parametrize("how", ["raw", "stored", "steps", "stages"])
async def test_what_moves_is_not_given_up_however_slowly_it_does(bench: Bench, how: str) -> None:
    bench.settings = QUICK

    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        begun = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() - begun < 3 * QUICK.no_progress_timeout:
            match how:
                case "raw" | "stored":
                    setattr(progress, how, getattr(progress, how) + 1)
                case "steps":
                    progress.say("a step")
                case "stages":
                    progress.begin("the same", "the same again")
            await bench.looked_at()
        return {}

    assert (await bench.ended(await bench.running(work))).state == "succeeded"


async def test_a_quiet_part_is_not_given_up_for_standing_still(bench: Bench) -> None:
    bench.settings = QUICK

    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        with progress.part("indexes", quiet=True):
            await asyncio.sleep(3 * QUICK.no_progress_timeout)
            await bench.looked_at()
        return {}

    assert (await bench.ended(await bench.running(work))).state == "succeeded"


async def test_a_quiet_part_has_a_limit_of_its_own(bench: Bench) -> None:
    bench.settings = ServiceSettings.model_construct(no_progress_timeout=600.0, quiet_timeout=0.1)

    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        with progress.part("indexes", quiet=True):
            return await bench.waits(job, progress)

    ended = await bench.ended(await bench.running(work))
    assert ended.error is not None and ended.error["code"] == "STALLED"
    assert "quiet_timeout" in ended.error["hint"]


@pytest.mark.parametrize("cancelled_before", [False, True])
async def test_what_is_given_up_and_does_not_end_is_stuck(bench: Bench, cancelled_before: bool) -> None:
    """Also a job that somebody cancelled, and whose way back hangs: nothing else would ever run again."""
    bench.settings = QUICK

    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        while not bench.gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await bench.gate.wait()
        return {}

    job = await bench.running(work)
    if cancelled_before:
        await bench.jobs.cancel(job.id)
    assert bench.working is not None
    with pytest.raises(Stuck, match=job.id):
        await asyncio.wait_for(bench.working, 30)
    ended = await bench.jobs.history.job(job.id)
    assert ended is not None and ended.state == "failed"
    assert ended.error is not None and ended.error["code"] == "STALLED"
    bench.gate.set()


async def test_a_way_back_has_the_whole_timeout_for_its_first_step(bench: Bench) -> None:
    bench.settings = QUICK

    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        bench.settings = PATIENT  # what is watched from now on has this; what was watched until now is given up soon
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(3):
                await bench.looked_at()
            bench.undone.append(job.id)
        return {}

    ended = await bench.ended(await bench.running(work))
    assert ended.error is not None and ended.error["code"] == "STALLED"
    assert bench.undone == [ended.id]


async def test_a_way_back_may_be_slow_even_where_a_standstill_is_given_up_quickly(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "UNDO_SECONDS", 600.0)
    bench.settings = QUICK

    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(2 * QUICK.no_progress_timeout)
            await bench.looked_at()
            bench.undone.append(job.id)
        return {}

    ended = await bench.ended(await bench.running(work))
    assert bench.undone == [ended.id]


async def test_a_way_back_that_gets_on_is_not_stuck_however_long_it_takes(bench: Bench) -> None:
    bench.settings = QUICK

    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        try:
            await asyncio.Event().wait()
        finally:
            given_up = asyncio.get_running_loop().time()
            while asyncio.get_running_loop().time() - given_up < 3 * QUICK.no_progress_timeout:
                progress.say("undoing")
                await bench.looked_at()
            bench.undone.append(job.id)
        return {}

    ended = await bench.ended(await bench.running(work))
    assert ended.error is not None and ended.error["code"] == "STALLED"
    assert bench.undone == [ended.id]


async def test_a_backup_that_is_read_back_is_told_as_verifying_once(bench: Bench) -> None:
    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        progress.begin(VERIFYING_STAGE, "Reading it back")
        return await bench.waits(job, progress)

    job = await bench.running(work)
    await until(lambda: bench.jobs.active is not None and bench.jobs.active.state == "verifying")
    await asyncio.sleep(0.05)
    bench.gate.set()
    await bench.ended(job)
    assert await bench.told() == ["job.queued", "job.running", "job.verifying", "job.succeeded"]


async def test_progress_is_told_to_those_who_listen_and_remembered_by_nobody(bench: Bench) -> None:
    heard: list[dict[str, Any]] = []

    async def listen() -> None:
        with bench.hub.subscribe(None) as subscription:
            async for event in subscription:
                heard.append(event.as_json())

    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        progress.begin("dump", "Writing it", expected_raw=1000)
        progress.raw = 500
        return await bench.waits(job, progress)

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0)
    job = await bench.running(work)
    await until(lambda: any(event["data"].get("raw_bytes") == 500 for event in heard))
    told = bench.jobs.how_far(job.id)
    assert told is not None and (told["stage"], told["raw_bytes"], told["expected_raw_bytes"]) == ("dump", 500, 1000)
    bench.gate.set()
    await bench.ended(job)
    await until(lambda: any(event["type"] == "job.succeeded" for event in heard))
    listening.cancel()
    await asyncio.wait({listening})
    steps = [event for event in heard if event["data"].get("message") == "Writing it"]
    assert [(step["type"], step["seq"], step["job_id"]) for step in steps] == [("progress", None, job.id)]
    assert "progress" not in await bench.told()
    assert bench.jobs.how_far(job.id) is None
    durable = [event["seq"] for event in heard if event["seq"] is not None]
    assert durable == sorted(set(durable)) == list(range(1, len(durable) + 1))


async def test_a_state_that_cannot_be_written_does_not_stop_a_job_that_runs(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    job = await bench.running(bench.waits)
    heard: list[str] = []

    async def on_end(ended: Job) -> None:
        heard.append(ended.state)

    bench.jobs.on_end = on_end
    bench.database._connection.execute("PRAGMA query_only = ON")
    bench.gate.set()
    await until(lambda: heard)
    assert heard == ["succeeded"]
    assert any("cannot remember" in record.message for record in caplog.records)
    with pytest.raises(StateError):
        await bench.submit()  # a new one would not be remembered
    assert bench.jobs.waiting == []
    bench.database._connection.execute("PRAGMA query_only = OFF")
    assert (await bench.ended(await bench.running(nothing))).state == "succeeded"
    assert job.id in bench.began


@pytest.mark.parametrize("error", [JobRefused("expected"), TargetUnavailable("expected"), RuntimeError("unexpected")])
@pytest.mark.parametrize("hook", ["on_start", "on_end"])
async def test_what_goes_wrong_beside_a_job_changes_nothing_of_it(
    bench: Bench, hook: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(job: Job) -> None:
        raise error

    setattr(bench.jobs, hook, fail)
    jobs = [await bench.submit() for _ in range(2)]
    bench.start()
    assert [(await bench.ended(job)).state for job in jobs] == ["succeeded", "succeeded"]
    assert [record.levelno for record in caplog.records if "expected" in record.getMessage()]
    assert all(record.levelno <= logging.ERROR for record in caplog.records)


async def test_a_hook_that_hangs_does_not_hold_up_the_queue_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "HOOK_SECONDS", 0.02)

    async def hang(job: Job) -> None:
        await asyncio.Event().wait()

    bench.jobs.on_end = hang
    jobs = [await bench.submit() for _ in range(2)]
    bench.start()
    assert [(await bench.ended(job)).state for job in jobs] == ["succeeded", "succeeded"]


async def test_a_job_knows_when_it_ran(bench: Bench) -> None:
    async def work(job: Job, progress: Progress) -> dict[str, Any]:
        bench.clock.go(seconds=90)
        return {}

    bench.clock.go(minutes=1)
    ended = await bench.ended(await bench.running(work))
    assert (ended.created - START).total_seconds() == 60
    assert ended.seconds == 90


async def test_memory_that_a_job_has_freed_is_given_back_before_the_next_begins(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun_at_each: list[int] = []
    monkeypatch.setattr(allocator, "give_back", lambda: begun_at_each.append(len(bench.began)))
    bench.start()
    jobs_made = [await bench.submit() for _ in range(2)]
    for job in jobs_made:
        await bench.ended(job)
    await until(lambda: len(begun_at_each) == 2)
    assert begun_at_each == [1, 2]


async def test_values_are_remembered_with_the_job(bench: Bench) -> None:
    await bench.submit(values={"schedule.served": "now"}, scheduled_for=START)
    assert await Values(bench.database).get("schedule.served") == "now"
    (job,) = await bench.jobs.history.jobs(limit=1)
    assert job.scheduled_for == START


async def test_a_stop_while_the_last_lines_are_remembered_forgets_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job has done its work: it is at work until its lines are remembered, and then has succeeded."""
    add, remembering, gate = bench.jobs.history.logs.add, asyncio.Event(), asyncio.Event()

    async def slow(job: str, lines: Any) -> None:
        remembering.set()
        await gate.wait()
        await add(job, lines)

    monkeypatch.setattr(type(bench.jobs.history.logs), "add", staticmethod(slow))
    monkeypatch.setattr(jobs, "LOOK_SECONDS", 60)  # however slow this machine is, the lines are the last ones
    working = bench.start()
    job = await bench.submit()
    await remembering.wait()
    active = bench.jobs.active
    working.cancel()
    await asyncio.sleep(0)
    gate.set()
    await asyncio.wait({working})
    found = await bench.jobs.history.job(job.id)
    assert active is not None and active.id == job.id
    assert found is not None and found.state == "succeeded"
