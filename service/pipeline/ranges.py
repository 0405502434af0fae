"""Reading an archive from afar: ranges of one pinned object, and entries out of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import Final, TypeVar

from service.archive.zip64 import Entry
from service.errors import IncompleteArchive
from service.pipeline.threads import closing, settled
from storage_backends.base import ObjectInfo, StorageBackend

T = TypeVar("T")

REQUEST_BYTES: Final = 8 << 20
"""Neighbouring entries are fetched together up to this many bytes."""


class Feed:
    """Takes exact amounts out of pieces of any size. Each byte is copied once."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    async def take(self, length: int) -> memoryview:
        """Return the next `length` bytes. Raises IncompleteArchive when there are fewer."""
        taken = bytearray(length)
        filled = 0
        while filled < length:
            if not self._rest:
                self._rest = await self._next(missing=length - filled)
            part = self._rest[: length - filled]
            taken[filled : filled + len(part)] = part
            filled += len(part)
            self._rest = self._rest[len(part) :]
        return memoryview(taken).toreadonly()

    async def _next(self, *, missing: int) -> memoryview:
        try:
            return memoryview(await anext(self._pieces))
        except StopAsyncIteration:
            raise IncompleteArchive(
                f"the target delivered {missing} bytes less of the archive than it has",
                hint="Try again; if it stays, use another archive.",
            ) from None


class PinnedObject:
    """One object as it was when it was looked at: `ObjectChanged` when it is replaced meanwhile."""

    def __init__(self, target: StorageBackend, info: ObjectInfo) -> None:
        self._target = target
        self.info = info

    def get(self, offset: int, length: int) -> AsyncIterator[bytes]:
        """Yield the bytes of a range as the target delivers them. Close it when leaving early."""
        return self._target.get(self.info.key, offset=offset, length=length, etag=self.info.etag)

    async def read(self, offset: int, length: int) -> bytes:
        """Return a range, all of it."""
        async with closing(self.get(offset, length)) as pieces:
            return bytes(await Feed(pieces).take(length))

    async def records(
        self, entries: Sequence[Entry], *, at_once: int = REQUEST_BYTES
    ) -> AsyncGenerator[tuple[Entry, memoryview], None]:
        """Yield each entry with its bytes (local header and content, unchecked), in the order given.

        Entries that follow one another in the file come with one request of up to `at_once` bytes (or one entry).
        """
        for run in _runs(entries, at_once):
            start = run[0].offset
            async with closing(self.get(start, run[-1].end - start)) as pieces:
                feed = Feed(pieces)
                for entry in run:
                    yield entry, await feed.take(entry.end - entry.offset)


def _runs(entries: Sequence[Entry], at_once: int) -> Iterator[list[Entry]]:
    run: list[Entry] = []
    for entry in entries:
        if run and (run[-1].end != entry.offset or entry.end - run[0].offset > at_once):
            yield run
            run = []
        run.append(entry)
    if run:
        yield run


async def ahead(items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Yield what `items` yields, with the next item always on its way. Closing this closes `items`, too."""
    end = object()

    async def following() -> T | object:
        return await anext(items, end)

    async with aclosing(items):
        coming = asyncio.ensure_future(following())
        try:
            while (item := await coming) is not end:
                coming = asyncio.ensure_future(following())
                yield item  # type: ignore[misc]  # it is not `end`
        finally:
            coming.cancel()
            await settled(coming)
