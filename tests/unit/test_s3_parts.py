"""The sizes of parts, and how pieces become parts."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import zlib
from collections.abc import AsyncIterator, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_backends import TargetFull
from storage_backends.s3.body import SENT_AT_ONCE, PartBody, encoded_crc32
from storage_backends.s3.parts import LARGEST_PART, MIB, SMALLEST_PART, PartSizes
from storage_backends.s3.room import Room
from storage_backends.s3.split import Part, split

GIB = 1 << 30
TIB = 1 << 40


def parts_of(size: int, sizes: PartSizes) -> list[int]:
    """Return the sizes of the parts that an object of `size` bytes is cut into."""
    found, number = [], 1
    while size > 0:
        found.append(min(size, sizes.size(number)))
        size -= found[-1]
        number += 1
    return found


@pytest.mark.parametrize("size", [16 * MIB, 5 * GIB - 1, 5 * GIB, 5 * GIB + 1, 100 * GIB, TIB, 5 * TIB])
@pytest.mark.parametrize("first", [SMALLEST_PART, 8 * MIB, 16 * MIB, 64 * MIB, 1024 * MIB])
def test_an_object_of_up_to_5_tib_fits_and_keeps_the_rules_of_s3(size: int, first: int) -> None:
    parts = parts_of(size, PartSizes(first_bytes=first))
    assert sum(parts) == size
    assert len(parts) <= 10_000
    assert all(SMALLEST_PART <= part <= LARGEST_PART for part in parts[:-1])
    assert parts[-1] <= LARGEST_PART


def test_parts_stay_small_as_long_as_they_can() -> None:
    assert set(parts_of(19 * GIB, PartSizes())) == {8 * MIB}
    assert max(parts_of(74 * GIB, PartSizes())) == 16 * MIB
    assert max(parts_of(100 * GIB, PartSizes())) == 64 * MIB
    assert max(parts_of(TIB, PartSizes())) == 2 * GIB


def test_parts_only_grow() -> None:
    sizes = [PartSizes().size(number) for number in range(1, 10_001)]
    assert sizes == sorted(sizes)


def test_equal_parts_are_equal_up_to_the_last_and_limit_the_object() -> None:
    sizes = PartSizes(first_bytes=16 * MIB, equal=True)
    assert sizes.capacity == 10_000 * 16 * MIB
    parts = parts_of(sizes.capacity - 1, sizes)
    assert len(parts) == 10_000
    assert set(parts[:-1]) == {16 * MIB}
    with pytest.raises(ValueError, match="part 10001"):
        parts_of(sizes.capacity + 1, sizes)


def test_an_endpoint_with_few_parts_grows_them_sooner() -> None:
    sizes = PartSizes(most=1000)
    assert [sizes.size(number) // MIB for number in (250, 251, 600, 601, 640, 641)] == [8, 16, 16, 32, 32, 64]
    assert sizes.capacity > 500 * GIB


def test_no_part_is_larger_than_s3_takes() -> None:
    assert PartSizes(first_bytes=2 * GIB).size(10_000) == LARGEST_PART


@given(first=st.integers(SMALLEST_PART, LARGEST_PART), most=st.integers(1, 10_000), equal=st.booleans())
def test_any_setting_gives_sizes_that_s3_takes(first: int, most: int, *, equal: bool) -> None:
    sizes = PartSizes(first_bytes=first, most=most, equal=equal)
    assert first == sizes.size(1) <= sizes.size(most) <= LARGEST_PART


def cut(pieces: Iterable[bytes | bytearray], sizes: PartSizes) -> list[Part]:
    async def data() -> AsyncIterator[bytes | bytearray]:
        for piece in pieces:
            yield piece

    async def run() -> list[Part]:
        return [part async for part in split(data(), sizes)]

    return asyncio.run(run())


@given(pieces=st.lists(st.binary(max_size=40), max_size=12), first=st.integers(1, 30), most=st.integers(1, 30))
def test_pieces_of_any_size_become_parts_of_the_right_sizes(pieces: list[bytes], first: int, most: int) -> None:
    sizes, whole = PartSizes(first_bytes=first, most=most), b"".join(pieces)
    if len(whole) > sizes.capacity:
        with pytest.raises(TargetFull) as caught:
            cut(pieces, sizes)
        assert "part_bytes" in caught.value.hint
        return
    parts = cut(pieces, sizes)
    assert b"".join(part.body.read() for part in parts) == whole
    assert [len(part.body) for part in parts] == (parts_of(len(whole), sizes) or [0])
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))


@pytest.mark.parametrize(("size", "holder"), [(60, 0), (40, 1)])
def test_only_the_smaller_side_of_a_piece_that_is_cut_is_copied(size: int, holder: int) -> None:
    """Both would hold all of it otherwise, and a part in flight would take more than its own bytes."""
    before, piece = bytes(10), bytes(100)
    parts = cut([before, piece], PartSizes(first_bytes=10 + size, most=2))
    held = [{id(view.obj) for view in part.body._views if view.obj in (before, piece)} for part in parts]
    expected: list[set[int]] = [{id(before)}, set()]
    expected[holder].add(id(piece))
    assert held == expected


@given(pieces=st.lists(st.binary(max_size=2 * SENT_AT_ONCE), max_size=4), reads=st.lists(st.integers(-1, 700_000)))
def test_a_body_reads_like_a_file_and_is_sent_whole_each_time(pieces: list[bytes], reads: list[int]) -> None:
    body, whole, position = PartBody(pieces), b"".join(pieces), 0
    assert len(body) == len(whole)
    for size in reads:
        expected = whole[position:] if size < 0 else whole[position : position + size]
        assert body.read(size) == expected
        position += len(expected)
        assert body.tell() == position

    async def sent() -> list[bytes]:
        return [bytes(view) async for view in body]

    assert body.seek(0, 2) == len(whole)
    assert body.seek(0) == 0
    for _ in range(2):
        assert b"".join(asyncio.run(sent())) == whole
    assert max([0, *map(len, asyncio.run(sent()))]) <= SENT_AT_ONCE


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_checksums_are_those_of_the_whole(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    assert base64.b64decode(PartBody(pieces).md5()) == hashlib.md5(whole).digest()
    assert PartBody(pieces).crc32() == zlib.crc32(whole)
    assert PartBody(pieces).crc32(zlib.crc32(b"before")) == zlib.crc32(b"before" + whole)
    assert encoded_crc32(0xCBF43926) == "y/Q5Jg=="


async def test_room_is_given_to_as_many_as_fit_and_to_one_that_is_too_large() -> None:
    room, order = Room(10), []

    async def use(name: str, size: int, until: asyncio.Event) -> None:
        await room.take(size)
        order.append(name)
        await until.wait()
        await room.give_back(size)

    ends = [asyncio.Event() for _ in range(3)]
    async with asyncio.TaskGroup() as group:
        for name, size, end in zip(("first", "second", "large"), (5, 5, 30), ends, strict=True):
            group.create_task(use(name, size, end))
        for _ in range(20):
            await asyncio.sleep(0)
        assert order == ["first", "second"]
        ends[0].set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert order == ["first", "second"]
        ends[1].set()
        ends[2].set()
    assert order == ["first", "second", "large"]
