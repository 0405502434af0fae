"""Which identity is tried on which slot, what ends the trying, and what is told when none opens."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from service.errors import (
    DamagedSlot,
    NoMatchingIdentity,
    NotAuthentic,
    PinRequired,
    PinWrong,
    SealError,
    TpmUnavailable,
    WrongTpm,
)
from service.sealing.at_hand import KeyAtHand
from service.sealing.slots import KeySlot, no_key, try_slots

GOOD, OTHER = b"g" * 32, b"o" * 32


@dataclass
class Opener:
    """Opens slots of one type: a slot's `key` is its key, one without fails."""

    type: str
    error: Exception = field(default_factory=lambda: DamagedSlot("damaged"))
    asked: list[KeySlot] = field(default_factory=list)
    proves_origin = False

    def accepts(self, slot: KeySlot) -> bool:
        return slot.get("type") == self.type

    async def unwrap(self, slot: KeySlot, archive_id: bytes) -> bytes:
        assert archive_id == b"id"
        self.asked.append(slot)
        if "key" not in slot:
            raise self.error
        return bytes(slot["key"])


def belongs(data_key: bytes) -> None:
    if data_key != GOOD:
        raise NotAuthentic("another archive's")


async def test_a_slot_is_tried_by_who_can_judge_it_and_the_first_good_one_ends_the_trying() -> None:
    a, b, c = Opener("a"), Opener("b"), Opener("a")
    bad, foreign, good = {"type": "b"}, {"type": "a", "key": OTHER}, {"type": "a", "key": GOOD}
    found = await try_slots([bad, foreign, good, good], [a, b, c], b"id", belongs=belongs)
    assert (found.data_key, found.opened_by) == (GOOD, a)
    assert (a.asked, b.asked, c.asked) == ([foreign, good], [bad], [foreign])
    assert [type(reason) for reason in found.reasons] == [DamagedSlot, NotAuthentic, NotAuthentic]


async def test_no_key_is_had_from_slots_that_nobody_judges_or_opens() -> None:
    found = await try_slots([{"type": "c"}, {"type": "a"}], [Opener("a")], b"id", belongs=belongs)
    assert (found.data_key, found.opened_by, len(found.reasons)) == (None, None, 1)


async def test_what_is_no_fault_of_a_slot_ends_the_trying() -> None:
    broken = Opener("a", RuntimeError("a mistake"))
    with pytest.raises(RuntimeError):
        await try_slots([{"type": "a"}, {"type": "a", "key": GOOD}], [broken], b"id", belongs=belongs)


def pin_required() -> PinRequired:
    return PinRequired("a PIN is asked for")


def pin_wrong() -> PinWrong:
    return PinWrong("a wrong PIN", tries_left=2)


def test_a_pin_that_is_missing_or_wrong_is_what_is_told_first() -> None:
    for asked in (pin_required(), pin_wrong()):
        assert no_key([{"type": "a"}], [WrongTpm("another"), asked, DamagedSlot("damaged")]) is asked
    first, second = pin_wrong(), pin_required()
    assert no_key([], [first, second]) is first


def test_the_only_reason_is_told_as_it_is() -> None:
    only = TpmUnavailable("no TPM")
    assert no_key([{"type": "a"}], [only]) is only


@pytest.mark.parametrize(
    ("reasons", "altered"),
    [
        ([], False),
        ([NotAuthentic("x"), NotAuthentic("x")], True),
        ([NotAuthentic("x"), WrongTpm("y")], False),
        ([WrongTpm("y"), DamagedSlot("z")], False),
    ],
)
def test_several_reasons_are_told_together_with_what_can_be_done(reasons: list[SealError], altered: bool) -> None:
    told = no_key([{"type": kind} for kind in ("tpm2", "f", "e", "d", "c", "b", "age", "age")], reasons)
    assert isinstance(told, NoMatchingIdentity)
    assert "(slots: age, b, c, d, e, f, tpm2)" in str(told)
    assert list(told.reasons) == reasons
    assert ("were altered" in told.hint) == altered
    assert str(told).count("x") == (1 if altered or (len(reasons) and isinstance(reasons[0], NotAuthentic)) else 0)


def test_no_slots_and_no_reasons_are_told_too() -> None:
    told = no_key([], [])
    assert "(slots: none)" in str(told)
    assert "no identity for any of them is configured here" in str(told)
    assert "recovery key" in told.hint


async def test_a_key_at_hand_opens_the_slots_that_were_made_and_no_other() -> None:
    made = [{"type": "a", "n": 1}, {"type": "b", "n": 2}]
    at_hand = KeyAtHand(GOOD, made)
    assert at_hand.proves_origin is True
    for slot in made:
        assert at_hand.accepts(slot)
        assert await at_hand.unwrap(dict(slot), b"") == GOOD
    for other in ({"type": "a"}, {"type": "a", "n": 2}, {"type": "a", "n": 1, "more": 0}, {}):
        assert at_hand.accepts(other)
        with pytest.raises(DamagedSlot, match="not one that was made for it"):
            await at_hand.unwrap(other, b"")
