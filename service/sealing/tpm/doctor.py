"""What an operator wants to know about the TPM, and what to do when it cannot be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.errors import SealError
from service.sealing.tpm.gate import TpmGate
from service.sealing.tpm.pin import TpmPin
from service.sealing.tpm.surroundings import surroundings

if TYPE_CHECKING:
    from service.sealing.tpm.chip import Chip


async def describe(gate: TpmGate, pin: TpmPin | None = None) -> dict[str, Any]:
    """Return facts about the TPM as JSON values; never raises SealError.

    Always: `tcti`, `surroundings` (`machine`, `container` or `kubernetes`), `node` (owner, group, mode and who we are;
    None when there is no node), `problem` (None when a key was sealed and opened) and `hint`. With a TPM that answers
    also: `manufacturer`, `vendor`, `firmware`, `kind`, `fingerprint`, `parent`, `parent_counts_tries` (a lockout would
    stop backups), `persistent_storage_keys`, `endorsement_key`, `owner_password_set`, `storage_hierarchy_enabled`,
    `lockout`, `free_object_slots`, `resource_manager`, `seal_and_unseal_ms`. With `pin`, the pinned storage key is the
    one that is tried, and `problem` says when it is not in this TPM.
    """
    where = gate.endpoint
    node = where.ownership() if where.path is not None and where.path.exists() else None
    facts: dict[str, Any] = {"tcti": where.tcti, "surroundings": surroundings().kind, "node": node}
    facts |= {"problem": None, "hint": ""}
    try:
        # Two operations: when sealing is what fails, the rest is what explains it.
        facts |= {"resource_manager": where.has_resource_manager} | await gate.run(_facts)
        facts |= await gate.run(lambda chip: _trial(chip, pin))
    except SealError as error:
        facts |= {"problem": str(error), "hint": error.hint}
    return facts


def _facts(chip: Chip) -> dict[str, Any]:
    from service.sealing.tpm import examine  # noqa: PLC0415 - loads libtss2

    return examine.facts(chip)


def _trial(chip: Chip, pin: TpmPin | None) -> dict[str, Any]:
    from service.sealing.tpm import examine  # noqa: PLC0415 - loads libtss2

    return examine.trial(chip, pin)
