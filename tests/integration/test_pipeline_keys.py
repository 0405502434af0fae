"""How an archive's key is found: in its own slots, beside it, or not at all, and what is said then."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service.archive import names
from service.errors import ArchiveError, DamagedSlot, NoMatchingIdentity, NotAuthentic, SealError
from service.pipeline.sidecar import KEYS_SUFFIX, write_sidecar
from service.pipeline.signature import signed
from service.pipeline.unpack import ArchiveReader, peek, read_slots
from service.progress import Progress
from service.sealing.signature import signed_bytes, signer_fingerprint
from service.sealing.slots import KeySlot
from storage_backends.base import ObjectInfo, TargetUnavailable
from storage_backends.local import LocalBackend
from tests.pipeline_archives import contents
from tests.vectors import small

NAME = names.archive_name(small.CREATED)
RAW = [b"".join(chunks) for chunks in small.STREAMS.values()]
OWN = {"type": "age", "file": "-----BEGIN AGE ENCRYPTED FILE-----\n..."}


class Holder:
    """An identity that opens slots of one type with one data key."""

    def __init__(self, kind: str, data_key: bytes | None = small.DATA_KEY, *, proves_origin: bool = True) -> None:
        self.kind = kind
        self.data_key = data_key
        self.proves_origin = proves_origin

    def accepts(self, slot: KeySlot) -> bool:
        return bool(slot["type"] == self.kind)

    async def unwrap(self, slot: KeySlot, archive_id: bytes) -> bytes:
        assert archive_id == small.ARCHIVE_ID
        if self.data_key is None:
            raise DamagedSlot(f"{self.kind} cannot")
        return self.data_key

    async def wrap(self, data_key: bytes, archive_id: bytes) -> KeySlot:
        assert (data_key, archive_id) == (small.DATA_KEY, small.ARCHIVE_ID)
        return {"type": self.kind}


@pytest.fixture
def target(tmp_path: Path) -> LocalBackend:
    (tmp_path / NAME).write_bytes(small.draft(sealed=True).finish())
    return LocalBackend(tmp_path)


async def why_not(target: LocalBackend, *identities: Holder) -> SealError:
    with pytest.raises(SealError) as caught:
        await ArchiveReader.open(target, NAME, identities)
    return caught.value


async def test_slots_are_told_without_a_key_and_an_archive_that_is_not_sealed_has_none(
    target: LocalBackend, tmp_path: Path
) -> None:
    header, slots = await read_slots(target, NAME)
    assert (header.sealed, slots) == (True, [OWN])
    (tmp_path / NAME).write_bytes(small.draft(sealed=False).finish())
    header, slots = await read_slots(target, NAME)
    assert (header.sealed, slots) == (False, [])


async def test_a_slot_beside_the_archive_opens_it_when_its_own_do_not(target: LocalBackend) -> None:
    await write_sidecar(target, NAME, [{"type": "other"}])
    for own in (Holder("age", None), Holder("age", bytes(32))):
        beside = Holder("other", proves_origin=False)
        reader = await ArchiveReader.open(target, NAME, [own, beside])
        assert reader.opened_by is beside
        assert not reader.opened_by_tpm
        assert await contents(reader) == RAW
        await reader.verify(Progress())


async def test_a_slot_of_the_archive_is_tried_before_one_beside_it(target: LocalBackend) -> None:
    await write_sidecar(target, NAME, [{"type": "other"}])
    own = Holder("age")
    reader = await ArchiveReader.open(target, NAME, [Holder("other"), own])
    assert reader.opened_by is own
    assert reader.opened_by_tpm


async def test_keys_that_are_not_the_archives_open_it_nowhere(target: LocalBackend) -> None:
    await write_sidecar(target, NAME, [{"type": "other"}])
    error = await why_not(target, Holder("age", bytes(32)), Holder("other", bytes(range(1, 33))))
    assert isinstance(error, NoMatchingIdentity)
    assert [type(reason) for reason in error.reasons] == [NotAuthentic, NotAuthentic]
    assert "slots: age, other" in str(error)


async def test_why_no_slot_opens_is_told_of_all_of_them(target: LocalBackend) -> None:
    await write_sidecar(target, NAME, [{"type": "other"}])
    error = await why_not(target, Holder("age", None), Holder("other", None))
    assert isinstance(error, NoMatchingIdentity)
    assert [str(reason) for reason in error.reasons] == ["age cannot", "other cannot"]
    assert not hasattr(error, "__notes__")
    assert type(await why_not(target, Holder("age", None))) is DamagedSlot
    assert type(await why_not(target)) is NoMatchingIdentity


class NothingBeside(LocalBackend):
    """A target that does not answer for what lies beside the archive."""

    async def get(
        self, key: str, *, offset: int = 0, length: int | None = None, etag: str | None = None
    ) -> AsyncGenerator[bytes, None]:
        if key.endswith(KEYS_SUFFIX):
            raise TargetUnavailable("the disk is away")
        async for piece in super().get(key, offset=offset, length=length, etag=etag):
            yield piece


async def test_slots_beside_the_archive_that_cannot_be_read_are_told_and_keep_its_own_from_nothing(
    target: LocalBackend, tmp_path: Path
) -> None:
    (tmp_path / f"{NAME}{KEYS_SUFFIX}").write_text("{")
    for told, place in (("cannot be read", target), ("the disk is away", NothingBeside(tmp_path))):
        assert await contents(await ArchiveReader.open(place, NAME, [Holder("age")])) == RAW
        error = await why_not(place, Holder("age", None))
        assert type(error) is DamagedSlot
        assert told in error.__notes__[0]


@pytest.mark.parametrize(
    ("slots", "identities", "option"),
    [
        ([], [Holder("tpm")], "--recovery-key."),
        ([], [], "--recovery-key."),
        ([{"type": "age", "file": "x"}], [Holder("tpm")], "--recovery-key."),
        ([{"type": "age", "identity": "x"}], [Holder("tpm")], "--recovery-passphrase-file."),
        ([{"type": "other", "identity": "x"}], [Holder("tpm")], "--recovery-key."),
        ([], [Holder("tpm"), Holder("x", proves_origin=False)], None),
        ([], [Holder("x", proves_origin=False)], None),
    ],
)
async def test_who_gave_no_recovery_key_is_told_that_one_would_open_it(
    target: LocalBackend, slots: list[dict[str, Any]], identities: list[Holder], option: str | None
) -> None:
    await write_sidecar(target, NAME, slots)
    hint = (await why_not(target, *identities)).hint
    if option:
        assert hint.endswith(f" It was sealed for a recovery key too: give that with {option}")
    else:
        assert "sealed for a recovery key" not in hint


async def test_an_archive_of_no_recovery_key_promises_none(target: LocalBackend, tmp_path: Path) -> None:
    made = small.draft(sealed=True)
    made.entries[1] = (names.KEYSLOTS, b'{"slots":[{"type":"tpm"}]}')
    (tmp_path / NAME).write_bytes(made.finish())
    hint = (await why_not(target, Holder("age"))).hint
    assert hint.endswith("or give a recovery key that it was made for.")


async def test_an_opened_archive_is_wrapped_for_somebody_else_and_one_without_a_key_cannot_be(
    target: LocalBackend, tmp_path: Path
) -> None:
    other = Holder("other")
    reader = await ArchiveReader.open(target, NAME, [Holder("age")])
    assert await reader.wrap_for(other) == {"type": "other"}
    (tmp_path / NAME).write_bytes(small.draft(sealed=False).finish())
    reader = await ArchiveReader.open(target, NAME, [Holder("age")])
    assert reader.opened_by is None
    assert not reader.opened_by_tpm
    with pytest.raises(ValueError, match="not sealed"):
        await reader.wrap_for(other)


async def test_an_archive_under_another_name_is_neither_looked_at_nor_opened(
    target: LocalBackend, tmp_path: Path
) -> None:
    other = "Backup_20260102_0304Z.zip"
    (tmp_path / NAME).rename(tmp_path / other)
    for work in (peek(target, other), ArchiveReader.open(target, other, [Holder("age")])):
        with pytest.raises(ArchiveError, match="was written as") as caught:
            await work
        assert type(caught.value) is ArchiveError
        assert NAME in caught.value.hint


async def test_what_a_listing_has_told_is_not_asked_again(tmp_path: Path, target: LocalBackend) -> None:
    class Asked(LocalBackend):
        stats = 0

        async def stat(self, key: str) -> ObjectInfo:
            self.stats += 1
            return await super().stat(key)

    asked = Asked(tmp_path)
    info = await target.stat(NAME)
    assert (await peek(asked, NAME, listed=info)).info is info
    assert asked.stats == 0
    assert (await peek(asked, NAME)).info == info
    assert asked.stats == 1


async def test_sources_have_their_own_streams_in_order_and_what_was_left_out_of_them(
    target: LocalBackend, tmp_path: Path
) -> None:
    members = small.make_manifest(small.STREAMS).model_dump(mode="json", exclude={"signature"})
    members["streams"] = [stream | {"source": "b" if stream["id"] == 2 else "a"} for stream in members["streams"]][::-1]
    members["sources"] = [
        {"name": "a", "type": "tree", "facts": {"x": 1}},
        {"name": "b", "type": "postgresql", "facts": {"y": 2}},
        {"name": "c", "type": "tree", "facts": {}},
    ]
    left_out = [
        {"source": "b", "path": "1"},
        {"source": "a", "path": "2"},
        {"source": "unknown", "path": "3"},
        {"path": "4"},
        {"source": "b", "path": "5"},
    ]
    manifest = type(small.make_manifest({})).model_validate(members | {"excluded": left_out})
    (tmp_path / NAME).write_bytes(small.draft(sealed=True, manifest=manifest.to_bytes()).finish())
    reader = await ArchiveReader.open(target, NAME, [Holder("age")])
    a, b, c = reader.sources()
    assert [(source.name, source.type) for source in (a, b, c)] == [("a", "tree"), ("b", "postgresql"), ("c", "tree")]
    assert a.facts == {"x": 1, "excluded": left_out[1:2]}
    assert b.facts == {"y": 2, "excluded": [left_out[0], left_out[4]]}
    assert c.facts == {"excluded": []}
    assert [[stream.id for stream in source.streams] for source in (a, b, c)] == [[1, 7], [2], []]
    assert list(reader._streams) == [1, 2, 7]
    told = {stream.id: stream for stream in manifest.streams}
    for stream in (*a.streams, *b.streams):
        described = told[stream.id]
        assert (stream.source, stream.kind, stream.labels, stream.chunks) == (
            described.source,
            described.kind,
            described.labels,
            described.chunks,
        )
        assert (stream.bytes, stream.sha256, stream.details) == (
            described.bytes,
            described.sha256,
            described.details,
        )


async def test_an_opened_archive_tells_who_has_signed_it(target: LocalBackend, tmp_path: Path) -> None:
    assert (await ArchiveReader.open(target, NAME, [Holder("age")])).signer is None
    key = ec.derive_private_key(0x5EED, ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    async def sign(purpose: str, message: bytes) -> tuple[bytes, bytes]:
        return public, key.sign(signed_bytes(purpose, message), ec.ECDSA(SHA256()))

    header = small.make_header(sealed=True).to_bytes()
    manifest = await signed(small.make_manifest(small.STREAMS), header, sign)
    (tmp_path / NAME).write_bytes(small.draft(sealed=True, manifest=manifest.to_bytes()).finish())
    assert (await ArchiveReader.open(target, NAME, [Holder("age")])).signer == signer_fingerprint(public)
    other = await signed(small.make_manifest(small.STREAMS), header + b" ", sign)
    (tmp_path / NAME).write_bytes(small.draft(sealed=True, manifest=other.to_bytes()).finish())
    with pytest.raises(NotAuthentic, match="signature"):
        await ArchiveReader.open(target, NAME, [Holder("age")])
