"""Cutting a stream into chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import pytest

from service.pipeline.split import split


async def pieces_of(pieces: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
    for piece in pieces:
        yield piece


async def chunks_of(pieces: Sequence[bytes], size: int) -> list[tuple[int, bytes, bool]]:
    buffers = (bytearray(size), bytearray(size))
    return [(chunk.index, bytes(chunk.raw), chunk.last) async for chunk in split(pieces_of(pieces), buffers)]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        pytest.param([], [b""], id="an empty stream has one empty last chunk"),
        pytest.param([b"", b""], [b""], id="empty pieces are nothing"),
        pytest.param([b"abc"], [b"abc"], id="less than a chunk"),
        pytest.param([b"abcd"], [b"abcd"], id="exactly one chunk"),
        pytest.param([b"ab", b"cd", b""], [b"abcd"], id="exactly one chunk, then nothing"),
        pytest.param([b"abcde"], [b"abcd", b"e"], id="one byte more"),
        pytest.param([b"abcdefgh"], [b"abcd", b"efgh"], id="exactly two chunks in one piece"),
        pytest.param([b"abcd", b"efgh"], [b"abcd", b"efgh"], id="exactly two chunks in two pieces"),
        pytest.param([b"a"] * 9, [b"aaaa", b"aaaa", b"a"], id="single bytes"),
        pytest.param([b"abc", b"defghijklmn", b"o"], [b"abcd", b"efgh", b"ijkl", b"mno"], id="across chunks"),
    ],
)
async def test_chunks_are_full_but_for_the_last_which_alone_is_marked(
    pieces: list[bytes], expected: list[bytes]
) -> None:
    last = len(expected) - 1
    assert await chunks_of(pieces, 4) == [(index, raw, index == last) for index, raw in enumerate(expected)]


async def test_a_chunk_is_untouched_while_the_next_one_is_filled() -> None:
    buffers = (bytearray(4), bytearray(4))
    parts = split(pieces_of([b"aaaa", b"bb", b"bb", b"cccc"]), buffers)
    first = await anext(parts)
    second = await anext(parts)
    assert (bytes(first.raw), bytes(second.raw)) == (b"aaaa", b"bbbb")
    third = await anext(parts)
    assert (bytes(second.raw), bytes(third.raw), third.last) == (b"bbbb", b"cccc", True)
    await parts.aclose()


async def test_a_full_chunk_is_held_back_until_more_is_known() -> None:
    asked: list[int] = []

    async def counted() -> AsyncGenerator[bytes, None]:
        for number in range(2):
            asked.append(number)
            yield b"abcd"
        asked.append(2)

    parts = split(counted(), (bytearray(4), bytearray(4)))
    assert not (await anext(parts)).last
    assert asked == [0, 1]
    assert (await anext(parts)).last
    assert asked == [0, 1, 2]
    await parts.aclose()


async def test_buffers_of_different_size_are_refused() -> None:
    for sizes in ((4, 5), (5, 4), (0, 0), (0, 1)):
        with pytest.raises(ValueError, match="same size"):
            await anext(split(pieces_of([b"a"]), (bytearray(sizes[0]), bytearray(sizes[1]))))


async def test_a_chunk_may_be_as_small_as_a_byte() -> None:
    seen = [
        (chunk.index, bytes(chunk.raw), chunk.last)
        async for chunk in split(pieces_of([b"abc"]), (bytearray(1), bytearray(1)))
    ]
    assert seen == [(0, b"a", False), (1, b"b", False), (2, b"c", True)]
