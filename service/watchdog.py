"""Tells when a job has stopped getting on: no byte moved, no step begun, for too long."""

from __future__ import annotations

from dataclasses import dataclass, field

from service.progress import Progress


@dataclass(slots=True)
class Watchdog:
    """Looks at a job's counters from time to time. Times are seconds of a clock that does not jump.

    `timeout` is for work that moves bytes here, `quiet_timeout` for work that PostgreSQL does by itself.
    """

    timeout: float
    quiet_timeout: float
    _seen: tuple[object, ...] = field(default=(), init=False)
    _since: float = field(default=0.0, init=False)

    def standstill(self, progress: Progress, now: float) -> float | None:
        """Return for how long nothing has moved, when that is too long; None otherwise."""
        seen = (progress.stage, progress.raw, progress.stored, progress.started, progress.quiet, progress.steps)
        if seen != self._seen:
            self._seen, self._since = seen, now
            return None
        stood = now - self._since
        return stood if stood >= (self.quiet_timeout if progress.quiet else self.timeout) else None
