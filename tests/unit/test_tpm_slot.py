"""The TPM's key slot as somebody may have written it: what is refused without asking a TPM."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import DamagedSlot
from service.sealing.tpm.public_area import name_of, pin_policy
from service.sealing.tpm.slot import SLOT_TYPE, parse_slot, refused
from tests.tpm_areas import (
    NO_DA,
    PIN,
    SEALED,
    SHA1,
    SIGN,
    STORAGE,
    keyed_hash,
    pin_object,
    sized,
    slot,
    storage,
)


def test_a_slot_is_read_and_written_as_it_was() -> None:
    for made in (slot(), slot(ek_salted="ab" * 32), slot(pin_object())):
        assert parse_slot(made).to_json() == made
    made = slot()
    del made["type"]
    assert parse_slot(made).to_json()["type"] == SLOT_TYPE == "tpm2"
    assert parse_slot(slot()).policy == b""
    pin = pin_object()
    assert parse_slot(slot(pin)).policy == pin_policy(bytes.fromhex(pin["public"]))


@pytest.mark.parametrize("parent", ["0x81000001", "0x81000002", "derived"])
def test_a_parent_has_one_of_three_origins(parent: str) -> None:
    assert parse_slot(slot() | {"parent": parent}).parent == parent


@pytest.mark.parametrize(
    ("member", "value"),
    [
        *[("type", value) for value in ("tpm", "age", 2, None)],
        *[("srk_name", value) for value in ("", "0", "000B" + "00" * 32, "00" * 67, "00\n", " 00", "zz", 5)],
        *[("parent", value) for value in ("0x81000000", "0x81000003", "0x810000011", "a derived", "derived\n", "")],
        *[("private", value) for value in ("", "00" * 9, "00" * 1025, "0" * 41, 5, None)],
        *[("public", value) for value in ("", "00" * 9, "00" * 1025, "0" * 41, 5, None)],
        *[("srk_public", value) for value in ("", "00" * 9, "00" * 1025, "0" * 41, 5, None)],
        *[("ek_salted", value) for value in ("", "ab" * 31, "ab" * 33, "AB" * 32, 5)],
        *[("fingerprint", value) for value in ("", "TPM AAAA-AAAA-AAAA-AAAA", 5)],
        ("pin", ""),
        ("pin", {}),
        ("more", 1),
    ],
)
def test_a_member_of_another_form_is_damaged(member: str, value: Any) -> None:
    with pytest.raises(DamagedSlot, match="the archive's TPM key slot is damaged: "):
        parse_slot(slot() | {member: value})


def test_the_largest_areas_are_taken() -> None:
    private, parent = sized(b"s" * 1022), storage(tail=b"\0" * 932)
    assert len(private) == len(parent) == 1024
    assert parse_slot(slot(parent=parent, private=private.hex())).private == private.hex()
    shortest = sized(b"s" * 8)
    assert parse_slot(slot(private=shortest.hex())).private == shortest.hex()
    for wrong in (slot(private=sized(b"s" * 1023).hex()), slot(private=sized(b"s" * 7).hex())):
        with pytest.raises(DamagedSlot, match="private"):
            parse_slot(wrong)
    with pytest.raises(DamagedSlot, match="srk_public"):
        parse_slot(slot(parent=storage(tail=b"\0" * 933)))


@pytest.mark.parametrize("spelled", [" {}", "{} ", "{}\n", "{:.4} {}", "{!u}"])
@pytest.mark.parametrize("member", ["private", "public", "srk_public"])
def test_bytes_are_spelled_in_one_way(spelled: str, member: str) -> None:
    """Python's own reader of hexadecimal digits takes spaces and capitals."""
    text = slot()[member]
    other = text.upper() if spelled == "{!u}" else spelled.replace("{:.4} {}", f"{text[:4]} {text[4:]}").format(text)
    assert bytes.fromhex(other) == bytes.fromhex(text)
    with pytest.raises(DamagedSlot, match=member):
        parse_slot(slot() | {member: other})


def test_names_by_the_longest_hash_are_taken() -> None:
    parent = storage(name_alg=0x0D)
    assert len(parse_slot(slot(parent=parent)).srk_name) == 132


@pytest.mark.parametrize("member", ["srk_name", "srk_public", "parent", "private", "public", "fingerprint"])
def test_a_slot_lacks_none_of_its_members(member: str) -> None:
    made = slot()
    del made[member]
    with pytest.raises(DamagedSlot, match=member):
        parse_slot(made)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (slot(parent=storage(attributes=STORAGE | SIGN)), "no storage key that is fixed"),
        (slot() | {"srk_name": name_of(storage(attributes=STORAGE)).hex()}, "not that of its public area"),
        (slot() | {"fingerprint": slot(parent=storage(attributes=STORAGE))["fingerprint"]}, "fingerprint is not that"),
        (slot() | {"srk_public": storage(name_alg=SHA1).hex()}, "name algorithm"),
        (slot() | {"public": keyed_hash(SEALED & ~NO_DA).hex()}, "not made the way"),
        (slot() | {"public": keyed_hash(policy=b"p" * 32).hex()}, "not made the way"),
        (slot() | {"private": (sized(b"s" * 60) + b"s").hex()}, "private area is wrong"),
        (slot() | {"private": sized(b"s" * 60)[:-1].hex()}, "private area is wrong"),
        (slot() | {"pin": pin_object()}, "not made the way"),
        (slot(pin_object()) | {"pin": None}, "not made the way"),
        (slot(pin_object()) | {"public": keyed_hash(policy=bytes(32)).hex()}, "not made the way"),
    ],
)
def test_a_slot_whose_parts_do_not_belong_together_is_damaged(made: dict[str, Any], told: str) -> None:
    with pytest.raises(DamagedSlot, match=told) as caught:
        parse_slot(made)
    assert "Value error" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"private": sized(b"p" * 60)[:-1].hex()}, "PIN's private area is wrong"),
        ({"private": (sized(b"p" * 60) + b"p").hex()}, "PIN's private area is wrong"),
        ({"public": keyed_hash(PIN | NO_DA).hex()}, "not made the way"),
        ({"public": "00"}, "size is wrong"),
        ({"private": "00" * 1025}, "private"),
        ({"private": ""}, "private"),
        ({"private": "0"}, "private"),
        ({"salt": "5a" * 15}, "salt"),
        ({"salt": "5a" * 17}, "salt"),
        ({"salt": "5A" * 16}, "salt"),
        ({"since": "2026-11-28T12:00:00"}, "since"),
        ({"since": "yesterday"}, "since"),
        ({"more": 1}, "more"),
    ],
)
def test_a_restore_pin_of_another_form_is_damaged(change: dict[str, Any], told: str) -> None:
    good = slot(pin_object())
    with pytest.raises(DamagedSlot, match=told):
        parse_slot(good | {"pin": good["pin"] | change})


@pytest.mark.parametrize("member", ["private", "public", "salt", "since"])
def test_a_restore_pin_lacks_none_of_its_members(member: str) -> None:
    made = slot(pin_object())
    del made["pin"][member]
    with pytest.raises(DamagedSlot, match=member):
        parse_slot(made)


def test_what_the_right_tpm_refuses_is_a_damaged_slot() -> None:
    assert isinstance(refused("its bytes"), DamagedSlot)
    assert "its bytes" in str(refused("its bytes"))
