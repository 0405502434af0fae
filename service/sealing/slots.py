"""The seam between archives and keys: a recipient wraps an archive's data key into a slot, an identity opens it.

Modelled on age's two one-method interfaces. A key slot is a JSON object in `keyslots.json`; `type` says who made it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from service.errors import NoMatchingIdentity, SealError

KeySlot = Mapping[str, Any]
"""A JSON object with at least `type`; the other members belong to that type (docs/ARCHIVE_FORMAT.md)."""


class Recipient(Protocol):
    """Someone an archive is sealed for."""

    async def wrap(self, data_key: bytes, archive_id: bytes) -> KeySlot:
        """Wrap a 32-byte data key. The slot is proven to open again before it is returned. Raises SealError."""
        ...


class Identity(Protocol):
    """Someone who can open what was sealed for them."""

    def accepts(self, slot: KeySlot) -> bool:
        """Tell whether this identity can judge slots of this type at all."""
        ...

    async def unwrap(self, slot: KeySlot, archive_id: bytes) -> bytes:
        """Return the 32-byte data key. Raises WrongTpm, TpmCleared, TpmUnavailable, DamagedSlot, ..."""
        ...


async def unwrap_any(slots: Sequence[KeySlot], identities: Sequence[Identity], archive_id: bytes) -> bytes:
    """Return the data key from the first slot that one of `identities` opens.

    When exactly one slot could be judged and failed, its own error is raised, since it is the reason; otherwise
    NoMatchingIdentity carries every reason.
    """
    reasons: list[SealError] = []
    for slot in slots:
        for identity in identities:
            if not identity.accepts(slot):
                continue
            try:
                return await identity.unwrap(slot, archive_id)
            except SealError as error:
                reasons.append(error)
    if len(reasons) == 1:
        raise reasons[0]
    kinds = ", ".join(sorted({str(slot.get("type")) for slot in slots})) or "none"
    told = "; ".join(str(reason) for reason in reasons) or "no identity for any of them is configured here"
    raise NoMatchingIdentity(
        f"no key slot of this archive opens here (slots: {kinds}): {told}",
        reasons=reasons,
        hint="Restore on the machine whose TPM made the archive, or give a recovery key that it was made for.",
    )
