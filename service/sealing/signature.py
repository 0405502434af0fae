"""Signatures of this machine: ECDSA over P-256 and SHA-256, made by a key that never leaves its TPM. Pure.

What is signed is SHA-256 of

    L || "/" || purpose || 00 || message        L = "deviceon-backup/v1"

so a signature for one purpose (an archive, a drill's report) is none for another. Anybody can check one with the public
key alone (`openssl dgst -sha256 -verify`). A signature says who made something, not that he was right.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from service.errors import NotAuthentic

PUBLIC_KEY_BYTES: Final = 91
"""Length of every public key here: a SubjectPublicKeyInfo in DER, with an uncompressed point of P-256."""

_LABEL: Final = b"deviceon-backup/v1/"
_FINGERPRINT_LABEL: Final = b"deviceon-backup/v1/signer-fingerprint"
_PURPOSE: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")


def signed_digest(purpose: str, message: bytes) -> bytes:
    """Return the 32 bytes that are signed. `purpose` is of a-z, 0-9 and hyphens; ValueError when it is not."""
    return hashlib.sha256(signed_bytes(purpose, message)).digest()


def signed_bytes(purpose: str, message: bytes) -> bytes:
    """Return what other programs give to their ECDSA-with-SHA-256."""
    if not _PURPOSE.fullmatch(purpose):
        raise ValueError(f"no purpose of a signature: {purpose!r}")
    return _LABEL + purpose.encode() + b"\x00" + message


def verify(public_key: bytes, purpose: str, message: bytes, signature: bytes) -> None:
    """Raise NotAuthentic unless `signature` (DER) is that of `public_key` (see `PUBLIC_KEY_BYTES`) for this message.

    That a signature is right says nothing while nobody vouches for the key: compare `signer_fingerprint`.
    """
    key = _load(public_key)
    try:
        key.verify(signature, signed_digest(purpose, message), ECDSA(Prehashed(SHA256())))
    except InvalidSignature as exc:
        raise NotAuthentic(
            f"the signature is not one of {signer_fingerprint(public_key)} for this content",
            hint="It was altered after it was signed, or signed by somebody else. Do not trust it.",
        ) from exc


def signer_fingerprint(public_key: bytes) -> str:
    """Return the 80-bit text by which people tell signers apart, `KEY 7Q4F-...`."""
    digest = hashlib.sha256(_FINGERPRINT_LABEL + public_key).digest()
    text = base64.b32encode(digest[:10]).decode()
    return "KEY " + "-".join(text[at : at + 4] for at in range(0, len(text), 4))


def public_key_of(x: int, y: int) -> bytes:
    """Return the public key with this point of P-256. Raises ValueError when the point is not on the curve."""
    key = EllipticCurvePublicNumbers(x, y, SECP256R1()).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def signature_of(r: int, s: int) -> bytes:
    """Return a signature in DER from its two numbers."""
    return encode_dss_signature(r, s)


def is_public_key(content: bytes) -> bool:
    """Tell whether these bytes are a public key (DER) that can have signed anything."""
    try:
        _load(content)
    except NotAuthentic:
        return False
    return True


def _load(public_key: bytes) -> EllipticCurvePublicKey:
    try:
        key = load_der_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise _no_key() from exc
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise _no_key()
    if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != public_key:
        raise _no_key()  # another spelling of the same key would have another fingerprint
    return key


def _no_key() -> NotAuthentic:
    return NotAuthentic(
        "the signer's public key is not one of P-256 in its usual form",
        hint="It was altered or damaged. Do not trust what it is said to have signed.",
    )
