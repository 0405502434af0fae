"""The pieces of an object, put together to parts without joining them.

A piece that belongs to two parts would be held by both, each for its own time. So of these the smaller side is copied.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass

from storage_backends.base import TargetFull
from storage_backends.s3.body import PartBody
from storage_backends.s3.parts import PartSizes


@dataclass(frozen=True, slots=True)
class Part:
    """One part. Only the `last` may be smaller than the sizes say; the only part of an object may be empty."""

    number: int
    body: PartBody
    last: bool


async def split(data: AsyncIterable[bytes | bytearray], sizes: PartSizes) -> AsyncGenerator[Part, None]:
    """Yield the parts of `data`, at least one. Holds one part and one piece.

    Raises TargetFull before an object would have more parts than the endpoint takes.
    """
    number, size = 1, sizes.size(1)
    pieces: list[bytes | bytearray | memoryview] = []
    held = 0
    async for piece in data:
        view = memoryview(piece)
        while len(view) > size - held:
            ours, view = view[: size - held], view[size - held :]
            if len(ours) < len(view):
                ours = memoryview(bytes(ours))
            else:
                view = memoryview(bytes(view))
            pieces.append(ours)
            yield Part(number, PartBody(pieces), last=False)
            if number == sizes.most:
                raise TargetFull(
                    f"the object has more than {sizes.capacity} bytes: {sizes.most} parts of at most {size}",
                    hint=f"Set storage_options: part_bytes to more than {sizes.first_bytes}.",
                )
            number += 1
            size = sizes.size(number)
            pieces, held = [], 0
        if view:
            pieces.append(view)
            held += len(view)
    yield Part(number, PartBody(pieces), last=True)
