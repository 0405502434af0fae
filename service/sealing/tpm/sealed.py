"""Sealing 32 bytes under a storage key and having them back. Runs in the gate's thread.

With the parent that is two objects and two sessions at most, of the three and three that every TPM has room for.
"""

from __future__ import annotations

import hmac

from tpm2_pytss import (  # type: ignore[import-untyped]
    TPM2_ALG,
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPM2B_SENSITIVE_DATA,
    TPMA_OBJECT,
    TPMA_SESSION,
    TPMS_SENSITIVE_CREATE,
    TPMT_PUBLIC,
)

from service.errors import SealError
from service.sealing.tpm.chip import Chip
from service.sealing.tpm.parents import Parent
from service.sealing.tpm.public_area import SEALED_ATTRIBUTES


def seal(chip: Chip, parent: Parent, data_key: bytes) -> tuple[bytes, bytes]:
    """Return the private and public area of a new sealed object that was proven to give `data_key` back."""
    session = chip.encrypted_session(parent.handle)
    sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(data=TPM2B_SENSITIVE_DATA(data_key)))
    template = TPM2B_PUBLIC(
        publicArea=TPMT_PUBLIC.parse(
            "keyedhash", nameAlg=TPM2_ALG.SHA256, objectAttributes=TPMA_OBJECT(SEALED_ATTRIBUTES)
        )
    )
    private, public, *_ = chip.esapi.create(parent.handle, sensitive, in_public=template, session1=session)
    areas = bytes(private.marshal()), bytes(public.marshal())
    if not hmac.compare_digest(unseal(chip, parent, *areas), data_key):
        raise SealError(
            "the TPM sealed a data key and gave back another one", hint="The TPM is faulty: have the hardware examined."
        )
    return areas


def unseal(chip: Chip, parent: Parent, private: bytes, public: bytes) -> bytes:
    """Return what was sealed. Raises TSS2_Exception, with INTEGRITY when the areas are not what this key has sealed."""
    session = chip.encrypted_session(parent.handle)
    private_area, _ = TPM2B_PRIVATE.unmarshal(private)
    public_area, _ = TPM2B_PUBLIC.unmarshal(public)
    loaded = chip.keep(chip.esapi.load(parent.handle, private_area, public_area, session1=session))
    # Unseal has no parameter that could be encrypted on the way in; asking for it would be refused.
    chip.esapi.trsess_set_attributes(session, TPMA_SESSION.ENCRYPT | TPMA_SESSION.CONTINUESESSION)
    return bytes(chip.esapi.unseal(loaded, session1=session))
