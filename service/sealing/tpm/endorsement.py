"""Which chip this is, whatever happened to its storage seed: the endorsement key's name. Runs in the gate's thread.

TPM2_Clear changes the storage seed but not the endorsement seed, so an endorsement key that is the same while the
storage key is gone means "the same TPM, cleared". The name identifies the hardware for life, so archives carry only a
salted hash. Best effort: with an endorsement password set, nothing can be told.
"""

from __future__ import annotations

import hashlib

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
from service.sealing.tpm.public_area import BadPublicArea, name_of

_PERSISTENT_EKS = (0x81010001, 0x81010002)
_LABEL = b"deviceon-backup/v1/ek"
# PolicySecret(endorsement hierarchy), TCG EK Credential Profile, template L-2.
_POLICY = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")


def salted(ek_name: bytes, archive_id: bytes) -> str:
    """Return what an archive says about the chip it was made on (hex)."""
    return hashlib.sha256(_LABEL + archive_id + ek_name).hexdigest()


def endorsement_names(chip: Chip) -> list[bytes]:
    """Return the names of this chip's endorsement keys, those that survive everything first; may be empty."""
    found = [_derived(chip), *(_persistent(chip, handle) for handle in _PERSISTENT_EKS)]
    return [name for name in found if name is not None]


def _derived(chip: Chip) -> bytes | None:
    try:
        handle, public = chip.create_primary(ESYS_TR.ENDORSEMENT, _template())
    except TSS2_Exception as error:
        if faults.is_refusal(error.rc):
            return None  # a password is set, the hierarchy is off, or there is no P-256
        raise
    chip.flush(handle)
    return name_of(public)


def _persistent(chip: Chip, handle: int) -> bytes | None:
    """Look at a persistent endorsement key. Second best: TPM2_Clear evicts it."""
    found = chip.open_persistent(handle)
    try:
        return name_of(found[1]) if found else None
    except BadPublicArea:
        return None


def _template() -> TPM2B_PUBLIC:
    area = TPMT_PUBLIC.parse(
        "ecc256:aes128cfb",
        nameAlg=TPM2_ALG.SHA256,
        objectAttributes=TPMA_OBJECT.FIXEDTPM
        | TPMA_OBJECT.FIXEDPARENT
        | TPMA_OBJECT.SENSITIVEDATAORIGIN
        | TPMA_OBJECT.ADMINWITHPOLICY
        | TPMA_OBJECT.RESTRICTED
        | TPMA_OBJECT.DECRYPT,
    )
    area.authPolicy.buffer = _POLICY
    area.unique.ecc.x.buffer = bytes(32)
    area.unique.ecc.y.buffer = bytes(32)
    return TPM2B_PUBLIC(publicArea=area)
