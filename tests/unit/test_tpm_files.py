"""The files that the pinned TPM, the restore PIN and the signing key are kept in, as somebody may have altered them."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service.errors import ConfigError, PinUnusable, SealError, TpmUnavailable
from service.sealing.signature import public_key_of, signer_fingerprint
from service.sealing.tpm import (
    PIN_FILE,
    RestorePin,
    TpmGate,
    TpmPin,
    TpmRecipient,
    change_pin,
    check_pin,
    forget_restore_pin,
    load_pin,
    load_restore_pin,
    make_pin,
    require_usable,
    save_pin,
    save_restore_pin,
)
from service.sealing.tpm import signing as signing_key
from service.sealing.tpm.public_area import fingerprint, name_of
from service.sealing.tpm.restore_pin import PinClaim, PinObject, _object, authorisation, require_good_pin
from service.sealing.tpm.signing import KEY_FILE, SigningKey, _save_new, load_signing_key
from tests.tpm_areas import NO_DA, PIN, SIGN, STORAGE, keyed_hash, pin_object, signing, sized, storage

SRK = storage()
# Two points of P-256: its generator and the double of it (FIPS 186-4, D.1.2.3; computed with openssl).
POINT = tuple(
    bytes.fromhex(half)
    for half in (
        "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296",
        "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5",
    )
)
PUBLIC = signing(*POINT)


def a_pin(**change: Any) -> TpmPin:
    pin = TpmPin(name_of(SRK), SRK, b"ek", manufacturer="IBM", firmware="1.2.3.4", kind="virtual")
    return replace(pin, **change)


def a_restore_pin() -> RestorePin:
    return RestorePin(PinObject.model_validate(pin_object(), strict=False), name_of(SRK))


def a_key() -> SigningKey:
    return SigningKey(name_of(SRK), sized(b"p" * 60), PUBLIC)


# The pinned TPM


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"ek_name": None},
        {"kind": "hardware"},
        {"manufacturer": "", "firmware": ""},
        {"manufacturer": " ~" * 32, "firmware": "x" * 64},
    ],
)
def test_a_pin_is_read_as_it_was_written(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "state" / "tpm-pin.json"
    assert load_pin(path) is None
    save_pin(path, a_pin())
    save_pin(path, a_pin(**change))
    assert load_pin(path) == a_pin(**change)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert list(path.parent.iterdir()) == [path]
    stored = json.loads(path.read_text())
    assert (stored["version"], stored["fingerprint"]) == (1, fingerprint(name_of(SRK)))


@pytest.mark.parametrize(
    "change",
    [
        *[{"version": value} for value in (0, 2, "1", None)],
        *[{"kind": value} for value in ("", "other", None, ["virtual"])],
        *[{"manufacturer": value} for value in ("x" * 65, "a\n", "\u00e4", "\x7f", "\x1f", 5, None)],
        *[{"firmware": value} for value in ("x" * 65, "a\n", 5, None)],
        *[{"srk_public": value} for value in ("", "zz", SRK[:-1].hex(), storage(attributes=STORAGE | SIGN).hex(), 5)],
        {"srk_public": storage(attributes=STORAGE).hex()},
        *[{"srk_name": value} for value in ("", "zz", name_of(storage(attributes=STORAGE)).hex(), None)],
        *[{"ek_name": value} for value in ("0", "zz", 5)],
        *[{"fingerprint": value} for value in ("", "TPM AAAA-AAAA-AAAA-AAAA", None)],
    ],
    ids=lambda change: f"{next(iter(change.items()))!r:.60}",
)
def test_a_pin_that_was_altered_is_damaged(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "tpm-pin.json"
    save_pin(path, a_pin())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SealError, match="is damaged"):
        load_pin(path)


def test_a_pin_of_a_key_that_is_no_parent_is_damaged(tmp_path: Path) -> None:
    """All of it belongs together, and yet nothing may be sealed to a key that also signs."""
    path = tmp_path / "tpm-pin.json"
    key = storage(attributes=STORAGE | SIGN)
    save_pin(path, a_pin(srk_public=key, srk_name=name_of(key)))
    with pytest.raises(SealError, match="is damaged"):
        load_pin(path)


@pytest.mark.parametrize("text", ["", "[]", "5", "null", "{}", "{", "[" * 10_000, '{"version": 1}', "\u00e4"])
def test_what_is_no_pin_is_damaged(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(text, encoding="latin-1")
    for load, kind in ((load_pin, SealError), (load_restore_pin, PinUnusable), (load_signing_key, SealError)):
        with pytest.raises(kind, match="is damaged"):
            load(path)


@pytest.mark.parametrize("member", ["version", "fingerprint", "srk_name", "srk_public", "ek_name", "kind", "firmware"])
def test_a_pin_lacks_nothing(tmp_path: Path, member: str) -> None:
    path = tmp_path / "tpm-pin.json"
    save_pin(path, a_pin())
    stored = json.loads(path.read_text())
    del stored[member]
    path.write_text(json.dumps(stored))
    with pytest.raises(SealError, match="is damaged"):
        load_pin(path)


def write_pin(path: Path) -> None:
    save_restore_pin(path, a_restore_pin())


def write_key(path: Path) -> None:
    _save_new(path, a_key())


@pytest.mark.parametrize(
    ("write", "load"),
    [
        (lambda path: save_pin(path, a_pin()), load_pin),
        (write_pin, load_restore_pin),
        (write_key, load_signing_key),
    ],
    ids=["pinned TPM", "restore PIN", "signing key"],
)
def test_of_a_file_16_kib_are_read(
    tmp_path: Path, write: Callable[[Path], None], load: Callable[[Path], object]
) -> None:
    path = tmp_path / "state" / "file.json"
    write(path)
    whole = path.read_text()
    path.write_text(" " * (16 * 1024 - len(whole)) + whole)
    assert load(path) is not None
    path.write_text(" " * (16 * 1024 - len(whole.rstrip()) + 1) + whole)
    with pytest.raises(SealError, match="is damaged"):
        load(path)


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where a directory should be")
    (tmp_path / "directory" / "file.json").mkdir(parents=True)  # replaced by no file
    (tmp_path / "directory" / "file.json" / "x").write_text("")
    for path in (tmp_path / "file" / "file.json", tmp_path / "directory" / "file.json"):
        for write, kind in (
            (partial(save_pin, path, a_pin()), SealError),
            (partial(save_restore_pin, path, a_restore_pin()), PinUnusable),
            (partial(forget_restore_pin, path), PinUnusable),
        ):
            with pytest.raises(kind, match="cannot be written to") as caught:
                write()
            assert "state_dir" in caught.value.hint
    with pytest.raises(SealError, match="cannot be written to"):
        _save_new(tmp_path / "file" / "file.json", a_key())
    for load, kind in ((load_pin, SealError), (load_restore_pin, PinUnusable), (load_signing_key, SealError)):
        with pytest.raises(kind, match="cannot be read"):
            load(tmp_path / "directory" / "file.json")


# The restore PIN


def test_a_restore_pin_is_read_as_it_was_written_and_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "state" / PIN_FILE
    assert path.name == "restore-pin.json"
    assert load_restore_pin(path) is None
    save_restore_pin(path, a_restore_pin())
    assert load_restore_pin(path) == a_restore_pin()
    assert path.stat().st_mode & 0o777 == 0o600
    stored = json.loads(path.read_text())
    assert stored == pin_object() | {"version": 1, "srk_name": name_of(SRK).hex()}
    forget_restore_pin(path)
    forget_restore_pin(path)
    assert load_restore_pin(path) is None


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"srk_name": ""},
        {"srk_name": "0"},
        {"srk_name": "00" * 1025},
        *[{"salt": value} for value in ("00", "5a" * 17, f"{'5a' * 16}5", f"5{'5a' * 16}", "5A" * 16)],
        {"private": "00" * 1025},
        {"private": sized(b"p")[:-1].hex()},
        {"public": keyed_hash(PIN | NO_DA).hex()},
        {"more": 1},
    ],
    ids=str,
)
def test_a_restore_pin_that_was_altered_stops_everything(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "restore-pin.json"
    save_restore_pin(path, a_restore_pin())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PinUnusable, match="is damaged"):
        load_restore_pin(path)


@pytest.mark.parametrize("spelled", [" {}", "{} ", "{}\n", "upper", "space"])
@pytest.mark.parametrize("member", ["private", "public", "srk_name"])
def test_bytes_are_spelled_in_one_way(tmp_path: Path, spelled: str, member: str) -> None:
    path = tmp_path / "file.json"
    for kind, write, load in (
        ("restore PIN", write_pin, load_restore_pin),
        ("signing key", write_key, load_signing_key),
    ):
        path.unlink(missing_ok=True)
        write(path)
        stored = json.loads(path.read_text())
        text = stored[member]
        other = {"upper": text.upper(), "space": f"{text[:4]} {text[4:]}"}.get(spelled, spelled.format(text))
        assert bytes.fromhex(other) == bytes.fromhex(text)
        path.write_text(json.dumps(stored | {member: other}))
        with pytest.raises(SealError, match=f"the {kind} in .* is damaged"):
            load(path)


def test_the_largest_area_of_a_restore_pin_is_taken() -> None:
    largest = pin_object(private=sized(b"p" * 1022).hex())
    assert PinObject.model_validate(largest, strict=False).to_json() == largest
    with pytest.raises(ValueError, match="private"):
        PinObject.model_validate(pin_object(private=sized(b"p" * 1023).hex()), strict=False)


async def test_no_tpm_is_asked_for_a_bad_pin_or_one_of_another_tpm() -> None:
    """There is none at this gate: what is refused is refused before."""
    gate, other = TpmGate("device:/dev/there-is-no-tpm"), a_pin(srk_name=b"another")
    now = datetime(2026, 11, 28, tzinfo=UTC)
    with pytest.raises(ConfigError):
        await make_pin(gate, a_pin(), "12345", now=now)
    with pytest.raises(ConfigError):
        await change_pin(gate, a_pin(), a_restore_pin(), "123456", "12345", now=now)
    with pytest.raises(PinUnusable, match="set on another TPM"):
        await change_pin(gate, other, a_restore_pin(), "123456", "654321", now=now)
    with pytest.raises(PinUnusable, match="set on another TPM"):
        await check_pin(gate, other, a_restore_pin(), "123456")
    with pytest.raises(PinUnusable, match="set on another TPM"):
        await TpmRecipient(gate, other, a_restore_pin()).wrap(bytes(32), bytes(16))
    with pytest.raises(TpmUnavailable):
        await check_pin(gate, a_pin(), a_restore_pin(), "123456")


def test_a_restore_pin_is_its_tpms() -> None:
    require_usable(a_restore_pin(), a_pin())
    with pytest.raises(PinUnusable, match="set on another TPM"):
        require_usable(a_restore_pin(), a_pin(srk_name=b"another"))


def test_what_a_pin_is_to_the_tpm() -> None:
    salt = b"s" * 16
    expected = hashlib.sha256(b"deviceon-backup/v1/restore-pin\x00" + salt + "Gr\u00fc\u00dfe".encode()).digest()
    assert expected[-1]
    for spelled in ("NFC", "NFD"):
        assert authorisation(salt, unicodedata.normalize(spelled, "Gr\u00fc\u00dfe")) == expected
    salts = (number.to_bytes(16, "big") for number in range(1 << 20))
    ends = next(
        each for each in salts if hashlib.sha256(b"deviceon-backup/v1/restore-pin\x00" + each + b"x").digest()[-1] == 0
    )
    assert not authorisation(ends, "x").endswith(b"\0")
    assert len(authorisation(ends, "x")) < 32
    assert a_restore_pin().object.authorisation("x") == authorisation(b"\x5a" * 16, "x")


@pytest.mark.parametrize("pin", ["123456", "x" * 128, "a b c d", "\u00fc" * 6])
def test_a_good_pin_is_taken(pin: str) -> None:
    require_good_pin(pin)


@pytest.mark.parametrize("pin", ["", "12345", "x" * 129, " 12345", "12345 ", "1234\n56", "123\x00456", "\u200b23456"])
def test_a_pin_that_is_short_long_or_hard_to_type_is_none(pin: str) -> None:
    with pytest.raises(ConfigError, match="6 to 128 characters"):
        require_good_pin(pin)


def test_no_repr_shows_what_a_pin_is_to_the_tpm() -> None:
    assert "secret" not in repr(PinClaim(b"private", b"public", b"secret"))
    assert PinClaim(b"private", b"public", b"secret").of_the_slot is True


def test_a_pin_object_is_known_by_its_name() -> None:
    found = a_restore_pin().object
    assert found.name == name_of(keyed_hash(PIN))
    assert found.areas() == (sized(b"p" * 60), keyed_hash(PIN))
    assert found.since == datetime(2026, 11, 28, 12, tzinfo=UTC)
    now = found.since.replace(microsecond=5)  # which nobody needs to tell two PINs apart
    assert _object(*found.areas(), b"\x5a" * 16, now) == found


# The signing key


def test_a_signing_key_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "state" / KEY_FILE
    assert path.name == "tpm-signing-key.json"
    assert load_signing_key(path) is None
    assert _save_new(path, a_key()) == a_key()
    assert load_signing_key(path) == a_key()
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]
    x, y = (int.from_bytes(half, "big") for half in POINT)
    assert a_key().public_key == public_key_of(x, y)
    assert a_key().fingerprint == signer_fingerprint(public_key_of(x, y))
    assert json.loads(path.read_text())["fingerprint"] == a_key().fingerprint


def test_who_wrote_a_signing_key_first_wrote_it_for_all(tmp_path: Path) -> None:
    path = tmp_path / "tpm-signing-key.json"
    first = _save_new(path, a_key())
    other = replace(a_key(), private=sized(b"q" * 60))
    assert _save_new(path, other) == first == load_signing_key(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_signing_key_is_durable_when_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[list[Path]] = []
    monkeypatch.setattr(signing_key, "sync_directory", lambda directory: synced.append(list(directory.iterdir())))
    path = tmp_path / KEY_FILE
    _save_new(path, a_key())
    assert synced == [[path]]


def test_the_largest_area_of_a_signing_key_is_taken(tmp_path: Path) -> None:
    path = tmp_path / KEY_FILE
    _save_new(path, a_key())
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"private": sized(b"p" * 2046).hex()}))
    assert load_signing_key(path) == replace(a_key(), private=sized(b"p" * 2046))
    path.write_text(json.dumps(stored | {"private": sized(b"p" * 2047).hex()}))
    with pytest.raises(SealError, match="is damaged"):
        load_signing_key(path)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"fingerprint": "KEY AAAA-AAAA-AAAA-AAAA"},
        {"srk_name": "0"},
        {"srk_name": ""},
        {"private": sized(b"p" * 60)[:-1].hex()},
        {"private": (sized(b"p" * 60) + b"p").hex()},
        {"public": signing(*POINT, tail=b"\0").hex()},
        {"public": signing(POINT[1], POINT[0]).hex()},
        {"public": signing(POINT[0], POINT[1], attributes=STORAGE).hex()},
        {"public": "00"},
        {"more": 1},
    ],
    ids=lambda change: f"{next(iter(change.items()))!r:.60}",
)
def test_a_signing_key_that_was_altered_is_damaged(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "tpm-signing-key.json"
    _save_new(path, a_key())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SealError, match="is damaged"):
        load_signing_key(path)
