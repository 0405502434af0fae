"""What `doctor` and a pin say of a TPM, whatever it says of itself: its properties are altered on the way."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import pytest

from demo.software_tpm import SoftwareTpm
from service.sealing.tpm import TpmGate, describe, examine, read_pin
from service.sealing.tpm.device import endpoint
from service.sealing.tpm.endorsement import salted
from service.sealing.tpm.identify import Model
from service.sealing.tpm.surroundings import surroundings
from tests.integration.tpm_wire import CREATE, UNSEAL, Answer, Tools, wired

GET_CAPABILITY, TPM_PROPERTIES = 0x17A, 6


def with_properties(properties: dict[int, int]) -> Answer:
    """Answer TPM2_GetCapability as a TPM with these properties does (Part 3, 30.2): so many, from the first one on."""

    def said(command: bytes, answer: bytes) -> bytes:
        if struct.unpack(">II", command[6:14].ljust(8, b"\0")) != (GET_CAPABILITY, TPM_PROPERTIES):
            return answer
        first, count = struct.unpack(">II", command[14:22])
        told = [(number, value) for number, value in sorted(properties.items()) if number >= first][:count]
        body = struct.pack(">BII", 0, TPM_PROPERTIES, len(told)) + b"".join(struct.pack(">II", *each) for each in told)
        return struct.pack(">HII", 0x8001, 10 + len(body), 0) + body

    return said


def words(text: bytes) -> list[int]:
    return [number for (number,) in struct.iter_unpack(">I", text)]


NUMBERS = dict.fromkeys((*range(0x100, 0x120), *range(0x200, 0x220)), 0x40414243)
"""Every property says something else than what is looked for."""
SAID = NUMBERS | {
    0x105: words(b"STM ")[0],
    **{0x106 + number: word for number, word in enumerate(words(b" A\x1f ~\x7f\x80TPM\0\0v2\n "))},
    0x10B: 0x00480103,
    0x10C: 0x0003FFFF,
    0x200: 0xFFFFFFFE & ~(1 << 9),
    0x201: 0xFFFFFFFD,
    0x207: 17,
    0x20E: 1,
    0x20F: 32,
    0x210: 600,
    0x211: 86400,
}
FACTS = {
    "problem": None,
    "hint": "",
    "resource_manager": False,
    "manufacturer": "STM",
    "vendor": "A ~TPMv2",
    "firmware": "72.259.3.65535",
    "kind": "hardware",
    "persistent_storage_keys": ["0x81000001"],
    "endorsement_key": True,
    "owner_password_set": False,
    "storage_hierarchy_enabled": False,
    "lockout": {
        "active": False,
        "failures": 1,
        "max_failures": 32,
        "interval_seconds": 600,
        "recovery_seconds": 86400,
    },
    "free_object_slots": 17,
    "parent": "0x81000001",
    "parent_counts_tries": False,
    "seal_and_unseal_ms": 512.4,
}


async def test_doctor_tells_each_fact_where_it_belongs(tpm: SoftwareTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = await read_pin(TpmGate(tpm.tcti))
    seconds = iter((10.0, 10.51236))
    monkeypatch.setattr(examine, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    with wired(tpm) as wire:
        wire.said = with_properties(SAID)
        told = await describe(TpmGate(wire.tcti))
        assert {CREATE, UNSEAL} < set(wire.commands)
        node = endpoint(wire.tcti).ownership()
        here = {"tcti": wire.tcti, "surroundings": surroundings().kind, "node": node}
        assert told == FACTS | here | {"fingerprint": pin.fingerprint}
        pinned = await read_pin(TpmGate(wire.tcti))
        assert (pinned.manufacturer, pinned.firmware, pinned.kind) == ("STM", "72.259.3.65535", "hardware")


@pytest.mark.parametrize(
    ("permanent", "startup", "password", "enabled", "locked"),
    [(1, 2, True, True, False), (1 << 9, 1, False, False, True), (2, 4, False, False, False)],
)
async def test_a_bit_is_told_as_what_it_is(
    tpm: SoftwareTpm, permanent: int, startup: int, password: bool, enabled: bool, locked: bool
) -> None:
    with wired(tpm) as wire:
        wire.said = with_properties({0x200: permanent, 0x201: startup})
        told = await TpmGate(wire.tcti).run(examine.facts)
    assert told["owner_password_set"] is password
    assert told["storage_hierarchy_enabled"] is enabled
    assert told["lockout"]["active"] is locked


async def test_a_tpm_that_says_nothing_of_itself_is_told_as_such(tpm: SoftwareTpm) -> None:
    with wired(tpm) as wire:
        wire.said = with_properties({})
        told = await TpmGate(wire.tcti).run(examine.facts)
    assert (told["manufacturer"], told["vendor"], told["firmware"], told["kind"]) == ("", "", "0.0.0.0", "hardware")
    assert (told["owner_password_set"], told["storage_hierarchy_enabled"]) == (False, False)
    assert told["free_object_slots"] is None
    assert told["lockout"] == {
        "active": False,
        **dict.fromkeys(("failures", "max_failures", "interval_seconds", "recovery_seconds")),
    }


@pytest.mark.parametrize(
    ("maker", "kind"),
    [(maker, "virtual") for maker in ("IBM", "MSFT", "VMW", "GOOG", "AMZN", "XEN")]
    + [(maker, "hardware") for maker in ("IFX", "STM", "INTC", "NTC", "AMD", "")],
)
def test_a_tpm_that_is_a_program_is_known_by_its_maker(maker: str, kind: str) -> None:
    assert Model(maker, "", "").kind == kind


async def test_doctor_tries_the_pinned_key_and_without_a_pin_the_one_to_choose(
    software_tpm: SoftwareTpm, tools: Tools
) -> None:
    gate = TpmGate(software_tpm.tcti)
    pin = await read_pin(gate)
    tools.persist("0x81000002", "-G", "ecc")
    assert (await describe(gate, pin))["parent"] == "derived"
    assert (await describe(gate))["parent"] == "0x81000002"
    software_tpm.clear()
    told = await describe(gate, pin)
    assert "has been cleared since it was pinned" in told["problem"]
    assert "provision --new-tpm" in told["hint"]
    assert told["manufacturer"] == "IBM"


@pytest.mark.parametrize("tcti", ["swtpm:path=/nowhere/sock", "mssim:port=1"])
async def test_doctor_tells_of_a_tpm_that_is_not_there_what_can_be_told(tcti: str) -> None:
    told = await describe(TpmGate(tcti))
    assert told.pop("problem")
    assert told.pop("hint")
    assert told == {"tcti": tcti, "surroundings": surroundings().kind, "node": None}


def test_what_an_archive_says_of_its_chip_stays_the_same() -> None:
    """With another salt no archive that there is would be known as made on this chip."""
    assert salted(b"name", b"id") == "a0a0bc550d45020345a2cb305a77c2f9d86ad776ed9c5ede52d71f8a89592470"
