"""The seam where recipes tell what they do to a target, so that a crash leaves nothing that nobody knows of.

What is told is durable when the call returns. The targets stay the truth about which archives there are; a ledger only
remembers what cannot be seen from outside: what was about to be done, and which archives were read back and proven.
`service.state` keeps one in SQLite; `NoLedger` is for readers that have no state.

Evidence of an archive:

    unknown    found in the target; nobody has read it here
    written    published whole, but not read back yet
    verified   every byte was read from the target and authenticated with the key from the TPM
    restorable a drill has restored it beside the live data, and all that came out was compared with the manifest
    damaged    it was read, and is not what was sealed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

Evidence = Literal["unknown", "written", "verified", "restorable", "damaged"]

PROVEN: frozenset[Evidence] = frozenset({"verified", "restorable"})
"""The evidence of archives that count: every byte was authenticated."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is remembered of one object, as long as its etag is still this one."""

    etag: str
    evidence: Evidence = "unknown"
    since: datetime | None = None
    """When the evidence was found."""
    facts: dict[str, Any] | None = None
    """What the archive says of itself, as the catalog read it; None when it was not looked at."""


@dataclass(frozen=True, slots=True)
class Intent:
    """Something that was about to be done to a target and of which no end was told."""

    action: Literal["write", "delete"]
    target: str
    name: str
    unfinished: tuple[str, ...] = ()
    """What the target may still have of it, by the names that `StorageBackend.put` announced."""


class Ledger(Protocol):
    """What is told and asked. `target` is the target's URL without secrets, `name` an archive's."""

    async def writing(self, target: str, name: str) -> None:
        """Tell that an archive of this name is about to be written."""

    async def unfinished(self, target: str, name: str, what: str) -> None:
        """Tell what writing an archive would leave in the target if it were killed now; known until it is settled."""

    async def deleting(self, target: str, name: str) -> None:
        """Tell that an archive is about to be removed."""

    async def settled(self, target: str, name: str) -> None:
        """Tell that what was about to be done has ended, or came to nothing."""

    async def found(self, target: str, name: str, etag: str, evidence: Evidence) -> None:
        """Tell what is known of an archive from now on.

        An object (by its etag) that is `restorable` stays so when it is found to be `written` or `verified`: to read it
        again proves less than a drill has. `damaged` and `unknown` are taken as they are told.
        """

    async def known(self, target: str) -> dict[str, Known]:
        """Return what is remembered of a target, by name."""
        ...

    async def listed(self, target: str, facts: Mapping[str, Known], gone: Sequence[str]) -> None:
        """Remember the facts of archives that were looked at, and forget those that are gone."""


class NoLedger:
    """Remembers nothing."""

    async def writing(self, target: str, name: str) -> None:
        """Forget it."""

    async def unfinished(self, target: str, name: str, what: str) -> None:
        """Forget it."""

    async def deleting(self, target: str, name: str) -> None:
        """Forget it."""

    async def settled(self, target: str, name: str) -> None:
        """Forget it."""

    async def found(self, target: str, name: str, etag: str, evidence: Evidence) -> None:
        """Forget it."""

    async def known(self, target: str) -> dict[str, Known]:
        """Know nothing."""
        return {}

    async def listed(self, target: str, facts: Mapping[str, Known], gone: Sequence[str]) -> None:
        """Forget it."""
