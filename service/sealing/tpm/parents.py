"""The key that seals: finding this TPM's storage root key, by its name wherever it is. Runs in the gate's thread.

"The SRK" is not one key. The same TPM derives different ones from an RSA or ECC template and an empty or zero-filled
`unique` field (tpm2-tools uses the one, Windows the other), and any of them may have been made persistent. So an
archive carries the whole public area of its parent, and the parent is recognised by name: no TPM secret is needed.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tpm2_pytss import (  # type: ignore[import-untyped]
    ESYS_TR,
    TPM2_ALG,
    TPM2B_PUBLIC,
    TPMA_OBJECT,
    TPMT_PUBLIC,
    TSS2_Exception,
)

from service.sealing.tpm import faults
from service.sealing.tpm.chip import Chip
from service.sealing.tpm.public_area import BadPublicArea, counts_tries, name_of, require_storage_parent

PERSISTENT_SRKS = (0x81000001, 0x81000002)  # TCG provisioning guidance: RSA (or whatever was first), ECC
DERIVED = "derived"
_COORDINATE_BYTES = {0x0003: 32, 0x0004: 48, 0x0005: 66}  # of P-256, P-384, P-521

_PASSWORD = frozenset({faults.BAD_AUTH, faults.AUTH_FAIL})


@dataclass(frozen=True, slots=True)
class Parent:
    """A loaded storage key. `origin` says how it was obtained: a persistent handle as hex, or `derived`."""

    handle: Any
    public: bytes
    name: bytes
    origin: str


def choose_parent(chip: Chip) -> Parent:
    """Return the key that a first backup seals to: a persistent one if there is, else the derived ECC one.

    A persistent one without noDA (tpm2_createprimary makes such keys) is the last choice: while the TPM is in lockout,
    through whoever's wrong passwords, nothing could be sealed or opened with it.
    """
    second_best: Parent | None = None
    for parent in _persistent(chip):
        if not counts_tries(parent.public):
            return parent
        second_best = second_best or parent
    try:
        handle, public = chip.create_primary(ESYS_TR.OWNER, default_template())
    except TSS2_Exception as error:
        if second_best is not None and faults.is_refusal(error.rc):
            return second_best
        raise
    require_storage_parent(public)
    return _checked(chip, handle, public, DERIVED)


def find_parent(chip: Chip, name: bytes, public: bytes) -> Parent | None:
    """Return the key of this name if this TPM has it. `public` is its public area, which tells how to derive it.

    Raises TSS2_Exception, with BAD_AUTH when it is not persistent and deriving needs the owner password;
    BadPublicArea when `public` cannot be understood.
    """
    for parent in _persistent(chip):
        if hmac.compare_digest(parent.name, name):
            return parent
    for template in _templates(public):
        try:
            handle, derived = chip.create_primary(ESYS_TR.OWNER, template)
        except TSS2_Exception as error:
            if faults.blames_input(error.rc) and faults.tpm_code(error.rc) not in _PASSWORD:
                continue  # this TPM has no such kind of key, so it is not the one
            raise
        if hmac.compare_digest(name_of(derived), name):
            return _checked(chip, handle, derived, DERIVED)
        chip.flush(handle)
    return None


def default_template() -> TPM2B_PUBLIC:
    """Return the TCG template H-2: ECC P-256, AES-128-CFB, SHA-256, no dictionary attack counting, zero `unique`."""
    template = TPM2B_PUBLIC(
        publicArea=TPMT_PUBLIC.parse(
            "ecc256:aes128cfb",
            nameAlg=TPM2_ALG.SHA256,
            objectAttributes=TPMA_OBJECT.FIXEDTPM
            | TPMA_OBJECT.FIXEDPARENT
            | TPMA_OBJECT.SENSITIVEDATAORIGIN
            | TPMA_OBJECT.USERWITHAUTH
            | TPMA_OBJECT.NODA
            | TPMA_OBJECT.RESTRICTED
            | TPMA_OBJECT.DECRYPT,
        )
    )
    _fill_unique(template, zeros=True)
    return template


def _persistent(chip: Chip) -> Iterator[Parent]:
    for number in PERSISTENT_SRKS:
        if found := chip.open_persistent(number):
            handle, public = found
            try:
                require_storage_parent(public)
            except BadPublicArea:
                continue  # someone else's key at this place
            yield _checked(chip, handle, public, f"0x{number:08x}")


def _checked(chip: Chip, handle: Any, public: bytes, origin: str) -> Parent:
    """Return the parent if the name computed here is that of the key which sessions will be salted to."""
    name = name_of(public)
    if not hmac.compare_digest(name, chip.own_name(handle)):
        raise TSS2_Exception(0x00070012)  # ESAPI: malformed response
    return Parent(handle, public, name, origin)


def _templates(public: bytes) -> Iterator[TPM2B_PUBLIC]:
    """Yield what `public` may have been derived from. Zero-filled first: that is what this service derives itself."""
    for zeros in (True, False):
        try:
            template, used = TPM2B_PUBLIC.unmarshal(public)
        except TSS2_Exception as error:
            raise BadPublicArea("it cannot be parsed") from error
        if used != len(public):
            raise BadPublicArea("bytes follow it")
        _fill_unique(template, zeros=zeros)
        yield template


def _fill_unique(template: TPM2B_PUBLIC, *, zeros: bool) -> None:
    area = template.publicArea
    if area.type == TPM2_ALG.ECC:
        filler = bytes(_COORDINATE_BYTES.get(int(area.parameters.eccDetail.curveID), 0)) if zeros else b""
        area.unique.ecc.x.buffer = filler
        area.unique.ecc.y.buffer = filler
    else:
        area.unique.rsa.buffer = bytes(area.parameters.rsaDetail.keyBits // 8) if zeros else b""
