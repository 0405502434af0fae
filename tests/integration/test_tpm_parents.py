"""Whatever storage key a machine has, and whatever passwords its TPM has: tpm2-tools plays the administrator."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TypeVar

import pytest
from tpm2_pytss import TPM2B_PUBLIC, TPMA_OBJECT, TPMT_PUBLIC  # type: ignore[import-untyped]

from demo.software_tpm import SoftwareTpm
from service.errors import TpmCleared, TpmUnavailable, WrongTpm
from service.sealing.slots import try_slots
from service.sealing.tpm import TpmGate, TpmIdentity, TpmRecipient, describe, parents, read_pin
from service.sealing.tpm.chip import Chip
from service.sealing.tpm.faults import TpmLockout, TpmOwnerPassword
from service.sealing.tpm.parents import choose_parent
from service.sealing.tpm.public_area import SIGNING_ATTRIBUTES, BadPublicArea, fingerprint, name_of
from tests.integration.tpm_wire import CREATE_PRIMARY, Plan, Tools, TpmWire, wired
from tests.tpm_areas import slot as made_slot
from tests.tpm_areas import storage

T = TypeVar("T")

ARCHIVE = bytes(16)
PASSWORD = "a long owner password"


def zeros(tools: Tools, size: int, *, parts: int) -> str:
    """Write a `unique` field as tpm2_createprimary reads it: C structures, with room for 128 bytes each."""
    (tools.directory / "unique").write_bytes((size.to_bytes(2, "little") + bytes(max(size, 128))) * parts)
    return "unique"


async def sealed(gate: TpmGate) -> tuple[bytes, dict[str, object]]:
    key = secrets.token_bytes(32)
    return key, dict(await TpmRecipient(gate, await read_pin(gate)).wrap(key, ARCHIVE))


@pytest.mark.parametrize("handle", ["0x81000001", "0x81000002"])
@pytest.mark.parametrize("algorithm", ["ecc", "ecc384", "rsa"])
@pytest.mark.parametrize("unique", ["empty", "zero"])
async def test_a_persistent_storage_key_is_used_and_derived_again_when_it_is_gone(
    software_tpm: SoftwareTpm, tools: Tools, handle: str, algorithm: str, unique: str
) -> None:
    options = ["-G", algorithm]
    if unique == "zero":
        size, parts = {"ecc": (32, 2), "ecc384": (48, 2), "rsa": (256, 1)}[algorithm]
        options += ["-u", zeros(tools, size, parts=parts)]
    tools.persist(handle, *options)
    gate = TpmGate(software_tpm.tcti)
    key, slot = await sealed(gate)
    assert slot["parent"] == handle
    assert await TpmIdentity(gate).unwrap(slot, ARCHIVE) == key
    tools("evictcontrol", "-C", "o", "-c", handle)  # as after a new installation of the operating system
    assert await TpmIdentity(gate).unwrap(slot, ARCHIVE) == key


async def test_the_four_storage_keys_of_one_tpm_are_four_fingerprints(software_tpm: SoftwareTpm, tools: Tools) -> None:
    seen = {(await read_pin(TpmGate(software_tpm.tcti))).fingerprint}  # derived: ECC, zero-filled
    for options in (["-G", "ecc"], ["-G", "rsa"], ["-G", "rsa", "-u", zeros(tools, 256, parts=1)]):
        tools.persist("0x81000001", *options)
        seen.add((await read_pin(TpmGate(software_tpm.tcti))).fingerprint)
        tools("evictcontrol", "-C", "o", "-c", "0x81000001")
    assert len(seen) == 4


async def test_a_storage_key_made_persistent_later_does_not_change_the_pin(
    software_tpm: SoftwareTpm, tools: Tools
) -> None:
    gate = TpmGate(software_tpm.tcti)
    pin = await read_pin(gate)
    tools.persist("0x81000001", "-G", "rsa")
    slot = await TpmRecipient(gate, pin).wrap(bytes(32), ARCHIVE)
    assert slot["parent"] == "derived"
    assert slot["fingerprint"] == pin.fingerprint
    assert await TpmIdentity(gate).unwrap(slot, ARCHIVE) == bytes(32)


async def test_a_signing_key_in_the_place_of_a_storage_key_is_passed_over(
    software_tpm: SoftwareTpm, tools: Tools
) -> None:
    tools.persist(
        "0x81000001",
        "-G",
        "ecc:ecdsa:null",
        "-a",
        "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign|restricted",
    )
    key, slot = await sealed(TpmGate(software_tpm.tcti))
    assert slot["parent"] == "derived"
    assert await TpmIdentity(TpmGate(software_tpm.tcti)).unwrap(slot, ARCHIVE) == key


async def test_behind_a_signing_key_a_storage_key_is_found(tpm: SoftwareTpm, tools: Tools) -> None:
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign|restricted"
    tools.persist("0x81000002", "-G", "ecc")
    tools("evictcontrol", "-C", "o", "-c", "0x81000001")
    tools.persist("0x81000001", "-G", "ecc:ecdsa:null", "-a", attributes)
    assert (await TpmGate(tpm.tcti).run(choose_parent)).origin == "0x81000002"


async def test_what_is_derived_must_be_a_storage_key(
    software_tpm: SoftwareTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    area = TPMT_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=TPMA_OBJECT(SIGNING_ATTRIBUTES))
    monkeypatch.setattr(parents, "default_template", lambda: TPM2B_PUBLIC(publicArea=area))
    with pytest.raises(BadPublicArea, match="no storage key"):
        await TpmGate(software_tpm.tcti).run(choose_parent)


def first_derivation(wire: TpmWire, failure: int) -> Plan:
    return lambda _, code: failure if code == CREATE_PRIMARY and wire.commands.count(code) == 1 else None


async def test_of_two_keys_that_a_lockout_would_stop_the_first_is_used_and_only_where_deriving_is_refused(
    software_tpm: SoftwareTpm, tools: Tools
) -> None:
    for handle in ("0x81000001", "0x81000002"):
        tools("createprimary", "-C", "o", "-c", "primary", "-G", "ecc")  # without noDA, tpm2-tools' own choice
        tools("evictcontrol", "-C", "o", "-c", "primary", handle)
    with wired(software_tpm) as wire:
        for failure, origin in ((0x920, "derived"), (0x9A2, "0x81000001")):  # NV_RATE: it wants to be asked again
            wire.commands.clear()
            wire.plan = first_derivation(wire, failure)
            assert (await TpmGate(wire.tcti).run(choose_parent)).origin == origin


async def test_a_kind_of_storage_key_that_this_tpm_has_not_is_another_tpms(tpm: SoftwareTpm) -> None:
    unknown_curve = storage().replace(bytes.fromhex("00430010 0003"), bytes.fromhex("00430010 00ff"))
    with pytest.raises(WrongTpm):
        await TpmIdentity(TpmGate(tpm.tcti)).unwrap(made_slot(parent=unknown_curve), ARCHIVE)


async def test_a_storage_key_is_found_by_its_second_template_where_the_first_is_refused(
    tpm: SoftwareTpm, tools: Tools
) -> None:
    key, slot = await sealed(TpmGate(tpm.tcti))
    tools("evictcontrol", "-C", "o", "-c", "0x81000001")  # it was derived from an empty `unique`
    with wired(tpm) as wire:
        wire.plan = first_derivation(wire, 0x2D5)
        assert await TpmIdentity(TpmGate(wire.tcti)).unwrap(slot, ARCHIVE) == key


async def test_a_storage_key_that_a_lockout_would_stop_is_used_only_when_no_other_can_be_had(
    software_tpm: SoftwareTpm, tools: Tools
) -> None:
    tools("createprimary", "-C", "o", "-c", "primary", "-G", "ecc")  # without noDA, tpm2-tools' own choice
    tools("evictcontrol", "-C", "o", "-c", "primary", "0x81000001")
    gate = TpmGate(software_tpm.tcti)
    pin = await read_pin(gate)
    key, slot = await sealed(gate)
    assert slot["parent"] == "derived"
    tools("changeauth", "-c", "owner", PASSWORD)
    other_key, other = await sealed(gate)
    assert other["parent"] == "0x81000001"
    assert await TpmIdentity(gate).unwrap(other, ARCHIVE) == other_key
    tools("changeauth", "-c", "owner", "-p", PASSWORD)
    tools.lock_out()
    assert await read_pin(gate) == pin
    assert await TpmIdentity(gate).unwrap(slot, ARCHIVE) == key
    with pytest.raises(TpmLockout, match="in lockout"):
        await TpmIdentity(gate).unwrap(other, ARCHIVE)


async def test_an_owner_password_is_asked_for_and_stays_off_the_wire(software_tpm: SoftwareTpm, tools: Tools) -> None:
    pin = await read_pin(TpmGate(software_tpm.tcti))
    key, slot = await sealed(TpmGate(software_tpm.tcti))
    tools("changeauth", "-c", "owner", PASSWORD)
    for wrong in (None, b"guess"):
        with pytest.raises(TpmOwnerPassword, match="owner password is set") as caught:
            await read_pin(TpmGate(software_tpm.tcti, owner_auth=wrong))
        assert "sealing.owner_auth_file" in caught.value.hint
        with pytest.raises(TpmOwnerPassword):
            await TpmIdentity(TpmGate(software_tpm.tcti, owner_auth=wrong)).unwrap(slot, ARCHIVE)
    with wired(software_tpm) as wire:
        gate = TpmGate(wire.tcti, owner_auth=PASSWORD.encode())
        assert await read_pin(gate) == pin  # a password does not change the key
        assert await TpmIdentity(gate).unwrap(slot, ARCHIVE) == key
        assert PASSWORD.encode() not in wire.seen
    assert PASSWORD not in repr(gate)


async def test_a_persistent_storage_key_needs_no_owner_password(software_tpm: SoftwareTpm, tools: Tools) -> None:
    tools.persist("0x81000001", "-G", "ecc")
    tools("changeauth", "-c", "owner", PASSWORD)
    gate = TpmGate(software_tpm.tcti)
    key, slot = await sealed(gate)
    assert await TpmIdentity(gate).unwrap(slot, ARCHIVE) == key
    assert (await describe(gate))["owner_password_set"] is True


async def test_another_tpm_is_told_even_if_it_wants_an_owner_password(software_tpm: SoftwareTpm, tools: Tools) -> None:
    with SoftwareTpm() as other:
        _, slot = await sealed(TpmGate(other.tcti))
    tools("changeauth", "-c", "owner", PASSWORD)
    with pytest.raises(WrongTpm, match="this machine has another TPM"):
        await TpmIdentity(TpmGate(software_tpm.tcti)).unwrap(slot, ARCHIVE)


async def test_an_endorsement_password_only_costs_the_better_error(software_tpm: SoftwareTpm, tools: Tools) -> None:
    tools("changeauth", "-c", "endorsement", PASSWORD)
    gate = TpmGate(software_tpm.tcti)
    assert (await read_pin(gate)).ek_name is None
    key, slot = await sealed(gate)
    assert "ek_salted" not in slot
    assert await TpmIdentity(gate).unwrap(slot, ARCHIVE) == key
    software_tpm.clear()
    with pytest.raises(WrongTpm):
        await TpmIdentity(gate).unwrap(slot, ARCHIVE)


async def test_a_tpm_in_lockout_still_seals_and_opens(software_tpm: SoftwareTpm, tools: Tools) -> None:
    gate = TpmGate(software_tpm.tcti)
    key, slot = await sealed(gate)
    tools.lock_out()
    told = await describe(gate)
    assert told["problem"] is None
    assert told["lockout"]["active"] is True
    assert await TpmIdentity(gate).unwrap(slot, ARCHIVE) == key
    assert await TpmIdentity(gate).unwrap((await sealed(gate))[1], ARCHIVE)


async def test_a_switched_off_storage_hierarchy_is_told(software_tpm: SoftwareTpm, tools: Tools) -> None:
    tools("hierarchycontrol", "-C", "p", "shEnable", "clear")
    with pytest.raises(TpmUnavailable, match="storage hierarchy is switched off"):
        await read_pin(TpmGate(software_tpm.tcti))


async def test_a_foreign_implementation_opens_our_slot(software_tpm: SoftwareTpm, tools: Tools) -> None:
    tools.persist("0x81000001", "-G", "ecc")
    key, slot = await sealed(TpmGate(software_tpm.tcti))
    for name in ("private", "public"):
        (tools.directory / name).write_bytes(bytes.fromhex(str(slot[name])))
    tools("load", "-C", "0x81000001", "-u", "public", "-r", "private", "-c", "object")
    assert tools("unseal", "-c", "object") == key


class Counting(TpmGate):
    runs = 0

    async def run(self, work: Callable[[Chip], T]) -> T:
        self.runs += 1
        return await super().run(work)


async def test_slots_of_other_tpms_do_not_keep_this_one_busy_for_hours(software_tpm: SoftwareTpm, tools: Tools) -> None:
    tools.persist("0x81000001", "-G", "ecc")
    gate = Counting(software_tpm.tcti)
    key, slot = await sealed(gate)
    public = bytes.fromhex(str(slot["srk_public"]))

    def other(number: int) -> dict[str, object]:
        """As whoever can write the target makes it: a storage key that no TPM has."""
        changed = public[:-4] + number.to_bytes(4, "big")
        name = name_of(changed)
        return slot | {"srk_public": changed.hex(), "srk_name": name.hex(), "fingerprint": fingerprint(name)}

    others = [other(number) for number in range(40)]
    for slots, most in (([others[0]] * 60 + [slot], 2), ([*others[:10], slot], 11)):
        gate.runs = 0
        attempt = await try_slots(slots, [TpmIdentity(gate)], ARCHIVE, belongs=bool)
        assert attempt.data_key == key
        assert gate.runs == most
    gate.runs = 0
    identity = TpmIdentity(gate)
    attempt = await try_slots(others, [identity], ARCHIVE, belongs=bool)
    assert attempt.data_key is None
    assert len(attempt.reasons) == len(others)
    for asked, told in ((1, 1), (39, 0)):  # one that was looked for, and one that was not any more
        with pytest.raises(TpmCleared, match=str(others[told]["fingerprint"])):
            await identity.unwrap(others[asked], ARCHIVE)
    assert gate.runs == 16
