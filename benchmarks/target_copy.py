"""Ours, for the section of targets: one file into a target, or out of it, by nothing but the target's backend.

    python -m benchmarks.target_copy put|get TARGET KEY FILE

TARGET is a JSON file with `url` and `storage_options`. A put tells, as JSON, the seconds it took after its data ended:
what the last bytes took, and to make all of them durable and give them their name.

The service runs the same backend in the same event loop; what it reads and compresses before, and what it authenticates
and decompresses after, is measured in other sections.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from service.cli.running import loop_factory
from storage_backends import StorageBackend, open_target

MIB = 1 << 20
PIECES = (MIB, 2 * MIB, 3 * MIB, 4 * MIB)
"""A chunk of an archive is compressed to between nothing and 4 MiB."""
STAGE = "publish"


async def pieces(path: Path) -> AsyncGenerator[bytes, None]:
    """Yield a file, as pieces of several sizes."""
    with path.open("rb", buffering=0) as file:
        for size in itertools.cycle(PIECES):
            piece = file.read(size)
            if not piece:
                return
            yield piece


async def put(target: StorageBackend, key: str, path: Path) -> None:
    """Store a file."""
    ended = 0.0

    async def timed() -> AsyncGenerator[bytes, None]:
        nonlocal ended
        async with aclosing(pieces(path)) as data:
            async for piece in data:
                yield piece
        ended = time.monotonic()

    async with aclosing(timed()) as data:
        await target.put(key, data)
    print(json.dumps({STAGE: round(time.monotonic() - ended, 3)}))


async def get(target: StorageBackend, key: str, path: Path) -> None:
    """Write an object into a file."""
    with path.open("wb", buffering=0) as file:
        async with aclosing(target.get(key)) as data:
            async for piece in data:
                file.write(piece)


async def _copy(direction: str, described: Path, key: str, path: Path) -> None:
    settings = json.loads(described.read_text())
    async with open_target(settings["url"], settings.get("storage_options")) as target:
        await {"put": put, "get": get}[direction](target, key, path)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_copy(sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])))
