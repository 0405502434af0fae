"""What a storage key may have been derived from, told from its public area alone."""

from __future__ import annotations

import struct

import pytest

from service.sealing.tpm.parents import DERIVED, PERSISTENT_SRKS, _templates, default_template
from service.sealing.tpm.public_area import BadPublicArea
from tests.tpm_areas import ECC, NO_DA, RSA, SHA256, STORAGE, sized, storage

AES_128_CFB = bytes.fromhex("0006 0080 0043")
NULL = bytes.fromhex("0010")


def area(kind: int, details: bytes, unique: bytes) -> bytes:
    head = struct.pack(">HHIH", kind, SHA256, STORAGE | NO_DA, 0)
    return sized(head + AES_128_CFB + NULL + details + unique)


def ecc(curve: int, coordinate: bytes) -> bytes:
    return area(ECC, struct.pack(">H", curve) + NULL, 2 * sized(coordinate))


def rsa(bits: int, modulus: bytes) -> bytes:
    return area(RSA, struct.pack(">HI", bits, 0), sized(modulus))


def test_a_tpm_without_a_persistent_key_derives_the_one_of_the_tcgs_template_h_2() -> None:
    """P-256, AES-128-CFB, SHA-256, noDA, both coordinates zero."""
    assert bytes(default_template().marshal()) == ecc(3, bytes(32))


def test_persistent_keys_are_looked_for_where_the_tcg_has_them() -> None:
    """TCG TPM v2.0 Provisioning Guidance."""
    assert PERSISTENT_SRKS == (0x81000001, 0x81000002)
    assert DERIVED == "derived"


@pytest.mark.parametrize(("curve", "size"), [(3, 32), (4, 48), (5, 66)])
def test_an_ecc_key_is_derived_from_zeros_as_long_as_its_curve_or_from_nothing(curve: int, size: int) -> None:
    found = [bytes(template.marshal()) for template in _templates(ecc(curve, b"x" * size))]
    assert found == [ecc(curve, bytes(size)), ecc(curve, b"")]


@pytest.mark.parametrize("bits", [2048, 3072])
def test_an_rsa_key_is_derived_from_zeros_as_long_as_its_modulus_or_from_nothing(bits: int) -> None:
    found = [bytes(template.marshal()) for template in _templates(rsa(bits, b"n" * (bits // 8)))]
    assert found == [rsa(bits, bytes(bits // 8)), rsa(bits, b"")]


def test_a_key_on_another_curve_is_derived_from_nothing() -> None:
    found = [bytes(template.marshal()) for template in _templates(ecc(0x10, b"x" * 32))]
    assert found == 2 * [ecc(0x10, b"")]


def test_a_storage_key_that_is_not_understood_is_told_as_such() -> None:
    with pytest.raises(BadPublicArea, match="cannot be parsed"):
        list(_templates(b"\0"))
    with pytest.raises(BadPublicArea, match="bytes follow it"):
        list(_templates(storage(tail=b"\0")))
