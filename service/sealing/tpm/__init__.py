"""Sealing to this machine's TPM: an archive's data key opens only on the TPM that sealed it.

    TpmGate                     the way to the TPM: one operation at a time, bounded in time
    TpmPin, read_pin, load_pin, save_pin    which TPM is trusted, since when it was first seen
    TpmRecipient, TpmIdentity   the two ends of service.sealing.slots
    TpmSigner, open_signer      signatures of this machine (service.sealing.signature)
    RestorePin, make_pin, change_pin, check_pin, ...    the restore PIN of this machine
    describe                    what an operator wants to know about the TPM

Everything that loads libtss2 is imported when a TPM is first used. docs/SECURITY_MODEL.md says what this protects.
"""

from service.sealing.tpm.doctor import describe
from service.sealing.tpm.gate import TpmGate
from service.sealing.tpm.keys import TpmIdentity, TpmRecipient
from service.sealing.tpm.pin import TpmPin, load_pin, read_pin, save_pin
from service.sealing.tpm.restore_pin import (
    PIN_FILE,
    RestorePin,
    change_pin,
    check_pin,
    forget_restore_pin,
    load_restore_pin,
    make_pin,
    require_usable,
    save_restore_pin,
)
from service.sealing.tpm.signing import TpmSigner, open_signer

__all__ = [
    "PIN_FILE",
    "RestorePin",
    "TpmGate",
    "TpmIdentity",
    "TpmPin",
    "TpmRecipient",
    "TpmSigner",
    "change_pin",
    "check_pin",
    "describe",
    "forget_restore_pin",
    "load_pin",
    "load_restore_pin",
    "make_pin",
    "open_signer",
    "read_pin",
    "require_usable",
    "save_pin",
    "save_restore_pin",
]
