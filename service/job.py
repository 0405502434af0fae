"""One piece of work that the service was asked for: what it is, how it stands, how it ended. Pure values.

queued -> running -> verifying -> succeeded | partial | failed | cancelled
                                  interrupted: the process ended before the job did
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, Self

JobKind = Literal[
    "backup",
    "baseline",
    "restore",
    "reset",
    "tables",
    "rollback",
    "commit",
    "verify",
    "copy",
    "keys",
    "drill",
    "prune",
    "delete",
    "selftest",
    "settle",
]
"""`baseline` is a backup that is held for ever, `reset` returns to it. `tables` restores tables into a database
of their own. `settle` is what the service does when it starts: it undoes or ends what a crash left."""

JobState = Literal["queued", "running", "verifying", "succeeded", "partial", "failed", "cancelled", "interrupted"]
"""`partial`: the archive is there, but something after it did not happen; the error says what."""

JobOrigin = Literal["schedule", "catch-up", "socket", "command line", "service"]
"""Who asked. `catch-up` makes up for a scheduled run that was missed or interrupted; `service` asks by itself."""

_TIMES = ("created", "scheduled_for", "started", "ended")

ENDED: frozenset[JobState] = frozenset({"succeeded", "partial", "failed", "cancelled", "interrupted"})
ADDING: frozenset[JobKind] = frozenset({"backup", "baseline"})
"""The jobs that put an archive into every target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job. Times are UTC; `result` and `error` are what clients are shown."""

    id: str
    kind: JobKind
    origin: JobOrigin
    state: JobState
    created: datetime
    params: dict[str, Any] = field(default_factory=dict)
    scheduled_for: datetime | None = None
    """The due time that a scheduled backup, or the one that makes up for it, stands for."""
    started: datetime | None = None
    ended: datetime | None = None
    result: dict[str, Any] | None = None
    """For a backup: name, url, size, raw_bytes, streams, rows, seconds, stages (seconds by stage), warnings, ..."""
    error: dict[str, Any] | None = None
    """code (stable), message, hint, transient; for a refused restore also obstacles."""

    @property
    def done(self) -> bool:
        """Tell whether the job has ended, in whatever way."""
        return self.state in ENDED

    @property
    def seconds(self) -> float | None:
        """Return how long it ran; None while it has not ended, or never began."""
        return (self.ended - self.started).total_seconds() if self.started and self.ended else None

    def but(self, **changes: Any) -> Self:
        """Return the job with some members changed."""
        return replace(self, **changes)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the job that `as_json` has told."""
        times = {name: value[name] and datetime.fromisoformat(value[name]) for name in _TIMES}
        return cls(**{**value, **times})

    def as_json(self) -> dict[str, Any]:
        """Return the job for clients: times in ISO 8601."""
        return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in asdict(self).items()}
