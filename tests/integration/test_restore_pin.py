"""The restore PIN: made and used without a person by backups, asked for by restores, counted by the TPM."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.software_tpm import SoftwareTpm
from service.errors import (
    ConfigError,
    DamagedSlot,
    PinRequired,
    PinUnusable,
    PinWrong,
    TpmChanged,
    TpmCleared,
    WrongTpm,
)
from service.sealing.tpm import RestorePin, TpmGate, TpmIdentity, TpmPin, TpmRecipient, chip, load_restore_pin, read_pin
from service.sealing.tpm.faults import TpmLockout
from service.sealing.tpm.restore_pin import (
    authorisation,
    change_pin,
    check_pin,
    make_pin,
    save_restore_pin,
)
from tests.integration.tpm_slots import ARCHIVE, NOW, PIN, with_pin
from tests.integration.tpm_wire import LOAD, UNSEAL, Tools, wired
from tests.scoreboard import counted

WRONG = "battery staple"
POLICY_SECRET = 0x151


@pytest.fixture
def other_tpm() -> Iterator[SoftwareTpm]:
    with SoftwareTpm() as tpm:
        yield tpm


async def sealed(gate: TpmGate, trusted: TpmPin, pin: RestorePin | None) -> tuple[bytes, dict[str, Any]]:
    """Seal a key as a backup does, which knows no PIN: the key, and its slot as it stands in an archive."""
    key = secrets.token_bytes(32)
    slot = await TpmRecipient(gate, trusted, pin).wrap(key, ARCHIVE)
    return key, json.loads(json.dumps(slot))


async def test_a_backup_needs_no_pin_and_a_restore_does(tpm: SoftwareTpm) -> None:
    gate, trusted, pin = await with_pin(tpm.tcti)
    key, slot = await sealed(gate, trusted, pin)
    assert await TpmIdentity(gate, pin=PIN).unwrap(slot, ARCHIVE) == key
    with pytest.raises(PinRequired, match=r"opens with the restore PIN only \(set on 2026-11-28\)") as caught:
        await TpmIdentity(gate).unwrap(slot, ARCHIVE)
    assert "--pin-file" in caught.value.hint
    assert key.hex() not in json.dumps(slot)
    assert PIN not in json.dumps(slot)


async def test_a_derived_storage_key_leaves_room_for_the_pin(software_tpm: SoftwareTpm) -> None:
    """Three objects, as many as every TPM has room for."""
    gate, trusted, pin = await with_pin(software_tpm.tcti)
    key, slot = await sealed(gate, trusted, pin)
    assert slot["parent"] == "derived"
    assert await TpmIdentity(gate, pin=PIN).unwrap(slot, ARCHIVE) == key
    assert await loaded(software_tpm.tcti) == []


async def loaded(tcti: str) -> list[int]:
    return await TpmGate(tcti).run(
        lambda chip_: chip_.handles(chip.TRANSIENT_FIRST) + chip_.handles(chip.LOADED_SESSION_FIRST)
    )


async def test_wrong_pins_are_counted_down_to_the_lockout_and_the_wait_is_told(tpm: SoftwareTpm) -> None:
    gate, trusted, pin = await with_pin(tpm.tcti)
    _, slot = await sealed(gate, trusted, pin)
    for left, told in [(2, "2 tries are left"), (1, "1 try is left"), (0, "locked now, for 17 minutes")]:
        with pytest.raises(PinWrong, match=told) as caught:
            await TpmIdentity(gate, pin=WRONG).unwrap(slot, ARCHIVE)
        assert caught.value.tries_left == left
    for given in (WRONG, PIN):
        with pytest.raises(TpmLockout, match="one try is allowed again after 17 minutes"):
            await TpmIdentity(gate, pin=given).unwrap(slot, ARCHIVE)
    # Backups go on, and what was sealed without a PIN opens.
    await sealed(gate, trusted, pin)
    free, open_slot = await sealed(gate, trusted, None)
    assert await TpmIdentity(gate).unwrap(open_slot, ARCHIVE) == free
    assert await loaded(tpm.tcti) == []


async def test_a_lockout_ends_with_its_time(tpm: SoftwareTpm, tmp_path: Path) -> None:
    tools = Tools(tpm.tcti, tmp_path / "tools")
    tools("dictionarylockout", "-s", "-n", "2", "-t", "2", "-l", "2")
    gate, trusted, pin = await with_pin(tpm.tcti)
    key, slot = await sealed(gate, trusted, pin)
    for _ in range(2):
        with pytest.raises(PinWrong):
            await TpmIdentity(gate, pin=WRONG).unwrap(slot, ARCHIVE)
    with pytest.raises(TpmLockout, match="after 2 seconds"):
        await TpmIdentity(gate, pin=PIN).unwrap(slot, ARCHIVE)
    for _ in range(20):
        await asyncio.sleep(0.5)
        try:
            assert await TpmIdentity(gate, pin=PIN).unwrap(slot, ARCHIVE) == key
        except TpmLockout:
            continue
        return
    raise AssertionError("the lockout did not end")


async def test_the_lockout_password_ends_a_lockout(tpm: SoftwareTpm, tmp_path: Path) -> None:
    gate, trusted, pin = await with_pin(tpm.tcti)
    key, slot = await sealed(gate, trusted, pin)
    Tools(tpm.tcti, tmp_path / "tools").lock_out()
    with pytest.raises(TpmLockout):
        await TpmIdentity(gate, pin=PIN).unwrap(slot, ARCHIVE)
    Tools(tpm.tcti, tmp_path / "tools")("dictionarylockout", "-c")
    assert await TpmIdentity(gate, pin=PIN).unwrap(slot, ARCHIVE) == key


async def test_a_wrong_pin_is_tried_once_for_several_slots(tpm: SoftwareTpm) -> None:
    gate, trusted, pin = await with_pin(tpm.tcti)
    _, first = await sealed(gate, trusted, pin)
    _, second = await sealed(gate, trusted, pin)
    identity = TpmIdentity(gate, pin=WRONG)
    for slot in (first, second):
        with pytest.raises(PinWrong, match="2 tries are left"):
            await identity.unwrap(slot, ARCHIVE)


async def test_a_changed_pin_opens_new_and_old_archives_and_the_old_pin_none_here(
    tpm: SoftwareTpm, tmp_path: Path
) -> None:
    gate, trusted, before = await with_pin(tpm.tcti)
    old_key, old_slot = await sealed(gate, trusted, before)
    after = await change_pin(gate, trusted, before, PIN, "another pin", now=NOW)
    new_key, new_slot = await sealed(gate, trusted, after)
    assert after.object.name == before.object.name
    for key, slot in ((old_key, old_slot), (new_key, new_slot)):
        assert await TpmIdentity(gate, pin="another pin", restore_pin=after).unwrap(slot, ARCHIVE) == key
    with pytest.raises(PinWrong):
        await TpmIdentity(gate, pin=PIN, restore_pin=after).unwrap(old_slot, ARCHIVE)
    # Where this machine's file is lost, an archive opens with the PIN of its day.
    assert await TpmIdentity(gate, pin=PIN).unwrap(old_slot, ARCHIVE) == old_key
    with pytest.raises(PinWrong):
        await TpmIdentity(gate, pin=PIN).unwrap(new_slot, ARCHIVE)


async def test_a_pin_survives_a_power_cycle(tpm: SoftwareTpm, tmp_path: Path) -> None:
    gate, trusted, pin = await with_pin(tpm.tcti)
    path = tmp_path / "state" / "restore-pin.json"
    assert load_restore_pin(path) is None
    save_restore_pin(path, pin)
    tpm.restart()
    again = load_restore_pin(path)
    assert again == pin
    assert path.stat().st_mode & 0o777 == 0o600
    key, slot = await sealed(gate, trusted, again)
    assert await TpmIdentity(gate, pin=PIN).unwrap(slot, ARCHIVE) == key


async def test_another_and_a_cleared_tpm_are_told_before_the_pin_is_tried(
    tpm: SoftwareTpm, other_tpm: SoftwareTpm
) -> None:
    gate, trusted, pin = await with_pin(tpm.tcti)
    _, slot = await sealed(gate, trusted, pin)
    with wired(other_tpm) as wire:
        with pytest.raises(WrongTpm):
            await TpmIdentity(TpmGate(wire.tcti), pin=PIN).unwrap(slot, ARCHIVE)
        assert POLICY_SECRET not in wire.commands
    there = await read_pin(TpmGate(other_tpm.tcti))
    with pytest.raises(PinUnusable, match="set on another TPM"):
        await TpmRecipient(TpmGate(other_tpm.tcti), there, pin).wrap(bytes(32), ARCHIVE)
    tpm.clear()
    with pytest.raises(TpmCleared):
        await TpmIdentity(gate, pin=PIN).unwrap(slot, ARCHIVE)
    with pytest.raises(TpmChanged):
        await check_pin(gate, trusted, pin, PIN)


async def test_neither_pin_nor_key_travels_in_clear(tpm: SoftwareTpm) -> None:
    with wired(tpm) as wire:
        gate, trusted, pin = await with_pin(wire.tcti)
        key, slot = await sealed(gate, trusted, pin)
        changed = await change_pin(gate, trusted, pin, PIN, "another pin", now=NOW)
        assert await TpmIdentity(gate, pin="another pin", restore_pin=changed).unwrap(slot, ARCHIVE) == key
        assert {LOAD, UNSEAL, POLICY_SECRET} < set(wire.commands)
        for secret in (
            key,
            PIN.encode(),
            b"another pin",
            pin.object.authorisation(PIN),
            changed.object.authorisation("another pin"),
        ):
            assert secret not in wire.seen


def flipped(text: str, at: int) -> str:
    data = bytearray.fromhex(text)
    data[at] ^= 0x40
    return data.hex()


@pytest.mark.parametrize("member", ["private", "public"])
async def test_every_flipped_byte_of_a_slots_pin_is_a_damaged_slot_and_no_try(
    tpm: SoftwareTpm, member: str, record_property: Callable[[str, object], None]
) -> None:
    gate, trusted, pin = await with_pin(tpm.tcti)
    key, slot = await sealed(gate, trusted, pin)
    for at in range(len(slot["pin"][member]) // 2):
        asks = slot["pin"] | {member: flipped(slot["pin"][member], at)}
        with pytest.raises(DamagedSlot):
            await TpmIdentity(gate, pin=PIN).unwrap(slot | {"pin": asks}, ARCHIVE)
    assert (await gate.run(lambda chip_: chip_.lockout())).failures == 0
    assert await TpmIdentity(gate, pin=PIN).unwrap(slot, ARCHIVE) == key
    record_property("counted", counted(len(slot["pin"][member]) // 2, refused=len(slot["pin"][member]) // 2))


async def test_a_slot_that_forgets_its_pin_or_asks_for_another_is_damaged(tpm: SoftwareTpm) -> None:
    gate, trusted, pin = await with_pin(tpm.tcti)
    mine = await make_pin(gate, trusted, "the attacker's", now=NOW)
    _, slot = await sealed(gate, trusted, pin)
    _, free = await sealed(gate, trusted, None)
    without = {name: value for name, value in slot.items() if name != "pin"}
    for wrong in (without, slot | {"pin": mine.object.to_json()}, free | {"pin": slot["pin"]}):
        with pytest.raises(DamagedSlot):
            await TpmIdentity(gate, pin="the attacker's").unwrap(wrong, ARCHIVE)
    unsalted = slot | {"pin": slot["pin"] | {"salt": "00" * 16}}
    with pytest.raises(PinWrong):
        await TpmIdentity(gate, pin=PIN).unwrap(unsalted, ARCHIVE)


async def test_tpm2_tools_cannot_open_a_slot_without_the_pin(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """A foreign implementation: no password, an empty one, and the policy without its secret."""
    gate, trusted, pin = await with_pin(tpm.tcti)
    key, slot = await sealed(gate, trusted, pin)
    tools = Tools(tpm.tcti, tmp_path / "tools")
    for name, content in (
        ("private", slot["private"]),
        ("public", slot["public"]),
        ("pin.private", slot["pin"]["private"]),
        ("pin.public", slot["pin"]["public"]),
    ):
        (tools.directory / name).write_bytes(bytes.fromhex(content))
    auth = f"hex:{authorisation(bytes.fromhex(slot['pin']['salt']), PIN).hex()}"
    tools("load", "-C", "0x81000001", "-u", "public", "-r", "private", "-c", "object")
    tools("load", "-C", "0x81000001", "-u", "pin.public", "-r", "pin.private", "-c", "pin")
    tools("unseal", "-c", "object", fails=True)
    tools("startauthsession", "--policy-session", "-S", "session")
    tools("unseal", "-c", "object", "-p", "session:session", fails=True)
    tools("policysecret", "-S", "session", "-c", "pin", auth)
    assert tools("unseal", "-c", "object", "-p", "session:session") == key


async def test_a_damaged_file_stops_backups_and_is_not_the_archives_fault(tpm: SoftwareTpm, tmp_path: Path) -> None:
    gate, trusted, pin = await with_pin(tpm.tcti)
    _, slot = await sealed(gate, trusted, pin)
    path = tmp_path / "restore-pin.json"
    save_restore_pin(path, pin)
    stored = json.loads(path.read_text())
    for text in ("", "[]", json.dumps(stored | {"more": 1}), json.dumps(stored | {"salt": "00"})):
        path.write_text(text)
        with pytest.raises(PinUnusable, match="is damaged"):
            load_restore_pin(path)
    path.write_text(json.dumps(stored | {"private": flipped(stored["private"], 60)}))
    broken = load_restore_pin(path)
    with pytest.raises(PinUnusable, match="refuses the restore PIN's object"):
        await TpmRecipient(gate, trusted, broken).wrap(bytes(32), ARCHIVE)
    with pytest.raises(PinUnusable):
        await TpmIdentity(gate, pin=PIN, restore_pin=broken).unwrap(slot, ARCHIVE)


@pytest.mark.parametrize("pin", ["", "12345", "x" * 129, " 123456", "123456 ", "123\n456", "123\x00456"])
async def test_a_pin_that_is_no_good_is_refused(tpm: SoftwareTpm, pin: str) -> None:
    gate = TpmGate(tpm.tcti)
    with pytest.raises(ConfigError, match="6 to 128 characters"):
        await make_pin(gate, await read_pin(gate), pin, now=NOW)


async def test_a_pin_in_any_spelling_and_with_any_hash_works(tpm: SoftwareTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    """An authorisation with zeros at its end, which a TPM cuts off, and letters that Unicode can write in two ways."""
    assert authorisation(bytes(16), "Gr\u00fc\u00dfe") == authorisation(bytes(16), "Gru\u0308\u00dfe")
    label = b"deviceon-backup/v1/restore-pin\x00"
    salts = (number.to_bytes(16, "big") for number in range(1 << 20))
    salt = next(each for each in salts if hashlib.sha256(label + each + PIN.encode()).digest()[-1] == 0)
    monkeypatch.setattr("service.sealing.tpm.restore_pin.os.urandom", lambda _count: salt)
    gate, trusted, pin = await with_pin(tpm.tcti)
    assert len(pin.object.authorisation(PIN)) < 32
    key, slot = await sealed(gate, trusted, pin)
    assert await TpmIdentity(gate, pin=PIN).unwrap(slot, ARCHIVE) == key
