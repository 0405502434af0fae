"""Key slots and restore PINs as a real TPM makes them."""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime
from typing import Any

from service.sealing.tpm import RestorePin, TpmGate, TpmPin, TpmRecipient, make_pin, read_pin

ARCHIVE = bytes(range(16))
PIN = "the right PIN"
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


async def a_slot(
    gate: TpmGate, pin: TpmPin | None = None, restore_pin: RestorePin | None = None
) -> tuple[bytes, dict[str, Any]]:
    """Seal a new key: the key, and its slot as it stands in an archive."""
    key = secrets.token_bytes(32)
    slot = await TpmRecipient(gate, pin or await read_pin(gate), restore_pin).wrap(key, ARCHIVE)
    return key, json.loads(json.dumps(slot))


async def with_pin(tcti: str, pin: str = PIN) -> tuple[TpmGate, TpmPin, RestorePin]:
    """Make a restore PIN."""
    gate = TpmGate(tcti)
    trusted = await read_pin(gate)
    return gate, trusted, await make_pin(gate, trusted, pin, now=NOW)
