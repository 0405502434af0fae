"""Signatures as bytes: what they are bound to, and that other programs check them too."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service.errors import NotAuthentic
from service.sealing import signature
from service.sealing.signature import (
    PUBLIC_KEY_BYTES,
    is_public_key,
    public_key_of,
    signed_bytes,
    signer_fingerprint,
    verify,
)

KEY = ec.derive_private_key(0x5EED, ec.SECP256R1())
PUBLIC = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def signed(purpose: str, message: bytes) -> bytes:
    return KEY.sign(signed_bytes(purpose, message), ec.ECDSA(SHA256()))


def test_a_signature_is_bound_to_purpose_and_message_and_key() -> None:
    made = signed("report", b"all is well")
    verify(PUBLIC, "report", b"all is well", made)
    other = ec.derive_private_key(0xBAD, ec.SECP256R1()).public_key()
    for key, purpose, message, given in [
        (PUBLIC, "archive", b"all is well", made),
        (PUBLIC, "report", b"all is bell", made),
        (PUBLIC, "report", b"", made),
        (PUBLIC, "report", b"all is well", made[:-1]),
        (PUBLIC, "report", b"all is well", b""),
        (other.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo), "report", b"all is well", made),
    ]:
        with pytest.raises(NotAuthentic):
            verify(key, purpose, message, given)


def test_a_message_cannot_be_moved_into_the_purpose() -> None:
    assert signed_bytes("report", b"x") == b"deviceon-backup/v1/report\x00x"
    for purpose in ("a", "a1-", "x" * 32):
        assert signed_bytes(purpose, b"") == b"deviceon-backup/v1/" + purpose.encode() + b"\x00"
    for purpose in ("", "Report", "re port", "report\x00", "report\n", "a/b", "1a", "-a", "x" * 33):
        with pytest.raises(ValueError, match="purpose"):
            signed_bytes(purpose, b"")


def test_only_a_key_of_the_usual_form_is_looked_at() -> None:
    compressed = KEY.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    spelled = PUBLIC[:1] + bytes([PUBLIC[1] - 32]) + PUBLIC[2:-66] + b"\x22\x00" + compressed
    wrong = [
        b"",
        PUBLIC[:-1],
        PUBLIC + b"\x00",
        PUBLIC[:-1] + bytes([PUBLIC[-1] ^ 1]),
        spelled.replace(b"\x03\x42\x00", b"\x03"),
        hybrid(PUBLIC),
        PUBLIC.replace(P256, bytes.fromhex("06082a8648ce3d030108")),  # a curve that there is not
        PUBLIC.replace(bytes.fromhex("2a8648ce3d0201"), bytes.fromhex("2a8648ce3d0209")),  # an unknown kind of key
        ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
        .public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        ec.derive_private_key(5, ec.SECP384R1())
        .public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    ]
    assert P256 in PUBLIC
    assert is_public_key(PUBLIC)
    for key in wrong:
        assert not is_public_key(key)
        with pytest.raises(NotAuthentic, match="public key"):
            verify(key, "report", b"", signed("report", b""))


P256 = bytes.fromhex("06082a8648ce3d030107")


def hybrid(public: bytes) -> bytes:
    """Return another spelling of a key, as long as the usual one, that OpenSSL reads too (SEC 1, 2.3.4)."""
    return public[:26] + bytes([6 | public[-1] & 1]) + public[27:]


def test_a_point_becomes_a_key_only_on_the_curve() -> None:
    numbers = KEY.public_key().public_numbers()
    assert public_key_of(numbers.x, numbers.y) == PUBLIC
    assert len(PUBLIC) == PUBLIC_KEY_BYTES
    with pytest.raises(ValueError, match="curve"):
        public_key_of(numbers.x, numbers.y + 1)


def test_a_fingerprint_stands_for_one_key() -> None:
    assert signer_fingerprint(PUBLIC) == "KEY KEW6-ME7E-GGZP-QK22"
    assert signer_fingerprint(PUBLIC[:-1] + b"x") != signer_fingerprint(PUBLIC)


def test_openssl_checks_a_signature(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(PUBLIC)
    (tmp_path / "signature").write_bytes(signed("report", b"text"))
    (tmp_path / "message").write_bytes(signed_bytes("report", b"text"))
    (tmp_path / "other").write_bytes(b"text")
    check = ["openssl", "dgst", "-sha256", "-verify", "key", "-keyform", "DER", "-signature", "signature"]
    for name, code in (("message", 0), ("other", 1)):
        done = subprocess.run([*check, name], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == code, done.stderr


def test_r_and_s_become_der() -> None:
    assert signature.signature_of(1, 255) == bytes.fromhex("3007020101020200ff")
