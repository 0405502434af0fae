"""What an attacker or a bad disk can do to a key slot: the right TPM refuses it, with an error that says so."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo.software_tpm import SoftwareTpm
from service.errors import DamagedSlot, TpmCleared, WrongTpm
from service.sealing.tpm import TpmGate, TpmIdentity, TpmRecipient, read_pin
from service.sealing.tpm.public_area import fingerprint, name_of
from tests.integration.tpm_slots import ARCHIVE, a_slot
from tests.integration.tpm_wire import LOAD, Tools, wired
from tests.scoreboard import counted


def flipped(text: str, at: int) -> str:
    data = bytearray.fromhex(text)
    data[at] ^= 0x40
    return data.hex()


@pytest.mark.parametrize("member", ["private", "public", "srk_name", "srk_public"])
async def test_every_flipped_byte_is_a_damaged_slot(
    software_tpm: SoftwareTpm, tmp_path: Path, member: str, record_property: Callable[[str, object], None]
) -> None:
    Tools(software_tpm.tcti, tmp_path).persist("0x81000001", "-G", "ecc")  # else each try derives the key again
    key, slot = await a_slot(TpmGate(software_tpm.tcti))
    identity = TpmIdentity(TpmGate(software_tpm.tcti))
    for at in range(len(slot[member]) // 2):
        with pytest.raises(DamagedSlot) as caught:
            await identity.unwrap(slot | {member: flipped(slot[member], at)}, ARCHIVE)
        assert "key slot" in str(caught.value)
    assert await identity.unwrap(slot, ARCHIVE) == key
    record_property("counted", counted(len(slot[member]) // 2, refused=len(slot[member]) // 2))


@pytest.mark.parametrize(
    "change",
    [
        {"private": ""},
        {"private": "00"},
        {"private": 5},
        {"private": None},
        {"public": "zz"},
        {"public": "00" * 4096},
        {"srk_public": "0004" + "00" * 4 + "00" * 20},
        {"srk_name": "000B" + "00" * 32},
        {"parent": "0x81010001"},
        {"parent": ["derived"]},
        {"fingerprint": "TPM AAAA-AAAA-AAAA-AAAA"},
        {"ek_salted": "00"},
        {"type": "tpm3"},
        {"policy": "00"},
    ],
)
async def test_a_slot_of_another_shape_is_damaged(software_tpm: SoftwareTpm, change: dict[str, object]) -> None:
    _, slot = await a_slot(TpmGate(software_tpm.tcti))
    with wired(software_tpm) as wire:
        with pytest.raises(DamagedSlot, match="the archive's TPM key slot is damaged"):
            await TpmIdentity(TpmGate(wire.tcti)).unwrap(slot | change, ARCHIVE)
        assert wire.commands == []


@pytest.mark.parametrize("member", ["srk_name", "srk_public", "private", "public", "parent", "fingerprint"])
async def test_a_slot_without_a_member_is_damaged(software_tpm: SoftwareTpm, member: str) -> None:
    _, slot = await a_slot(TpmGate(software_tpm.tcti))
    del slot[member]
    with pytest.raises(DamagedSlot, match=member):
        await TpmIdentity(TpmGate(software_tpm.tcti)).unwrap(slot, ARCHIVE)


async def test_an_object_of_the_same_tpm_for_another_archive_opens_nothing_else(software_tpm: SoftwareTpm) -> None:
    _, first = await a_slot(TpmGate(software_tpm.tcti))
    _, second = await a_slot(TpmGate(software_tpm.tcti))
    with pytest.raises(DamagedSlot):
        await TpmIdentity(TpmGate(software_tpm.tcti)).unwrap(first | {"private": second["private"]}, ARCHIVE)


@pytest.mark.parametrize("cleared", [0x2, 0x10, 0x12])
async def test_an_object_that_is_not_fixed_to_its_tpm_never_reaches_it(software_tpm: SoftwareTpm, cleared: int) -> None:
    _, slot = await a_slot(TpmGate(software_tpm.tcti))
    public = bytearray.fromhex(slot["public"])
    public[9] ^= cleared
    with wired(software_tpm) as wire:
        with pytest.raises(DamagedSlot, match="not fixed to its TPM"):
            await TpmIdentity(TpmGate(wire.tcti)).unwrap(slot | {"public": public.hex()}, ARCHIVE)
        assert wire.commands == []


async def forged(tpm: SoftwareTpm, directory: Path) -> dict[str, Any]:
    """Make a slot from public facts alone, as someone would who wants an archive of his own restored: the storage key's
    public half is enough to make an object outside and have it imported."""
    tools = Tools(tpm.tcti, directory)
    tools.persist("0x81000001", "-G", "ecc")
    _, slot = await a_slot(TpmGate(tpm.tcti))
    (directory / "key").write_bytes(secrets.token_bytes(32))
    tools("import", "-C", "0x81000001", "-G", "keyedhash", "-i", "key", "-u", "public", "-r", "private")
    tools("load", "-C", "0x81000001", "-u", "public", "-r", "private", "-c", "loads")  # the TPM itself takes it
    public, private = (directory / "public").read_bytes(), (directory / "private").read_bytes()
    return slot | {"public": public.hex(), "private": private.hex()}


async def test_an_imported_object_is_refused_before_it_is_loaded(software_tpm: SoftwareTpm, tmp_path: Path) -> None:
    slot = await forged(software_tpm, tmp_path)
    with wired(software_tpm) as wire:
        with pytest.raises(DamagedSlot, match="may have been made elsewhere"):
            await TpmIdentity(TpmGate(wire.tcti)).unwrap(slot, ARCHIVE)
        assert wire.commands == []


async def test_an_imported_object_that_claims_to_be_fixed_is_refused_by_the_tpm(
    software_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    slot = await forged(software_tpm, tmp_path)
    public = bytearray.fromhex(slot["public"])
    public[6:10] = (0x452).to_bytes(4, "big")
    with wired(software_tpm) as wire:
        with pytest.raises(DamagedSlot, match="not those that the TPM made"):
            await TpmIdentity(TpmGate(wire.tcti)).unwrap(slot | {"public": public.hex()}, ARCHIVE)
        assert LOAD in wire.commands


async def test_a_consistent_slot_for_a_storage_key_of_ones_own_is_another_tpm(software_tpm: SoftwareTpm) -> None:
    """An attacker who replaces the storage key consistently only causes a refusal."""
    with SoftwareTpm() as attackers:
        _, slot = await a_slot(TpmGate(attackers.tcti))
    with pytest.raises(WrongTpm):
        await TpmIdentity(TpmGate(software_tpm.tcti)).unwrap(slot, ARCHIVE)


async def test_a_storage_key_that_cannot_be_a_parent_is_refused(software_tpm: SoftwareTpm) -> None:
    _, slot = await a_slot(TpmGate(software_tpm.tcti))
    public = bytearray.fromhex(slot["srk_public"])
    public[7] |= 0x04  # sign: a key that also signs what it is given
    name = name_of(bytes(public))
    change = {"srk_public": public.hex(), "srk_name": name.hex(), "fingerprint": fingerprint(name)}
    with pytest.raises(DamagedSlot, match="no storage key that is fixed to its TPM"):
        await TpmIdentity(TpmGate(software_tpm.tcti)).unwrap(slot | change, ARCHIVE)


async def test_a_storage_key_that_no_tpm_understands_is_refused(software_tpm: SoftwareTpm) -> None:
    _, slot = await a_slot(TpmGate(software_tpm.tcti))
    good = bytes.fromhex(slot["srk_public"])
    identity = TpmIdentity(TpmGate(software_tpm.tcti))
    for at in range(10, len(good)):
        public = good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :]
        name = name_of(public)
        change = {"srk_public": public.hex(), "srk_name": name.hex(), "fingerprint": fingerprint(name)}
        with pytest.raises((DamagedSlot, WrongTpm, TpmCleared)):
            await identity.unwrap(slot | change, ARCHIVE)


async def test_the_chip_is_told_by_a_salted_hash_only(software_tpm: SoftwareTpm) -> None:
    gate = TpmGate(software_tpm.tcti)
    pin = await read_pin(gate)
    slot = dict(await TpmRecipient(gate, pin).wrap(bytes(32), ARCHIVE))
    assert pin.ek_name is not None
    assert pin.ek_name.hex() not in json.dumps(slot)
    assert slot["ek_salted"] == hashlib.sha256(b"deviceon-backup/v1/ek" + ARCHIVE + pin.ek_name).hexdigest()
    software_tpm.clear()
    with pytest.raises(WrongTpm):  # the hash of another archive does not match
        await TpmIdentity(gate).unwrap(slot, b"\1" * 16)
