"""How long a restore will take, learned from earlier restores and backups of this installation. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.job import Job

LEARNED_FROM = 5
"""The last so many jobs count: the machine may have changed since."""
FIXED_SECONDS = 2.0
"""What a restore of nothing takes about: the plan, connections, the exchange."""
_SLOWER_THAN_BACKUP = (0.5, 6.0)
"""A restore writes, builds indexes and gathers statistics, so it may be several times slower than the backup was."""
_AS_BEFORE = (0.7, 1.6)
"""Two restores of the same size are seldom further apart."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds, at best and at worst of what is to be expected, and what that is learned from."""

    low: float
    high: float
    basis: str


def estimate(raw_bytes: int, restores: Sequence[Job], backups: Sequence[Job]) -> Estimate | None:
    """Tell how long restoring `raw_bytes` takes; None when nothing like it was done here. Jobs are newest first."""
    if rates := _rates(restores):
        return _between(raw_bytes, rates, _AS_BEFORE, f"the last {_count(rates, 'restore')} here")
    if rates := _rates(backups):
        return _between(
            raw_bytes, rates, _SLOWER_THAN_BACKUP, f"the last {_count(rates, 'backup')} here, no restore yet"
        )
    return None


def _rates(jobs: Sequence[Job]) -> list[float]:
    """Raw bytes a second of the last jobs that tell."""
    found = []
    for job in jobs:
        result = job.result or {}
        raw, seconds = result.get("raw_bytes"), result.get("seconds")
        if isinstance(raw, int) and isinstance(seconds, int | float) and raw > 0 and seconds > 0:
            found.append(raw / max(0.1, seconds - FIXED_SECONDS))
    return found[:LEARNED_FROM]


def _between(raw: int, rates: Sequence[float], spread: tuple[float, float], basis: str) -> Estimate:
    low = raw / max(rates) * spread[0]
    high = raw / min(rates) * spread[1] + FIXED_SECONDS
    return Estimate(round(low, 1), round(high, 1), basis)


def _count(rates: Sequence[float], what: str) -> str:
    return what if len(rates) == 1 else f"{len(rates)} {what}s"
