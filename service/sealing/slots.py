"""The seam between archives and keys: a recipient wraps an archive's data key into a slot, an identity opens it.

Modelled on age's two one-method interfaces. A key slot is a JSON object in `keyslots.json`, or in the sidecar object
that holds slots added later; `type` says who made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from service.errors import NoMatchingIdentity, NotAuthentic, PinRequired, PinWrong, SealError

KeySlot = Mapping[str, Any]
"""A JSON object with at least `type`; the other members belong to that type (docs/ARCHIVE_FORMAT.md)."""


class Recipient(Protocol):
    """Someone an archive is sealed for."""

    async def wrap(self, data_key: bytes, archive_id: bytes) -> KeySlot:
        """Wrap a 32-byte data key. What can be tried without a private half was tried. Raises SealError."""
        ...


class Identity(Protocol):
    """Someone who can open what was sealed for them."""

    @property
    def proves_origin(self) -> bool:
        """Tell whether only this machine can have made the slots that this opens."""
        ...

    def accepts(self, slot: KeySlot) -> bool:
        """Tell whether this identity can judge slots of this type at all."""
        ...

    async def unwrap(self, slot: KeySlot, archive_id: bytes) -> bytes:
        """Return the 32-byte data key. Raises WrongTpm, TpmCleared, TpmUnavailable, DamagedSlot, ..."""
        ...


@dataclass(slots=True)
class Attempt:
    """What came of trying identities on slots: the data key and who opened it, or the reasons why none did."""

    data_key: bytes | None = None
    opened_by: Identity | None = None
    reasons: list[SealError] = field(default_factory=list)


async def try_slots(
    slots: Sequence[KeySlot],
    identities: Sequence[Identity],
    archive_id: bytes,
    *,
    belongs: Callable[[bytes], object],
) -> Attempt:
    """Try every identity on every slot that it accepts until one gives the archive's data key.

    `belongs` raises NotAuthentic for a key that is not the archive's: anybody can write such a slot, and it must not
    keep a good one behind it from being tried.
    """
    attempt = Attempt()
    for slot in slots:
        for identity in identities:
            if not identity.accepts(slot):
                continue
            try:
                data_key = await identity.unwrap(slot, archive_id)
                belongs(data_key)
            except SealError as error:
                attempt.reasons.append(error)
            else:
                attempt.data_key, attempt.opened_by = data_key, identity
                return attempt
    return attempt


def no_key(slots: Sequence[KeySlot], reasons: Sequence[SealError]) -> SealError:
    """Return why no slot opened: a PIN that is missing or wrong, or the only reason; else all in NoMatchingIdentity."""
    asked = [reason for reason in reasons if isinstance(reason, PinRequired | PinWrong)]
    if asked or len(reasons) == 1:
        return [*asked, *reasons][0]
    kinds = ", ".join(sorted({str(slot.get("type")) for slot in slots})) or "none"
    told = "; ".join(dict.fromkeys(map(str, reasons))) or "no identity for any of them is configured here"
    wrong = [reason for reason in reasons if not isinstance(reason, NotAuthentic)]
    return NoMatchingIdentity(
        f"no key slot of this archive opens here (slots: {kinds}): {told}",
        reasons=reasons,
        hint="Restore on the machine whose TPM made the archive, or give a recovery key that it was made for."
        if wrong or not reasons
        else "The archive or its key slots were altered. Use another copy of it, or another archive.",
    )
