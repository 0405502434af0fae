"""Public areas as bytes: which key may be a parent, which object only the TPM itself can have made."""

from __future__ import annotations

import hashlib

import pytest

from service.sealing.tpm import public_area
from service.sealing.tpm.public_area import (
    BadPublicArea,
    counts_tries,
    fingerprint,
    name_of,
    pin_policy,
    require_pin_object,
    require_sealed_object,
    require_storage_parent,
    signing_point,
)
from tests.tpm_areas import (
    DECRYPT,
    ECC,
    FIXED_PARENT,
    FIXED_TPM,
    KEYED_HASH,
    NO_DA,
    ORIGIN,
    PIN,
    RESTRICTED,
    RSA,
    SEALED,
    SHA1,
    SHA256,
    SHA384,
    SHA512,
    SIGN,
    SIGNING,
    STORAGE,
    USER_AUTH,
    keyed_hash,
    signing,
    sized,
    storage,
)


def test_what_is_made_here_has_the_attributes_of_the_specification() -> None:
    assert (public_area.SEALED_ATTRIBUTES, public_area.SIGNING_ATTRIBUTES, public_area.PIN_ATTRIBUTES) == (
        SEALED,
        SIGNING,
        PIN,
    )


@pytest.mark.parametrize(("algorithm", "name"), [(SHA256, "sha256"), (SHA384, "sha384"), (SHA512, "sha512")])
def test_a_name_is_the_hash_that_the_area_names_over_the_area_without_its_size(algorithm: int, name: str) -> None:
    public = storage(name_alg=algorithm)
    assert name_of(public) == algorithm.to_bytes(2, "big") + hashlib.new(name, public[2:]).digest()


@pytest.mark.parametrize("algorithm", [0, SHA1, SHA256 - 1, SHA512 + 1, 0x10])
def test_a_name_by_a_weak_hash_or_none_is_refused(algorithm: int) -> None:
    with pytest.raises(BadPublicArea, match="name algorithm"):
        name_of(storage(name_alg=algorithm))


def test_an_area_has_the_size_that_it_says_and_a_head() -> None:
    whole = storage()
    shortest = sized(whole[2:10])
    assert name_of(shortest)
    for wrong in (b"", b"\0", shortest[:-1], sized(whole[2:9]), whole[:-1], whole + b"\0", b"\0\0" + whole[2:]):
        with pytest.raises(BadPublicArea, match="size"):
            name_of(wrong)


def test_an_object_with_no_da_counts_no_tries() -> None:
    assert counts_tries(storage(attributes=STORAGE)) is True
    assert counts_tries(storage(attributes=STORAGE | NO_DA)) is False


@pytest.mark.parametrize("kind", [ECC, RSA])
@pytest.mark.parametrize("more", [0, NO_DA])
def test_a_storage_key_that_is_fixed_to_its_tpm_may_be_a_parent(kind: int, more: int) -> None:
    require_storage_parent(storage(kind, STORAGE | more))


@pytest.mark.parametrize("kind", [KEYED_HASH, 0x25, 0, ECC + 1])
def test_what_is_no_asymmetric_key_is_no_parent(kind: int) -> None:
    with pytest.raises(BadPublicArea, match="no asymmetric key"):
        require_storage_parent(storage(kind))


@pytest.mark.parametrize("missing", [FIXED_TPM, FIXED_PARENT, ORIGIN, USER_AUTH, RESTRICTED, DECRYPT])
def test_a_parent_lacks_none_of_its_attributes(missing: int) -> None:
    with pytest.raises(BadPublicArea, match="no storage key"):
        require_storage_parent(storage(attributes=STORAGE & ~missing))


def test_a_parent_does_not_sign() -> None:
    with pytest.raises(BadPublicArea, match="no storage key"):
        require_storage_parent(storage(attributes=STORAGE | SIGN))


def test_a_sealed_object_is_taken_only_as_it_is_made() -> None:
    require_sealed_object(keyed_hash())
    require_sealed_object(keyed_hash(policy=b"p" * 32), policy=b"p" * 32)
    for wrong in (
        keyed_hash(PIN),
        keyed_hash(SEALED | ORIGIN),
        keyed_hash(policy=b"p" * 32),
        keyed_hash(scheme=0x05),
        keyed_hash(name_alg=SHA384),
        keyed_hash(unique=b"u" * 31),
        keyed_hash(unique=b"u" * 33),
        keyed_hash(unique=b""),
        keyed_hash(tail=b"\0"),
    ):
        with pytest.raises(BadPublicArea, match="the way this service makes it"):
            require_sealed_object(wrong)
    for policy in (b"", b"q" * 32, b"p" * 31):
        with pytest.raises(BadPublicArea, match="the way this service makes it"):
            require_sealed_object(keyed_hash(policy=b"p" * 32), policy=policy)
    with pytest.raises(BadPublicArea, match="no sealed data object"):
        require_sealed_object(keyed_hash(kind=ECC))


@pytest.mark.parametrize("missing", [FIXED_TPM, FIXED_PARENT, FIXED_TPM | FIXED_PARENT])
def test_what_is_not_fixed_to_its_tpm_may_have_been_made_elsewhere(missing: int) -> None:
    with pytest.raises(BadPublicArea, match="made elsewhere"):
        require_sealed_object(keyed_hash(SEALED & ~missing))
    with pytest.raises(BadPublicArea, match="made elsewhere"):
        require_pin_object(keyed_hash(PIN & ~missing))


def test_a_restore_pin_counts_tries_and_has_no_policy() -> None:
    require_pin_object(keyed_hash(PIN))
    for wrong in (keyed_hash(PIN | NO_DA), keyed_hash(SEALED), keyed_hash(PIN, policy=b"p" * 32)):
        with pytest.raises(BadPublicArea, match="the way this service makes it"):
            require_pin_object(wrong)


def test_the_policy_of_a_pin_is_that_of_the_specification() -> None:
    """PolicySecret(TPM_RH_ENDORSEMENT) is published: the endorsement key's of the TCG's EK Credential Profile."""
    published = "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"
    first = hashlib.sha256(bytes(32) + bytes.fromhex("00000151") + bytes.fromhex("4000000b")).digest()
    assert hashlib.sha256(first).hexdigest() == published
    public = keyed_hash(PIN)
    first = hashlib.sha256(bytes(32) + bytes.fromhex("00000151") + name_of(public)).digest()
    assert pin_policy(public) == hashlib.sha256(first).digest()


def test_a_signing_key_gives_its_point() -> None:
    assert signing_point(signing(b"\x01" * 32, b"\x02" * 32)) == (
        int.from_bytes(b"\x01" * 32, "big"),
        int.from_bytes(b"\x02" * 32, "big"),
    )
    assert signing_point(signing(b"\x07", b"\x01\x00")) == (7, 256)


def test_a_signing_key_is_taken_only_as_it_is_made() -> None:
    good = signing()
    for at in range(2, 22):  # every bit of its head
        for bit in range(8):
            with pytest.raises(BadPublicArea):
                signing_point(good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :])
    for x, y in ((b"", b"y" * 32), (b"x" * 32, b""), (b"x" * 33, b"y" * 32), (b"x" * 32, b"y" * 33)):
        with pytest.raises(BadPublicArea, match="its point is cut short"):
            signing_point(signing(x, y))
    for short in (good[2:-1], good[2:-34], good[2:-33], good[2:22], good[2:23]):
        with pytest.raises(BadPublicArea, match="its point is cut short"):
            signing_point(sized(short))
    with pytest.raises(BadPublicArea, match="bytes follow it"):
        signing_point(signing(tail=b"\0"))
    with pytest.raises(BadPublicArea, match="size"):
        signing_point(good[:-1])


def test_a_fingerprint_is_eighty_bits_in_groups_of_four() -> None:
    name = name_of(storage())
    digest = hashlib.sha256(b"deviceon-backup/v1/tpm-fingerprint" + name).digest()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    number = int.from_bytes(digest[:10], "big")
    text = "".join(alphabet[number >> shift & 31] for shift in range(75, -1, -5))
    assert fingerprint(name) == f"TPM {text[:4]}-{text[4:8]}-{text[8:12]}-{text[12:]}"
