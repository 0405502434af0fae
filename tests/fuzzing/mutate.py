"""Mutants of bytes and of JSON by dice: the same seed makes the same ones."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Sequence
from typing import Any

ODD_NUMBERS = (0, -1, 1, 127, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63, 2**64, 10**30)
ODD_TEXTS = (
    *("", "\0", "a\nb", "..", "../../etc/passwd", "/", "a" * 300, "ä" * 70, "\u202e", "\ud800", "NaN", "0x10", "１２"),
    *("Backup_20250131_0200Z.zip", "2025-02-30T00:00:00Z", "2025-01-31T02:00:07Z", "9999-12-31T23:59:60Z", "%s", "{}"),
)
ODD_VALUES: tuple[Any, ...] = (None, True, False, 1.5, -0.0, 1e308, [], {}, [[]], *ODD_NUMBERS, *ODD_TEXTS)
_ODD_BYTES = (
    b"\0",
    b"\xff" * 4,
    b"\xff" * 8,
    b"\n",
    b"\r\n",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"\xef\xbb\xbf",
    b"\xc0\x80",
)


def of_bytes(data: bytes, dice: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Return `data` with one to four changes; `others` are texts of which pieces may be taken."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 4))):
        _CHANGES[dice.randrange(len(_CHANGES))](changed, dice, others)
    return bytes(changed)


def _flip(data: bytearray, dice: random.Random, others: Sequence[bytes]) -> None:
    if data:
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def _set(data: bytearray, dice: random.Random, others: Sequence[bytes]) -> None:
    if data:
        data[dice.randrange(len(data))] = dice.choice((0, 1, 0x20, 0x7F, 0x80, 0xFF, dice.randrange(256)))


def _number(data: bytearray, dice: random.Random, others: Sequence[bytes]) -> None:
    size = dice.choice((1, 2, 4, 8))
    at = dice.randrange(max(1, len(data) - size + 1))
    value = dice.choice(ODD_NUMBERS) % (1 << 8 * size)
    data[at : at + size] = value.to_bytes(size, dice.choice(("little", "big")))


def _cut(data: bytearray, dice: random.Random, others: Sequence[bytes]) -> None:
    start = dice.randrange(len(data) + 1)
    del data[start : start + dice.choice((1, 2, 4, 16, 64, len(data)))]


def _repeat(data: bytearray, dice: random.Random, others: Sequence[bytes]) -> None:
    start = dice.randrange(len(data) + 1)
    piece = data[start : start + dice.choice((1, 4, 16, 64, 256))]
    at = dice.randrange(len(data) + 1)
    data[at:at] = piece * dice.choice((1, 1, 2, 9))


def _insert(data: bytearray, dice: random.Random, others: Sequence[bytes]) -> None:
    at = dice.randrange(len(data) + 1)
    data[at:at] = dice.choice(_ODD_BYTES)


def _splice(data: bytearray, dice: random.Random, others: Sequence[bytes]) -> None:
    other = dice.choice(others) if others else bytes(data)
    at, start = dice.randrange(len(data) + 1), dice.randrange(len(other) + 1)
    length = dice.choice((4, 30, 200, len(other)))
    data[at : at + length] = other[start : start + length]


_CHANGES = (_flip, _flip, _set, _number, _cut, _repeat, _insert, _splice)


def of_json(data: bytes, dice: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Return a JSON text with another value somewhere; now and then with other bytes as well."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return of_bytes(data, dice, others)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        value = of_value(value, dice)
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=dice.random() < 0.3, sort_keys=dice.random() < 0.8)
    changed = text.encode("utf-8", "surrogatepass")
    roll = dice.random()
    if roll < 0.1:
        return of_bytes(changed, dice, others)
    if roll < 0.13:
        return changed.replace(b"{", b"{" + changed[1:20].split(b",")[0] + b",", 1)  # a member twice
    if roll < 0.15:
        return b"[" * dice.choice((10, 40, 3000)) + changed
    return changed


def of_value(value: Any, dice: random.Random) -> Any:
    """Return a JSON value with something in it replaced, removed, added or doubled."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        name = dice.choice(list(value))
        roll = dice.random()
        if roll < 0.1:
            return {key: kept for key, kept in value.items() if key != name}
        if roll < 0.2:
            return value | {dice.choice(("x", "", name + " ", name.upper(), "__class__")): dice.choice(ODD_VALUES)}
        return value | {name: of_value(value[name], dice)}
    if isinstance(value, list) and value and dice.random() < 0.85:
        at = dice.randrange(len(value))
        roll = dice.random()
        if roll < 0.1:
            return value[:at] + value[at + 1 :]
        if roll < 0.25:
            return [*value[:at], value[at], *value[at:]]
        if roll < 0.35:
            return dice.sample(value, len(value))
        return [*value[:at], of_value(value[at], dice), *value[at + 1 :]]
    return _scalar(value, dice)


def _scalar(value: Any, dice: random.Random) -> Any:
    roll = dice.random()
    if isinstance(value, str) and value and roll < 0.5:
        at = dice.randrange(len(value))
        new = dice.choice((*string.printable[:70], "", "\0", "é", "Ａ"))
        return value[:at] + new + value[at + dice.choice((0, 1, 1)) :]
    if isinstance(value, int) and not isinstance(value, bool) and roll < 0.6:
        return value + dice.choice((-1, 1, 2, 255, -value, value, 2**31, 2**32, 2**53))
    return dice.choice(ODD_VALUES)
