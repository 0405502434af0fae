"""What lies beside an archive, and the signature in it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service.archive import names
from service.archive.parts import KeySlots, Manifest
from service.errors import (
    CorruptArchive,
    NotAuthentic,
)
from service.pipeline.sidecar import KEYS_SUFFIX, SidecarFull, read_sidecar, remove_sidecar, write_sidecar
from service.pipeline.signature import signed, signer_of
from service.sealing.signature import signed_bytes, signer_fingerprint
from storage_backends.base import StorageError
from storage_backends.local import LocalBackend
from tests.vectors import small
from tests.vectors.second_reader import open_archive

NAME = names.archive_name(small.CREATED)


@pytest.fixture
def target(tmp_path: Path) -> LocalBackend:
    return LocalBackend(tmp_path)


# Key slots beside an archive

SLOTS: list[dict[str, Any]] = [{"type": "age", "file": "one"}, {"type": "tpm", "n": 2}]


async def test_slots_beside_an_archive_come_back_and_go_again(target: LocalBackend, tmp_path: Path) -> None:
    assert await read_sidecar(target, NAME) == []
    await write_sidecar(target, NAME, SLOTS)
    assert (tmp_path / "Backup_20250131_0200Z.zip.keys").read_bytes() == KeySlots(slots=SLOTS).to_bytes()
    assert await read_sidecar(target, NAME) == SLOTS
    await write_sidecar(target, NAME, SLOTS[:1])
    assert await read_sidecar(target, NAME) == SLOTS[:1]
    await write_sidecar(target, NAME, [])
    assert list(tmp_path.iterdir()) == []
    await write_sidecar(target, NAME, SLOTS)
    await remove_sidecar(target, NAME)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("slots", [SLOTS[:1] * 65, [{"type": "age", "file": "x" * 65_536}]], ids=["many", "large"])
async def test_more_slots_than_may_be_beside_an_archive_are_refused_and_change_nothing(
    target: LocalBackend, slots: list[dict[str, Any]]
) -> None:
    await write_sidecar(target, NAME, SLOTS)
    with pytest.raises(SidecarFull, match="no room") as caught:
        await write_sidecar(target, NAME, slots)
    assert caught.value.code == "SEAL_SLOTS_FULL"
    assert await read_sidecar(target, NAME) == SLOTS


async def test_64_slots_beside_an_archive_may_be(target: LocalBackend) -> None:
    await write_sidecar(target, NAME, SLOTS[:1] * 64)
    assert len(await read_sidecar(target, NAME)) == 64


@pytest.mark.parametrize("more", [0, 1, 1 << 20])
async def test_of_a_hostile_sidecar_no_more_than_64_kib_are_fetched(
    target: LocalBackend, tmp_path: Path, more: int
) -> None:
    fetched = 0

    class Counting(LocalBackend):
        async def get(
            self, key: str, *, offset: int = 0, length: int | None = None, etag: str | None = None
        ) -> AsyncGenerator[bytes, None]:
            nonlocal fetched
            async for piece in super().get(key, offset=offset, length=length, etag=etag):
                fetched += len(piece)
                yield piece

    data = KeySlots(slots=SLOTS).to_bytes()
    (tmp_path / f"{NAME}{KEYS_SUFFIX}").write_bytes(data + b" " * (65_536 + more - len(data)))
    if not more:
        assert await read_sidecar(target, NAME) == SLOTS
        return
    with pytest.raises(CorruptArchive, match="slots beside the archive"):
        await read_sidecar(Counting(tmp_path), NAME)
    assert fetched == 65_537


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"slots":[]}', b'{"slots":[{"type":"age"}]} x'])
async def test_damaged_slots_beside_an_archive_are_told(target: LocalBackend, tmp_path: Path, content: bytes) -> None:
    (tmp_path / f"{NAME}{KEYS_SUFFIX}").write_bytes(content)
    with pytest.raises(CorruptArchive, match="slots beside the archive") as caught:
        await read_sidecar(target, NAME)
    assert "own slots" in caught.value.hint


async def test_slots_that_cannot_be_removed_are_left_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = LocalBackend(tmp_path / "not there")
    with pytest.raises(StorageError):
        await target.delete(f"{NAME}{KEYS_SUFFIX}")
    await remove_sidecar(target, NAME)
    assert "are left in" in caplog.text


# The signature

KEY = ec.derive_private_key(0x5EED, ec.SECP256R1())
PUBLIC = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
HEADER = small.make_header(sealed=True).to_bytes()


async def sign(purpose: str, message: bytes) -> tuple[bytes, bytes]:
    assert purpose == "archive"
    return PUBLIC, KEY.sign(signed_bytes(purpose, message), ec.ECDSA(SHA256()))


async def nobody(purpose: str, message: bytes) -> None:
    return None


async def test_a_manifest_tells_who_signed_it_and_nobody_when_nobody_did() -> None:
    manifest = small.make_manifest(small.STREAMS)
    assert await signed(manifest, HEADER, nobody) is manifest
    assert signer_of(manifest.to_bytes(), manifest, HEADER) is None
    made = await signed(manifest, HEADER, sign)
    assert made.model_copy(update={"signature": None}) == manifest
    content = made.to_bytes()
    assert signer_of(content, Manifest.from_bytes(content), HEADER) == signer_fingerprint(PUBLIC)
    assert open_archive.check_signature(json.loads(content), HEADER) == signer_fingerprint(PUBLIC)


async def test_a_signature_covers_what_a_reader_does_not_know_and_every_byte_of_the_header() -> None:
    content = (await signed(small.make_manifest(small.STREAMS), HEADER, sign)).to_bytes()
    value = json.loads(content)
    for changed, header in (
        (value | {"new": 1}, HEADER),
        (value | {"warnings": []}, HEADER),
        (value, HEADER + b" "),
        (value, HEADER[:-1]),
    ):
        data = json.dumps(changed).encode()
        with pytest.raises(NotAuthentic):
            signer_of(data, Manifest.from_bytes(data), header)
        with pytest.raises(open_archive.Problem, match="altered"):
            open_archive.check_signature(changed, header)
