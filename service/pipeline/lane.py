"""One lane of the backup: the pieces of a stream go in, sealed archive entries come out.

    pieces -> split -> [thread: SHA-256, zstd, AEAD, CRC-32, local header] -> outlet

Per lane one chunk is in a thread while the next is being filled, so chunks of one stream leave in order and its
SHA-256 is computed in order without any lock. Several lanes run beside each other.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from service.archive.chunk import crc32
from service.archive.names import stream_entry
from service.archive.zip64 import LOCAL_HEADER_BYTES, local_header
from service.pipeline.level import Compressor
from service.pipeline.split import Chunk, split
from service.pipeline.threads import SMALL_BYTES, Threads, done_here, finished, settled
from service.sealing.suite import TAG_BYTES, ArchiveKeys, StreamCipher


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One entry of the archive, not yet placed: `blob` is its local header and its `size` bytes of content."""

    name: str
    size: int
    crc32: int
    blob: bytes | bytearray


def file_entry(name: str, content: bytes) -> FileEntry:
    """Make an entry of `content`."""
    crc = crc32(content)
    header = local_header(name, size=len(content), crc32=crc)
    return FileEntry(name, len(content), crc, b"".join((header, content)))


@dataclass(frozen=True, slots=True)
class Carried:
    """What went through a lane as one stream: number of chunks, raw bytes, hex SHA-256 of the raw bytes."""

    chunks: int
    bytes: int
    sha256: str


class Lane:
    """Carries one stream after another to `outlet`. Holds two chunk buffers, reused from stream to stream."""

    def __init__(
        self,
        threads: Threads,
        outlet: asyncio.Queue[FileEntry | None],
        *,
        keys: ArchiveKeys | None,
        compressor: Compressor,
        chunk_bytes: int,
    ) -> None:
        self._threads = threads
        self._outlet = outlet
        self._keys = keys
        self._compressor = compressor
        self._buffers = (bytearray(chunk_bytes), bytearray(chunk_bytes))

    async def carry(self, stream: int, pieces: AsyncGenerator[bytes, None], *, count: Callable[[int], None]) -> Carried:
        """Put every chunk of `pieces` into the outlet; tell `count` how many raw bytes each one has.

        Waits while the outlet is full. When this returns or raises, no thread uses the lane's buffers any more and
        `pieces` is closed.
        """
        cipher = self._keys.stream(stream) if self._keys is not None else None
        digest = hashlib.sha256()
        job: asyncio.Future[FileEntry] | None = None
        chunks = total = 0
        try:
            async with aclosing(pieces), aclosing(split(pieces, self._buffers)) as parts:
                async for chunk in parts:
                    if job is not None:
                        await self._deliver(job)
                    work = partial(self._seal, stream, chunk, cipher, digest)
                    job = done_here(work) if len(chunk.raw) <= SMALL_BYTES else self._threads.start(work)
                    chunks += 1
                    total += len(chunk.raw)
                    count(len(chunk.raw))
            assert job is not None  # a stream without bytes has a chunk, too
            await self._deliver(job)
        except BaseException:
            if job is not None:
                await settled(job)
            raise
        return Carried(chunks, total, digest.hexdigest())

    async def _deliver(self, job: asyncio.Future[FileEntry]) -> None:
        entry = await finished(job)
        await self._outlet.put(entry)  # and keep no hold of it: the target lets go of it when it is written

    def _seal(self, stream: int, chunk: Chunk, cipher: StreamCipher | None, digest: hashlib._Hash) -> FileEntry:
        digest.update(chunk.raw)
        body = self._compressor.compress(chunk.raw)
        if cipher is None:
            return file_entry(stream_entry(stream, chunk.index, sealed=False), body)
        name = stream_entry(stream, chunk.index, sealed=True)
        start, size = LOCAL_HEADER_BYTES + len(name), len(body) + TAG_BYTES
        blob = bytearray(start + size)
        content = memoryview(blob)[start:]
        cipher.seal(chunk.index, body, into=content, last=chunk.last)
        del body
        crc = crc32(content)
        memoryview(blob)[:start] = local_header(name, size=size, crc32=crc)
        return FileEntry(name, size, crc, blob)
