"""What somebody gives to open archives with, for one command or job: held in memory, never stored, logged or shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from service.recovery import RecoveryKey


@dataclass(frozen=True, slots=True)
class Opening:
    """Secrets of a person who wants archives opened; each is None when it was not given. No repr shows one."""

    pin: str | None = field(default=None, repr=False)
    """The restore PIN."""

    recovery: RecoveryKey | None = field(default=None, repr=False)
    """A recovery key."""

    def as_params(self) -> dict[str, Any]:
        """Return what was given as parameters of the socket's methods, which have the same names."""
        given = {} if self.recovery is None else {"recovery": self.recovery.as_params()}
        return given if self.pin is None else given | {"pin": self.pin}


NOTHING = Opening()
"""Nobody gave anything."""
