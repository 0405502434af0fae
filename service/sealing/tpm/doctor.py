"""What an operator wants to know about the TPM, and what to do when it cannot be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.errors import SealError
from service.sealing.tpm.gate import TpmGate

if TYPE_CHECKING:
    from service.sealing.tpm.chip import Chip


async def describe(gate: TpmGate) -> dict[str, Any]:
    """Return facts about the TPM as JSON values; never raises SealError.

    Always: `tcti`, `node` (owner, group, mode and who we are; None when there is no node), `problem` (None when a key
    was sealed and opened) and `hint`. With a TPM that answers also: `manufacturer`, `vendor`, `firmware`, `kind`,
    `fingerprint`, `parent`, `persistent_storage_keys`, `endorsement_key`, `owner_password_set`, `lockout`,
    `free_object_slots`, `resource_manager`, `seal_and_unseal_ms`.
    """
    where = gate.endpoint
    node = where.ownership() if where.path is not None and where.path.exists() else None
    facts: dict[str, Any] = {"tcti": where.tcti, "node": node, "problem": None, "hint": ""}
    try:
        # Two operations: when sealing is what fails, the rest is what explains it.
        facts |= {"resource_manager": where.has_resource_manager} | await gate.run(_facts)
        facts |= await gate.run(_trial)
    except SealError as error:
        facts |= {"problem": str(error), "hint": error.hint}
    return facts


def _facts(chip: Chip) -> dict[str, Any]:
    from service.sealing.tpm import examine  # noqa: PLC0415 - loads libtss2

    return examine.facts(chip)


def _trial(chip: Chip) -> dict[str, Any]:
    from service.sealing.tpm import examine  # noqa: PLC0415 - loads libtss2

    return examine.trial(chip)
