"""The body of a chunk: one frame with size and checksum, and no way to make a reader spend more than it must."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zstandard

from service.archive import chunk
from service.errors import CorruptArchive
from tests.vectors.second_reader import open_archive

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "frames.json").read_text())
MAX_RAW: int = VECTORS["max_raw"]
ENGINE = open_archive.find_decompressor()


@pytest.mark.parametrize("vector", VECTORS["good"], ids=lambda vector: vector["what"])
def test_published_frames_open_in_both_readers(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["frame"])
    raw = chunk.decompress(frame, max_raw=MAX_RAW)
    assert (len(raw), hashlib.sha256(raw).hexdigest()) == (vector["bytes"], vector["raw_sha256"])
    assert open_archive.decompress(ENGINE, frame, MAX_RAW) == raw


@pytest.mark.parametrize("vector", VECTORS["bad"], ids=lambda vector: vector["what"])
def test_published_bad_frames_are_refused_by_both_readers(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["frame"])
    with pytest.raises(CorruptArchive):
        chunk.decompress(frame, max_raw=MAX_RAW)
    with pytest.raises(open_archive.Problem):
        open_archive.decompress(ENGINE, frame, MAX_RAW)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_791, 65_792, 1 << 20])
@pytest.mark.parametrize("level", [1, 3, 19])
def test_what_is_compressed_comes_back_and_its_frame_tells_size_and_checksum(size: int, level: int) -> None:
    raw = (b"device,%d;" * (size // 8 + 1))[:size]
    frame = chunk.compress(raw, level=level)
    assert frame[4] & 4, "no checksum"
    assert open_archive.frame_size(frame) == size
    assert chunk.decompress(memoryview(frame), max_raw=size) == raw
    if size:
        with pytest.raises(CorruptArchive, match="more than"):
            chunk.decompress(frame, max_raw=size - 1)


def test_a_body_is_never_larger_than_its_bound() -> None:
    for size in (0, 1, 4096, 1 << 20):
        assert len(chunk.compress(os.urandom(size), level=1)) <= chunk.max_body(size)


def test_compressors_of_many_threads_do_not_mix() -> None:
    raws = [bytes([number]) * 50_000 + os.urandom(1000) for number in range(64)]
    with ThreadPoolExecutor(8) as pool:
        frames = list(pool.map(lambda raw: chunk.compress(raw, level=1), raws))
        assert list(pool.map(lambda frame: chunk.decompress(frame, max_raw=100_000), frames)) == raws


def test_no_chunk_is_larger_than_the_format_allows() -> None:
    with pytest.raises(ValueError, match="at most"):
        chunk.compress(bytes(chunk.MAX_RAW + 1), level=1)


def test_a_bomb_is_refused_before_memory_is_spent() -> None:
    with pytest.raises(CorruptArchive, match="more than"):
        chunk.decompress(
            zstandard.ZstdCompressor(write_checksum=True).compress(bytes(chunk.MAX_RAW + 1)), max_raw=1 << 50
        )
    bombs = [v for v in VECTORS["bad"] if v["what"].startswith("claims")]
    assert len(bombs) >= 4
    tracemalloc.start()
    try:
        for vector in bombs:
            for bound in (chunk.MAX_RAW, 1 << 50):
                with pytest.raises(CorruptArchive):
                    chunk.decompress(bytes.fromhex(vector["frame"]), max_raw=bound)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_every_flipped_bit_of_a_frame_is_refused_or_changes_nothing() -> None:
    raw = b"one two three " * 10
    frame = chunk.compress(raw, level=1)
    for bit in range(len(frame) * 8):
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        for read in (
            lambda data: chunk.decompress(data, max_raw=MAX_RAW),
            lambda data: open_archive.decompress(ENGINE, data, MAX_RAW),
        ):
            try:
                assert read(flipped) == raw
            except (CorruptArchive, open_archive.Problem):
                continue


def test_crc32_is_that_of_zip_and_goes_on_from_a_value() -> None:
    data = os.urandom(10_000)
    assert chunk.crc32(data) == zlib.crc32(data)
    assert chunk.crc32(memoryview(data)[5000:], chunk.crc32(data[:5000])) == zlib.crc32(data)
