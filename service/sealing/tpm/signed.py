"""A signing key below a storage key, and what it signs. Runs in the gate's thread."""

from __future__ import annotations

from tpm2_pytss import (  # type: ignore[import-untyped]
    TPM2_ALG,
    TPM2B_DIGEST,
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMA_OBJECT,
    TPMA_SESSION,
    TPMT_PUBLIC,
    TPMT_SIG_SCHEME,
    TSS2_Exception,
)

from service.errors import SealError
from service.sealing.signature import signature_of
from service.sealing.tpm import faults
from service.sealing.tpm.chip import Chip
from service.sealing.tpm.operations import pinned_parent
from service.sealing.tpm.pin import TpmPin
from service.sealing.tpm.public_area import SIGNING_ATTRIBUTES
from service.sealing.tpm.signing import LOST


def make_key(chip: Chip, pin: TpmPin) -> tuple[bytes, bytes]:
    """Return the private and public area of a new signing key of the pinned TPM. Raises TpmChanged."""
    parent = pinned_parent(chip, pin)
    session = chip.encrypted_session(parent.handle)
    template = TPM2B_PUBLIC(
        publicArea=TPMT_PUBLIC.parse(
            "ecc256:ecdsa-sha256:null", nameAlg=TPM2_ALG.SHA256, objectAttributes=TPMA_OBJECT(SIGNING_ATTRIBUTES)
        )
    )
    private, public, *_ = chip.esapi.create(
        parent.handle, TPM2B_SENSITIVE_CREATE(), in_public=template, session1=session
    )
    return bytes(private.marshal()), bytes(public.marshal())


def sign(chip: Chip, pin: TpmPin, private: bytes, public: bytes, digest: bytes) -> bytes:
    """Return the signature (DER) of a SHA-256 digest. Raises TpmChanged, and SealError when the TPM refuses the key."""
    parent = pinned_parent(chip, pin)
    session = chip.encrypted_session(parent.handle)
    private_area, _ = TPM2B_PRIVATE.unmarshal(private)
    public_area, _ = TPM2B_PUBLIC.unmarshal(public)
    try:
        key = chip.keep(chip.esapi.load(parent.handle, private_area, public_area, session1=session))
    except TSS2_Exception as error:
        if faults.blames_input(error.rc):
            raise SealError("the TPM refuses its signing key: the file was altered or damaged", hint=LOST) from error
        raise
    # A signature is no parameter that could be encrypted on the way out; asking for it would be refused.
    chip.esapi.trsess_set_attributes(session, TPMA_SESSION.DECRYPT | TPMA_SESSION.CONTINUESESSION)
    made = chip.esapi.sign(key, TPM2B_DIGEST(digest), TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL), session1=session)
    ecdsa = made.signature.ecdsa
    return signature_of(*(int.from_bytes(bytes(half), "big") for half in (ecdsa.signatureR, ecdsa.signatureS)))
