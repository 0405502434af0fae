"""Public areas of TPM objects as bytes: their names, and which of them may be trusted as a parent. Pure.

All public areas here are a marshalled TPM2B_PUBLIC: a 16-bit size and a TPMT_PUBLIC, whose first eight bytes are type,
name algorithm and attributes (TPM 2.0 Library, Part 2, 12.2.4).
"""

from __future__ import annotations

import base64
import hashlib
import struct

FIXED_TPM = 1 << 1
FIXED_PARENT = 1 << 4
SENSITIVE_DATA_ORIGIN = 1 << 5
USER_WITH_AUTH = 1 << 6
NO_DA = 1 << 10
RESTRICTED = 1 << 16
DECRYPT = 1 << 17
SIGN = 1 << 18

_HASHES = {0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
_RSA, _ECC, _KEYED_HASH = 0x0001, 0x0023, 0x0008
_PARENT_MUST = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | RESTRICTED | DECRYPT

SEALED_ATTRIBUTES = FIXED_TPM | FIXED_PARENT | USER_WITH_AUTH | NO_DA
"""What a sealed data key looks like. fixedTPM and fixedParent mean that only the TPM itself can have made it; noDA that
a TPM in lockout still opens it."""

SIGNING_ATTRIBUTES = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | NO_DA | SIGN
"""What the key looks like that this machine signs with. Not restricted: it signs digests that this service makes."""

PIN_ATTRIBUTES = FIXED_TPM | FIXED_PARENT | USER_WITH_AUTH
"""What a restore PIN looks like. Without noDA: the TPM counts wrong tries, and locks after some."""

# No policy, no symmetric cipher, ECDSA with SHA-256, NIST P-256, no key derivation.
_SIGNING_HEAD = struct.pack(">HHIHHHHHH", _ECC, 0x000B, SIGNING_ATTRIBUTES, 0, 0x0010, 0x0018, 0x000B, 0x0003, 0x0010)
_P256_BYTES = 32
_POLICY_SECRET = 0x151  # TPM_CC_PolicySecret
_FINGERPRINT_LABEL = b"deviceon-backup/v1/tpm-fingerprint"


class BadPublicArea(ValueError):
    """These bytes are no public area that this service would use. The text says why."""


def name_of(public: bytes) -> bytes:
    """Return the object's name, nameAlg || H(TPMT_PUBLIC). Computed here, so that nobody has to be believed."""
    _, name_alg, _ = _head(public)
    return struct.pack(">H", name_alg) + hashlib.new(_HASHES[name_alg], public[2:]).digest()


def counts_tries(public: bytes) -> bool:
    """Tell whether a TPM in lockout refuses this object."""
    _, _, attributes = _head(public)
    return not attributes & NO_DA


def require_storage_parent(public: bytes) -> None:
    """Raise BadPublicArea unless this is a storage key that never leaves its TPM and that was made inside it."""
    kind, _, attributes = _head(public)
    if kind not in (_RSA, _ECC):
        raise BadPublicArea("it is no asymmetric key")
    if attributes & _PARENT_MUST != _PARENT_MUST or attributes & SIGN:
        raise BadPublicArea("it is no storage key that is fixed to its TPM")


def pin_policy(pin_public: bytes) -> bytes:
    """Return the policy "whoever knows the PIN": PolicySecret of the PIN object's name (Part 3, 23.4)."""
    said = hashlib.sha256(bytes(32) + struct.pack(">I", _POLICY_SECRET) + name_of(pin_public)).digest()
    return hashlib.sha256(said).digest()  # with an empty policyRef


def require_pin_object(public: bytes) -> None:
    """Raise BadPublicArea unless only the TPM can have made this restore PIN, and it counts wrong tries."""
    _require_keyed_hash(public, PIN_ATTRIBUTES, policy=b"")


def require_sealed_object(public: bytes, *, policy: bytes = b"") -> None:
    """Raise BadPublicArea unless only the TPM can have made this object, and just as `wrap` makes it.

    `policy` is that of the restore PIN, when the archive has one.

    An object that somebody makes elsewhere and imports cannot carry fixedTPM or fixedParent. Refusing everything
    without them is what lets a restore trust that its archive was made on this machine.
    """
    _require_keyed_hash(public, SEALED_ATTRIBUTES, policy=policy)


def signing_point(public: bytes) -> tuple[int, int]:
    """Return the point of a signing key. Raises BadPublicArea unless only the TPM can have made it, as `signing` does.

    Whether the point is on the curve is not looked at.
    """
    _head(public)
    if public[2 : 2 + len(_SIGNING_HEAD)] != _SIGNING_HEAD:
        raise BadPublicArea("it is no signing key that is made the way this service makes it")
    rest = public[2 + len(_SIGNING_HEAD) :]
    point = []
    for _ in range(2):
        size = int.from_bytes(rest[:2], "big")
        if len(rest) < 2 + size or not 0 < size <= _P256_BYTES:
            raise BadPublicArea("its point is cut short")
        point.append(int.from_bytes(rest[2 : 2 + size], "big"))
        rest = rest[2 + size :]
    if rest:
        raise BadPublicArea("bytes follow it")
    return point[0], point[1]


def fingerprint(srk_name: bytes) -> str:
    """Return the 80-bit text by which people tell TPMs apart, `TPM 7Q4F-...`."""
    digest = hashlib.sha256(_FINGERPRINT_LABEL + srk_name).digest()
    text = base64.b32encode(digest[:10]).decode()
    return "TPM " + "-".join(text[at : at + 4] for at in range(0, len(text), 4))


def _require_keyed_hash(public: bytes, wanted: int, *, policy: bytes) -> None:
    kind, _, attributes = _head(public)
    if kind != _KEYED_HASH:
        raise BadPublicArea("it is no sealed data object")
    if not attributes & FIXED_TPM or not attributes & FIXED_PARENT:
        raise BadPublicArea("it is not fixed to its TPM, so it may have been made elsewhere")
    head = struct.pack(">HHIH", _KEYED_HASH, 0x000B, wanted, len(policy)) + policy + struct.pack(">HH", 0x0010, 32)
    if public[2 : 2 + len(head)] != head or len(public) != 2 + len(head) + 32:  # scheme NULL, then `unique`
        raise BadPublicArea("it is not made the way this service makes it")


def _head(public: bytes) -> tuple[int, int, int]:
    if len(public) < 10 or struct.unpack(">H", public[:2])[0] != len(public) - 2:
        raise BadPublicArea("its size is wrong")
    kind, name_alg, attributes = struct.unpack(">HHI", public[2:10])
    if name_alg not in _HASHES:
        raise BadPublicArea("its name algorithm is weaker than SHA-256 or unknown")
    return kind, name_alg, attributes
