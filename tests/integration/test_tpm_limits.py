"""How often a TPM is asked, how much of its room is taken, what travels: bounds that hold whatever an archive says."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable
from typing import TypeVar

import pytest

from demo.software_tpm import SoftwareTpm
from service.errors import PinRequired, PinWrong, SealError, TpmCleared, TpmUnavailable, WrongTpm
from service.sealing.tpm import (
    TpmGate,
    TpmIdentity,
    TpmRecipient,
    change_pin,
    check_pin,
    make_pin,
    open_signer,
    read_pin,
    sealed,
)
from service.sealing.tpm.chip import Chip
from service.sealing.tpm.faults import LOCKOUT, TpmLockout, TpmOwnerPassword
from tests.integration.tpm_slots import ARCHIVE, NOW, PIN, a_slot, with_pin
from tests.integration.tpm_wire import (
    CREATE,
    CREATE_PRIMARY,
    DROP,
    LOAD,
    LOSE,
    START_AUTH_SESSION,
    UNSEAL,
    Tools,
    TpmWire,
    wired,
)

T = TypeVar("T")

WRONG = "a wrong PIN"
FLUSH_CONTEXT, POLICY_SECRET, OBJECT_CHANGE_AUTH, SIGN = 0x165, 0x151, 0x150, 0x15D
DECRYPT, ENCRYPT = 0x20, 0x40  # of a session: of the command's first parameter, of the answer's


class Counting(TpmGate):
    """Counts what it is asked to do."""

    runs = 0

    async def run(self, work: Callable[[Chip], T]) -> T:
        self.runs += 1
        return await super().run(work)


async def failures(gate: TpmGate) -> int | None:
    return (await gate.run(lambda chip: chip.lockout())).failures


# How often


async def test_a_wrong_pin_is_tried_on_two_pin_objects_and_no_third(tpm: SoftwareTpm) -> None:
    """Whoever can write the target can put slots of former PINs into an archive; three tries lock this TPM."""
    gate = Counting(tpm.tcti)
    pin = await read_pin(gate)
    slots = [(await a_slot(gate, pin, await make_pin(gate, pin, PIN, now=NOW)))[1] for _ in range(3)]
    identity = TpmIdentity(gate, pin=WRONG)
    for number, counted in enumerate((1, 2, 2)):
        gate.runs = 0
        with pytest.raises(PinWrong) as caught:
            await identity.unwrap(slots[number], ARCHIVE)
        assert gate.runs == (1 if number < 2 else 0)
        assert caught.value.tries_left == (1 if number == 1 else 2)
        assert await failures(TpmGate(tpm.tcti)) == counted
    for slot, left in zip(slots, (2, 1, 2), strict=True):  # and none of them again
        gate.runs = 0
        with pytest.raises(PinWrong) as caught:
            await identity.unwrap(slot, ARCHIVE)
        assert gate.runs == 0
        assert caught.value.tries_left == left
    with pytest.raises(PinWrong):
        await identity.unwrap(slots[2], ARCHIVE)
    assert await failures(TpmGate(tpm.tcti)) == 2


async def test_only_who_knows_the_pin_can_change_it(tpm: SoftwareTpm) -> None:
    gate, pin, restore_pin = await with_pin(tpm.tcti)
    with pytest.raises(PinWrong, match="2 tries are left"):
        await change_pin(gate, pin, restore_pin, WRONG, "another PIN", now=NOW)
    with pytest.raises(PinWrong, match="1 try is left"):
        await check_pin(gate, pin, restore_pin, WRONG)
    changed = await change_pin(gate, pin, restore_pin, PIN, "another PIN", now=NOW)
    assert changed.object.name == restore_pin.object.name
    await check_pin(gate, pin, changed, "another PIN")


async def test_a_pin_that_nobody_asks_for_is_not_tried(tpm: SoftwareTpm) -> None:
    gate = TpmGate(tpm.tcti)
    pin = await read_pin(gate)
    key, free = await a_slot(gate, pin)
    restore_pin = await make_pin(gate, pin, PIN, now=NOW)
    assert await TpmIdentity(gate, pin=WRONG, restore_pin=restore_pin).unwrap(free, ARCHIVE) == key
    assert await failures(gate) == 0


async def test_a_slot_opens_with_the_pin_it_was_made_with_where_quite_another_is_set_now(tpm: SoftwareTpm) -> None:
    gate, pin, restore_pin = await with_pin(tpm.tcti)
    key, slot = await a_slot(gate, pin, restore_pin)
    anew = await make_pin(gate, pin, "another PIN", now=NOW)
    assert await TpmIdentity(gate, pin=PIN, restore_pin=anew).unwrap(slot, ARCHIVE) == key


async def test_a_tpm_in_lockout_is_not_asked_for_the_pin_object_and_seals_for_it(
    tpm: SoftwareTpm, tools: Tools
) -> None:
    """Whoever's wrong passwords they were, backups go on; and an archive without a PIN opens."""
    gate, pin, restore_pin = await with_pin(tpm.tcti)
    key, free = await a_slot(gate, pin)
    tools.lock_out()
    _, slot = await a_slot(gate, pin, restore_pin)
    await TpmIdentity(gate).look(slot, ARCHIVE)
    with pytest.raises(PinRequired):
        await TpmIdentity(gate).unwrap(slot, ARCHIVE)
    for given in (PIN, WRONG):
        with pytest.raises(TpmLockout, match="after 17 minutes"):
            await TpmIdentity(gate, pin=given).unwrap(slot, ARCHIVE)
    assert await TpmIdentity(gate).unwrap(free, ARCHIVE) == key


async def test_a_tpm_that_does_not_even_load_the_pin_object_in_lockout_seals_for_it(tpm: SoftwareTpm) -> None:
    _, pin, restore_pin = await with_pin(tpm.tcti)
    with wired(tpm) as wire:
        gate = TpmGate(wire.tcti)
        wire.plan = lambda _number, code: LOCKOUT if code == LOAD and wire.commands.count(LOAD) == 1 else None
        _, slot = await a_slot(gate, pin, restore_pin)
        wire.commands.clear()
        with pytest.raises(TpmLockout, match="one try is allowed again after 17 minutes"):
            await TpmIdentity(gate, pin=PIN).unwrap(slot, ARCHIVE)


@pytest.mark.parametrize("failure", [DROP, LOSE])
async def test_a_pin_is_not_tried_again_when_its_answer_is_lost(tpm: SoftwareTpm, failure: int) -> None:
    gate, pin, restore_pin = await with_pin(tpm.tcti)
    _, slot = await a_slot(gate, pin, restore_pin)
    with wired(tpm) as wire:
        behind = TpmGate(wire.tcti)
        for command, asked in (
            (POLICY_SECRET, TpmIdentity(behind, pin=WRONG).unwrap(slot, ARCHIVE)),
            (OBJECT_CHANGE_AUTH, change_pin(behind, pin, restore_pin, WRONG, "another PIN", now=NOW)),
        ):
            wire.plan = lambda _number, code, command=command: failure if code == command else None  # type: ignore[misc]
            with pytest.raises(TpmUnavailable, match="broke while the PIN was tried"):
                await asked
            assert wire.commands.count(command) == 1


@pytest.mark.parametrize("command", [LOAD, UNSEAL])
async def test_a_fault_of_the_first_such_command_alone_is_told(tpm: SoftwareTpm, command: int) -> None:
    pin = await read_pin(TpmGate(tpm.tcti))
    restore_pin = await make_pin(TpmGate(tpm.tcti), pin, PIN, now=NOW)
    with wired(tpm) as wire:
        wire.plan = lambda _number, code: 0x143 if code == command and wire.commands.count(code) == 1 else None
        with pytest.raises(SealError, match="0x143"):
            await TpmRecipient(TpmGate(wire.tcti), pin, restore_pin).wrap(bytes(32), ARCHIVE)
        assert wire.commands.count(command) == 1


async def test_an_empty_pin_is_none(tpm: SoftwareTpm) -> None:
    gate = TpmGate(tpm.tcti)
    pin = await read_pin(gate)
    _, slot = await a_slot(gate, pin, await make_pin(gate, pin, PIN, now=NOW))
    with pytest.raises(PinRequired):
        await TpmIdentity(gate, pin="").unwrap(slot, ARCHIVE)
    assert await failures(gate) == 0


async def test_what_a_recipient_and_an_identity_say_of_themselves(tpm: SoftwareTpm) -> None:
    gate = TpmGate(tpm.tcti)
    pin = await read_pin(gate)
    assert TpmRecipient(gate, pin).asks_for_pin is False
    assert TpmRecipient(gate, pin, await make_pin(gate, pin, PIN, now=NOW)).asks_for_pin is True
    identity = TpmIdentity(gate)
    assert identity.proves_origin is True
    assert identity.accepts({"type": "tpm2"})
    assert not identity.accepts({"type": "age"})
    assert not identity.accepts({})
    for length in (31, 33):
        with pytest.raises(ValueError, match="32 bytes"):
            await TpmRecipient(gate, pin).wrap(bytes(length), ARCHIVE)


# How much


def most_at_once(wire: TpmWire) -> tuple[list[int], list[int]]:
    """Watch how many objects and sessions are in the TPM after each command."""
    loaded: set[int] = set()
    objects, sessions = [0], [0]

    def said(command: bytes, answer: bytes) -> bytes:
        code = struct.unpack(">I", command[6:10])[0]
        if answer[6:10] == bytes(4):
            if code in (START_AUTH_SESSION, LOAD, CREATE_PRIMARY):
                loaded.add(struct.unpack(">I", answer[10:14])[0])
            if code == FLUSH_CONTEXT:
                loaded.discard(struct.unpack(">I", command[10:14])[0])
        objects.append(sum(handle >> 24 == 0x80 for handle in loaded))
        sessions.append(sum(handle >> 24 in (2, 3) for handle in loaded))
        return answer

    wire.said = said
    return objects, sessions


async def test_every_operation_does_with_two_objects_and_two_sessions(software_tpm: SoftwareTpm) -> None:
    """Every TPM has room for three of each; here the storage key, which has to be derived, is one."""
    with SoftwareTpm() as other:
        _, foreign = await a_slot(TpmGate(other.tcti))
    with wired(software_tpm) as wire:
        objects, sessions = most_at_once(wire)
        gate = TpmGate(wire.tcti)
        with pytest.raises(WrongTpm):
            await TpmIdentity(TpmGate(wire.tcti, deadline=10)).unwrap(foreign, ARCHIVE)
        pin = await read_pin(gate)
        restore_pin = await make_pin(gate, pin, PIN, now=NOW)
        restore_pin = await change_pin(gate, pin, restore_pin, PIN, "another PIN", now=NOW)
        await check_pin(gate, pin, restore_pin, "another PIN")
        for asks in (None, restore_pin):
            key, slot = await a_slot(gate, pin, asks)
            identity = TpmIdentity(gate, pin="another PIN", restore_pin=asks)
            await identity.look(slot, ARCHIVE)
            assert await identity.unwrap(slot, ARCHIVE) == key
        signer = await open_signer(gate, pin, software_tpm.directory / "state-dir" / "key.json")
        await signer.sign("report", b"")
        assert (max(objects), max(sessions)) == (2, 2)
        assert (objects[-1], sessions[-1]) == (0, 0)


# What travels


async def test_a_data_key_travels_encrypted_in_both_directions(tpm: SoftwareTpm) -> None:
    with wired(tpm) as wire:
        gate = TpmGate(wire.tcti)
        key, slot = await a_slot(gate)
        assert await TpmIdentity(gate).unwrap(slot, ARCHIVE) == key
        assert UNSEAL in wire.commands
        assert key not in wire.seen


def sessions_of(command: bytes, handles: int) -> list[tuple[int, int]]:
    """Return handle and attributes of each session that a command has (Part 1, 18.4; Part 2, 10.13.2)."""
    at = 10 + 4 * handles
    end = at + 4 + int(struct.unpack(">I", command[at : at + 4])[0])
    at += 4
    found = []
    while at < end:
        handle, nonce = struct.unpack(">IH", command[at : at + 6])
        attributes, hmac = struct.unpack(">BH", command[at + 6 + nonce : at + 9 + nonce])
        found.append((handle, attributes))
        at += 9 + nonce + hmac
    return found


async def test_every_command_with_a_secret_is_authenticated_and_hides_it(tpm: SoftwareTpm) -> None:
    """Nobody on the bus can exchange an object under the service's hands, or read what is put into one."""
    handles = {CREATE: 1, LOAD: 1, UNSEAL: 1, SIGN: 1, POLICY_SECRET: 2, OBJECT_CHANGE_AUTH: 2}
    seen: dict[int, list[list[tuple[int, int]]]] = {}

    def said(command: bytes, answer: bytes) -> bytes:
        code = struct.unpack(">I", command[6:10])[0]
        if code in handles:
            seen.setdefault(code, []).append(sessions_of(command, handles[code]))
        return answer

    with wired(tpm) as wire:
        wire.said = said
        gate = TpmGate(wire.tcti)
        pin = await read_pin(gate)
        restore_pin = await make_pin(gate, pin, PIN, now=NOW)
        restore_pin = await change_pin(gate, pin, restore_pin, PIN, "another PIN", now=NOW)
        for asks in (None, restore_pin):
            _, slot = await a_slot(gate, pin, asks)
            await TpmIdentity(gate, pin="another PIN").unwrap(slot, ARCHIVE)
        await (await open_signer(gate, pin, tpm.directory / "state-dir" / "key.json")).sign("report", b"")
    assert seen.keys() == handles.keys()
    for code, commands in seen.items():
        for sessions in commands:
            assert all(handle >> 24 in (2, 3) for handle, _ in sessions), hex(code)  # not TPM_RS_PW
            together = sessions[0][1] | sessions[-1][1]
            if code in (CREATE, LOAD, SIGN, OBJECT_CHANGE_AUTH):
                assert together & DECRYPT, hex(code)
            if code in (CREATE, UNSEAL):
                assert together & ENCRYPT, hex(code)


async def test_no_ticket_is_asked_for_that_would_stand_for_the_pin_later(tpm: SoftwareTpm) -> None:
    """A negative expiration, the library's own default, has the TPM give one (Part 3, 23.4)."""
    with wired(tpm) as wire:
        gate = TpmGate(wire.tcti)
        pin = await read_pin(gate)
        _, slot = await a_slot(gate, pin, await make_pin(gate, pin, PIN, now=NOW))
        asked: list[bytes] = []

        def said(command: bytes, answer: bytes) -> bytes:
            if struct.unpack(">I", command[6:10])[0] == POLICY_SECRET:
                asked.append(command[-4:])
            return answer

        wire.said = said
        await TpmIdentity(gate, pin=PIN).unwrap(slot, ARCHIVE)
        assert asked == [bytes(4)]


async def test_an_authorisation_that_ends_in_zero_opens_all_the_same(
    tpm: SoftwareTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TPM cuts zeros off the end of one; what is used with it must be what it keeps."""
    gate, pin, restore_pin = await with_pin(tpm.tcti)
    monkeypatch.setattr(secrets, "token_bytes", lambda count: b"\1" * (count - 1) + b"\0")
    assert sealed._nonzero_end(b"ab\0") == b"ab\1"
    assert sealed._nonzero_end(b"abc") == b"abc"
    key, slot = await a_slot(gate, pin, restore_pin)
    assert await TpmIdentity(gate, pin=PIN).unwrap(slot, ARCHIVE) == key


# Which TPM


async def test_a_chip_that_does_not_say_who_it_is_seals_and_opens_all_the_same(tpm: SoftwareTpm, tools: Tools) -> None:
    gate = TpmGate(tpm.tcti)
    _, said = await a_slot(gate)
    tools("changeauth", "-c", "endorsement", "a password")
    key, slot = await a_slot(gate)
    assert "ek_salted" in said
    assert "ek_salted" not in slot
    assert await TpmIdentity(gate).unwrap(slot, ARCHIVE) == key
    tpm.clear()
    with pytest.raises(WrongTpm):
        await TpmIdentity(gate).unwrap(slot, ARCHIVE)
    with pytest.raises(TpmCleared):
        await TpmIdentity(gate).unwrap(said, ARCHIVE)


async def test_a_missing_owner_password_is_told_unless_it_is_another_chip(
    software_tpm: SoftwareTpm, tools: Tools
) -> None:
    gate = TpmGate(software_tpm.tcti)
    key, own = await a_slot(gate)
    with SoftwareTpm() as other:
        there = TpmGate(other.tcti)
        _, foreign = await a_slot(there)
    tools("changeauth", "-c", "owner", "a password")
    with pytest.raises(TpmOwnerPassword):
        await TpmIdentity(gate).unwrap(own, ARCHIVE)
    with pytest.raises(WrongTpm, match="another TPM"):
        await TpmIdentity(gate).unwrap(foreign, ARCHIVE)
    del foreign["ek_salted"]
    with pytest.raises(TpmOwnerPassword):  # it may be this one: nobody knows
        await TpmIdentity(gate).unwrap(foreign, ARCHIVE)
    tools("changeauth", "-c", "endorsement", "a password")
    with pytest.raises(TpmOwnerPassword):
        await TpmIdentity(gate).unwrap(own, ARCHIVE)
    with_password = TpmGate(software_tpm.tcti, owner_auth=b"a password")
    assert await TpmIdentity(with_password).unwrap(own, ARCHIVE) == key
