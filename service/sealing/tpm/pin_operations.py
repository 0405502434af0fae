"""Making, changing and trying a restore PIN with an open TPM. Runs in the gate's thread."""

from __future__ import annotations

import hmac
import secrets

from service.errors import SealError
from service.sealing.tpm.chip import Chip
from service.sealing.tpm.operations import pinned_parent
from service.sealing.tpm.parents import Parent
from service.sealing.tpm.pin import TpmPin
from service.sealing.tpm.public_area import pin_policy
from service.sealing.tpm.restore_pin import PinClaim
from service.sealing.tpm.sealed import change_auth, make_pin_object, seal, unseal_with_pin


def make(chip: Chip, tpm: TpmPin, auth: bytes) -> tuple[bytes, bytes]:
    """Return the areas of a new PIN object, proven."""
    parent = pinned_parent(chip, tpm)
    areas = make_pin_object(chip, parent, auth)
    _prove(chip, parent, PinClaim(*areas, auth))
    return areas


def change(chip: Chip, tpm: TpmPin, areas: tuple[bytes, bytes], old: bytes, new: bytes) -> bytes:
    """Return the private area with another PIN, proven. Raises PinWrong, TpmLockout."""
    parent = pinned_parent(chip, tpm)
    private = change_auth(chip, parent, PinClaim(*areas, old), new)
    _prove(chip, parent, PinClaim(private, areas[1], new))
    return private


def check(chip: Chip, tpm: TpmPin, areas: tuple[bytes, bytes], auth: bytes) -> None:
    """Try the PIN. Raises PinWrong, TpmLockout."""
    _prove(chip, pinned_parent(chip, tpm), PinClaim(*areas, auth))


def _prove(chip: Chip, parent: Parent, claim: PinClaim) -> None:
    """Seal something for the PIN and open it with the PIN, as an archive's key would be."""
    key = secrets.token_bytes(32)
    areas = seal(chip, parent, key, policy=pin_policy(claim.public))
    if not hmac.compare_digest(unseal_with_pin(chip, parent, *areas, claim), key):
        raise SealError(
            "the TPM sealed a key for the PIN and gave back another one",
            hint="The TPM is faulty: have the hardware examined.",
        )
