"""What the tests of the pipeline share: snapshots made of given bytes, keys, and archives packed from both."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from service.archive.parts import Header, KeySlots
from service.errors import DamagedSlot
from service.pipeline.pack import Packed, pack
from service.pipeline.unpack import ArchiveReader
from service.progress import Progress
from service.sealing.slots import KeySlot
from service.sealing.suite import ArchiveKeys
from service.sources.base import StoredStream, Stream
from storage_backends.base import StorageBackend

NAME = "Backup_20260102_0304Z.zip"
CREATED = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


@dataclass(frozen=True)
class Compression:
    level: int = 1
    chunk_bytes: int = 1000


@dataclass
class GivenSnapshot:
    """A snapshot of given streams."""

    streams: Sequence[Stream]
    parallel: int = 2
    told: dict[str, Any] = field(default_factory=dict)

    async def facts(self) -> dict[str, Any]:
        return dict(self.told)


def stream_of(pieces: Iterable[bytes], *, kind: str = "test.bytes", labels: Mapping[str, str] | None = None) -> Stream:
    """A stream that yields `pieces`, giving others a turn before each."""

    async def read() -> AsyncGenerator[bytes, None]:
        for piece in pieces:
            await asyncio.sleep(0)
            yield piece

    return Stream(kind=kind, labels=labels or {}, read=read)


class HeldKey:
    """Recipient and identity in one: it keeps the data keys that were wrapped for it, and the slot is a number."""

    def __init__(self) -> None:
        self._held: list[bytes] = []

    async def wrap(self, data_key: bytes, archive_id: bytes) -> KeySlot:
        self._held.append(data_key)
        return {"type": "held", "number": len(self._held) - 1}

    proves_origin = True

    def accepts(self, slot: KeySlot) -> bool:
        return bool(slot["type"] == "held")

    async def unwrap(self, slot: KeySlot, archive_id: bytes) -> bytes:
        number = slot.get("number")
        if type(number) is not int or not 0 <= number < len(self._held):
            raise DamagedSlot("there is no such key")
        return self._held[number]


async def prepared(
    held: HeldKey | None, *, name: str = NAME, max_raw: int = 1 << 20
) -> tuple[Header, KeySlots | None, ArchiveKeys | None]:
    """Header, key slots and keys of a new archive, sealed when there is somebody to hold the key."""
    archive_id, data_key = os.urandom(16), os.urandom(32)
    header = Header(
        suite=0 if held is None else 1,
        archive_id=archive_id.hex(),
        name=name,
        created=CREATED,
        seq=1,
        product="DeviceOn",
        server_version="5.3.12",
        max_raw=max_raw,
        commit=None if held is None else ArchiveKeys(data_key, archive_id=archive_id, header=None).commit.hex(),
        sealing="off" if held is None else "held",
        notice="A backup of a DeviceOn server.",
    )
    if held is None:
        return header, None, None
    slots = KeySlots(slots=[dict(await held.wrap(data_key, archive_id))])
    return header, slots, ArchiveKeys(data_key, archive_id=archive_id, header=header.to_bytes())


async def packed(
    target: StorageBackend,
    snapshots: Mapping[str, GivenSnapshot],
    held: HeldKey | None,
    *,
    name: str = NAME,
    chunk_bytes: int = 1000,
    progress: Progress | None = None,
) -> Packed:
    """Pack an archive of named snapshots."""
    header, slots, keys = await prepared(held, name=name, max_raw=chunk_bytes)
    return await pack(
        target,
        header,
        slots,
        keys,
        [(source, "test", snapshot) for source, snapshot in snapshots.items()],
        compression=Compression(chunk_bytes=chunk_bytes),
        progress=progress or Progress(),
        clock=lambda: CREATED,
        tool_version="0.0.test",
    )


async def longest_pause(work: Awaitable[object]) -> float:
    """The longest time in seconds that the event loop stood still during `work`, whose outcome does not matter."""
    longest, before = 0.0, time.monotonic()
    working = asyncio.ensure_future(work)
    while not working.done():
        await asyncio.sleep(0.005)
        longest, before = max(longest, time.monotonic() - before), time.monotonic()
    working.exception()
    return longest


async def content(reader: ArchiveReader, stream: StoredStream) -> bytes:
    """All bytes of a stream."""
    return b"".join([piece async for piece in reader.read(stream)])


async def contents(reader: ArchiveReader) -> list[bytes]:
    """All bytes of all streams, in the order of their ids."""
    return [await content(reader, stream) for source in reader.sources() for stream in source.streams]
