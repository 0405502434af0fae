"""What somebody gives to open archives with, for one command or job: held in memory, never stored, logged or shown."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Opening:
    """Secrets of a person who wants archives opened; each is None when it was not given. No repr shows one."""

    pin: str | None = field(default=None, repr=False)
    """The restore PIN."""

    def as_params(self) -> dict[str, Any]:
        """Return what was given as parameters of the socket's methods, which have the same names."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}


NOTHING = Opening()
"""Nobody gave anything."""
