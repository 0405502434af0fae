"""A data key that is still at hand: how a backup reads back what it has just written for somebody else to open."""

from __future__ import annotations

from collections.abc import Sequence

from service.errors import DamagedSlot
from service.sealing.slots import KeySlot


class KeyAtHand:
    """Opens an archive by the slots that were made for it, with the key they hold (service.sealing.slots.Identity).

    Each slot was proven when it was made; that it stands in the archive as it was made is what is left to be shown.
    """

    proves_origin = True

    def __init__(self, data_key: bytes, slots: Sequence[KeySlot]) -> None:
        self._data_key = data_key
        self._slots = [dict(slot) for slot in slots]

    def accepts(self, slot: KeySlot) -> bool:
        """Judge every slot: one that was not made for the archive is a damaged one."""
        return True

    async def unwrap(self, slot: KeySlot, archive_id: bytes) -> bytes:
        """Return the data key. Raises DamagedSlot."""
        if dict(slot) not in self._slots:
            raise DamagedSlot(
                "a key slot of the archive is not one that was made for it",
                hint="The target or the way to it is faulty: it gives back other bytes than were written.",
            )
        return self._data_key
