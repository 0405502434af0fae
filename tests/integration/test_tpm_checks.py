"""What a TPM that is faulty, or somebody on the way to it, could say: nothing of it is believed."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demo.software_tpm import SoftwareTpm
from service.errors import (
    DamagedSlot,
    PinRequired,
    PinUnusable,
    SealError,
    TpmChanged,
    TpmCleared,
    TpmUnavailable,
    WrongTpm,
)
from service.sealing.tpm import (
    TpmGate,
    TpmIdentity,
    TpmRecipient,
    change_pin,
    check_pin,
    describe,
    make_pin,
    open_signer,
    read_pin,
    sealed,
)
from service.sealing.tpm.chip import TRANSIENT_FIRST, Chip
from service.sealing.tpm.endorsement import endorsement_names
from service.sealing.tpm.faults import TpmFailed
from service.sealing.tpm.public_area import name_of
from service.sealing.tpm.restore_pin import PinObject
from tests.integration.tpm_slots import ARCHIVE, NOW, PIN, a_slot, with_pin
from tests.integration.tpm_wire import CREATE, CREATE_PRIMARY, LOAD, START_AUTH_SESSION, UNSEAL, Tools, wired
from tests.tpm_areas import slot as made_slot
from tests.tpm_areas import storage

READ_PUBLIC, POLICY_SECRET = 0x173, 0x151
RETRY_ON_CHIP = 0x922


# Somebody on the way to the TPM


async def test_a_key_that_is_another_one_at_the_second_look_is_not_sealed_to(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """Somebody on the bus shows his own key where a session is salted to it, and the real one where it is compared."""
    pin = await read_pin(TpmGate(tpm.tcti))
    with SoftwareTpm() as attackers, wired(tpm) as wire:
        Tools(attackers.tcti, tmp_path / "attackers").persist("0x81000001", "-G", "ecc")
        looks = 0

        def said(command: bytes, answer: bytes) -> bytes:
            nonlocal looks
            if struct.unpack(">I", command[6:10])[0] != READ_PUBLIC or answer[6:10] != bytes(4):
                return answer
            looks += 1
            return _asked(attackers, command) if looks % 2 else answer

        wire.said = said
        with pytest.raises(TpmUnavailable, match="malformed or fails its authentication"):
            await TpmRecipient(TpmGate(wire.tcti), pin).wrap(bytes(32), ARCHIVE)
        assert looks == 2
        assert START_AUTH_SESSION not in wire.commands
        assert CREATE not in wire.commands
        wire.said = lambda _command, answer: answer
        await TpmRecipient(TpmGate(wire.tcti), pin).wrap(bytes(32), ARCHIVE)


def _asked(tpm: SoftwareTpm, command: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(tpm.socket))
        connection.sendall(command)
        return connection.recv(4096)


async def test_an_answer_that_was_altered_on_the_way_is_not_believed(tpm: SoftwareTpm) -> None:
    key, slot = await a_slot(TpmGate(tpm.tcti))
    with wired(tpm) as wire:
        altered: list[int] = []

        def said(command: bytes, answer: bytes) -> bytes:
            if struct.unpack(">I", command[6:10])[0] != UNSEAL:
                return answer
            altered.append(len(answer))
            return answer[:20] + bytes([answer[20] ^ 1]) + answer[21:]

        wire.said = said
        with pytest.raises(TpmUnavailable, match="malformed or fails its authentication"):
            await TpmIdentity(TpmGate(wire.tcti)).unwrap(slot, ARCHIVE)
        assert len(altered) == 1
    assert await TpmIdentity(TpmGate(tpm.tcti)).unwrap(slot, ARCHIVE) == key


# A TPM that does something else than it says


async def test_a_tpm_that_seals_another_key_is_found_before_the_archive_is_made(
    tpm: SoftwareTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, pin, restore_pin = await with_pin(tpm.tcti)
    create = sealed._create

    def another(chip: Chip, parent: Any, session: Any, data: bytes, *rest: Any) -> tuple[bytes, bytes]:
        return create(chip, parent, session, data[:-1] + bytes([data[-1] ^ 1]), *rest)

    monkeypatch.setattr(sealed, "_create", another)
    for asks in (None, restore_pin):
        with pytest.raises(SealError, match="gave back another one"):
            await TpmRecipient(gate, pin, asks).wrap(bytes(32), ARCHIVE)


async def test_a_tpm_that_opens_without_the_pin_is_found_before_the_archive_is_made(
    tpm: SoftwareTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, pin, restore_pin = await with_pin(tpm.tcti)
    create = sealed._create

    def open_to_all(chip: Chip, parent: Any, session: Any, data: bytes, _: bytes, *rest: Any) -> tuple[bytes, bytes]:
        return create(chip, parent, session, data, b"", *rest)

    monkeypatch.setattr(sealed, "_create", open_to_all)
    with pytest.raises(SealError, match="opens without the PIN"):
        await TpmRecipient(gate, pin, restore_pin).wrap(bytes(32), ARCHIVE)


async def test_a_pin_is_set_only_where_it_opens_what_is_sealed_for_it(
    tpm: SoftwareTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, pin, restore_pin = await with_pin(tpm.tcti)
    monkeypatch.setattr("service.sealing.tpm.pin_operations.unseal_with_pin", lambda *_: bytes(32))
    for proven in (
        make_pin(gate, pin, PIN, now=NOW),
        change_pin(gate, pin, restore_pin, PIN, "another PIN", now=NOW),
        check_pin(gate, pin, restore_pin, PIN),
    ):
        with pytest.raises(SealError, match="sealed a key for the PIN and gave back another one"):
            await proven


async def test_an_object_of_this_tpm_that_holds_no_data_key_opens_nothing(tpm: SoftwareTpm, tools: Tools) -> None:
    """As whoever is root here can make one: the right attributes, another content."""
    gate = TpmGate(tpm.tcti)
    _, slot = await a_slot(gate)
    for length in (31, 33):
        (tools.directory / "content").write_bytes(bytes(length))
        attributes = ("-a", "fixedtpm|fixedparent|userwithauth|noda")
        tools("create", "-C", "0x81000001", "-i", "content", "-u", "public", "-r", "private", *attributes)
        areas = {name: (tools.directory / name).read_bytes().hex() for name in ("private", "public")}
        with pytest.raises(DamagedSlot, match="no data key"):
            await TpmIdentity(gate).unwrap(slot | areas, ARCHIVE)


async def test_without_its_pin_a_slot_is_still_looked_at(tpm: SoftwareTpm) -> None:
    """Damage, another TPM and a missing PIN are told apart before somebody is sent to look for a PIN."""
    gate, pin, restore_pin = await with_pin(tpm.tcti)
    _, slot = await a_slot(gate, pin, restore_pin)
    damaged = slot | {"private": slot["private"][:-2] + f"{int(slot['private'][-2:], 16) ^ 1:02x}"}
    for given in (None, restore_pin):
        identity = TpmIdentity(gate, restore_pin=given)
        with pytest.raises(PinRequired):
            await identity.unwrap(slot, ARCHIVE)
        with pytest.raises(DamagedSlot, match="not those that the TPM made"):
            await identity.unwrap(damaged, ARCHIVE)
    asks = slot["pin"] | {"private": slot["pin"]["private"][:-2] + f"{int(slot['pin']['private'][-2:], 16) ^ 1:02x}"}
    with pytest.raises(DamagedSlot, match="restore PIN that it asks for"):
        await TpmIdentity(gate).unwrap(slot | {"pin": asks}, ARCHIVE)
    broken = replace(restore_pin, object=PinObject.model_validate(asks, strict=False))
    for pin_given in (None, PIN):
        with pytest.raises(PinUnusable):  # this machine's own file is what is broken
            await TpmIdentity(gate, pin=pin_given, restore_pin=broken).unwrap(slot, ARCHIVE)
    with pytest.raises(DamagedSlot, match="not those that the TPM made"):
        await TpmIdentity(gate, pin=PIN).unwrap(slot | {"pin": asks}, ARCHIVE)
    _, free = await a_slot(gate)
    await TpmIdentity(gate).look(free, ARCHIVE)
    with (
        SoftwareTpm() as other,
        pytest.raises(WrongTpm, match=f"on {pin.fingerprint}, this machine has TPM [A-Z2-7]{{4}}-"),
    ):
        await TpmIdentity(TpmGate(other.tcti)).unwrap(slot, ARCHIVE)


async def test_a_fault_while_a_slot_is_looked_at_is_the_tpms_and_not_the_slots(tpm: SoftwareTpm) -> None:
    gate, pin, restore_pin = await with_pin(tpm.tcti)
    _, asking = await a_slot(gate, pin, restore_pin)
    _, free = await a_slot(gate)
    path = tpm.directory / "state-dir" / "key.json"
    with wired(tpm) as wire:
        behind = TpmGate(wire.tcti)
        signer = await open_signer(behind, pin, path)
        for failure in (0x143, 0x18B):  # of no parameter: whatever is asked, the answer is that
            wire.plan = lambda _number, code, failure=failure: failure if code == LOAD else None  # type: ignore[misc]
            for asked in (
                TpmIdentity(behind).unwrap(free, ARCHIVE),
                TpmIdentity(behind).look(free, ARCHIVE),
                TpmIdentity(behind).look(asking, ARCHIVE),
                TpmIdentity(behind, pin=PIN).unwrap(asking, ARCHIVE),
                TpmRecipient(behind, pin, restore_pin).wrap(bytes(32), ARCHIVE),
                signer.sign("report", b""),
            ):
                with pytest.raises(SealError) as caught:
                    await asked
                assert not isinstance(caught.value, DamagedSlot | PinUnusable)
                assert f"0x{failure:x}" in str(caught.value)


async def test_a_signing_key_that_was_altered_signs_nothing(tpm: SoftwareTpm, tmp_path: Path) -> None:
    gate = TpmGate(tpm.tcti)
    pin = await read_pin(gate)
    path = tmp_path / "state" / "key.json"
    await open_signer(gate, pin, path)
    stored = json.loads(path.read_text())
    last = f"{int(stored['private'][-2:], 16) ^ 1:02x}"
    path.write_text(json.dumps(stored | {"private": stored["private"][:-2] + last}))
    with pytest.raises(SealError, match="refuses its signing key: the file was altered") as caught:
        await (await open_signer(gate, pin, path)).sign("report", b"")
    assert "a new key is made" in caught.value.hint


# Which chip it is


async def test_the_chip_is_known_by_its_persistent_key_where_deriving_is_refused(
    tpm: SoftwareTpm, tools: Tools
) -> None:
    gate = TpmGate(tpm.tcti)
    (derived,) = await gate.run(endorsement_names)
    tools("createek", "-c", "0x81010001", "-G", "rsa")
    tools("createek", "-c", "0x81010002", "-G", "ecc")
    names = await gate.run(endorsement_names)
    assert names == [derived, names[1], derived]
    assert names[1] != derived
    tools("changeauth", "-c", "endorsement", "a password")
    assert await gate.run(endorsement_names) == names[1:]
    assert (await read_pin(gate)).ek_name == names[1]


async def test_who_the_chip_is_asks_for_no_room_afterwards(tpm: SoftwareTpm) -> None:
    def work(chip: Chip) -> list[int]:
        assert endorsement_names(chip)
        return chip.handles(TRANSIENT_FIRST)

    assert await TpmGate(tpm.tcti).run(work) == []


async def test_a_persistent_key_whose_name_is_by_sha_1_is_passed_over(tpm: SoftwareTpm, tools: Tools) -> None:
    gate = TpmGate(tpm.tcti)
    before = await gate.run(endorsement_names)
    tools("createprimary", "-C", "e", "-g", "sha1", "-G", "ecc", "-c", "primary")
    tools("evictcontrol", "-C", "o", "-c", "primary", "0x81010001")
    assert await gate.run(endorsement_names) == before


async def test_a_fault_while_the_chip_is_asked_who_it_is_is_no_refusal(tpm: SoftwareTpm) -> None:
    with wired(tpm) as wire:
        wire.plan = lambda _number, code: RETRY_ON_CHIP if code == CREATE_PRIMARY else None
        with pytest.raises(TpmUnavailable):
            await TpmGate(wire.tcti, deadline=0.5).run(endorsement_names)
        wire.plan = lambda _number, code: 0x143 if code == CREATE_PRIMARY else None
        assert await TpmGate(wire.tcti).run(endorsement_names) == []


async def test_doctor_lists_no_key_that_cannot_be_a_parent(software_tpm: SoftwareTpm, tools: Tools) -> None:
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign|restricted"
    tools.persist("0x81000001", "-G", "ecc:ecdsa:null", "-a", attributes)
    tools.persist("0x81000002", "-G", "ecc")
    assert (await describe(TpmGate(software_tpm.tcti)))["persistent_storage_keys"] == ["0x81000002"]


async def test_a_pin_with_another_public_area_is_another_tpm(tpm: SoftwareTpm) -> None:
    gate = TpmGate(tpm.tcti)
    pin = await read_pin(gate)
    other = storage()
    for wrong, told in (
        (replace(pin, srk_name=name_of(other), srk_public=other), "has been cleared since"),
        (replace(pin, srk_name=name_of(other)), "has been cleared since"),
        (replace(pin, srk_name=name_of(other), ek_name=b"another"), "is not the TPM that was pinned"),
    ):
        with pytest.raises(TpmChanged, match=told):
            await TpmRecipient(gate, wrong).wrap(bytes(32), ARCHIVE)


async def test_a_cleared_chip_is_known_by_any_of_its_keys(tpm: SoftwareTpm, tools: Tools) -> None:
    gate = TpmGate(tpm.tcti)
    _, slot = await a_slot(gate)
    tpm.clear()
    tools("createprimary", "-C", "e", "-G", "ecc", "-c", "primary")
    tools("evictcontrol", "-C", "o", "-c", "primary", "0x81010001")
    assert len(await gate.run(endorsement_names)) == 2
    with pytest.raises(TpmCleared):
        await TpmIdentity(gate).unwrap(slot, ARCHIVE)


async def test_a_storage_key_that_cannot_be_looked_for_is_the_slots_fault_or_the_tpms(tpm: SoftwareTpm) -> None:
    with pytest.raises(DamagedSlot, match="its storage key cannot be used: bytes follow it"):
        await TpmIdentity(TpmGate(tpm.tcti)).unwrap(made_slot(parent=storage(tail=b"\0")), ARCHIVE)
    with SoftwareTpm() as other:
        _, foreign = await a_slot(TpmGate(other.tcti))
    with wired(tpm) as wire:
        wire.plan = lambda _number, code: 0x143 if code == CREATE_PRIMARY and wire.commands.count(code) == 1 else None
        with pytest.raises(TpmFailed, match="0x143"):
            await TpmIdentity(TpmGate(wire.tcti)).unwrap(foreign, ARCHIVE)
