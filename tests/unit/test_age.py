"""Key slots for recovery keys, without an archive: what is refused, how often is tried, what each fault is told as."""

from __future__ import annotations

import base64
from typing import Any

import pyrage  # type: ignore[import-untyped]
import pytest

from service.errors import DamagedSlot, SealError
from service.recovery import ARMOR, BadRecoveryKey, RecoveryKey, recovery_key
from service.sealing import age
from tests.cheap_passphrase import armored, protect
from tests.hardware_key import bech32
from tests.vectors.second_reader import open_archive

KEY = bytes(range(32))


def headed(header: bytes) -> str:
    """An age file with this header (its lines, without the version's) and nothing that could be opened."""
    return armored(b"age-encryption.org/v1\n" + header)


def scrypt(factor: str) -> str:
    return headed(f"-> scrypt c2FsdA {factor}\nAAAA\n--- AAAA\n".encode())


async def unwrapped(key: RecoveryKey, slot: dict[str, Any]) -> bytes:
    return await age.AgeIdentity(key).unwrap(slot, b"")


def slot_of(file: str, **more: str) -> dict[str, Any]:
    return {"type": "age", "file": file, **more}


# What a slot is


async def test_a_slot_is_made_for_its_recipient_and_opens_with_its_identity() -> None:
    identity, recipient = age.generate()
    slot = dict(await age.AgeRecipient(recipient).wrap(KEY, b""))
    assert slot.keys() == {"type", "file", "recipient"}
    assert (slot["type"], slot["recipient"]) == ("age", recipient)
    assert await unwrapped(recovery_key(identity), slot) == KEY
    with pytest.raises(age.WrongRecoveryKey) as caught:
        await unwrapped(recovery_key(age.generate()[0]), slot)
    assert recipient in str(caught.value)
    del slot["recipient"]
    with pytest.raises(age.WrongRecoveryKey) as caught:
        await unwrapped(recovery_key(age.generate()[0]), slot)
    assert "None" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 31, 33])
async def test_a_data_key_has_32_bytes_when_it_is_wrapped_and_when_it_is_had_back(length: int) -> None:
    identity, recipient = age.generate()
    with pytest.raises(ValueError, match="32 bytes"):
        await age.AgeRecipient(recipient).wrap(bytes(length), b"")
    with pytest.raises(DamagedSlot, match="no data key"):
        await unwrapped(recovery_key(identity), slot_of(age.encrypt(bytes(length), recipient)))


def test_only_age_slots_are_judged_and_none_of_them_proves_its_origin() -> None:
    identity = age.AgeIdentity(recovery_key(age.generate()[0]))
    assert identity.accepts({"type": "age"})
    assert not identity.accepts({"type": "tpm2"})
    assert not identity.accepts({})
    assert identity.proves_origin is False
    assert repr(identity) == "the recovery key"


@pytest.mark.parametrize(
    "change",
    [
        {"file": "age-encryption.org/v1"},
        {"file": " " + scrypt("10")},
        {"file": 5},
        {"file": None},
        {"file": scrypt("10") + "x" * 16 * 1024},
        {"identity": "AGE-SECRET-KEY-1"},
        {"identity": scrypt("10") + "x" * 16 * 1024},
        {"recipient": "x" * 4001},
        {"recipient": 1},
        {"type": "tpm2"},
        {"more": "x"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_slot_of_another_shape_is_damaged(change: dict[str, object]) -> None:
    file = age.encrypt(KEY, age.generate()[1])
    assert age.parse_slot(slot_of(file, recipient="x" * 4000)).file == file
    with pytest.raises(DamagedSlot, match=f"damaged: {next(iter(change))} "):
        age.parse_slot(slot_of(file) | change)


def test_a_slot_of_exactly_the_largest_size_is_one() -> None:
    file = headed(b"--- A")
    largest = file + "x" * (16 * 1024 - len(file))
    assert age.parse_slot(slot_of(largest, identity=largest)).identity == largest
    for wrong in (slot_of(largest + "x"), slot_of(file, identity=largest + "x")):
        with pytest.raises(DamagedSlot):
            age.parse_slot(wrong)


# The header of an age file


def test_the_stanzas_of_a_header_are_read_to_its_end() -> None:
    assert age.stanzas(headed(b"-> X25519 abc\nbody\n-> a-grease b c\n\n--- mac\n-> scrypt x 1\n")) == [
        ["X25519", "abc"],
        ["a-grease", "b", "c"],
    ]
    assert age.stanzas(headed(b"->X25519\n--- mac")) == []
    assert age.stanzas(headed(b"--\n-> X25519 abc\n---")) == [["X25519", "abc"]]
    assert age.stanzas(headed(b"-> \xff\n---")) == [["\ufffd"]]


@pytest.mark.parametrize(
    ("file", "told"),
    [
        (f"{ARMOR}\n???\n-----END AGE ENCRYPTED FILE-----", "no base64"),
        (f"{ARMOR}\nYW\n-----END AGE ENCRYPTED FILE-----", "no base64"),
        (f"{ARMOR}\n\u00e4\n-----END AGE ENCRYPTED FILE-----", "no base64"),
        (f"{ARMOR}\n-----END AGE ENCRYPTED FILE-----", "version 1"),
        (f"{ARMOR}\n{base64.b64encode(b'age-encryption.org/v2').decode()}\n-----END", "version 1"),
        (headed(b"-> X25519 abc\nbody"), "cut off"),
        (headed(b""), "cut off"),
    ],
)
def test_what_is_no_age_file_is_a_damaged_slot(file: str, told: str) -> None:
    with pytest.raises(DamagedSlot, match=told):
        age.stanzas(file)
    assert open_archive.scrypt_work(file) > open_archive.MOST_WORK


@pytest.mark.parametrize("factor", ["1", "10", "19", "20"])
def test_a_work_factor_up_to_the_largest_is_tried(factor: str) -> None:
    assert age.check_work(scrypt(factor)) == int(factor) == open_archive.scrypt_work(scrypt(factor))
    assert age.MOST_WORK == open_archive.MOST_WORK == 20


@pytest.mark.parametrize(
    "factor", ["21", "22", "30", "99", "100", "0", "01", "", "-1", "a", "+5", "1a", "10 10", "1\u0660"]
)
def test_a_work_factor_above_the_largest_or_of_another_form_is_not_tried_by_either_reader(factor: str) -> None:
    with pytest.raises(DamagedSlot, match="work factor"):
        age.check_work(scrypt(factor))
    assert open_archive.scrypt_work(scrypt(factor)) > open_archive.MOST_WORK


@pytest.mark.parametrize(
    "header",
    [
        b"-> scrypt c2FsdA 10\nAAAA\n-> scrypt c2FsdA 21\nAAAA\n--- AAAA",
        b"-> scrypt c2FsdA 21\nAAAA\n-> scrypt c2FsdA 10\nAAAA\n--- AAAA",
        b"-> scrypt c2FsdA 10\nAAAA\n-> X25519 c2FsdA\nAAAA\n--- AAAA",
        b"-> X25519 c2FsdA\nAAAA\n-> scrypt c2FsdA 10\nAAAA\n--- AAAA",
        b"-> scrypt 10\nAAAA\n--- AAAA",
        b"-> other c2FsdA 10\nAAAA\n--- AAAA",
    ],
)
def test_a_passphrase_s_file_with_another_stanza_is_not_tried_by_either_reader(header: bytes) -> None:
    with pytest.raises(DamagedSlot, match="work factor"):
        age.check_work(headed(header))
    assert open_archive.scrypt_work(headed(header)) > open_archive.MOST_WORK


def test_the_largest_of_several_work_factors_counts() -> None:
    both = headed(b"-> scrypt a 5\nA\n-> scrypt b 18\nA\n-> scrypt c 7\nA\n--- A")
    assert age.check_work(both) == 18


async def test_a_cheap_file_behind_a_dear_one_deceives_neither_reader() -> None:
    """What is looked at and what is opened are the same bytes; else a slot costs as much memory as it likes."""
    dear = "age-encryption.org/v1\n-> scrypt c2FsdHNhbHRzYWx0c2FsdA 21\n" + "A" * 43 + "\n--- " + "A" * 43 + "\n"
    slot = slot_of(dear + protect("0" * 32, "right"))
    with pytest.raises(DamagedSlot, match="no armored age file"):
        await unwrapped(recovery_key(passphrase="right"), slot)
    assert open_archive.scrypt_work(slot["file"]) > open_archive.MOST_WORK
    assert list(open_archive.Recovery(None, "right").data_keys([slot])) == []


async def test_a_file_for_a_passphrase_and_somebody_else_is_not_opened_as_somebody_elses() -> None:
    identity, _ = age.generate()
    mixed = headed(b"-> X25519 c2FsdA\nAAAA\n-> scrypt c2FsdA 10\nAAAA\n--- AAAA")
    for key in (recovery_key(identity), recovery_key(passphrase="a")):
        with pytest.raises(DamagedSlot, match="work factor"):
            await unwrapped(key, slot_of(mixed))


async def test_of_two_age_files_in_one_none_is_looked_at() -> None:
    first, second = scrypt("21"), protect(KEY, "a")
    for file in (first + second, second + first.removesuffix("\n"), first.replace("-----END", second)):
        with pytest.raises(DamagedSlot):
            await unwrapped(recovery_key(passphrase="a"), slot_of(file))


# Passphrases


async def test_a_passphrase_opens_what_it_protects_and_a_wrong_one_is_told() -> None:
    slot = slot_of(protect("0" * 32, "right"))
    assert await unwrapped(recovery_key(passphrase="right"), slot) == b"0" * 32
    with pytest.raises(age.WrongRecoveryKey, match="passphrase is not the one"):
        await unwrapped(recovery_key(passphrase="wrong"), slot)
    with pytest.raises(age.WrongRecoveryKey, match="recovery key is a passphrase"):
        await unwrapped(recovery_key(age.generate()[0]), slot)


async def test_eight_files_are_tried_with_a_passphrase_and_no_ninth() -> None:
    identity = age.AgeIdentity(recovery_key(passphrase="right"))
    assert age.MOST_TRIES == open_archive.MOST_TRIES == 8
    for _ in range(7):
        with pytest.raises(age.WrongRecoveryKey, match="is not the one"):
            await identity.unwrap(slot_of(protect("0" * 32, "wrong")), b"")
    good = slot_of(protect("0" * 32, "right"))
    assert await identity.unwrap(good, b"") == b"0" * 32
    with pytest.raises(age.WrongRecoveryKey, match="more slots for passphrases"):
        await identity.unwrap(good, b"")


async def test_an_identity_under_the_passphrase_is_unlocked_once_for_all_its_slots() -> None:
    native, recipient = age.generate()
    identity = age.AgeIdentity(recovery_key(passphrase="right"))
    kept = protect(native, "right")
    for _ in range(age.MOST_TRIES + 1):
        assert await identity.unwrap(slot_of(age.encrypt(KEY, recipient), identity=kept), b"") == KEY
    assert identity._tries == 1


async def test_a_passphrase_alone_does_not_open_a_slot_whose_key_is_in_a_file() -> None:
    _, recipient = age.generate()
    slot = slot_of(age.encrypt(KEY, recipient))
    with pytest.raises(age.WrongRecoveryKey, match="passphrase alone") as caught:
        await unwrapped(recovery_key(passphrase="right"), slot | {"recipient": recipient})
    assert recipient in caught.value.hint
    with pytest.raises(age.WrongRecoveryKey) as caught:
        await unwrapped(recovery_key(passphrase="right"), slot)
    assert "the recovery kit" in caught.value.hint


async def test_a_slots_own_identity_is_asked_only_for_who_has_a_passphrase_and_nothing_else() -> None:
    native, recipient = age.generate()
    hostile = slot_of(age.encrypt(KEY, recipient), identity=scrypt("30"))
    assert await unwrapped(recovery_key(native), hostile) == KEY
    assert await unwrapped(recovery_key(native, passphrase="a"), hostile) == KEY
    assert await unwrapped(recovery_key(protect(native, "a"), passphrase="a"), hostile) == KEY
    with pytest.raises(DamagedSlot, match="work factor"):
        await unwrapped(recovery_key(passphrase="a"), hostile)


async def test_what_a_passphrase_protects_has_to_be_identities() -> None:
    file = age.encrypt(KEY, age.generate()[1])
    for text in ("AGE-SECRET-KEY-1", "", f"{age.generate()[0]}\nmore"):
        with pytest.raises(BadRecoveryKey):
            await unwrapped(recovery_key(passphrase="a"), slot_of(file, identity=protect(text, "a")))
    kept = protect(b"\xff\xfe", "a")
    with pytest.raises(DamagedSlot, match="holds no identity"):
        await unwrapped(recovery_key(passphrase="a"), slot_of(file, identity=kept))


async def test_a_passphrase_is_taken_as_it_was_generated_and_as_it_was_given() -> None:
    generated = age.generate_passphrase()
    assert (
        await unwrapped(recovery_key(passphrase=generated.upper()), slot_of(protect("0" * 32, generated))) == b"0" * 32
    )
    chosen = "ABCD EFGH JKMN PQRS TVWX"  # somebody's own, which looks like a generated one
    assert await unwrapped(recovery_key(passphrase=chosen), slot_of(protect("0" * 32, chosen))) == b"0" * 32


async def test_a_work_factor_that_takes_this_machine_too_long_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    content = base64.b64decode("".join(protect(KEY, "a").splitlines()[1:-1]))
    dear = armored(content.replace(b" 10\n", b" 30\n", 1))
    monkeypatch.setattr(age, "MOST_WORK", 40)
    monkeypatch.setattr(age, "_LITTLE_WORK", 40)
    with pytest.raises(age.WrongRecoveryKey, match="too slow"):
        await unwrapped(recovery_key(passphrase="a"), slot_of(dear))


def test_a_generated_passphrase_has_five_groups_of_four_and_a_hundred_bits() -> None:
    alphabet = set("0123456789abcdefghjkmnpqrstvwxyz")
    made = [age.generate_passphrase() for _ in range(200)]
    assert all([len(group) for group in one.split("-")] == [4] * 5 for one in made)
    assert set("".join(made)) - {"-"} == alphabet
    assert len(set(made)) == 200


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("0123-4567-89ab-cdef-ghjk", "0123-4567-89ab-cdef-ghjk"),
        ("0123456789ABCDEFGHJK", "0123-4567-89ab-cdef-ghjk"),
        (" 0123 4567\t89ab--cdef ghjk\n", "0123-4567-89ab-cdef-ghjk"),
        ("0123-4567-89ab-cdef-ghjkm", "0123-4567-89ab-cdef-ghjkm"),
        ("0123-4567-89AB-cdef-ghj", "0123-4567-89AB-cdef-ghj"),
        ("0123-4567-89ab-cdef-ghjI", "0123-4567-89ab-cdef-ghjI"),
        ("correct horse", "correct horse"),
        ("", ""),
    ],
)
def test_only_a_generated_passphrase_is_put_in_order(typed: str, meant: str) -> None:
    assert age.normal(typed) == meant


async def test_a_passphrase_is_tried_in_this_process_only_where_that_takes_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apart: list[str] = []

    def told(what: str, data: bytes, seconds: float, **given: Any) -> bytes:
        apart.append(what)
        return b"0" * 32

    monkeypatch.setattr(age, "_apart", told)
    with pytest.raises(DamagedSlot):
        await unwrapped(recovery_key(passphrase="a"), slot_of(scrypt("14")))
    assert apart == []
    assert await unwrapped(recovery_key(passphrase="a"), slot_of(scrypt("15"))) == b"0" * 32
    assert apart == ["passphrase"]


# Files for one recipient


def test_what_is_no_recipient_is_refused_before_anything_is_encrypted() -> None:
    _, recipient = age.generate()
    plugins = bech32("age1test", bytes(8))
    mistyped = [text[:-1] + ("q" if text[-1] != "q" else "p") for text in (recipient, plugins)]
    for wrong in ("", "age1", *mistyped, recipient.upper(), plugins.upper(), plugins[:-1]):
        with pytest.raises(SealError, match="cannot be sealed for") as caught:
            age.encrypt(KEY, wrong)
        assert type(caught.value) is SealError


@pytest.mark.parametrize("kind", ["age1tag", "age1tagpq"])
def test_a_tagged_recipient_of_hardware_needs_no_plugin(kind: str) -> None:
    with pytest.raises(SealError, match="cannot be sealed for") as caught:
        age.encrypt(KEY, bech32(kind, bytes(33)))  # no point of the curve
    assert type(caught.value) is SealError
    if kind == "age1tag":
        file = age.encrypt(KEY, bech32(kind, b"\x02" + GENERATOR))
        assert [each for each, *_ in age.stanzas(file) if not each.endswith("-grease")] == ["p256tag"]


GENERATOR = bytes.fromhex("6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296")
"""The x of P-256's generator (FIPS 186-4, D.1.2.3): a point of the curve."""


def test_a_file_is_looked_at_before_it_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that encrypts to somebody else, or to somebody more, makes no slot."""
    _, recipient = age.generate()
    others = pyrage.encrypt(KEY, [pyrage.tag.Recipient.from_str(bech32("age1tag", b"\x02" + GENERATOR))], armored=True)
    two = [pyrage.x25519.Recipient.from_str(age.generate()[1]) for _ in range(2)]
    for made in (others, pyrage.encrypt(KEY, two, armored=True), headed(b"--- A").encode()):
        monkeypatch.setattr(pyrage, "encrypt", lambda *_, made=made, **__: made)
        with pytest.raises(SealError, match="not made as it must be"):
            age.encrypt(KEY, recipient)


async def test_what_a_key_does_not_open_is_told_from_what_is_damaged() -> None:
    identity, recipient = age.generate()
    for file, right, wrong in (
        (age.encrypt(KEY, recipient), recovery_key(identity), recovery_key(age.generate()[0])),
        (protect(KEY, "right"), recovery_key(passphrase="right"), recovery_key(passphrase="wrong")),
    ):
        with pytest.raises(age.WrongRecoveryKey):
            await unwrapped(wrong, slot_of(file))
        content = base64.b64decode("".join(file.splitlines()[1:-1]))
        for at in (content.index(b"\n--- ") + 8, len(content) - 1):
            altered = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
            with pytest.raises(DamagedSlot):
                await unwrapped(right, slot_of(armored(altered)))


async def test_keys_of_age_itself_open_in_this_process_and_whatever_else_the_library_says_is_damage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    identity, recipient = age.generate()
    file = age.encrypt(KEY, recipient)
    opener = age.AgeIdentity(recovery_key(identity))

    def refuse(*_: object, **__: object) -> bytes:
        raise pyrage.DecryptError("something that it never said before")

    monkeypatch.setattr(age, "_apart", refuse)
    assert await opener.unwrap(slot_of(file), b"") == opener.opened(file) == KEY
    monkeypatch.setattr(pyrage, "decrypt", refuse)
    with pytest.raises(DamagedSlot, match="never said before"):
        await opener.unwrap(slot_of(file), b"")


def test_whatever_is_opened_is_an_age_file() -> None:
    identity = age.AgeIdentity(recovery_key(age.generate()[0]))
    with pytest.raises(DamagedSlot):
        identity.opened(headed(b"-> X25519 abc\nbody"))
    with pytest.raises(age.WrongRecoveryKey, match="passphrase alone"):
        age.AgeIdentity(recovery_key(passphrase="a")).opened(age.encrypt(KEY, age.generate()[1]))


@pytest.mark.parametrize("text", ["AGE-SECRET-KEY-1QQQQQQQQQQQ", "AGE-PLUGIN-TEST-1QQQQQQQQQQQ"])
def test_an_identity_that_was_cut_off_is_none(text: str) -> None:
    with pytest.raises(BadRecoveryKey):
        age.AgeIdentity(recovery_key(text))


def test_the_errors_have_codes_of_their_own() -> None:
    assert (age.WrongRecoveryKey.code, age.PluginFailed.code) == ("SEAL_RECOVERY_KEY_WRONG", "SEAL_PLUGIN")
