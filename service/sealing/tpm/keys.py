"""Sealing data keys for this machine's TPM and opening them with it: the two ends that archives know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from service.errors import PinRequired, PinWrong, SealError, TpmCleared, WrongTpm
from service.sealing.slots import KeySlot
from service.sealing.tpm.gate import TpmGate
from service.sealing.tpm.pin import TpmPin
from service.sealing.tpm.restore_pin import PinClaim, PinObject, RestorePin, require_usable
from service.sealing.tpm.slot import SLOT_TYPE, TpmSlot, parse_slot

if TYPE_CHECKING:
    from service.sealing.tpm.chip import Chip

T = TypeVar("T")

DATA_KEY_BYTES = 32
MOST_WRONG = 2
"""As many PIN objects are tried with the PIN that was given: anybody can write slots, and the TPM counts tries."""
MOST_OTHERS = 16
"""As many storage keys that are not this TPM's are looked for: deriving one may take a chip half a minute."""


class TpmRecipient:
    """Seals for the pinned TPM, with the restore PIN when there is one (service.sealing.slots.Recipient)."""

    def __init__(self, gate: TpmGate, pin: TpmPin, restore_pin: RestorePin | None = None) -> None:
        self._gate = gate
        self._pin = pin
        self._restore_pin = restore_pin

    @property
    def asks_for_pin(self) -> bool:
        """Tell whether what is sealed opens with the restore PIN only."""
        return self._restore_pin is not None

    async def wrap(self, data_key: bytes, archive_id: bytes) -> KeySlot:
        """Seal a data key of 32 bytes; the slot was opened once before it is returned.

        Raises TpmChanged when the pinned storage key is not in this TPM, before anything is sent to it that matters;
        PinUnusable when the restore PIN is another TPM's; TpmUnavailable, SealError.
        """
        if self._restore_pin is not None:
            require_usable(self._restore_pin, self._pin)
        asks = self._restore_pin.object if self._restore_pin else None
        if len(data_key) != DATA_KEY_BYTES:
            raise ValueError("a data key has 32 bytes")

        def work(chip: Chip) -> TpmSlot:
            from service.sealing.tpm import operations  # noqa: PLC0415 - loads libtss2

            return operations.wrap(chip, self._pin, data_key, archive_id, asks)

        return (await self._gate.run(work)).to_json()


class TpmIdentity:
    """Opens what this machine's TPM sealed (service.sealing.slots.Identity). Needs no pin: the slot names its key."""

    proves_origin = True

    def __init__(self, gate: TpmGate, *, pin: str | None = None, restore_pin: RestorePin | None = None) -> None:
        """Open with `pin`, when a slot asks for one.

        `restore_pin` is the PIN of this machine, which may have been changed since the slot was made.
        """
        self._gate = gate
        self._given = pin or ""
        self._restore_pin = restore_pin
        self._wrong: dict[tuple[bytes, bytes], PinWrong] = {}
        self._others: dict[str, SealError] = {}

    def accepts(self, slot: KeySlot) -> bool:
        """Tell whether this is a TPM's slot."""
        return slot.get("type") == SLOT_TYPE

    async def unwrap(self, slot: Mapping[str, Any], archive_id: bytes) -> bytes:
        """Return the data key. Raises DamagedSlot, WrongTpm, TpmCleared, TpmUnavailable, PinWrong; PinRequired when
        this machine's TPM has all that it takes but the PIN.
        """
        parsed = parse_slot(slot)
        asks = self._asked(parsed)
        if asks is not None and not self._given:
            await self.look(slot, archive_id)  # a PIN is of no use where the slot is another TPM's
            raise PinRequired(
                f"this archive opens with the restore PIN only (set on {asks.since:%Y-%m-%d}), and none was given",
                hint="Give it with --pin-file FILE, or at the prompt of a terminal.",
            )
        given = self._claim(parsed, asks)

        def work(chip: Chip) -> bytes:
            from service.sealing.tpm import operations  # noqa: PLC0415 - loads libtss2

            return operations.unwrap(chip, parsed, archive_id, given)

        if given is None:
            return await self._asking(parsed, work)
        self._require_untried(given)
        try:
            return await self._asking(parsed, work)
        except PinWrong as error:
            self._wrong[given.public, given.auth] = error
            raise

    def _require_untried(self, given: PinClaim) -> None:
        """Raise PinWrong when the PIN was found to be wrong before: there may be many slots, and each try counts."""
        known = self._wrong.get((given.public, given.auth))
        if known is None and len(self._wrong) >= MOST_WRONG:
            known = next(iter(self._wrong.values()))
        if known is not None:
            raise known

    async def look(self, slot: Mapping[str, Any], archive_id: bytes) -> None:
        """Do what `unwrap` does but for the last step, so that no restore PIN is needed. Raises as it does."""
        parsed = parse_slot(slot)
        asks = self._asked(parsed)

        def work(chip: Chip) -> None:
            from service.sealing.tpm import operations  # noqa: PLC0415 - loads libtss2

            operations.look(chip, parsed, archive_id, asks)

        await self._asking(parsed, work)

    async def _asking(self, slot: TpmSlot, work: Callable[[Chip], T]) -> T:
        """Ask the TPM, unless it is known not to have the slot's storage key: anybody can write many slots."""
        known = self._others.get(slot.srk_name)
        if known is None and len(self._others) >= MOST_OTHERS:
            known = next(iter(self._others.values()))
        if known is not None:
            raise known
        try:
            return await self._gate.run(work)
        except (WrongTpm, TpmCleared) as error:
            self._others[slot.srk_name] = error
            raise

    def _asked(self, slot: TpmSlot) -> PinObject | None:
        """Return the PIN object to open the slot with: this machine's own, when it is the slot's with another PIN."""
        here = self._restore_pin.object if self._restore_pin else None
        return here if here is not None and slot.pin is not None and here.name == slot.pin.name else slot.pin

    def _claim(self, slot: TpmSlot, asks: PinObject | None) -> PinClaim | None:
        """Return the PIN object to open the slot with, and what was given for it."""
        if asks is None:
            return None
        return PinClaim(*asks.areas(), asks.authorisation(self._given), of_the_slot=asks is slot.pin)
