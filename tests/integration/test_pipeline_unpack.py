"""Reading archives from a real local target: what comes back, and everything that must be refused."""

from __future__ import annotations

import asyncio
import io
import os
import threading
import time
import zipfile
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from service.archive import names
from service.archive.chunk import compress, decompress
from service.errors import (
    ArchiveError,
    CorruptArchive,
    IncompleteArchive,
    NoMatchingIdentity,
    NotAuthentic,
    SealError,
    ServiceError,
    UnsupportedArchive,
)
from service.pipeline import chunks, lane, unpack, verify
from service.pipeline.unpack import ArchiveReader, peek
from service.progress import Progress
from storage_backends.base import ObjectChanged, ObjectNotFound
from storage_backends.local import LocalBackend
from tests.pipeline_archives import GivenSnapshot, HeldKey, content, contents, longest_pause, packed, stream_of
from tests.scoreboard import counted
from tests.vectors import small
from tests.vectors.small import KnownKey

NAME = names.archive_name(small.CREATED)
EVERY_BIT = os.environ.get("DEVICEON_BACKUP_FLIPS") == "all"
RAW = [b"".join(chunks) for chunks in small.STREAMS.values()]


class CountingBackend(LocalBackend):
    """The local target, counting its requests."""

    gets = 0

    async def get(
        self, key: str, *, offset: int = 0, length: int | None = None, etag: str | None = None
    ) -> AsyncGenerator[bytes, None]:
        self.gets += 1
        async with aclosing(super().get(key, offset=offset, length=length, etag=etag)) as pieces:
            async for piece in pieces:
                yield piece


@pytest.fixture(autouse=True)
def chunks_go_through_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small chunks of these tests take the way of large ones."""
    for module in (
        lane,
        unpack,
        verify,
    ):
        monkeypatch.setattr(module, "SMALL_BYTES", -1)


@pytest.fixture
def target(tmp_path: Path) -> LocalBackend:
    return LocalBackend(tmp_path)


@pytest.fixture
def place(tmp_path: Path) -> Callable[[bytes], None]:
    """Put a file where the archive is."""

    def write(data: bytes) -> None:
        (tmp_path / NAME).write_bytes(data)

    return write


async def read_all(target: LocalBackend) -> list[bytes]:
    return await contents(await ArchiveReader.open(target, NAME, [KnownKey()]))


async def check(target: LocalBackend) -> None:
    reader = await ArchiveReader.open(target, NAME, [KnownKey()])
    await reader.verify(Progress())


def check_nothing_runs() -> None:
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith(("pipeline", "target"))] == []


# What is right


@pytest.mark.parametrize("vector", ["sealed.zip", "unsealed.zip"])
async def test_the_published_vectors_are_read(
    target: LocalBackend, place: Callable[[bytes], None], vector: str
) -> None:
    place((Path(small.__file__).parent / vector).read_bytes())
    assert await read_all(target) == RAW
    await check(target)


async def test_looking_needs_no_key_and_two_requests(tmp_path: Path) -> None:
    target = CountingBackend(tmp_path)
    (tmp_path / NAME).write_bytes(small.draft(sealed=True).finish())
    looked = await peek(target, NAME)
    assert (looked.info.key, looked.header.server_version, looked.footer.raw_bytes) == (
        NAME,
        "5.3.12",
        sum(map(len, RAW)),
    )
    assert target.gets == 2


async def test_chunks_that_follow_one_another_come_with_one_request(tmp_path: Path) -> None:
    target, held = CountingBackend(tmp_path), HeldKey()
    snapshot = GivenSnapshot([stream_of([os.urandom(50_000)]), stream_of([b"b"])], parallel=1)
    await packed(target, {"db": snapshot}, held, name=NAME)
    reader = await ArchiveReader.open(target, NAME, [held])
    target.gets = 0
    assert len(await content(reader, reader.sources()[0].streams[0])) == 50_000
    assert target.gets == 1


async def test_several_streams_are_read_at_once(target: LocalBackend) -> None:
    held = HeldKey()
    raw = [os.urandom(size) for size in (30_000, 10_500, 0, 999, 20_000)]
    snapshot = GivenSnapshot([stream_of([each[at : at + 700] for at in range(0, len(each), 700)]) for each in raw])
    await packed(target, {"db": snapshot}, held, name=NAME)
    reader = await ArchiveReader.open(target, NAME, [held])
    streams = reader.sources()[0].streams
    assert await asyncio.gather(*(content(reader, stream) for stream in streams)) == raw
    check_nothing_runs()


async def test_leaving_early_leaves_no_task_or_thread(target: LocalBackend) -> None:
    held = HeldKey()
    await packed(target, {"db": GivenSnapshot([stream_of([os.urandom(50_000)])])}, held, name=NAME)
    reader = await ArchiveReader.open(target, NAME, [held])
    stream = reader.sources()[0].streams[0]
    for pieces_wanted in range(5):
        async with aclosing(reader.read(stream)) as pieces:
            for _ in range(pieces_wanted):
                await anext(pieces)
        check_nothing_runs()


@pytest.mark.parametrize("what", ["read", "verify", "open"])
async def test_cancelling_at_any_moment_leaves_nothing_running(target: LocalBackend, what: str) -> None:
    held = HeldKey()
    await packed(target, {"db": GivenSnapshot([stream_of([os.urandom(20_000)])])}, held, name=NAME)
    reader = await ArchiveReader.open(target, NAME, [held])

    async def work() -> None:
        if what == "read":
            await contents(reader)
        elif what == "verify":
            await reader.verify(Progress())
        else:
            await ArchiveReader.open(target, NAME, [held])

    cancelled = steps = 0
    while True:
        working = asyncio.ensure_future(work())
        for _ in range(steps):
            await asyncio.sleep(0)
        steps += 1 + steps // 20
        working.cancel()
        try:
            await working
        except asyncio.CancelledError:
            cancelled += 1
            check_nothing_runs()
        else:
            break
    assert cancelled > 10


# What is damaged


def files_to_damage(*, sealed: bool) -> bytes:
    """The smallest archive that has everything: two streams, one of two chunks, one empty."""
    return small.draft(sealed=sealed, streams={1: [b"ab", b"c"], 2: [b""]}).finish()


async def refused(target: LocalBackend) -> ServiceError | None:
    """The error of opening; or the error that verifying and reading both have; None when neither sees anything."""
    try:
        reader = await ArchiveReader.open(target, NAME, [KnownKey()])
    except (ArchiveError, SealError) as error:
        return error
    found: list[ServiceError | None] = []
    for work in (contents(reader), reader.verify(Progress())):
        try:
            await work
            found.append(None)
        except (ArchiveError, SealError) as error:
            found.append(error)
    return found[0] if all(found) else None


@pytest.mark.parametrize("sealed", [True, False])
async def test_a_flipped_bit_in_any_byte_is_found(
    target: LocalBackend,
    tmp_path: Path,
    place: Callable[[bytes], None],
    record_property: Callable[[str, object], None],
    sealed: bool,
) -> None:
    whole, flips = files_to_damage(sealed=sealed), 0
    place(whole)
    assert await refused(target) is None
    with (tmp_path / NAME).open("r+b", buffering=0) as file:
        for position, byte in enumerate(whole):
            for bit in range(8) if EVERY_BIT else [position % 8]:
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), position)
                error = await refused(target)
                assert error is not None, f"byte {position} was changed and nobody noticed"
                assert str(error)
                flips += 1
            os.pwrite(file.fileno(), bytes([byte]), position)
    assert await refused(target) is None
    check_nothing_runs()
    record_property("counted", counted(flips, "", refused=flips))


@pytest.mark.parametrize("sealed", [True, False])
async def test_an_archive_cut_at_any_length_is_incomplete(
    target: LocalBackend,
    tmp_path: Path,
    place: Callable[[bytes], None],
    record_property: Callable[[str, object], None],
    sealed: bool,
) -> None:
    whole = files_to_damage(sealed=sealed)
    place(whole)
    for length in reversed(range(1, len(whole))):
        os.truncate(tmp_path / NAME, length)
        with pytest.raises(IncompleteArchive, match="missing"):
            await ArchiveReader.open(target, NAME, [KnownKey()])
        if length % 9 == 0:
            with pytest.raises(IncompleteArchive):
                await peek(target, NAME)
    record_property("counted", counted(len(whole) - 1, "", refused=len(whole) - 1))


@pytest.mark.parametrize("more", [b"\0", b"PK\x05\x06", b"x" * 30, b"x" * 70_000])
async def test_appended_bytes_are_refused(target: LocalBackend, place: Callable[[bytes], None], more: bytes) -> None:
    place(small.draft(sealed=True).finish() + more)
    with pytest.raises(ArchiveError):
        await ArchiveReader.open(target, NAME, [KnownKey()])
    with pytest.raises(ArchiveError):
        await peek(target, NAME)


def foreign_zip(first: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr(first, "{}")
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        pytest.param(b"", "empty: not an archive", id="empty"),
        pytest.param(b"x", "not an archive", id="one byte"),
        pytest.param(b"-- PostgreSQL database dump\n" * 5000, "not an archive", id="a dump"),
        pytest.param(foreign_zip("letter.txt"), "not an archive", id="a foreign ZIP"),
        pytest.param(foreign_zip("header.jsom"), "not an archive", id="a name as long as ours"),
        pytest.param(b"PK\x05\x06" + bytes(18), "not an archive", id="an empty ZIP"),
    ],
)
async def test_a_file_of_somebody_else_is_called_that(
    target: LocalBackend, place: Callable[[bytes], None], data: bytes, match: str
) -> None:
    place(data)
    with pytest.raises(UnsupportedArchive, match=match):
        await ArchiveReader.open(target, NAME, [KnownKey()])
    with pytest.raises(UnsupportedArchive, match=match):
        await peek(target, NAME)


async def test_a_newer_format_is_named_before_anything_that_it_may_have_changed(
    target: LocalBackend, place: Callable[[bytes], None]
) -> None:
    header = small.make_header(sealed=True).to_bytes().replace(b'"version":1', b'"version":2')
    place(small.container([(names.HEADER, header), ("streams/00000001/00000000.zst", b"")]) + b"a new kind of end")
    with pytest.raises(UnsupportedArchive, match="format version 2"):
        await ArchiveReader.open(target, NAME, [KnownKey()])


async def test_an_archive_that_is_not_there_is_an_error_of_the_target(target: LocalBackend) -> None:
    with pytest.raises(ObjectNotFound):
        await ArchiveReader.open(target, NAME, [])


# What is altered by somebody who can make all checksums fit


def swapped(made: small.Draft, one: str, other: str) -> small.Draft:
    found = dict(made.entries)
    found[one], found[other] = found[other], found[one]
    made.entries = list(found.items())
    return made


def sealed_entry(stream: int, index: int) -> str:
    return names.stream_entry(stream, index, sealed=True)


def cases_with_the_key() -> Iterator[tuple[str, bytes]]:
    """Archives whose footer and directory are authentic, so that only the chunks' own seals can refuse them."""
    yield (
        "chunks of one stream in another order",
        swapped(small.draft(sealed=True), sealed_entry(2, 0), sealed_entry(2, 1)).finish(),
    )
    yield (
        "chunks of two streams exchanged",
        swapped(small.draft(sealed=True), sealed_entry(1, 0), sealed_entry(7, 0)).finish(),
    )

    other = small.draft(sealed=True, archive_id=bytes(16))
    spliced = small.draft(sealed=True)
    spliced.entries = [
        (name, dict(other.entries)[name] if name == sealed_entry(1, 0) else body) for name, body in spliced.entries
    ]
    yield "a chunk of another archive with the same data key", spliced.finish()

    shorter = {**small.STREAMS, 2: small.STREAMS[2][:2]}
    cut = small.draft(sealed=True, manifest=small.make_manifest(shorter).to_bytes())
    cut.entries = [entry for entry in cut.entries if entry[0] != sealed_entry(2, 2)]
    yield "the last chunk of a stream dropped, and the manifest says so", cut.finish()

    renamed = small.draft(sealed=True)
    renamed.entries[0] = (names.HEADER, renamed.header.replace(b"5.3.12", b"9.9.99"))
    yield "another server version in the header", renamed.finish()


@pytest.mark.parametrize(("what", "data"), [pytest.param(*case, id=case[0]) for case in cases_with_the_key()])
async def test_what_was_sealed_elsewhere_is_not_authentic(
    target: LocalBackend, place: Callable[[bytes], None], what: str, data: bytes
) -> None:
    place(data)
    with pytest.raises(NotAuthentic):
        await read_all(target)
    with pytest.raises(NotAuthentic):
        await check(target)
    check_nothing_runs()


async def test_a_footer_made_without_the_key_is_not_authentic(
    target: LocalBackend, place: Callable[[bytes], None]
) -> None:
    """Only the MAC can see this: nothing else in the archive tells when the backup began."""
    made = small.draft(sealed=True)
    place(made.finish())
    mac = (await peek(target, NAME)).footer.mac
    made.keys = None
    place(made.finish(started=small.CREATED.replace(year=2030), mac=mac))
    with pytest.raises(NotAuthentic, match="footer"):
        await ArchiveReader.open(target, NAME, [KnownKey()])


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("longer", [True, False])
async def test_bytes_other_than_the_manifest_tells_are_never_passed_off_as_a_whole_stream(
    target: LocalBackend, place: Callable[[bytes], None], sealed: bool, longer: bool
) -> None:
    other = {**small.STREAMS, 2: [small.STREAMS[2][0], b"3\tnobody\n" * (8 + longer), b"the end"]}
    made = small.draft(sealed=sealed, streams=other, manifest=small.make_manifest(small.STREAMS).to_bytes())
    made.raw_bytes = sum(map(len, RAW))
    place(made.finish())
    reader = await ArchiveReader.open(target, NAME, [KnownKey()])
    seen: list[bytes] = []
    with pytest.raises(CorruptArchive, match=r"server postgresql\.rows .*not what the manifest says"):
        async for piece in reader.read(reader.sources()[0].streams[1]):
            seen.append(piece)
    assert b"the end" not in seen
    with pytest.raises(CorruptArchive, match="not what the manifest says"):
        await reader.verify(Progress())


async def test_a_manifest_of_other_streams_is_refused(target: LocalBackend, place: Callable[[bytes], None]) -> None:
    place(small.draft(sealed=True, manifest=small.make_manifest({1: small.STREAMS[1]}).to_bytes()).finish())
    with pytest.raises(CorruptArchive, match="manifest"):
        await ArchiveReader.open(target, NAME, [KnownKey()])


async def test_a_chunk_larger_than_the_header_allows_is_refused_before_it_is_fetched(
    target: LocalBackend, place: Callable[[bytes], None]
) -> None:
    header = small.make_header(sealed=False, max_raw=64).to_bytes()
    place(small.draft(sealed=False, streams={1: [os.urandom(9000)]}, header=header).finish())
    with pytest.raises(CorruptArchive, match="larger than a chunk may be"):
        await ArchiveReader.open(target, NAME, [])


async def test_a_chunk_that_would_unfold_to_more_than_allowed_is_refused(
    target: LocalBackend, place: Callable[[bytes], None]
) -> None:
    header = small.make_header(sealed=False, max_raw=4096).to_bytes()
    bomb = bytes(1 << 20)
    place(small.draft(sealed=False, streams={1: [bomb]}, header=header).finish())
    reader = await ArchiveReader.open(target, NAME, [])
    for work in (contents(reader), reader.verify(Progress())):
        with pytest.raises(CorruptArchive, match="chunk 0 of server"):
            await work
    assert len(compress(bomb, level=1)) < 4096


async def test_a_damaged_chunk_ends_verify_without_stopping_the_event_loop(
    target: LocalBackend, place: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    place(swapped(small.draft(sealed=True), sealed_entry(1, 0), sealed_entry(7, 0)).finish())
    reader = await ArchiveReader.open(target, NAME, [KnownKey()])

    def slowly(frame: bytes, *, max_raw: int) -> bytes:
        time.sleep(1.0)
        return decompress(frame, max_raw=max_raw)

    monkeypatch.setattr(chunks, "decompress", slowly)
    assert await longest_pause(reader.verify(Progress())) < 0.8
    check_nothing_runs()


async def test_the_error_names_the_stream(target: LocalBackend, tmp_path: Path, place: Callable[[bytes], None]) -> None:
    place(small.draft(sealed=True).finish())
    reader = await ArchiveReader.open(target, NAME, [KnownKey()])
    entry = next(entry for entry in reader.entries if entry.name == sealed_entry(2, 1))
    data = bytearray((tmp_path / NAME).read_bytes())
    data[entry.data_offset] ^= 1
    place(bytes(data))
    with pytest.raises(
        CorruptArchive, match=r"chunk 1 of server postgresql\.rows \(database deviceon, table table/2\)"
    ):
        await read_all(target)


# Keys and names


async def test_without_an_identity_a_sealed_archive_stays_closed(
    target: LocalBackend, place: Callable[[bytes], None]
) -> None:
    place(small.draft(sealed=True).finish())
    with pytest.raises(NoMatchingIdentity):
        await ArchiveReader.open(target, NAME, [])


async def test_a_key_of_another_archive_is_told_from_damage(
    target: LocalBackend, place: Callable[[bytes], None]
) -> None:
    place(small.draft(sealed=True).finish())
    with pytest.raises(NotAuthentic, match="not the one the archive was made with"):
        await ArchiveReader.open(target, NAME, [KnownKey(bytes(32))])


async def test_an_old_archive_under_a_newer_name_is_refused(target: LocalBackend, tmp_path: Path) -> None:
    other = "Backup_20260101_0000Z.zip"
    (tmp_path / other).write_bytes(small.draft(sealed=True).finish())
    with pytest.raises(ArchiveError, match=f"written as {NAME}"):
        await ArchiveReader.open(target, other, [KnownKey()])
    with pytest.raises(ArchiveError, match=f"written as {NAME}"):
        await peek(target, other)


async def test_an_archive_that_was_replaced_after_opening_is_not_mixed_in(
    target: LocalBackend, tmp_path: Path, place: Callable[[bytes], None]
) -> None:
    place(small.draft(sealed=True).finish())
    reader = await ArchiveReader.open(target, NAME, [KnownKey()])
    (tmp_path / "new").write_bytes(small.draft(sealed=True).finish())
    (tmp_path / "new").rename(tmp_path / NAME)
    with pytest.raises(ObjectChanged):
        await contents(reader)
    with pytest.raises(ObjectChanged):
        await reader.verify(Progress())
    check_nothing_runs()


async def test_a_stream_of_another_archive_cannot_be_read(target: LocalBackend) -> None:
    readers = []
    for name in (NAME, "Backup_20260101_0000Z.zip"):
        snapshot = GivenSnapshot([stream_of([name.encode()])])
        await packed(target, {"db": snapshot}, None, name=name)
        readers.append(await ArchiveReader.open(target, name, []))
    with pytest.raises(ValueError, match="not a stream of this archive"):
        await content(readers[0], readers[1].sources()[0].streams[0])


async def test_tens_of_thousands_of_entries_take_seconds(
    target: LocalBackend, place: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quadratic work anywhere would take hours."""
    monkeypatch.undo()
    streams = {number: [b"row\n"] * 20 for number in range(1, 2001)}
    manifest = small.make_manifest(streams).to_bytes()
    header = small.make_header(sealed=False, max_raw=1 << 22).to_bytes()
    made = small.draft(sealed=False, streams={}, manifest=manifest, header=header)
    made.raw_bytes = sum(len(raw) for chunks in streams.values() for raw in chunks)
    body = compress(b"row\n", level=1)
    made.entries[1:1] = [
        (names.stream_entry(number, index, sealed=False), body) for index in range(20) for number in streams
    ]
    place(made.finish())
    began = time.monotonic()
    reader = await ArchiveReader.open(target, NAME, [])
    assert await content(reader, reader.sources()[0].streams[1999]) == b"row\n" * 20
    opened = time.monotonic() - began
    await reader.verify(Progress())
    verified = time.monotonic() - began - opened
    assert len(reader.entries) == 40_003
    assert opened < 15
    assert verified < 60
