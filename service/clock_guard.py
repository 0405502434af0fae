"""Whether the clock may have been set: looked at often while the service runs, and remembered."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self

from service.retention import clock_jumped

QUIET = timedelta(hours=24)
"""A clock that has gone steadily for so long is trusted again: by then somebody has had a day to see the warning."""


@dataclass(frozen=True, slots=True)
class ClockGuard:
    """What is known of the clock. `doubted_since` is None while it is trusted."""

    last_seen: datetime | None = None
    doubted_since: datetime | None = None

    def look(self, now: datetime) -> Self:
        """Return what is known after a look at the clock."""
        doubted = self.doubted_since
        if clock_jumped(self.last_seen, now):
            doubted = now
        elif doubted is not None and now - doubted >= QUIET:
            doubted = None
        return type(self)(now, doubted)

    def suspects(self, now: datetime) -> bool:
        """Tell whether the clock is doubted, or is behind the last look; also long after it."""
        behind = self.last_seen is not None and now < self.last_seen
        return behind or (self.doubted_since is not None and now - self.doubted_since < QUIET)

    @classmethod
    def from_json(cls, value: dict[str, Any] | None) -> Self:
        """Return what `as_json` told; nothing is known when it never did, or when that cannot be read."""
        try:
            texts = [None if value is None else value[name] for name in ("last_seen", "doubted_since")]
            return cls(*(None if text is None else datetime.fromisoformat(text) for text in texts))
        except (KeyError, ValueError, TypeError):
            return cls()

    def as_json(self) -> dict[str, Any]:
        """Return what is known, to be remembered."""
        return {
            name: value and value.isoformat()
            for name, value in (("last_seen", self.last_seen), ("doubted_since", self.doubted_since))
        }
