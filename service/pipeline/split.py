"""Cut a stream of pieces of any size into chunks of one size, with one chunk of lookahead."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a stream. `raw` is a view of a buffer that is reused: see `split`."""

    index: int
    raw: memoryview
    last: bool


async def split(pieces: AsyncIterable[bytes], buffers: tuple[bytearray, bytearray]) -> AsyncGenerator[Chunk, None]:
    """Yield chunks as long as a buffer; the last one, and only that, is marked and may be shorter.

    An empty stream has one empty last chunk; a stream of exactly n chunks has n of them, the n-th being the last
    (so a full chunk is held back until the next byte or the end is seen).

    The two buffers are filled by turns. A chunk's view stays valid until the chunk *after the next* is asked for:
    while one chunk is compressed in a thread, the other is being filled. Each byte is copied once.
    """
    size = len(buffers[0])
    if size < 1 or len(buffers[1]) != size:
        raise ValueError("two buffers of the same size are needed")
    views = (memoryview(buffers[0]), memoryview(buffers[1]))
    index = filled = 0
    buffer = views[0]
    async for piece in pieces:
        end = filled + len(piece)
        if end <= size:  # nearly every piece: COPY delivers some 64 KiB at a time
            buffer[filled:end] = piece
            filled = end
            continue
        rest = memoryview(piece)
        while rest:
            if filled == size:
                yield Chunk(index, buffer, last=False)
                index += 1
                buffer = views[index % 2]
                filled = 0
            taken = rest[: size - filled]
            buffer[filled : filled + len(taken)] = taken
            filled += len(taken)
            rest = rest[len(taken) :]
    yield Chunk(index, buffer[:filled], last=True)
