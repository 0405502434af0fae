"""The pipeline at each of its limits and one beyond it; an archive whose key is not at hand."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from service.archive import chunk, names, zip64
from service.errors import (
    ArchiveError,
    CorruptArchive,
    IncompleteArchive,
    NotAuthentic,
    SourceError,
    UnsupportedArchive,
)
from service.pipeline import layout
from service.pipeline.closed import check_closed
from service.pipeline.ends import Window
from service.pipeline.lane import file_entry
from service.pipeline.layout import Layout
from service.pipeline.ranges import PinnedObject
from service.pipeline.unpack import ArchiveReader, peek
from service.progress import Progress
from storage_backends.base import StorageError
from storage_backends.local import LocalBackend
from tests.pipeline_archives import GivenSnapshot, contents, packed, stream_of
from tests.vectors import small
from tests.vectors.second_reader import open_archive, read_second
from tests.vectors.small import KnownKey

NAME = names.archive_name(small.CREATED)
Put = Callable[[bytes], None]


@pytest.fixture
def target(tmp_path: Path) -> LocalBackend:
    return LocalBackend(tmp_path)


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Put a file where the archive is."""

    def write(data: bytes) -> None:
        (tmp_path / NAME).write_bytes(data)

    return write


async def read_all(target: LocalBackend) -> list[bytes]:
    return await contents(await ArchiveReader.open(target, NAME, [KnownKey()]))


async def refused_by_both(target: LocalBackend, data: bytes, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match) as caught:
        await ArchiveReader.open(target, NAME, [KnownKey()])
    assert type(caught.value) is kind
    with pytest.raises(open_archive.Problem):
        read_second(data, small.DATA_KEY)


# Sizes


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("more", [0, 1])
async def test_a_header_has_at_most_64_kib(target: LocalBackend, put: Put, sealed: bool, more: int) -> None:
    header = small.make_header(sealed=sealed).to_bytes()
    data = small.draft(sealed=sealed, header=header + b" " * (65_536 + more - len(header))).finish()
    put(data)
    if more:
        await refused_by_both(target, data, CorruptArchive, r"header\.json has 65537 bytes")
        with pytest.raises(CorruptArchive):
            await peek(target, NAME)
    else:
        assert (await peek(target, NAME)).header.sealed == sealed
        assert len(await read_all(target)) == len(read_second(data, small.DATA_KEY)) == len(small.STREAMS)


@pytest.mark.parametrize("more", [0, 1])
async def test_key_slots_have_at_most_64_kib(target: LocalBackend, put: Put, more: int) -> None:
    made = small.draft(sealed=True)
    name, slots = made.entries[1]
    made.entries[1] = (name, slots + b" " * (65_536 + more - len(slots)))
    data = made.finish()
    put(data)
    if more:
        await refused_by_both(target, data, CorruptArchive, r"keyslots\.json has 65537 bytes")
    else:
        assert len(await read_all(target)) == len(read_second(data, small.DATA_KEY)) == len(small.STREAMS)


def frame_of(size: int) -> tuple[bytes, bytes]:
    """A good zstd frame of `size` bytes, most of them blocks that hold nothing, and what it holds."""
    raw = os.urandom(20 + (size - 10 - 20) % 3)
    checksum = zstandard.ZstdCompressor(write_checksum=True).compress(raw)[-4:]
    blocks = b"\0\0\0" * ((size - 10 - len(raw)) // 3 - 1) + (len(raw) << 3 | 1).to_bytes(3, "little") + raw
    frame = b"\x28\xb5\x2f\xfd\x24" + bytes((len(raw),)) + blocks + checksum
    assert len(frame) == size
    assert chunk.decompress(frame, max_raw=64) == raw
    return frame, raw


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("more", [0, 1, 16])
async def test_a_chunk_has_at_most_the_published_number_of_bytes(
    target: LocalBackend, put: Put, sealed: bool, more: int
) -> None:
    """Of a chunk that is not sealed, no tag is counted."""
    frame, raw = frame_of(1024 + 4096 + 16 + more)
    manifest = small.make_manifest({1: [raw]}).to_bytes()
    header = small.make_header(sealed=sealed, max_raw=4096).to_bytes()
    made = small.draft(sealed=sealed, streams={1: [raw]}, manifest=manifest, header=header)
    at = 2 if sealed else 1
    body = small.sealed_chunk(made.keys.stream(1), 0, frame, last=True) if made.keys else frame
    made.entries[at] = (made.entries[at][0], body)
    data = made.finish()
    put(data)
    if more:
        await refused_by_both(target, data, CorruptArchive, "larger than a chunk may be")
        with pytest.raises(CorruptArchive, match="larger than a chunk may be"):
            await check_closed(target, NAME, Progress())
    else:
        assert await read_all(target) == [raw]
        assert read_second(data, small.DATA_KEY) == {1: raw}
        await check_closed(target, NAME, Progress())


async def test_a_chunk_that_was_sealed_otherwise_is_told_by_its_place(target: LocalBackend, put: Put) -> None:
    made, other = small.draft(sealed=True), small.draft(sealed=True, data_key=bytes(32))
    made.entries[4] = other.entries[4]
    put(made.finish())
    reader = await ArchiveReader.open(target, NAME, [KnownKey()])
    for work in (contents(reader), reader.verify(Progress())):
        with pytest.raises(
            NotAuthentic, match=r"^chunk 1 of server postgresql\.rows .* is not what was sealed"
        ) as caught:
            await work
        assert caught.value.hint


@pytest.mark.parametrize("more", [0, 1])
async def test_a_manifest_of_64_mib_is_read_and_no_larger_one(target: LocalBackend, put: Put, more: int) -> None:
    described = small.make_manifest(small.STREAMS).to_bytes()
    described += b" " * ((64 << 20) + more - len(described))
    header = small.make_header(sealed=True, max_raw=32 << 20).to_bytes()
    made = small.draft(sealed=True, header=header)
    made.entries.pop()
    made.add_stream(
        names.MANIFEST_STREAM, [described[at : at + (32 << 20)] for at in range(0, len(described), 32 << 20)]
    )
    data = made.finish()
    put(data)
    if more:
        await refused_by_both(target, data, CorruptArchive, "larger than a manifest may be")
    else:
        assert len(await read_all(target)) == len(read_second(data, small.DATA_KEY)) == len(small.STREAMS)


def test_an_entry_that_no_reader_would_take_is_not_written() -> None:
    placing = Layout()
    placing.entries = zip64.MAX_ENTRIES - 1
    placing.place(file_entry("streams/00000001/00000000.zst", b""))
    with pytest.raises(SourceError, match="4194304 chunks") as caught:
        placing.place(file_entry("streams/00000001/00000001.zst", b""))
    assert "chunk_bytes" in caught.value.hint


@pytest.mark.parametrize("sealed", [True, False])
async def test_a_backup_of_more_chunks_than_an_archive_may_have_says_so_and_publishes_nothing(
    target: LocalBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sealed: bool
) -> None:
    snapshot = GivenSnapshot([stream_of([bytes(10_000)])])
    monkeypatch.setattr(layout, "MAX_ENTRIES", 13)  # header, ten chunks, manifest, footer
    await packed(target, {"one": snapshot}, None, name=NAME)
    (tmp_path / NAME).unlink()
    monkeypatch.setattr(layout, "MAX_ENTRIES", 12)
    with pytest.raises(SourceError, match="more than an archive can hold"):
        await packed(target, {"one": snapshot}, None, name=NAME)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_as_large_as_it_may_be_is_read() -> None:
    """Of as many entries as there may be, each as long as it may be: some 377 MB, all of which has been written."""
    longest = zip64.Entry("streams/00000001/00000000.sealed", 1 << 40, 9, 9)
    size = zip64.MAX_ENTRIES * len(zip64.directory_record(longest))
    assert size == 377_487_360
    end = zip64.end_records(entries=zip64.MAX_ENTRIES, directory_offset=1 << 44, directory_size=size)
    tail = bytes(zip64.TAIL_BYTES - len(end)) + end
    found = zip64.locate_directory(tail, file_size=(1 << 44) + size + len(end))
    assert found == zip64.DirectoryLocation(1 << 44, size, zip64.MAX_ENTRIES)


# The two ends


@pytest.mark.parametrize("length", range(1, 60))
async def test_a_header_that_is_cut_off_is_incomplete(target: LocalBackend, put: Put, length: int) -> None:
    put(small.draft(sealed=False).finish()[:length])
    for look in (peek(target, NAME), check_closed(target, NAME, Progress())):
        with pytest.raises(IncompleteArchive, match="incomplete"):
            await look


async def test_a_header_that_is_whole_is_judged_also_when_nothing_follows_it(target: LocalBackend, put: Put) -> None:
    newer = json.dumps(json.loads(small.make_header(sealed=False).to_bytes()) | {"version": 2}).encode()
    local = zip64.local_header("header.json", size=len(newer), crc32=chunk.crc32(newer))
    put(local + newer)
    with pytest.raises(UnsupportedArchive, match="version 2"):
        await peek(target, NAME)
    put(local + newer[:-1])
    with pytest.raises(IncompleteArchive):
        await peek(target, NAME)


@pytest.mark.parametrize(
    ("size", "kind", "told"),
    [(65_536, IncompleteArchive, "its end is missing"), (65_537, CorruptArchive, "65537 bytes")],
)
async def test_a_header_that_is_cut_off_is_incomplete_unless_it_was_too_large(
    target: LocalBackend, put: Put, size: int, kind: type[ArchiveError], told: str
) -> None:
    put(zip64.local_header("header.json", size=size, crc32=0) + bytes(100))
    with pytest.raises(kind, match=told):
        await peek(target, NAME)


async def test_a_header_without_a_byte_is_corrupt(target: LocalBackend, put: Put) -> None:
    put(zip64.local_header("header.json", size=0, crc32=0))
    with pytest.raises(CorruptArchive):
        await peek(target, NAME)


@pytest.mark.parametrize("at", [0, 1, 2, 3, 30, 40])
@pytest.mark.parametrize("length", [1, 4, 31, 41, 400])
async def test_what_does_not_begin_like_an_archive_is_none(
    target: LocalBackend, put: Put, at: int, length: int
) -> None:
    data = bytearray(small.draft(sealed=False).finish())
    data[at] ^= 1
    if at >= length:
        return
    put(bytes(data[:length]))
    with pytest.raises(UnsupportedArchive, match="not an archive of this service") as caught:
        await peek(target, NAME)
    assert "empty" not in str(caught.value)


async def test_an_empty_file_is_called_empty(target: LocalBackend, put: Put) -> None:
    put(b"")
    with pytest.raises(UnsupportedArchive, match="is empty"):
        await peek(target, NAME)


@pytest.mark.parametrize("change", [{"archive_id": "11" * 16}, {"entries": 99}], ids=str)
async def test_a_look_tells_when_header_and_footer_are_of_different_archives(
    target: LocalBackend, put: Put, change: dict[str, Any]
) -> None:
    put(small.draft(sealed=False).finish(**change))
    with pytest.raises(CorruptArchive, match="different archives"):
        await peek(target, NAME)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize(
    "change",
    [{"archive_id": "11" * 16}, {"entries": 99}, {"bytes": 1}, {"directory_sha256": "11" * 32}],
    ids=lambda change: next(iter(change)),
)
async def test_a_footer_that_tells_something_else_is_refused_with_a_key_and_without(
    target: LocalBackend, put: Put, change: dict[str, Any], sealed: bool
) -> None:
    """Its MAC is made over what it tells, as only the key's owner could."""
    data = small.draft(sealed=sealed).finish(**change)
    put(data)
    await refused_by_both(target, data, CorruptArchive, "do not belong together")
    with pytest.raises(CorruptArchive, match="do not belong together"):
        await check_closed(target, NAME, Progress())


# Without a key


@pytest.mark.parametrize("sealed", [True, False])
async def test_without_its_key_an_archive_is_known_to_be_whole(target: LocalBackend, put: Put, sealed: bool) -> None:
    data = small.draft(sealed=sealed).finish()
    put(data)
    progress = Progress()
    found = await check_closed(target, NAME, progress)
    assert (found.info.size, found.header.sealed, found.footer.raw_bytes) == (len(data), sealed, 128)
    assert progress.expected_raw == len(data)
    assert progress.raw == progress.stored == zip64.locate_directory(data, file_size=len(data)).offset


async def test_without_its_key_every_flipped_bit_is_found(target: LocalBackend, put: Put) -> None:
    data = small.draft(sealed=True).finish()
    for bit in range(0, len(data) * 8, 37):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        put(bytes(flipped))
        with pytest.raises(ArchiveError):
            await check_closed(target, NAME, Progress())


async def test_without_its_key_an_archive_under_another_name_is_refused(target: LocalBackend, tmp_path: Path) -> None:
    other = "Backup_20260102_0304Z.zip"
    (tmp_path / other).write_bytes(small.draft(sealed=True).finish())
    with pytest.raises(ArchiveError, match="was written as") as caught:
        await check_closed(target, other, Progress())
    assert type(caught.value) is ArchiveError


async def test_without_its_key_slots_that_cannot_be_read_are_found(target: LocalBackend, put: Put) -> None:
    made = small.draft(sealed=True)
    made.entries[1] = (names.KEYSLOTS, b'{"slots":[]}')
    put(made.finish())
    with pytest.raises(CorruptArchive, match="key slots"):
        await check_closed(target, NAME, Progress())


# Ranges


def placed(*sizes: int, gap_before: int | None = None) -> list[zip64.Entry]:
    entries: list[zip64.Entry] = []
    offset = 0
    for index, size in enumerate(sizes):
        offset += 7 if index == gap_before else 0
        entries.append(zip64.Entry(f"streams/00000001/{index:08x}.zst", offset, size, 0))
        offset = entries[-1].end
    return entries


@pytest.mark.parametrize(
    ("entries", "at_once", "requests"),
    [
        (placed(10, 20, 30), 10_000, [(0, 237)]),
        (placed(10, 20, 30), 237, [(0, 237)]),
        (placed(10, 20, 30), 236, [(0, 148), (148, 89)]),
        (placed(10, 20, 30)[1:], 168, [(69, 168)]),
        (placed(10, 20, 30)[1:], 167, [(69, 79), (148, 89)]),
        (placed(10, 20, 30), 1, [(0, 69), (69, 79), (148, 89)]),
        (placed(10, 20, 30, gap_before=2), 10_000, [(0, 148), (155, 89)]),
        (placed(10, 20, 30, gap_before=1), 10_000, [(0, 69), (76, 168)]),
        (placed(10, 20, 30)[::-1], 10_000, [(148, 89), (69, 79), (0, 69)]),
        ([], 10_000, []),
    ],
)
async def test_entries_that_follow_one_another_come_together_up_to_so_many_bytes(
    tmp_path: Path, entries: list[zip64.Entry], at_once: int, requests: list[tuple[int, int]]
) -> None:
    asked: list[tuple[int, int | None]] = []

    class Asked(LocalBackend):
        async def get(
            self, key: str, *, offset: int = 0, length: int | None = None, etag: str | None = None
        ) -> AsyncGenerator[bytes, None]:
            asked.append((offset, length))
            async for piece in super().get(key, offset=offset, length=length, etag=etag):
                yield piece

    data = os.urandom(300)
    (tmp_path / NAME).write_bytes(data)
    target = Asked(tmp_path)
    archive = PinnedObject(target, await target.stat(NAME))
    async for entry, record in archive.records(entries, at_once=at_once):
        assert record == data[entry.offset : entry.end]
    assert asked == requests


async def test_a_target_that_delivers_less_than_it_has_is_told(target: LocalBackend, put: Put) -> None:
    put(small.draft(sealed=False).finish())
    archive = PinnedObject(target, await target.stat(NAME))
    with pytest.raises(IncompleteArchive, match="10 bytes less"):
        await archive.read(archive.info.size - 90, 100)
    assert len(await archive.read(archive.info.size - 90, 90)) == 90


async def test_a_directory_of_megabytes_goes_out_in_pieces_and_is_the_same() -> None:
    placing = Layout()
    for index in range(30_000):
        placing.place(file_entry(f"streams/00000001/{index:08x}.zst", b""))
    entries = placed(*[0] * 30_000)
    records = b"".join(map(zip64.directory_record, entries))
    pieces = list(placing.finish())
    ending = zip64.end_records(entries=30_000, directory_offset=entries[-1].end, directory_size=len(records))
    assert b"".join(pieces) == records + ending
    assert [len(piece) for piece in pieces] == [1 << 20, 1 << 20, len(records) - (2 << 20), len(ending)]
    assert placing.offset == entries[-1].end + len(records) + len(ending)
    assert placing.directory_sha256() == zip64.directory_digest(entries)


@pytest.mark.parametrize(
    ("offset", "length", "fetched"),
    [
        (100, 50, False),
        (100, 0, False),
        (100, 49, False),
        (101, 49, False),
        (120, 10, False),
        (149, 1, False),
        (150, 0, False),
        (99, 51, True),
        (99, 1, True),
        (90, 10, True),
        (10, 40, True),
        (0, 150, True),
        (101, 50, True),
        (149, 2, True),
        (150, 1, True),
        (200, 50, True),
    ],
)
async def test_what_lies_in_a_window_is_not_fetched_again_and_all_else_is(
    tmp_path: Path, offset: int, length: int, fetched: bool
) -> None:
    data = os.urandom(300)
    (tmp_path / NAME).write_bytes(data)
    target = LocalBackend(tmp_path)
    window = await Window.fetch(PinnedObject(target, await target.stat(NAME)), 100, 50)
    assert (window.offset, window.content) == (100, data[100:150])
    (tmp_path / NAME).unlink()
    if not fetched:
        assert await window.read(offset, length) == data[offset : offset + length]
        return
    with pytest.raises(StorageError):
        await window.read(offset, length)
    (tmp_path / NAME).write_bytes(data)
    again = Window(PinnedObject(target, await target.stat(NAME)), 100, data[100:150])
    assert await again.read(offset, length) == data[offset : offset + length]
