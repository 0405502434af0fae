"""The service's memory in a real SQLite file: what was acknowledged stays, whatever happens to the process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.app import opened
from service.errors import JobRefused, StateError
from service.job import ENDED, Job, JobKind, JobState
from service.ledger import Intent, Known
from service.state import FILE_NAME, Archives, Database, History, Values, set_aside
from service.state.history import KEPT_EVENTS, Request
from tests.service_parts import START, Clock, Place

TARGET = "file:///archives"
ROOT = Path(__file__).parents[2]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database.open(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def history(database: Database) -> History:
    return History(database)


@pytest.fixture
def archives(database: Database) -> Archives:
    return Archives(database, Clock())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def job(
    number: int, state: JobState = "succeeded", *, kind: JobKind = "backup", created: datetime | None = None
) -> Job:
    when = created or START + timedelta(minutes=number)
    ended = when + timedelta(seconds=5) if state in ENDED else None
    return Job(id=f"{number:016x}", kind=kind, origin="socket", state=state, created=when, started=when, ended=ended)


async def numbers(history: History, **filters: Any) -> list[int]:
    return [int(found.id, 16) for found in await history.jobs(**({"limit": 100} | filters))]


async def test_values_come_back_as_they_were_set_also_after_the_file_was_closed(tmp_path: Path) -> None:
    given: dict[str, Any] = {"none": None, "object": {"a": [1, 2.5, "ü"]}, "text": "", "number": 0}
    first = Database.open(tmp_path)
    for name, value in given.items():
        await Values(first).set(name, "something else")
        await Values(first).set(name, value)
    first.close()
    again = Database.open(tmp_path)
    assert {name: await Values(again).get(name) for name in given} == given
    assert await Values(again).get("never set") is None
    again.close()


async def test_a_job_comes_back_whole_and_as_it_was_saved_last(history: History) -> None:
    first = job(1, "queued").but(params={"archive": "x", "allow": ["A"]}, scheduled_for=START)
    last = first.but(state="partial", ended=START, result={"name": "x"}, error={"code": "TARGET", "message": "m"})
    await history.add_job(first)
    await history.save_job(last)
    assert await history.job(first.id) == last
    assert await history.jobs(limit=10) == [last]
    assert await history.job("0" * 16) is None


async def test_jobs_are_paged_the_newest_first_without_losing_or_repeating_any(history: History) -> None:
    same_time = START + timedelta(minutes=3)  # three jobs of one instant must not confuse the pages
    for number in range(7):
        await history.save_job(job(number, created=same_time if number in {3, 4, 5} else None))
    seen: list[int] = []
    before = None
    while page := await history.jobs(limit=2, before=before):
        seen += [int(found.id, 16) for found in page]
        before = page[-1].id
    assert seen == [6, 5, 4, 3, 2, 1, 0]
    assert await history.jobs(limit=2, before="f" * 16) == []


async def test_jobs_are_filtered_by_kind_and_state_also_within_a_page(history: History) -> None:
    kinds: tuple[JobKind, ...] = ("backup", "verify", "backup", "prune")
    for number, kind in enumerate(kinds):
        await history.save_job(job(number, "failed" if number == 2 else "succeeded", kind=kind))
    assert await numbers(history, kinds=["backup"]) == [2, 0]
    assert await numbers(history, kinds=["verify", "prune"]) == [3, 1]
    assert await numbers(history, kinds=["backup"], states=["succeeded"]) == [0]
    assert await numbers(history, kinds=["backup"], before=f"{2:016x}") == [0]
    assert await numbers(history, kinds=[]) == []
    assert await numbers(history, states=["running"]) == []


async def test_unfinished_jobs_are_those_in_no_final_state_the_oldest_first(history: History) -> None:
    states: list[JobState] = ["running", "succeeded", "queued", "verifying", *sorted(ENDED)]
    for number, state in enumerate(states):
        await history.save_job(job(number, state))
    assert [found.state for found in await history.unfinished()] == ["running", "queued", "verifying"]


async def test_forgetting_keeps_what_is_new_what_has_not_ended_and_the_newest_success(history: History) -> None:
    await history.save_job(job(0, "running"))
    await history.save_job(job(1, "succeeded"))
    await history.save_job(job(2, "succeeded"))
    await history.save_job(job(3, "failed"))
    await history.save_job(job(4, "succeeded", kind="verify"))
    await history.save_job(job(10, "failed"))
    await history.forget(START + timedelta(minutes=10))
    assert await numbers(history) == [10, 2, 0]


async def test_only_the_last_thousand_events_are_remembered_in_order(history: History) -> None:
    for seq in range(1, KEPT_EVENTS + 6):
        await history.add_event(seq, {"seq": seq})
    assert [event["seq"] for event in await history.events()] == list(range(6, KEPT_EVENTS + 6))


async def test_intents_stay_until_they_are_settled_one_for_each_name(archives: Archives) -> None:
    await archives.writing(TARGET, "one")
    await archives.deleting(TARGET, "one")
    await archives.writing(TARGET, "two")
    await archives.writing("file:///elsewhere", "two")
    assert await archives.intents() == [
        Intent("delete", TARGET, "one"),
        Intent("write", TARGET, "two"),
        Intent("write", "file:///elsewhere", "two"),
    ]
    await archives.settled(TARGET, "two")
    await archives.settled(TARGET, "never heard of")
    assert await archives.intents() == [
        Intent("delete", TARGET, "one"),
        Intent("write", "file:///elsewhere", "two"),
    ]


async def test_evidence_and_facts_stay_together_while_the_etag_does(archives: Archives) -> None:
    await archives.found(TARGET, "a", "etag 1", "written")
    await archives.listed(TARGET, {"a": Known("etag 1", facts={"seq": 7})}, [])
    await archives.found(TARGET, "a", "etag 1", "verified")
    assert await archives.known(TARGET) == {"a": Known("etag 1", "verified", START, {"seq": 7})}
    assert await archives.known("file:///elsewhere") == {}


async def test_another_etag_drops_evidence_and_facts(archives: Archives) -> None:
    for name in ("read", "listed"):
        await archives.found(TARGET, name, "etag 1", "verified")
        await archives.listed(TARGET, {name: Known("etag 1", facts={"seq": 7})}, [])
    await archives.found(TARGET, "read", "etag 2", "written")
    await archives.listed(TARGET, {"listed": Known("etag 2", facts={"seq": 8})}, [])
    assert await archives.known(TARGET) == {
        "read": Known("etag 2", "written", START, None),
        "listed": Known("etag 2", "unknown", None, {"seq": 8}),
    }


async def test_what_a_drill_has_restored_stays_restorable_when_it_is_read_again_until_it_is_damaged_or_another(
    archives: Archives,
) -> None:
    name, facts = "Backup_20260302_1201Z.zip", {"seq": 3, "created": "2026-03-02T12:01:00+00:00"}
    await archives.found(TARGET, name, "one", "verified")
    await archives.listed(TARGET, {name: Known("one", facts=facts)}, [])
    await archives.found(TARGET, name, "one", "restorable")
    for lower in ("written", "verified"):
        await archives.found(TARGET, name, "one", lower)
        assert (await archives.known(TARGET))[name] == Known("one", "restorable", START, facts)
    await archives.found(TARGET, name, "one", "damaged")
    assert (await archives.known(TARGET))[name].evidence == "damaged"
    await archives.found(TARGET, name, "one", "restorable")
    await archives.found(TARGET, name, "two", "verified")
    assert (await archives.known(TARGET))[name].evidence == "verified", "another object of that name"


async def test_a_listing_does_not_take_back_evidence_that_was_found_meanwhile(archives: Archives) -> None:
    before = await archives.known(TARGET)  # a listing begins, and knows nothing of the archive ...
    await archives.found(TARGET, "a", "etag", "verified")  # ... which is proven now ...
    assert "a" not in before
    await archives.listed(TARGET, {"a": Known("etag", "unknown", None, {"seq": 1})}, [])  # ... and the listing ends
    assert await archives.known(TARGET) == {"a": Known("etag", "verified", START, {"seq": 1})}


async def test_archives_that_are_gone_are_forgotten_but_for_those_with_an_open_intent(archives: Archives) -> None:
    for name in ("gone", "being written", "there"):
        await archives.found(TARGET, name, "etag", "written")
    await archives.found("file:///elsewhere", "gone", "etag", "verified")
    await archives.writing(TARGET, "being written")
    await archives.listed(TARGET, {}, ["gone", "being written"])
    assert sorted(await archives.known(TARGET)) == ["being written", "there"]
    assert list(await archives.known("file:///elsewhere")) == ["gone"]


async def test_what_only_another_version_knows_or_nobody_can_read_is_passed_over(place: Place) -> None:
    async with place.app() as app:
        name = await place.backup(app.archives)
        before = await place.archives(app.archives)
        await app.history.save_job(job(1))
        await app.history.save_job(job(2))
        await app.history.save_job(job(3, "running"))
        await app.announcer.tell("settings.changed", {"changed": []})
        await app.announcer.tell("settings.changed", {"changed": []})
        await app.values.set("clock", {})

        def spoil(db: sqlite3.Connection) -> None:
            for table, column in (("jobs", "content"), ("events", "content"), ("archives", "facts")):
                db.execute(f"UPDATE {table} SET {column} = json_set({column}, '$.member of tomorrow', 1)")
            db.execute("UPDATE jobs SET content = '{}' WHERE id = ?", (job(2).id,))
            db.execute("UPDATE jobs SET content = '{torn' WHERE id = ?", (job(3, "running").id,))
            db.execute("UPDATE events SET content = '[]' WHERE seq = 2")
            db.execute("INSERT INTO settings VALUES ('schedule.served', '{torn')")

        await app.history._database.run(spoil)
    async with place.app() as again:
        assert await again.history.jobs(limit=1, before=None, kinds=["backup"]) == [job(1)]
        assert await again.history.job(job(2).id) is None
        assert await again.history.unfinished() == []
        assert [event["seq"] for event in await again.history.events()] == [1]
        assert await place.archives(again.archives) == before
        await again.history._database.run(
            lambda db: db.execute("UPDATE archives SET facts = '{\"created\": 5}', evidence = 'of tomorrow'")
        )
        assert (await place.archives(again.archives))[name].created == before[name].created
        await again.scheduler.look()


ASKED = Request("key", "backup.start", {})


async def test_the_same_key_and_request_get_the_same_job_and_add_none(history: History) -> None:
    first = await history.add_job(job(1, "queued"), request=ASKED)
    await history.save_job(first.but(state="running"))
    again = await history.add_job(job(2, "queued"), request=Request("key", "backup.start", {}))
    assert (again.id, again.state) == (first.id, "running")
    assert await numbers(history) == [1]


@pytest.mark.parametrize("other", [Request("key", "restore.start", {}), Request("key", "backup.start", {"a": 1})])
async def test_a_key_that_was_used_for_another_request_is_refused_and_nothing_is_added(
    history: History, other: Request
) -> None:
    await history.add_job(job(1, "queued"), request=ASKED)
    with pytest.raises(JobRefused, match="used for another request"):
        await history.add_job(job(2, "queued"), request=other, values=None)
    assert await numbers(history) == [1]


async def test_a_key_is_forgotten_after_a_day_and_not_before(history: History) -> None:
    await history.add_job(job(1, "queued", created=START), request=ASKED)
    assert await history.answer_before(ASKED, START + timedelta(hours=24)) == job(1).id
    assert await history.answer_before(ASKED, START + timedelta(hours=24, seconds=1)) is None
    later = job(2, "queued", created=START + timedelta(hours=25))
    assert (await history.add_job(later, request=ASKED)).id == later.id


async def test_a_key_whose_job_was_forgotten_gets_a_new_job_that_is_remembered(history: History) -> None:
    await history.add_job(job(1, "failed"), request=ASKED)
    await history.forget(START + timedelta(days=1))
    added = await history.add_job(job(2, "queued"), request=ASKED)
    assert await history.job(added.id) == added == job(2, "queued")


async def test_job_key_and_values_are_written_all_or_nothing(database: Database, history: History) -> None:
    with pytest.raises(TypeError):  # the last of the three cannot be written
        await history.add_job(job(1, "queued"), request=ASKED, values={"good": 1, "bad": object()})
    assert await numbers(history) == []
    assert await history.answer_before(ASKED, START) is None
    assert await Values(database).get("good") is None
    await history.add_job(job(1, "queued"), request=ASKED, values={"good": 1})
    assert await Values(database).get("good") == 1


async def test_two_processes_writing_at_once_lose_nothing(tmp_path: Path) -> None:
    one, other = Database.open(tmp_path), Database.open(tmp_path)

    async def write(database: Database, first: int) -> None:
        for number in range(first, first + 40):
            await History(database).save_job(job(number))

    async with asyncio.TaskGroup() as tasks:
        for first, database in ((0, one), (100, other), (200, one)):
            tasks.create_task(write(database, first))
    expected = sorted([*range(40), *range(100, 140), *range(200, 240)], reverse=True)
    assert await numbers(History(one), limit=500) == await numbers(History(other), limit=500) == expected
    one.close()
    other.close()


async def test_a_file_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    Database.open(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StateError, match="newer version") as caught:
        Database.open(tmp_path)
    assert caught.value.hint
    assert set_aside(tmp_path, START) is None
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (99,)
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
    connection.close()


def overwritten(path: Path) -> None:
    path.write_bytes(b"this is no database at all" * 200)


def torn(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [overwritten, torn, truncated])
async def test_a_damaged_file_is_set_aside_and_the_settings_come_back_from_their_copy(
    tmp_path: Path, damage: Any
) -> None:
    place = Place(tmp_path, settings={"retention": None})
    async with place.app() as app:
        value, _ = app.stored.changed(frozenset(), {"retention": {"keep_last": 3}, "enabled": False})
        await app.stored.store(value, idle=True)
        for number in range(200):
            await app.history.save_job(job(number))
    damage(place.state_dir / FILE_NAME)
    content = (place.state_dir / FILE_NAME).read_bytes()

    async with place.app() as app:
        assert app.stored.value == value
        assert await app.history.jobs(limit=10) == []
        (event,) = await app.history.events()
        assert event["type"] == "state.damaged"
        assert Path(event["data"]["file"]).read_bytes() == content
    async with place.app() as app:  # and that was all: the next start finds nothing wrong
        assert len(await app.history.events()) == 1
        assert app.stored.value == value


async def test_a_sound_or_absent_file_is_not_set_aside(tmp_path: Path) -> None:
    assert set_aside(tmp_path, START) is None
    Database.open(tmp_path).close()
    assert set_aside(tmp_path, START) is None
    (tmp_path / "state.db").write_bytes(b"")  # made, and the machine lost power
    assert set_aside(tmp_path, START) is None
    Database.open(tmp_path).close()


async def test_a_full_disk_gives_a_state_error_and_what_was_there_stays(tmp_path: Path) -> None:
    database = Database.open(tmp_path)
    values = Values(database)
    await values.set("before", "here")
    # SQLite's own limit on the file stands for a disk that is full: it fails in the same way and at the same places
    await database.run(lambda db: db.execute("SELECT 1").fetchone())
    database._connection.execute("PRAGMA max_page_count = 20")
    with pytest.raises(StateError, match="full") as caught:
        await values.set("big", "x" * 1_000_000)
    assert "disk" in caught.value.hint
    assert (await values.get("before"), await values.get("big")) == ("here", None)
    await values.set("small", 1)
    assert await values.get("small") == 1
    database.close()


async def test_a_file_that_cannot_be_written_gives_a_state_error(tmp_path: Path) -> None:
    database = Database.open(tmp_path)
    database._connection.execute("PRAGMA query_only = ON")  # root may write any file; SQLite itself obeys this
    with pytest.raises(StateError, match="readonly"):
        await Values(database).set("a", 1)
    database.close()


async def test_a_directory_in_place_of_the_file_gives_a_state_error(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(StateError):
        async with opened(Place(tmp_path).file.model_copy(update={"state_dir": tmp_path})):
            pass


async def test_only_the_owner_can_read_the_file_and_its_logs(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        database = Database.open(tmp_path / "state")
        await Values(database).set("a", 1)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()}
        assert modes == {FILE_NAME: 0o600, f"{FILE_NAME}-wal": 0o600, f"{FILE_NAME}-shm": 0o600}
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    finally:
        os.umask(before)
    database.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from service.state import Database, History, Values
from service.job import Job
from service.state.history import Request
from datetime import UTC, datetime

async def write(first):
    history = History(Database.open(Path(sys.argv[1])))
    number = first
    while True:
        now = datetime.now(UTC)
        job = Job(id=f"{number:016x}", kind="backup", origin="socket", state="queued", created=now)
        request = Request(str(number), "backup.start", {})
        await history.add_job(job, request=request, values={"last": number})
        await history.add_event(number, {"seq": number})
        sys.stdout.write(f"{number}\\n")
        sys.stdout.flush()
        number += 1

for line in sys.stdin:
    asyncio.run(write(int(line)))
"""


def written_until_killed(state: Path, first: int, after: int) -> int:
    """Let a process write from number `first` on, kill it after some acknowledgements; return the last that it gave."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert writer.stdin is not None and writer.stdout is not None
    writer.stdin.write(f"{first}\n")
    writer.stdin.flush()
    acknowledged = first - 1
    for _ in range(after):
        acknowledged = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    for line in writer.stdout:
        if line.endswith("\n"):
            acknowledged = int(line)
    writer.stdin.close()
    writer.wait()
    writer.stdout.close()
    return acknowledged


async def test_every_acknowledged_write_outlives_twenty_kills(tmp_path: Path) -> None:
    first, acknowledged = 1, set[int]()
    for kill in range(20):
        last = await asyncio.to_thread(written_until_killed, tmp_path, first, 1 + kill % 3)
        assert set_aside(tmp_path, START) is None
        database = Database.open(tmp_path)
        history = History(database)
        ids = {int(found.id, 16) for found in await history.unfinished()}
        counted = await Values(database).get("last")
        keys = await database.run(lambda db: db.execute("SELECT count(*) FROM idempotency").fetchone()[0])
        events = {event["seq"] for event in await history.events()}
        assert await database.run(lambda db: db.execute("PRAGMA integrity_check").fetchall()) == [("ok",)]
        database.close()
        assert ids == set(range(1, counted + 1)), "a job is missing"
        assert last <= counted <= last + 1, "what was acknowledged is gone, or more than one was under way"
        assert keys == counted, "job and key are not one transaction"
        acknowledged |= set(range(first, last + 1))
        assert events >= {number for number in acknowledged if number > counted - KEPT_EVENTS}
        first = counted + 1


def test_what_is_written_is_json(tmp_path: Path) -> None:
    database = Database.open(tmp_path)
    asyncio.run(History(database).save_job(job(1, created=datetime(2026, 1, 1, tzinfo=UTC))))
    row = database.read("SELECT content FROM jobs")
    assert row is not None and json.loads(row[0])["created"] == "2026-01-01T00:00:00+00:00"
    database.close()
