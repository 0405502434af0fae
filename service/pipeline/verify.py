"""Check every byte of an archive in one pass from its first byte to its last.

target -> [threads: CRC-32, open, decompress] -> [thread: SHA-256 by stream, in order] -> compare
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Final

from service.archive.names import MANIFEST_STREAM
from service.archive.zip64 import Entry, check_entry
from service.errors import CorruptArchive
from service.pipeline.chunks import DAMAGED, ChunkMap, ChunkOpener, Place, StreamSum
from service.pipeline.ranges import PinnedObject, ahead
from service.pipeline.threads import SMALL_BYTES, Threads, done_here, finished, settled
from service.progress import Progress
from service.sources.base import StoredStream

_SMALL: Final = 64 << 10  # hashing less than this is quicker than asking a thread to do it


@dataclass(frozen=True, slots=True)
class Expected:
    """What the file has to consist of; all of it was authenticated when the archive was opened."""

    entries: list[Entry]
    parts: Mapping[str, bytes]
    """The JSON parts by name."""
    streams: Mapping[int, StoredStream]
    """All streams, the manifest among them."""
    rest: bytes
    """SHA-256 of everything behind the last entry."""


class FileCheck:
    """One pass over one archive. Memory: (cores + 4) chunks, sealed and raw."""

    def __init__(
        self, archive: PinnedObject, expected: Expected, chunks: ChunkMap, opener: ChunkOpener, *, progress: Progress
    ) -> None:
        self._archive = archive
        self._expected = expected
        self._chunks = chunks
        self._opener = opener
        self._progress = progress
        self._sums: dict[int, StreamSum] = {}

    async def run(self) -> None:
        """Check the file. Raises CorruptArchive, IncompleteArchive, NotAuthentic, StorageError."""
        size, entries = self._archive.info.size, self._expected.entries
        waiting: deque[tuple[Place, asyncio.Future[bytes]]] = deque()
        # One thread more than cores: hashing, which is done in order, never queues behind the chunks to come.
        async with Threads(more=1) as threads, aclosing(ahead(self._archive.records(entries, at_once=size))) as records:
            try:
                async for entry, record in records:
                    self._progress.stored = entry.end
                    place = self._chunks.place(entry)
                    if place is None:
                        self._compare_part(entry, record)
                        continue
                    if len(waiting) > threads.count:
                        await self._count(threads, *waiting.popleft())
                    what = describe(self._expected.streams[place.stream])
                    work = partial(self._opener.open, entry, record, place, what=what)
                    waiting.append((place, done_here(work) if entry.size <= SMALL_BYTES else threads.start(work)))
                while waiting:
                    await self._count(threads, *waiting.popleft())
            finally:
                await settled(*(job for _, job in waiting))
        rest = await self._archive.read(entries[-1].end, size - entries[-1].end)
        if hashlib.sha256(rest).digest() != self._expected.rest:
            raise CorruptArchive("the directory is not what it was when the archive was opened", hint=DAMAGED)
        self._progress.stored = size

    def _compare_part(self, entry: Entry, record: memoryview) -> None:
        if bytes(check_entry(record, entry)) != self._expected.parts.get(entry.name):
            raise CorruptArchive(f"{entry.name} is not what it was when the archive was opened", hint=DAMAGED)

    async def _count(self, threads: Threads, place: Place, job: asyncio.Future[bytes]) -> None:
        """Take the next chunk in the order of the file into its stream's sum, and compare after the last one."""
        raw = await finished(job)
        if place.stream != MANIFEST_STREAM:
            self._progress.raw += len(raw)
        tally = self._sums.setdefault(place.stream, StreamSum())
        if len(raw) < _SMALL:
            tally.add(raw)
        else:
            await finished(threads.start(partial(tally.add, raw)))
        if place.last:
            compare(tally, self._expected.streams[place.stream])
            del self._sums[place.stream]


def compare(tally: StreamSum, stored: StoredStream) -> None:
    """Raise CorruptArchive unless the bytes of a stream are those that the manifest tells of.

    Bytes that passed the AEAD and differ here were written wrong: a fault of the writer, not of the disk.
    """
    if (tally.chunks, tally.bytes, tally.sha256()) != (stored.chunks, stored.bytes, stored.sha256):
        raise CorruptArchive(
            f"{describe(stored)} is not what the manifest says: {tally.bytes} bytes instead of {stored.bytes},"
            " or others",
            hint=DAMAGED,
        )


def describe(stored: StoredStream) -> str:
    """Name a stream for people."""
    if stored.id == MANIFEST_STREAM:
        return "the manifest"
    labels = ", ".join(f"{key} {value}" for key, value in stored.labels.items())
    return f"{stored.source} {stored.kind} ({labels})" if labels else f"{stored.source} {stored.kind}"
