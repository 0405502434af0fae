"""Ours, for the section of targets: one file as a whole archive, sealed, into a target, and every byte read back.

    python -m benchmarks.target_archive TARGET FILE

What a backup does after its sources were read: nothing is staged, the file is read as three streams at once, and random
bytes do not shrink. A key in memory takes the place of the TPM's. The whole program is loaded, for its memory.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import service.app
import service.sources.postgresql
from benchmarks.target_copy import STAGE
from service.archive.parts import Header, KeySlots
from service.cli.running import loop_factory
from service.pipeline.level import Level
from service.pipeline.pack import pack
from service.pipeline.unpack import ArchiveReader
from service.progress import Progress
from service.sealing.slots import KeySlot
from service.sealing.suite import ArchiveKeys
from service.sources.base import Stream
from storage_backends import open_target

LOADED = (service.app, service.sources.postgresql)
LANES = 3
NAME = "Backup_20260102_0304Z.zip"
PIECE_BYTES = 64 << 10  # as COPY delivers them


class Compression:
    """What a configuration says that says nothing."""

    level: Level = 1
    chunk_bytes = 4 << 20


class FileSnapshot:
    """A file as some streams."""

    parallel = LANES

    def __init__(self, path: Path) -> None:
        share = -(-path.stat().st_size // LANES)
        self.streams = [
            Stream(kind="benchmark.bytes", labels={}, read=partial(_piece, path, lane * share, share))
            for lane in range(LANES)
        ]

    async def facts(self) -> dict[str, Any]:
        """Tell nothing."""
        return {}


async def _piece(path: Path, offset: int, length: int) -> AsyncGenerator[bytes, None]:
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while length and (piece := file.read(min(PIECE_BYTES, length))):
            length -= len(piece)
            yield piece
            await asyncio.sleep(0)  # as a socket would


class HeldKey:
    """Opens the one archive that was sealed with the key."""

    proves_origin = True

    def __init__(self, data_key: bytes) -> None:
        self._data_key = data_key

    def accepts(self, slot: KeySlot) -> bool:
        """Take any slot."""
        return bool(slot)

    async def unwrap(self, slot: KeySlot, archive_id: bytes) -> bytes:
        """Return the key."""
        return self._data_key


async def _archive(described: Path, path: Path) -> None:
    archive_id, data_key, now = os.urandom(16), os.urandom(32), datetime.now(UTC).replace(microsecond=0)
    header = Header(
        suite=1,
        archive_id=archive_id.hex(),
        name=NAME,
        created=now,
        seq=1,
        product="DeviceOn",
        server_version="5.4.1",
        max_raw=Compression.chunk_bytes,
        commit=ArchiveKeys(data_key, archive_id=archive_id, header=None).commit.hex(),
        sealing="held",
        notice="A benchmark.",
    )
    settings = json.loads(described.read_text())
    async with open_target(settings["url"], settings.get("storage_options")) as target:
        await pack(
            target,
            header,
            KeySlots(slots=[{"type": "held"}]),
            ArchiveKeys(data_key, archive_id=archive_id, header=header.to_bytes()),
            [("file", "benchmark", FileSnapshot(path))],
            compression=Compression(),
            progress=Progress(),
            clock=lambda: now,
            tool_version="0",
        )
        published = time.monotonic()
        reader = await ArchiveReader.open(target, NAME, [HeldKey(data_key)])
        await reader.verify(Progress())
        print(json.dumps({STAGE: 0.0, "read back": round(time.monotonic() - published, 3)}))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_archive(Path(sys.argv[1]), Path(sys.argv[2])))
