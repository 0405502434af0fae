"""Examining a TPM for `doctor`. Runs in the gate's thread."""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict
from typing import Any

from service.sealing.tpm.chip import Chip
from service.sealing.tpm.endorsement import endorsement_names
from service.sealing.tpm.identify import model
from service.sealing.tpm.operations import pinned_parent
from service.sealing.tpm.parents import PERSISTENT_SRKS, choose_parent
from service.sealing.tpm.pin import TpmPin
from service.sealing.tpm.public_area import BadPublicArea, counts_tries, fingerprint, require_storage_parent
from service.sealing.tpm.sealed import seal

# TPM_PT_* (Part 2, 6.13)
_VARIABLE, _PERMANENT, _STARTUP = 0x200, 0x200, 0x201
_FREE_OBJECTS = 0x207


def facts(chip: Chip) -> dict[str, Any]:
    """Return what can be read without sealing anything."""
    # First, before anything of ours takes a slot.
    state = chip.properties(_VARIABLE, 20)
    found = model(chip)
    permanent = state.get(_PERMANENT, 0)
    return {
        "manufacturer": found.manufacturer,
        "vendor": found.vendor,
        "firmware": found.firmware,
        "kind": found.kind,
        "persistent_storage_keys": [f"0x{handle:08x}" for handle in PERSISTENT_SRKS if _usable(chip, handle)],
        "endorsement_key": bool(endorsement_names(chip)),
        "owner_password_set": bool(permanent & 1),
        "storage_hierarchy_enabled": bool(state.get(_STARTUP, 0) & 2),
        "lockout": asdict(chip.lockout()),
        "free_object_slots": state.get(_FREE_OBJECTS),
    }


def trial(chip: Chip, pin: TpmPin | None) -> dict[str, Any]:
    """Seal and unseal a random key, as a backup would. Raises TpmChanged."""
    began = time.perf_counter()
    parent = choose_parent(chip) if pin is None else pinned_parent(chip, pin)
    seal(chip, parent, secrets.token_bytes(32), policy=b"")
    return {
        "parent": parent.origin,
        "parent_counts_tries": counts_tries(parent.public),
        "fingerprint": fingerprint(parent.name),
        "seal_and_unseal_ms": round(1000 * (time.perf_counter() - began), 1),
    }


def _usable(chip: Chip, handle: int) -> bool:
    found = chip.open_persistent(handle)
    if found is None:
        return False
    try:
        require_storage_parent(found[1])
    except BadPublicArea:
        return False
    return True
