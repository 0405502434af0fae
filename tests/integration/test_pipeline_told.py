"""What an archive tells of itself and of its sources, member by member, and what packing tells meanwhile."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service.pipeline import lane
from service.pipeline.level import Compressor, Level
from service.pipeline.pack import Packed, pack
from service.pipeline.unpack import ArchiveReader
from service.progress import Progress
from service.sealing.signature import signed_bytes, signer_fingerprint
from service.sources.base import Stream
from storage_backends.local import LocalBackend
from tests.pipeline_archives import (
    CREATED,
    NAME,
    Compression,
    GivenSnapshot,
    HeldKey,
    contents,
    prepared,
    stream_of,
)

PIECES = [[b"a" * 1700, b"b" * 300], [b""], [b"c" * 1000], [b"d"]]
LEFT_OUT = {"path": "data/db", "reason": "MongoDB"}


def snapshots() -> list[tuple[str, str, GivenSnapshot]]:
    streams = [
        replace(stream_of(pieces, kind=f"test.k{number}", labels={"n": str(number)}), expected_bytes=100 * number)
        for number, pieces in enumerate(PIECES)
    ]
    streams[2].details["rows"] = 5
    return [
        ("one", "tree", GivenSnapshot(streams[:2], parallel=0, told={"x": 1, "warnings": ["careful"]})),
        ("two", "postgresql", GivenSnapshot(streams[2:], told={"excluded": [LEFT_OUT], "warnings": ["w2", "w3"]})),
        ("three", "sqlite", GivenSnapshot([])),
    ]


async def packed(target: LocalBackend, held: HeldKey | None, progress: Progress, **more: Any) -> Packed:
    now = iter(CREATED + timedelta(seconds=second) for second in range(9))
    given = await prepared(held, max_raw=1000)
    return await pack(
        target,
        *given,
        snapshots(),
        compression=Compression(level=3),
        progress=progress,
        clock=lambda: next(now),
        tool_version="1.2.3",
        **more,
    )


@pytest.mark.parametrize("threads", [True, False])
@pytest.mark.parametrize("sealed", [True, False])
async def test_an_archive_tells_all_of_its_sources_and_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sealed: bool, threads: bool
) -> None:
    if threads:
        monkeypatch.setattr(lane, "SMALL_BYTES", -1)
    target, held, progress = LocalBackend(tmp_path), HeldKey() if sealed else None, Progress()
    made = await packed(target, held, progress)
    reader = await ArchiveReader.open(target, NAME, [held] if held else [])
    manifest, footer, header = made.manifest, made.footer, reader.header
    assert (reader.manifest, reader.footer, reader.info, made.level) == (manifest, footer, made.info, 3)
    assert await contents(reader) == [b"".join(pieces) for pieces in PIECES]
    assert manifest.model_dump(mode="json", exclude={"streams"}) == {
        "archive_id": header.archive_id,
        "started": "2026-01-02T03:04:00Z",
        "finished": "2026-01-02T03:04:01Z",
        "tool": {"name": "deviceon-backup", "version": "1.2.3"},
        "sources": [
            {"name": "one", "type": "tree", "facts": {"x": 1}},
            {"name": "two", "type": "postgresql", "facts": {}},
            {"name": "three", "type": "sqlite", "facts": {}},
        ],
        "excluded": [{"source": "two", **LEFT_OUT}],
        "warnings": ["one: careful", "two: w2", "two: w3"],
        "signature": None,
    }
    assert [stream.model_dump() for stream in manifest.streams] == [
        {
            "id": number + 1,
            "source": "one" if number < 2 else "two",
            "kind": f"test.k{number}",
            "labels": {"n": str(number)},
            "chunks": (2, 1, 1, 1)[number],
            "bytes": len(b"".join(pieces)),
            "sha256": hashlib.sha256(b"".join(pieces)).hexdigest(),
            "details": {"rows": 5} if number == 2 else {},
        }
        for number, pieces in enumerate(PIECES)
    ]
    told = footer.model_dump(mode="json", exclude={"directory_sha256", "mac"})
    assert told == {
        "archive_id": header.archive_id,
        "entries": len(reader.entries) - 1,
        "bytes": reader.entries[-1].offset,
        "raw_bytes": 3001,
        "started": "2026-01-02T03:04:00Z",
        "finished": "2026-01-02T03:04:01Z",
    }
    assert (footer.mac is not None) == sealed
    assert (progress.raw, progress.expected_raw, progress.stored) == (3001, 600, made.info.size)
    await reader.verify(progress)


async def test_what_the_last_archive_had_is_the_better_guess(tmp_path: Path) -> None:
    progress = Progress(expected_raw=77)
    await packed(LocalBackend(tmp_path), None, progress)
    assert progress.expected_raw == 77


async def test_a_level_is_tried_on_chunks_of_the_size_that_is_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[object, int]] = []

    class Noting(Compressor):
        def __init__(self, level: Level, *, chunk_bytes: int = -1) -> None:
            super().__init__(level, chunk_bytes=chunk_bytes)
            made.append((level, chunk_bytes))

    monkeypatch.setattr("service.pipeline.pack.Compressor", Noting)
    await packed(LocalBackend(tmp_path), None, Progress())
    assert made == [(3, 1000)]


async def test_an_archive_is_signed_when_somebody_signs(tmp_path: Path) -> None:
    key = ec.derive_private_key(0x5EED, ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    async def sign(purpose: str, message: bytes) -> tuple[bytes, bytes]:
        return public, key.sign(signed_bytes(purpose, message), ec.ECDSA(SHA256()))

    held = HeldKey()
    made = await packed(LocalBackend(tmp_path), held, Progress(), sign=sign)
    reader = await ArchiveReader.open(LocalBackend(tmp_path), NAME, [held])
    assert made.manifest.signature is not None
    assert reader.manifest == made.manifest
    assert reader.signer == signer_fingerprint(public)


async def test_a_chunk_may_be_as_large_as_the_header_says(tmp_path: Path) -> None:
    raw = os.urandom(1000)

    async def read() -> AsyncGenerator[bytes, None]:
        yield raw

    header, slots, keys = await prepared(None, max_raw=1000)
    await pack(
        LocalBackend(tmp_path),
        header,
        slots,
        keys,
        [("one", "test", GivenSnapshot([Stream(kind="test.bytes", labels={}, read=read)]))],
        compression=Compression(chunk_bytes=1000),
        progress=Progress(),
        clock=lambda: CREATED,
        tool_version="1",
    )
    reader = await ArchiveReader.open(LocalBackend(tmp_path), NAME, [])
    assert await contents(reader) == [raw]
    assert reader.manifest.streams[0].chunks == 1
