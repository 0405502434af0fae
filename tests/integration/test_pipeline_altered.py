"""A file that changes after its archive was opened, and whose target does not notice."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest

from service.archive import names
from service.archive.zip64 import LOCAL_HEADER_BYTES
from service.errors import CorruptArchive
from service.pipeline import verify
from service.pipeline.unpack import ArchiveReader
from service.progress import Progress
from storage_backends.local import LocalBackend
from tests.vectors import small
from tests.vectors.small import KnownKey

NAME = names.archive_name(small.CREATED)
UNSEEN = 0x1_DB71_0641
"""The polynomial of CRC-32, as bits of bytes: what is changed by it has the same CRC."""


class FailingDisk(LocalBackend):
    """The local target, which reads some bytes otherwise than they were written, from when it is told to."""

    place = 0
    change = 0

    async def get(
        self, key: str, *, offset: int = 0, length: int | None = None, etag: str | None = None
    ) -> AsyncGenerator[bytes, None]:
        async for piece in super().get(key, offset=offset, length=length, etag=etag):
            shift = 8 * (self.place - offset)
            mask = self.change << shift if shift >= 0 else self.change >> -shift
            changed = int.from_bytes(piece, "little") ^ mask & (1 << 8 * len(piece)) - 1
            yield changed.to_bytes(len(piece), "little")
            offset += len(piece)


async def opened(tmp_path: Path, *, sealed: bool) -> tuple[FailingDisk, ArchiveReader]:
    (tmp_path / NAME).write_bytes(small.draft(sealed=sealed).finish())
    disk = FailingDisk(tmp_path)
    reader = await ArchiveReader.open(disk, NAME, [KnownKey()])
    await reader.verify(Progress())
    return disk, reader


@pytest.mark.parametrize("part", ["header.json", "keyslots.json", "footer.json"])
async def test_a_part_that_is_another_one_than_was_opened_is_found_even_with_its_crc(tmp_path: Path, part: str) -> None:
    disk, reader = await opened(tmp_path, sealed=True)
    entry = next(entry for entry in reader.entries if entry.name == part)
    content = (tmp_path / NAME).read_bytes()[entry.data_offset : entry.end]
    changed = int.from_bytes(content, "little") ^ UNSEEN << 80
    assert zlib.crc32(changed.to_bytes(len(content), "little")) == entry.crc32
    disk.place, disk.change = entry.data_offset + 10, UNSEEN
    with pytest.raises(CorruptArchive, match=f"{part} is not what it was when the archive was opened"):
        await reader.verify(Progress())
    for place in (entry.offset, entry.offset + LOCAL_HEADER_BYTES, entry.end - 1):
        disk.place, disk.change = place, 1
        with pytest.raises(CorruptArchive, match=part):
            await reader.verify(Progress())


@pytest.mark.parametrize("sealed", [True, False])
async def test_whatever_is_read_otherwise_than_it_was_opened_is_found(tmp_path: Path, sealed: bool) -> None:
    disk, reader = await opened(tmp_path, sealed=sealed)
    disk.change = 1
    for place in range(0, reader.info.size, 61):
        disk.place = place
        with pytest.raises(CorruptArchive):
            await reader.verify(Progress())


async def test_a_directory_that_is_another_one_than_was_opened_is_found(tmp_path: Path) -> None:
    disk, reader = await opened(tmp_path, sealed=True)
    disk.change = 1
    for place in (reader.entries[-1].end, reader.entries[-1].end + 99, reader.info.size - 1):
        disk.place = place
        with pytest.raises(CorruptArchive, match="directory is not what it was when the archive was opened"):
            await reader.verify(Progress())


async def test_a_manifest_that_is_damaged_after_it_was_read_is_called_that(tmp_path: Path) -> None:
    disk, reader = await opened(tmp_path, sealed=True)
    disk.place, disk.change = reader.entries[-2].data_offset + 9, 1
    with pytest.raises(CorruptArchive, match="chunk 0 of the manifest is damaged"):
        await reader.verify(Progress())


async def test_a_stream_is_named_with_its_labels_when_it_has_any(tmp_path: Path) -> None:
    _, reader = await opened(tmp_path, sealed=True)
    stream = reader.sources()[0].streams[0]
    assert verify.describe(stream) == "server postgresql.schema (database deviceon, table table/1)"
    assert verify.describe(replace(stream, labels={})) == "server postgresql.schema"


async def test_a_small_chunk_and_a_large_one_are_summed_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for small_bytes in (0, 1, 24, 64, 1 << 20):
        monkeypatch.setattr(verify, "_SMALL", small_bytes)
        progress = Progress()
        _, reader = await opened(tmp_path, sealed=True)
        await reader.verify(progress)
        assert (progress.expected_raw, progress.raw, progress.stored) == (128, 128, reader.info.size)
