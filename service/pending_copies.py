"""Which copies of archives are still owed: what a target missed while it did not work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from service.state import Values

NAME = "copies.pending"


@dataclass(frozen=True, slots=True)
class PendingCopies:
    """Names and targets, in the service's memory: without it, nothing is made good by itself."""

    values: Values

    async def all(self) -> list[tuple[str, str]]:
        """Return (archive, target's URL) of every copy that is owed, the oldest first."""
        return [(name, target) for name, target in await self.values.get(NAME) or []]

    async def add(self, archive: str, targets: Iterable[str]) -> None:
        """Remember that some targets have not got an archive."""
        owed = await self.all()
        more = [(archive, target) for target in targets if (archive, target) not in owed]
        if more:
            await self.values.set(NAME, owed + more)

    async def postpone(self, archive: str, target: str) -> None:
        """Put a copy behind all others, so that a target that is away does not keep others from theirs."""
        owed = await self.all()
        if (archive, target) in owed:
            await self.values.set(NAME, [each for each in owed if each != (archive, target)] + [(archive, target)])

    async def remove(self, archive: str, target: str) -> None:
        """Forget a copy: it was made, or cannot be made any more."""
        owed = await self.all()
        if (archive, target) in owed:
            await self.values.set(NAME, [each for each in owed if each != (archive, target)])
