"""Packing archives into a real local target: order, bounds, and every way to fail."""

from __future__ import annotations

import asyncio
import os
import resource
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from service.archive.names import parse_stream_entry
from service.errors import SourceError
from service.pipeline import lane, level
from service.pipeline.pack import pack
from service.pipeline.unpack import ArchiveReader
from service.progress import Progress
from service.sources.base import Stream
from storage_backends.base import ObjectExists, ObjectInfo, TargetFull, TargetUnavailable
from storage_backends.local import LocalBackend
from tests.pipeline_archives import (
    CREATED,
    NAME,
    Compression,
    GivenSnapshot,
    HeldKey,
    contents,
    longest_pause,
    packed,
    prepared,
    stream_of,
)
from tests.scoreboard import counted


@pytest.fixture(autouse=True)
def chunks_go_through_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small chunks of these tests take the way of large ones."""
    for module in (lane,):
        monkeypatch.setattr(module, "SMALL_BYTES", -1)


@pytest.fixture
def target(tmp_path: Path) -> LocalBackend:
    return LocalBackend(tmp_path)


def check_nothing_is_left(tmp_path: Path) -> None:
    """No file, also no hidden one; no task; no thread of ours."""
    assert list(tmp_path.iterdir()) == []
    check_nothing_runs()


def check_nothing_runs() -> None:
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith(("pipeline", "target"))] == []


class Watched:
    """Streams that tell when they are read and closed."""

    def __init__(self) -> None:
        self.open = 0
        self.most_open = 0
        self.closed = 0
        self.raw = 0

    def stream(
        self, pieces: int, *, piece: bytes = b"p" * 400, fail_at: int = -1, fail_closing: bool = False
    ) -> Stream:
        async def read() -> AsyncGenerator[bytes, None]:
            self.open += 1
            self.most_open = max(self.most_open, self.open)
            try:
                for number in range(pieces):
                    await asyncio.sleep(0)
                    if number == fail_at:
                        raise SourceError(f"piece {number} cannot be read")
                    self.raw += len(piece)
                    yield piece
                if fail_at == pieces:
                    raise SourceError("the end cannot be read")
            finally:
                self.open -= 1
                self.closed += 1
                if fail_closing:
                    raise SourceError("said while being torn down")

        return Stream(kind="test.bytes", labels={}, read=read)


# What is written


@pytest.mark.parametrize("parallel", [1, 2, 3])
async def test_streams_of_a_source_are_read_at_once_up_to_what_it_allows(target: LocalBackend, parallel: int) -> None:
    watched = Watched()
    snapshot = GivenSnapshot([watched.stream(20) for _ in range(5)], parallel=parallel)
    await packed(target, {"db": snapshot}, HeldKey())
    assert (watched.most_open, watched.open, watched.closed) == (parallel, 0, 5)


async def test_chunks_of_streams_interleave_in_the_file_and_each_stream_stays_in_order(target: LocalBackend) -> None:
    held = HeldKey()
    await packed(target, {"db": GivenSnapshot([Watched().stream(40) for _ in range(3)], parallel=3)}, held)
    reader = await ArchiveReader.open(target, NAME, [held])
    places = [parsed[:2] for entry in reader.entries if (parsed := parse_stream_entry(entry.name))]
    first_of_last = places.index((3, 0))
    assert first_of_last < places.index((1, 15))
    for stream in (1, 2, 3):
        assert [index for number, index in places if number == stream] == list(range(16))


async def test_sources_are_read_one_after_the_other_and_streams_numbered_in_their_order(target: LocalBackend) -> None:
    watched = Watched()
    order = []

    class Told(GivenSnapshot):
        async def facts(self) -> dict[str, Any]:
            order.append((watched.open, watched.closed))
            return {"warnings": ["late"], "excluded": [{"path": "mongo", "reason": "sensor data"}], "rows": 7}

    snapshots: dict[str, GivenSnapshot] = {
        "one": Told([watched.stream(3), watched.stream(1)]),
        "two": Told([watched.stream(2)]),
        "none": Told([]),
    }
    made = await packed(target, snapshots, None)
    assert order == [(0, 2), (0, 3), (0, 3)]
    assert [(stream.id, stream.source, stream.bytes) for stream in made.manifest.streams] == [
        (1, "one", 1200),
        (2, "one", 400),
        (3, "two", 800),
    ]
    assert made.manifest.warnings == ["one: late", "two: late", "none: late"]
    assert made.manifest.excluded[0] == {"source": "one", "path": "mongo", "reason": "sensor data"}
    assert made.manifest.sources[0].facts == {"rows": 7}


async def test_details_are_taken_when_the_stream_has_ended(target: LocalBackend) -> None:
    details: dict[str, Any] = {}

    async def read() -> AsyncGenerator[bytes, None]:
        yield b"abc"
        details["rows"] = 3

    stream = Stream(kind="test.rows", labels={"table": "t"}, read=read, details=details, expected_bytes=10)
    progress = Progress()
    made = await packed(target, {"db": GivenSnapshot([stream])}, None, progress=progress)
    assert (made.manifest.streams[0].details, made.manifest.streams[0].labels) == ({"rows": 3}, {"table": "t"})
    assert progress.expected_raw == 10


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 2000, 3000])
async def test_sizes_around_whole_chunks_come_back(target: LocalBackend, size: int) -> None:
    held = HeldKey()
    raw = os.urandom(size)
    await packed(target, {"db": GivenSnapshot([stream_of([raw])])}, held, chunk_bytes=1000)
    reader = await ArchiveReader.open(target, NAME, [held])
    assert await contents(reader) == [raw]
    assert reader.manifest.streams[0].chunks == max(1, -(-size // 1000))


# What fails


@pytest.mark.parametrize("fail_at", [0, 1, 4, 5, 9, 10])
async def test_a_source_that_fails_at_any_piece_publishes_nothing(
    target: LocalBackend, tmp_path: Path, fail_at: int
) -> None:
    watched = Watched()
    streams = [
        watched.stream(50, fail_closing=True),
        watched.stream(10, fail_at=fail_at),
        watched.stream(50),
        watched.stream(1),
    ]
    with pytest.raises(SourceError, match="cannot be read"):
        await packed(target, {"db": GivenSnapshot(streams, parallel=3)}, HeldKey())
    assert (watched.open, watched.closed) == (0, 3)
    check_nothing_is_left(tmp_path)


async def test_a_source_that_fails_after_its_last_stream_publishes_nothing(
    target: LocalBackend, tmp_path: Path
) -> None:
    class Lost(GivenSnapshot):
        async def facts(self) -> dict[str, Any]:
            raise SourceError("the view was not held")

    with pytest.raises(SourceError, match="not held"):
        await packed(target, {"db": Lost([stream_of([b"abc"])])}, None)
    check_nothing_is_left(tmp_path)


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """The kernel refuses to write further: EFBIG, as a full disk refuses with ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_target_that_fails_at_any_byte_raises_its_own_error(
    target: LocalBackend, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    whole = (await packed(target, {"db": failing_closing(Watched())}, HeldKey(), name="Backup_20260101_0000Z.zip")).info
    await target.delete(whole.key)
    limits = range(0, whole.size - 100, 197)  # the size varies by some bytes: the content is random
    for limit in limits:
        watched = Watched()
        with files_limited_to(limit), pytest.raises(TargetFull):
            await packed(target, {"db": failing_closing(watched)}, HeldKey())
        assert watched.open == 0
        check_nothing_is_left(tmp_path)
    record_property("counted", counted(len(limits), "places where the target took no more", refused=len(limits)))


def failing_closing(watched: Watched) -> GivenSnapshot:
    """Streams whose own complaint, when they are torn down, must not hide the target's error."""

    async def read() -> AsyncGenerator[bytes, None]:
        watched.open += 1
        try:
            for number in range(12):
                await asyncio.sleep(0)
                yield os.urandom(500) + b"%d" % number
        except BaseException as exc:
            raise SourceError("said while being torn down") from exc
        finally:
            watched.open -= 1

    return GivenSnapshot([Stream(kind="test.bytes", labels={}, read=read) for _ in range(2)])


async def test_a_name_that_is_taken_fails_without_reading_everything(target: LocalBackend) -> None:
    await packed(target, {"db": GivenSnapshot([stream_of([b"old"])])}, None)
    watched = Watched()
    with pytest.raises(ObjectExists):
        await packed(target, {"db": GivenSnapshot([watched.stream(100_000)])}, None)
    assert watched.open == 0
    assert watched.raw < 1_000_000
    assert await contents(await ArchiveReader.open(target, NAME, [])) == [b"old"]
    check_nothing_runs()


async def test_cancelling_at_any_moment_publishes_nothing_and_leaves_nothing_running(
    target: LocalBackend, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    cancelled = steps = finished = 0
    while finished < 3:  # the moment of the end varies a little: go beyond it
        watched = Watched()
        snapshot = GivenSnapshot([watched.stream(9), watched.stream(4), watched.stream(0)], parallel=2)
        packing = asyncio.ensure_future(packed(target, {"db": snapshot}, HeldKey()))
        for _ in range(steps):
            await asyncio.sleep(0)
        steps += 1 if steps < 100 else 7
        packing.cancel()
        try:
            made = await packing
        except asyncio.CancelledError:
            cancelled += 1
        else:
            finished += 1
            await target.delete(made.info.key)
        assert watched.open == 0
        check_nothing_is_left(tmp_path)
    assert cancelled > 50
    record_property("counted", counted(cancelled + finished, "", cancelled=cancelled, finished=finished))


async def test_a_failure_waits_for_the_threads_without_stopping_the_event_loop(
    target: LocalBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(raw: memoryview, *, level: int) -> bytes:
        time.sleep(1.0)
        return bytes(raw)

    monkeypatch.setattr(level, "compress", slow)
    streams = [Watched().stream(6, fail_at=4)]
    began = time.monotonic()
    assert await longest_pause(packed(target, {"db": GivenSnapshot(streams)}, None)) < 0.8
    assert time.monotonic() - began > 0.9
    check_nothing_is_left(tmp_path)


async def test_cancelling_wins_over_what_sources_say_while_torn_down(target: LocalBackend, tmp_path: Path) -> None:
    watched = Watched()
    packing = asyncio.ensure_future(packed(target, {"db": failing_closing(watched)}, None))
    while not watched.open:
        await asyncio.sleep(0)
    packing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await packing
    check_nothing_is_left(tmp_path)


async def test_a_time_limit_around_packing_is_told_as_such(target: LocalBackend, tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await packed(target, {"db": GivenSnapshot([Watched().stream(1_000_000)])}, None)
    check_nothing_is_left(tmp_path)


async def test_an_error_keeps_its_own_cause(target: LocalBackend) -> None:
    async def read() -> AsyncGenerator[bytes, None]:
        yield b"a"
        raise SourceError("the server went away") from ConnectionError("reset")

    with pytest.raises(SourceError) as caught:
        await packed(target, {"db": GivenSnapshot([Stream(kind="test.bytes", labels={}, read=read)])}, None)
    assert isinstance(caught.value.__cause__, ConnectionError)


async def test_labels_that_no_manifest_can_hold_are_an_error_of_the_source(
    target: LocalBackend, tmp_path: Path
) -> None:
    stream = stream_of([b"a"], labels={"path": "caf\udce9"})
    with pytest.raises(SourceError, match="manifest"):
        await packed(target, {"config": GivenSnapshot([stream])}, None)
    check_nothing_is_left(tmp_path)


class Misbehaving(LocalBackend):
    """A target that breaks its contract, as a server behind it may."""

    def __init__(self, directory: Path, *, take: int | None = None, lost: int = 0) -> None:
        super().__init__(directory)
        self._take = take
        self._lost = lost

    async def put(self, key: str, data: AsyncIterable[bytes | bytearray], **_: Any) -> ObjectInfo:
        size = 0
        async for piece in data:
            size += len(piece)
            if self._take is not None and size > self._take:
                break
        return ObjectInfo(key, size - self._lost, "etag", datetime.now(UTC))


@pytest.mark.parametrize("fault", [{"take": 1500}, {"lost": 1}])
async def test_a_target_that_did_not_take_every_byte_is_not_believed(tmp_path: Path, fault: dict[str, int]) -> None:
    with pytest.raises(TargetUnavailable, match="were sent"):
        await packed(Misbehaving(tmp_path, **fault), {"db": GivenSnapshot([Watched().stream(50)])}, None)
    check_nothing_runs()


async def test_parts_of_different_archives_are_refused_before_a_byte_is_written(target: LocalBackend) -> None:
    header, slots, keys = await prepared(HeldKey())
    _, _, other = await prepared(HeldKey())
    unsealed, _, _ = await prepared(None)
    rest: dict[str, Any] = {"compression": Compression(), "progress": Progress(), "clock": lambda: CREATED}
    for given in [(header, slots, other), (header, None, keys), (unsealed, slots, keys), (header, None, None)]:
        with pytest.raises(ValueError, match="do not belong"):
            await pack(target, *given, [], tool_version="0", **rest)
    with pytest.raises(ValueError, match="larger"):
        await pack(
            target,
            header,
            slots,
            keys,
            [],
            tool_version="0",
            **rest | {"compression": replace(Compression(), chunk_bytes=header.max_raw + 1)},
        )


async def test_a_target_that_stands_still_stops_the_sources(tmp_path: Path) -> None:
    """Memory is bounded by what can be on its way: c * (3p + 4t + 1), the formula in the text of `pack`."""
    stopped = asyncio.Event()

    class Stalled(LocalBackend):
        async def put(self, key: str, data: AsyncIterable[bytes | bytearray], **_: Any) -> ObjectInfo:
            async for _piece in data:
                await stopped.wait()
            raise AssertionError("never gets here")

    watched = Watched()
    streams = [watched.stream(10_000, piece=b"s" * 250) for _ in range(4)]
    packing = asyncio.ensure_future(packed(Stalled(tmp_path), {"db": GivenSnapshot(streams, parallel=3)}, None))
    seen = -1
    while seen != watched.raw:
        seen = watched.raw
        await asyncio.sleep(0.2)
    threads = os.cpu_count() or 1
    assert 3 * 1000 <= watched.raw <= 1000 * (3 * 3 + 4 * threads + 1)
    packing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await packing
    check_nothing_is_left(tmp_path)
