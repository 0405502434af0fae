"""What every target keeps, whatever it is: the contract of `storage_backends.base`, as tests."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, MutableSequence
from contextlib import aclosing, suppress
from dataclasses import astuple
from datetime import UTC, datetime, timedelta
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from multiprocessing.synchronize import Event as EventType
from pathlib import Path

import pytest

from storage_backends import InvalidKey, ObjectChanged, ObjectExists, ObjectInfo, ObjectNotFound, StorageBackend
from tests.conformance.target_place import KINDS, Place, make_place
from tests.scoreboard import counted
from tests.sizes import size

Count = Callable[[str, object], None]

MIB = 1 << 20
RACES = 25


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return make_place(request.param, tmp_path, request.getfixturevalue)


@pytest.fixture
async def target(place: Place) -> AsyncIterator[StorageBackend]:
    async with place.open() as backend:
        yield backend


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def read(target: StorageBackend, key: str, **options: object) -> bytes:
    async with aclosing(target.get(key, **options)) as data:  # type: ignore[arg-type]  # of `get`
        return b"".join([piece async for piece in data])


async def listed(target: StorageBackend, prefix: str = "") -> list[ObjectInfo]:
    return [info async for info in target.list_objects(prefix)]


async def keys(target: StorageBackend) -> list[str]:
    return [info.key for info in await listed(target)]


def how_often(place: Place) -> int:
    return min(RACES, place.rounds) * size("RACES_TIMES", 1)


class Broken(Exception):
    """An error of whoever makes the data."""


def test_a_target_says_what_it_promises(target: StorageBackend) -> None:
    for sentence in astuple(target.promise):
        assert sentence.endswith(".")
        assert sentence.partition(" ")[0].rstrip(":,") in {"Yes", "No", "Unknown", "Only", "As"}


async def test_what_is_absent_is_not_found(target: StorageBackend) -> None:
    with pytest.raises(ObjectNotFound):
        await target.stat("absent")
    with pytest.raises(ObjectNotFound):
        await read(target, "absent")
    assert await listed(target) == []


async def test_an_object_comes_back_as_it_was_put(target: StorageBackend) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    content = os.urandom(3 * MIB + 17)
    info = await target.put(
        "Backup_20260102_0304Z.zip", pieces(content[:5], b"", content[5 : 2 * MIB], content[2 * MIB :])
    )
    assert (info.key, info.size) == ("Backup_20260102_0304Z.zip", len(content))
    assert before <= info.modified <= datetime.now(UTC) + timedelta(seconds=2)
    assert await target.stat(info.key) == info
    assert await listed(target) == [info]
    assert await read(target, info.key) == content


async def test_an_object_of_no_bytes_is_an_object(target: StorageBackend) -> None:
    for key, data in (("none", pieces()), ("empty-pieces", pieces(b"", b""))):
        assert (await target.put(key, data)).size == 0
        assert await read(target, key) == b""
        assert await read(target, key, offset=5) == b""
    assert await keys(target) == ["empty-pieces", "none"]


async def test_listing_is_in_the_order_of_keys_and_by_prefix(target: StorageBackend) -> None:
    for key in ("b", "a.zip", "a", "Z", "a-1", "B_2", "10", "9"):
        await target.put(key, pieces(key.encode()))
    assert await keys(target) == sorted(["b", "a.zip", "a", "Z", "a-1", "B_2", "10", "9"])
    assert [info.key for info in await listed(target, "a")] == ["a", "a-1", "a.zip"]
    assert await listed(target, "nothing") == []


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, None), (0, 0), (0, 1), (1, 1), (MIB - 1, 2), (MIB, MIB), (5, 2 * MIB), (0, 2 * MIB + 7), (2 * MIB + 6, 1),
        (2 * MIB + 6, 100), (2 * MIB + 7, 1), (9 * MIB, None), (9 * MIB, 5), (2 * MIB, None),
    ],
)  # fmt: skip
async def test_a_range_is_exact_and_ends_where_the_object_does(
    target: StorageBackend, offset: int, length: int | None
) -> None:
    content = os.urandom(2 * MIB + 7)
    await target.put("object", pieces(content))
    expected = content[offset:] if length is None else content[offset : offset + length]
    assert await read(target, "object", offset=offset, length=length) == expected


async def test_pieces_are_of_one_mebibyte_at_most(target: StorageBackend) -> None:
    await target.put("object", pieces(bytes(5 * MIB)))
    async with aclosing(target.get("object")) as data:
        sizes = [len(piece) async for piece in data]
    assert sum(sizes) == 5 * MIB
    assert max(sizes) <= MIB


async def test_a_pinned_etag_refuses_another_object(target: StorageBackend) -> None:
    first = await target.put("object", pieces(b"first"))
    assert await read(target, "object", etag=first.etag) == b"first"
    second = await target.put("object", pieces(b"other"), overwrite=True)
    assert second.etag != first.etag
    with pytest.raises(ObjectChanged):
        await read(target, "object", etag=first.etag)
    assert await read(target, "object", etag=second.etag) == b"other"


async def test_an_object_is_not_replaced_and_its_data_is_not_even_pulled(target: StorageBackend) -> None:
    info = await target.put("object", pieces(b"first"))
    pulled = []

    async def data() -> AsyncIterator[bytes]:
        pulled.append(True)
        yield b"second"

    with pytest.raises(ObjectExists) as caught:
        await target.put("object", data())
    assert caught.value.hint
    assert not pulled
    assert await target.stat("object") == info
    assert await read(target, "object") == b"first"


async def test_an_object_that_appears_meanwhile_is_not_replaced(target: StorageBackend, place: Place) -> None:
    async def data() -> AsyncIterator[bytes]:
        yield bytes(MIB)
        async with place.open() as other:
            await other.put("object", pieces(b"the first to finish"))
        yield bytes(MIB)

    with pytest.raises(ObjectExists):
        await target.put("object", data())
    assert await read(target, "object") == b"the first to finish"
    assert place.unfinished() == []


async def test_overwrite_replaces_and_leaves_nothing(target: StorageBackend, place: Place) -> None:
    await target.put("object", pieces(b"first"), overwrite=True)
    await target.put("object", pieces(b"second"), overwrite=True)
    assert await read(target, "object") == b"second"
    assert await keys(target) == ["object"]
    assert place.unfinished() == []


async def test_a_reader_keeps_the_object_that_it_began_or_is_told(target: StorageBackend, place: Place) -> None:
    """It never gets some of one and some of the other."""
    await target.put("object", pieces(b"a" * 20 * MIB))
    got = b""
    try:
        async with aclosing(target.get("object")) as data:
            got = await anext(data)
            with suppress(ObjectExists):
                await target.put("object", pieces(b"b" * 20 * MIB), overwrite=True)
            async for piece in data:
                got += piece
    except ObjectChanged:
        assert not place.readers_keep_theirs
        assert set(got) == {ord("a")}
    else:
        assert got == b"a" * 20 * MIB


async def test_of_racing_tasks_exactly_one_wins(target: StorageBackend, place: Place, record_property: Count) -> None:
    for number in range(how_often(place)):
        everybody = asyncio.Barrier(3)

        async def data(mark: bytes, everybody: asyncio.Barrier = everybody) -> AsyncIterator[bytes]:
            await everybody.wait()  # each is past the early look
            yield mark * 1000

        results = await asyncio.gather(
            *(target.put(f"object{number}", data(mark)) for mark in (b"a", b"b", b"c")), return_exceptions=True
        )
        won = [mark for mark, result in zip((b"a", b"b", b"c"), results, strict=True) if isinstance(result, ObjectInfo)]
        assert len(won) == 1
        assert sum(isinstance(result, ObjectExists) for result in results) == 2
        assert await read(target, f"object{number}") == won[0] * 1000
    assert place.unfinished() == []
    record_property("counted", counted(how_often(place), one_winner=how_often(place)))


def _race(place: Place, mark: bytes, start: Barrier | threading.Barrier, results: MutableSequence[bool]) -> None:
    async def run() -> list[bool]:
        won = []
        async with place.open() as target:
            for number in range(how_often(place)):
                await asyncio.to_thread(start.wait, 60)
                try:
                    await target.put(f"object{number:03}", pieces(mark * 100_000))
                except ObjectExists:
                    won.append(False)
                else:
                    won.append(True)
        return won

    for number, won in enumerate(asyncio.run(run())):
        results[number] = won


async def test_of_racing_processes_exactly_one_wins(
    target: StorageBackend, place: Place, record_property: Count
) -> None:
    """Of racing threads of one process, each with a backend of its own, where no more is promised."""
    results: dict[bytes, MutableSequence[bool]] = {mark: [False] * how_often(place) for mark in (b"a", b"b")}
    if place.other_processes_keep_out:
        context = get_context("spawn")
        start = context.Barrier(2)
        results = {mark: context.Array("b", how_often(place)) for mark in results}  # type: ignore[misc]  # serves as one
        processes = [context.Process(target=_race, args=(place, mark, start, results[mark])) for mark in results]
        for process in processes:
            process.start()
        for process in processes:
            await asyncio.to_thread(process.join, 120 * size("RACES_TIMES", 1))
            assert process.exitcode == 0
            process.close()
    else:
        assert "Only among backups of one running service" in target.promise.no_overwrite
        together = threading.Barrier(2)
        races = (asyncio.to_thread(_race, place, mark, together, results[mark]) for mark in results)
        await asyncio.gather(*races)
    for number in range(how_often(place)):
        won = [mark for mark, array in results.items() if array[number]]
        assert len(won) == 1
        assert await read(target, f"object{number:03}") == won[0] * 100_000
    assert place.unfinished() == []
    record_property("counted", counted(how_often(place), one_winner=how_often(place)))


async def test_cancelling_midway_leaves_nothing(target: StorageBackend, place: Place) -> None:
    underway = asyncio.Event()

    async def data() -> AsyncIterator[bytes]:
        yield bytes(3 * MIB)
        underway.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(target.put("object", data()))
    await underway.wait()
    assert await listed(target) == []
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await listed(target) == []
    assert place.unfinished() == []


async def test_cancelling_at_any_moment_leaves_the_object_whole_or_nothing(
    target: StorageBackend, place: Place
) -> None:
    """The longest delays are beyond the end; the others fall all over creating, writing and publishing."""
    content = os.urandom(2 * MIB)
    whole = 60.0
    for _ in range(5):  # the first also connects, and the machine may be busy
        began = time.perf_counter()
        await target.put("measure", pieces(content))
        whole = min(whole, time.perf_counter() - began)
        await target.delete("measure")
    cancelled = 0
    for number in range(place.rounds):
        task = asyncio.create_task(target.put("object", pieces(content[:MIB], content[MIB:])))
        await asyncio.sleep(whole * number / (place.rounds * 5 / 6))
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            cancelled += 1
            assert await listed(target) == []
        else:
            assert await read(target, "object") == content
            await target.delete("object")
        assert place.unfinished() == []
    assert cancelled > place.rounds / 6


async def test_cancelling_just_after_it_became_visible_takes_it_back_or_succeeds(
    target: StorageBackend, place: Place
) -> None:
    for number in range(place.rounds):
        task = asyncio.create_task(target.put("object", pieces(b"whole")))
        while not task.done() and not await keys(target):
            await asyncio.sleep(0)
        for _ in range(number):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert await keys(target) == ([] if task.cancelled() else ["object"])
        await target.delete("object")


async def test_an_error_of_the_data_passes_unchanged_and_leaves_nothing(target: StorageBackend, place: Place) -> None:
    for error in (Broken("no more"), OSError(28, "No space left on device"), ObjectNotFound("of another target")):

        async def data(error: Exception = error) -> AsyncIterator[bytes]:
            yield bytes(2 * MIB)
            raise error

        with pytest.raises(type(error)) as caught:
            await target.put("object", data())
        assert caught.value is error
        assert await listed(target) == []
        assert place.unfinished() == []


async def test_data_is_not_pulled_faster_than_it_is_stored(target: StorageBackend, place: Place) -> None:
    async def data() -> AsyncIterator[bytes]:
        for _ in range(128):
            yield bytes(MIB)

    await target.put("first", pieces(b"x"))  # connects, and imports what that needs
    tracemalloc.start()
    try:
        await target.put("object", data())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (await target.stat("object")).size == 128 * MIB
    itself = 128 * MIB * 9 // 8 if place.in_this_process else 0  # a growing buffer is an eighth ahead
    assert peak < itself + 32 * MIB


def _upload_for_ever(place: Place, underway: EventType) -> None:
    async def data() -> AsyncIterator[bytes]:
        while True:
            yield bytes(MIB)
            underway.set()

    async def run() -> None:
        async with place.open() as target:
            await target.put("object", data())

    asyncio.run(run())


async def test_killing_the_writer_shows_nothing_and_sweep_clears_up(target: StorageBackend, place: Place) -> None:
    context = get_context("spawn")
    underway = context.Event()
    process = context.Process(target=_upload_for_ever, args=(place, underway))
    process.start()
    assert await asyncio.to_thread(underway.wait, 60)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    process.close()
    assert await listed(target) == []
    left = len(place.unfinished())
    assert await target.sweep(datetime.now(UTC) + timedelta(minutes=1)) == left
    assert place.unfinished() == []
    await target.put("object", pieces(b"again"))
    assert await read(target, "object") == b"again"


def _announce_for_ever(place: Place, announced: Connection) -> None:
    async def data() -> AsyncIterator[bytes]:
        while True:
            yield bytes(MIB)
            announced.send("")

    async def announce(name: str) -> None:
        announced.send(name)

    async def run() -> None:
        async with place.open() as target:
            await target.put("object", data(), announce=announce)

    asyncio.run(run())


async def test_what_a_killed_writer_announced_goes_at_once_and_nothing_of_others(
    target: StorageBackend, place: Place
) -> None:
    """Another machine writes to the same place meanwhile, and a third was killed a moment ago."""
    others: list[str] = []
    under_way, going_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        for _ in range(6):
            yield bytes(MIB)
        under_way.set()
        await going_on.wait()
        yield b"end"

    async def announce(name: str) -> None:
        others.append(name)

    other = asyncio.create_task(target.put("other", slow(), announce=announce))
    receiver, sender = Pipe(duplex=False)
    process = get_context("spawn").Process(target=_announce_for_ever, args=(place, sender))
    process.start()
    announced: list[str] = []
    for _ in range(12):  # long enough for the first part of an upload in parts
        while name := await asyncio.to_thread(receiver.recv):
            announced.append(name)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    process.close()
    receiver.close()
    sender.close()
    place.abandon_upload(datetime.now(UTC))
    await under_way.wait()

    removed = [await target.discard(name) for name in announced]
    assert await target.sweep(datetime.now(UTC) - timedelta(hours=24)) == 0
    left = place.unfinished()
    assert [await target.discard(name) for name in announced] == [False] * len(announced)
    going_on.set()
    assert (await other).size == 6 * MIB + 3
    assert len(await read(target, "other")) == 6 * MIB + 3
    assert len(left) - len(place.unfinished()) == (1 if place.leaves_something else 0), "the other's upload was there"
    assert len(place.unfinished()) == 1, "what the third left is not a day old"
    assert any(removed) is place.leaves_something
    assert [await target.discard(name) for name in others] == [False] * len(others)


@pytest.mark.parametrize(
    "name",
    ["object", "upload object 1", "object object", "upload object", ".deviceon-backup-x", "/etc/passwd", "", " ",
     "upload", "../.deviceon-backup-1.part", ".deviceon-backup-/../../x.part", "upload ../x 1",
     "object .deviceon-backup-x.lock"],
)  # fmt: skip
async def test_nothing_is_discarded_that_was_not_announced(target: StorageBackend, place: Place, name: str) -> None:
    await target.put("object", pieces(b"x"))
    place.put_by_hand(".deviceon-backup-x", b"somebody's")
    assert await target.discard(name) is False
    assert await keys(target) == ["object"]
    assert place.unfinished() == [".deviceon-backup-x"]


async def test_an_announcement_that_fails_ends_the_upload(target: StorageBackend, place: Place) -> None:
    async def announce(name: str) -> None:
        raise OSError("nobody can remember that")

    async def data() -> AsyncIterator[bytes]:
        for _ in range(7):
            yield bytes(MIB)

    if place.announces:
        with pytest.raises(OSError, match="nobody can remember"):
            await target.put("object", data(), announce=announce)
        assert await keys(target) == place.unfinished() == []


async def test_deleting_twice_is_fine(target: StorageBackend) -> None:
    await target.put("object", pieces(b"x"))
    await target.put("other", pieces(b"y"))
    await target.delete("object")
    await target.delete("object")
    assert await keys(target) == ["other"]
    await target.put("object", pieces(b"new"))
    assert await read(target, "object") == b"new"


async def test_sweep_removes_old_unfinished_uploads_and_nothing_else(target: StorageBackend, place: Place) -> None:
    now = datetime.now(UTC)
    await target.put("object", pieces(b"x"))
    place.put_by_hand(".deviceon-backup-notes.txt", b"somebody's")
    place.put_by_hand(".hidden", b"somebody's")
    place.put_by_hand("deviceon-backup-1.part", b"somebody's")
    for hours in (1, 23, 25, 100):
        place.abandon_upload(now - timedelta(hours=hours))
    assert await target.sweep(now - timedelta(hours=24)) == 2
    assert await target.sweep(now - timedelta(hours=24)) == 0
    assert await target.sweep(now + timedelta(minutes=1)) == 2
    assert sorted(place.unfinished()) == [".deviceon-backup-notes.txt", ".hidden"]
    assert await keys(target) == ["deviceon-backup-1.part", "object"]


@pytest.mark.parametrize(
    "key",
    ["", ".", "..", ".hidden", "-x", "_x", "a/b", "../x", "/etc/passwd", "a\\b", "a b", "a.", "a\0b", "a\n", "ä", "a:b",
     "a*", "x" * 201],
)  # fmt: skip
async def test_odd_names_are_refused_everywhere(target: StorageBackend, place: Place, key: str) -> None:
    pulled = []

    async def data() -> AsyncIterator[bytes]:
        pulled.append(True)
        yield b""

    with pytest.raises(InvalidKey):
        await target.put(key, data())
    assert not pulled
    with pytest.raises(InvalidKey):
        await target.stat(key)
    with pytest.raises(InvalidKey):
        await read(target, key)
    with pytest.raises(InvalidKey):
        await target.delete(key)
    assert place.unfinished() == []


async def test_the_longest_and_the_shortest_name_work(target: StorageBackend) -> None:
    for key in ("x" * 200, "x", "A-", "0..a"):
        await target.put(key, pieces(key.encode()))
        assert await read(target, key) == key.encode()
    assert len(await listed(target)) == 4


async def test_many_writers_and_readers_at_once(target: StorageBackend, place: Place) -> None:
    contents = {f"object{number}": os.urandom(2 * MIB + number) for number in range(12)}

    async def there_and_back(key: str, content: bytes) -> None:
        await target.put(key, pieces(content[:MIB], content[MIB:]))
        assert await read(target, key) == content

    async with asyncio.TaskGroup() as group:
        for key, content in contents.items():
            group.create_task(there_and_back(key, content))
    assert await keys(target) == sorted(contents)
    assert place.unfinished() == []


async def test_nothing_stays_open(target: StorageBackend) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield bytes(MIB)
        raise Broken

    async def once(number: int) -> None:
        await target.put(f"object{number}", pieces(bytes(3 * MIB)))
        async with aclosing(target.get(f"object{number}")) as data:
            await anext(data)  # and leave early
        with pytest.raises(ObjectExists):
            await target.put(f"object{number}", pieces(b""))
        with pytest.raises(Broken):
            await target.put("failing", failing())
        with pytest.raises(ObjectChanged):
            await read(target, f"object{number}", etag="another")
        with pytest.raises(ObjectNotFound):
            await read(target, "absent")
        await listed(target)

    await once(0)
    descriptors, threads = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    for number in range(1, 6):
        await once(number)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert threading.active_count() == threads
