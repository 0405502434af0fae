"""A process of its own whose peak memory a test looks at: packs, verifies or reads with a slow other side.

    python -m tests.integration.pipeline_memory TARGET {pack|verify|read} CHUNKS

TARGET is a directory, or a JSON file that describes an S3 target. Prints the MiB that its peak resident memory grew by,
once what the target needs is loaded.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from service.pipeline.unpack import ArchiveReader
from service.progress import Progress
from service.sources.base import Stream
from storage_backends import StorageBackend, open_target
from storage_backends.base import ObjectInfo
from storage_backends.local import LocalBackend
from storage_backends.s3 import S3Backend
from tests.pipeline_archives import NAME, GivenSnapshot, packed

CHUNK_BYTES = 4 << 20
PARALLEL = 3
PIECE_BYTES = 1 << 16
NOISE = os.urandom(CHUNK_BYTES + (1 << 20))  # longer than a chunk: within one nothing repeats


class SlowBackend(LocalBackend):
    """The local target behind a slow line."""

    async def put(self, key: str, data: AsyncIterable[bytes | bytearray], **_: Any) -> ObjectInfo:
        async def slowly() -> AsyncGenerator[bytes | bytearray, None]:
            async for piece in data:
                await asyncio.sleep(len(piece) / 1e9)
                yield piece

        return await super().put(key, slowly())


def stream(chunks: int) -> Stream:
    """Bytes that do not shrink, in pieces of 64 KiB, as COPY delivers them."""

    async def read() -> AsyncGenerator[bytes, None]:
        for number in range(chunks * CHUNK_BYTES // PIECE_BYTES):
            start = number * PIECE_BYTES % len(NOISE)
            yield NOISE[start : start + PIECE_BYTES]

    return Stream(kind="test.bytes", labels={}, read=read)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[StorageBackend]:
    """Open a target behind a slow line, ready to be used."""
    if path.is_dir():
        async with SlowBackend(path) as local:
            yield local
        return
    described = json.loads(path.read_text())
    async with open_target(described["url"], described["storage_options"]) as s3:
        assert isinstance(s3, S3Backend)
        call = s3.connection.call

        async def slowly(operation: str, /, **given: Any) -> dict[str, Any]:
            if operation == "upload_part":
                await asyncio.sleep(len(given["Body"]) / 4e7)
            return await call(operation, **given)

        s3.connection.call = slowly  # type: ignore[method-assign]
        await s3.conditional_writes()
        yield s3


async def main(path: Path, what: str, chunks: int) -> float:
    """Do `what`, and return what the peak grew by; `verify` and `read` do it with the archive that `pack` made."""
    async with opened(path) as target:
        before = peak_mib()
        await work(target, what, chunks)
        return peak_mib() - before


async def work(target: StorageBackend, what: str, chunks: int) -> None:
    """Do `what`."""
    if what == "pack":
        snapshot = GivenSnapshot([stream(chunks // PARALLEL) for _ in range(PARALLEL)], parallel=PARALLEL)
        await packed(target, {"db": snapshot}, None, chunk_bytes=CHUNK_BYTES)
        return
    reader = await ArchiveReader.open(target, NAME, [])
    if what == "verify":
        await reader.verify(Progress())
        return
    async with asyncio.TaskGroup() as group:
        for stored in reader.sources()[0].streams:

            async def read_slowly(pieces: AsyncGenerator[bytes, None]) -> None:
                async for piece in pieces:
                    await asyncio.sleep(len(piece) / 2e9)

            group.create_task(read_slowly(reader.read(stored)))


def peak_mib() -> float:
    """Peak resident memory of this program so far. Not ru_maxrss: that begins with the peak of whoever started it."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024  # type: ignore[index]


if __name__ == "__main__":
    print(asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
