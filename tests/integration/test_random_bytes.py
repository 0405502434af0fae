"""Random bytes of a large archive are changed: reading all of it finds every one, a look at its ends finds some."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import ServiceError
from service.pipeline.unpack import ArchiveReader, peek
from service.progress import Progress
from storage_backends.local import LocalBackend
from tests.pipeline_archives import NAME, GivenSnapshot, HeldKey, packed, stream_of
from tests.scoreboard import counted
from tests.sizes import SEED, size

MIB = 1 << 20
ARCHIVE_MIB = size("ARCHIVE_MIB", 4)
CHANGES = size("RANDOM_BYTES", 60)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "unsealed"])
async def test_no_changed_byte_of_a_large_archive_verifies(
    tmp_path: Path, sealed: bool, record_property: Callable[[str, object], None]
) -> None:
    target, held = LocalBackend(tmp_path), HeldKey() if sealed else None
    dice, seen = random.Random(SEED), Counter[str]()
    streams = [stream_of([dice.randbytes(MIB) for _ in range(max(1, ARCHIVE_MIB // 4))]) for _ in range(4)]
    await packed(target, {"db": GivenSnapshot(streams)}, held, chunk_bytes=4 * MIB)
    path = tmp_path / NAME
    length = path.stat().st_size

    async def verifies() -> bool:
        try:
            await peek(target, NAME)
        except ServiceError:
            seen["seen_by_a_look_at_its_ends"] += 1
        try:
            reader = await ArchiveReader.open(target, NAME, [held] if held else [])
            await reader.verify(Progress())
        except ServiceError as error:
            assert str(error)
            return False
        return True

    assert await verifies()
    with path.open("r+b", buffering=0) as file:
        for _ in range(CHANGES):
            # half of them in the last pages, where the catalogue is: else hardly any would be there
            at = dice.randrange(length) if dice.random() < 0.5 else length - 1 - dice.randrange(min(length, 4000))
            before = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([before[0] ^ dice.randrange(1, 256)]), at)
            assert not await verifies(), f"byte {at} of {length} was changed and nobody noticed (seed {SEED})"
            os.pwrite(file.fileno(), before, at)
    assert await verifies()
    record_property("counted", counted(CHANGES, "", seen, seed=SEED, found_by_reading=CHANGES))
