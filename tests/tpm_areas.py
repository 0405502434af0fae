"""Public areas and key slots of a TPM that there is none of: bytes as TPM 2.0 Library, Part 2, 12.2 has them."""

from __future__ import annotations

import struct
from typing import Any

from service.sealing.tpm.public_area import fingerprint, name_of, pin_policy

ECC, RSA, KEYED_HASH = 0x23, 0x01, 0x08
SHA1, SHA256, SHA384, SHA512 = 0x04, 0x0B, 0x0C, 0x0D
FIXED_TPM, FIXED_PARENT, ORIGIN, USER_AUTH, NO_DA = 1 << 1, 1 << 4, 1 << 5, 1 << 6, 1 << 10
RESTRICTED, DECRYPT, SIGN = 1 << 16, 1 << 17, 1 << 18
STORAGE = FIXED_TPM | FIXED_PARENT | ORIGIN | USER_AUTH | RESTRICTED | DECRYPT
SEALED = FIXED_TPM | FIXED_PARENT | USER_AUTH | NO_DA
PIN = FIXED_TPM | FIXED_PARENT | USER_AUTH
SIGNING = FIXED_TPM | FIXED_PARENT | ORIGIN | USER_AUTH | NO_DA | SIGN


def sized(content: bytes) -> bytes:
    """Return a TPM2B: its size, and its content."""
    return struct.pack(">H", len(content)) + content


def storage(kind: int = ECC, attributes: int = STORAGE | NO_DA, name_alg: int = SHA256, tail: bytes = b"") -> bytes:
    """Return the public area of a storage key, P-256 with AES-128-CFB."""
    rest = bytes.fromhex("00060080004300100003 0010") + sized(b"x" * 32) + sized(b"y" * 32)
    return sized(struct.pack(">HHIH", kind, name_alg, attributes, 0) + rest + tail)


def keyed_hash(
    attributes: int = SEALED,
    *,
    policy: bytes = b"",
    kind: int = KEYED_HASH,
    name_alg: int = SHA256,
    scheme: int = 0x10,
    unique: bytes = b"u" * 32,
    tail: bytes = b"",
) -> bytes:
    """Return the public area of a sealed object, or of a restore PIN."""
    head = struct.pack(">HHI", kind, name_alg, attributes) + sized(policy)
    return sized(head + struct.pack(">H", scheme) + sized(unique) + tail)


def signing(x: bytes = b"x" * 32, y: bytes = b"y" * 32, *, attributes: int = SIGNING, tail: bytes = b"") -> bytes:
    """Return the public area of a signing key: P-256, ECDSA with SHA-256."""
    rest = bytes.fromhex("0010 0018 000b 0003 0010")
    return sized(struct.pack(">HHIH", ECC, SHA256, attributes, 0) + rest + sized(x) + sized(y) + tail)


def pin_object(**change: Any) -> dict[str, Any]:
    """Return a restore PIN as it stands in a key slot."""
    areas = {"private": sized(b"p" * 60).hex(), "public": keyed_hash(PIN).hex()}
    return areas | {"salt": "5a" * 16, "since": "2026-11-28T12:00:00Z"} | change


def slot(pin: dict[str, Any] | None = None, *, parent: bytes | None = None, **change: Any) -> dict[str, Any]:
    """Return a key slot that passes for one, for a TPM that has none of it."""
    parent = parent or storage()
    made: dict[str, Any] = {
        "type": "tpm2",
        "srk_name": name_of(parent).hex(),
        "srk_public": parent.hex(),
        "parent": "derived",
        "private": sized(b"s" * 60).hex(),
        "public": keyed_hash(policy=pin_policy(bytes.fromhex(pin["public"])) if pin else b"").hex(),
        "fingerprint": fingerprint(name_of(parent)),
    }
    return made | ({"pin": pin} if pin else {}) | change
