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


@pytest.mark.parametrize(("max_raw", "most"), [(0, 1024), (255, 1279), (256, 1281), (1 << 16, 66_816)])
def test_the_bound_of_a_body_is_the_published_one(max_raw: int, most: int) -> None:
    assert chunk.max_body(max_raw) == most


def test_a_higher_level_compresses_more() -> None:
    raw = Path(__file__).read_bytes()
    assert len(chunk.compress(raw, level=19)) < len(chunk.compress(raw, level=1))


def test_compressors_of_many_threads_do_not_mix() -> None:
    raws = [bytes([number]) * 50_000 + os.urandom(1000) for number in range(64)]
    with ThreadPoolExecutor(8) as pool:
        frames = list(pool.map(lambda raw: chunk.compress(raw, level=1), raws))
        assert list(pool.map(lambda frame: chunk.decompress(frame, max_raw=100_000), frames)) == raws


def test_no_chunk_is_larger_than_the_format_allows() -> None:
    most = 64 << 20
    frame = chunk.compress(bytes(most), level=1)
    assert len(chunk.decompress(frame, max_raw=most)) == most
    assert len(open_archive.decompress(ENGINE, frame, most)) == most
    with pytest.raises(ValueError, match="at most"):
        chunk.compress(bytes(most + 1), level=1)


FRAME = chunk.compress(b"one two three " * 30, level=1)  # one segment, a content size of two bytes, one block
EMPTY = bytes.fromhex(VECTORS["good"][0]["frame"])


def refused_by_both(frame: bytes) -> None:
    with pytest.raises(CorruptArchive):
        chunk.decompress(frame, max_raw=MAX_RAW)
    with pytest.raises(open_archive.Problem):
        open_archive.decompress(ENGINE, frame, MAX_RAW)


@pytest.mark.parametrize("window", range(256))
def test_a_frame_that_wants_a_window_of_more_than_64_mib_is_refused(window: int) -> None:
    """RFC 8878, 3.1.1.1.2: 2^(10 + exponent), and mantissa eighths of it."""
    assert FRAME[4] == 0x64
    frame = FRAME[:4] + bytes((0x44, window)) + FRAME[5:]
    base = 1 << 10 + (window >> 3)
    if base + base // 8 * (window & 7) > 64 << 20:
        refused_by_both(frame)
    else:
        assert chunk.decompress(frame, max_raw=MAX_RAW) == open_archive.decompress(ENGINE, frame, MAX_RAW)


@pytest.mark.parametrize("frame", [FRAME, EMPTY, FRAME[:4] + b"\x44\x30" + FRAME[5:]], ids=["one", "empty", "window"])
def test_a_part_of_a_frame_is_refused_and_so_is_more_than_one(frame: bytes) -> None:
    for length in range(len(frame)):
        refused_by_both(frame[:length])
    for more in (b"\0", frame, EMPTY, b"\x50\x2a\x4d\x18" + bytes(4)):
        refused_by_both(frame + more)


@pytest.mark.parametrize("dictionary", [0, 1])
def test_a_frame_that_names_a_dictionary_is_refused_even_one_that_means_none(dictionary: int) -> None:
    for flag in (1, 2, 3):
        identity = dictionary.to_bytes(1 << flag - 1, "little")
        refused_by_both(FRAME[:4] + bytes((FRAME[4] | flag,)) + identity + FRAME[5:])


def test_a_frame_that_claims_no_bytes_holds_none() -> None:
    assert EMPTY[4:9] == b"\x24\0\x01\0\0"
    for block in (b"\x19\0\0abc", b"\x23\0\0x", b"\x0b\0\0x"):  # three bytes, a run of four, a run of one
        refused_by_both(EMPTY[:6] + block + EMPTY[9:])
    for bit in range(32):
        wrong = int.from_bytes(EMPTY[9:], "little") ^ 1 << bit
        with pytest.raises(CorruptArchive):
            chunk.decompress(EMPTY[:9] + wrong.to_bytes(4, "little"), max_raw=MAX_RAW)


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
