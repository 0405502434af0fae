"""Sealing data keys for this machine's TPM and opening them with it: the two ends that archives know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from service.sealing.slots import KeySlot
from service.sealing.tpm.gate import TpmGate
from service.sealing.tpm.pin import TpmPin
from service.sealing.tpm.slot import SLOT_TYPE, TpmSlot, parse_slot

if TYPE_CHECKING:
    from service.sealing.tpm.chip import Chip

DATA_KEY_BYTES = 32


class TpmRecipient:
    """Seals for the pinned TPM (service.sealing.slots.Recipient)."""

    def __init__(self, gate: TpmGate, pin: TpmPin) -> None:
        self._gate = gate
        self._pin = pin

    async def wrap(self, data_key: bytes, archive_id: bytes) -> KeySlot:
        """Seal a data key of 32 bytes; the slot was opened once before it is returned.

        Raises TpmChanged when the pinned storage key is not in this TPM, before anything is sent to it that matters;
        TpmUnavailable, SealError.
        """
        if len(data_key) != DATA_KEY_BYTES:
            raise ValueError("a data key has 32 bytes")

        def work(chip: Chip) -> TpmSlot:
            from service.sealing.tpm import operations  # noqa: PLC0415 - loads libtss2

            return operations.wrap(chip, self._pin, data_key, archive_id)

        return (await self._gate.run(work)).to_json()


class TpmIdentity:
    """Opens what this machine's TPM sealed (service.sealing.slots.Identity). Needs no pin: the slot names its key."""

    proves_origin = True

    def __init__(self, gate: TpmGate) -> None:
        self._gate = gate

    def accepts(self, slot: KeySlot) -> bool:
        """Tell whether this is a TPM's slot."""
        return slot.get("type") == SLOT_TYPE

    async def unwrap(self, slot: Mapping[str, Any], archive_id: bytes) -> bytes:
        """Return the data key. Raises DamagedSlot, WrongTpm, TpmCleared, TpmUnavailable."""
        parsed = parse_slot(slot)

        def work(chip: Chip) -> bytes:
            from service.sealing.tpm import operations  # noqa: PLC0415 - loads libtss2

            return operations.unwrap(chip, parsed, archive_id)

        return await self._gate.run(work)
