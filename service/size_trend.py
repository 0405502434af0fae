"""How archives grow: their sizes by day. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from service.catalog import CatalogEntry


@dataclass(frozen=True, slots=True)
class SizeOfDay:
    """The archives of one day (UTC): how many, and the sizes of the newest in bytes."""

    day: date
    archives: int
    size: int
    """Bytes that the newest takes in the target."""
    raw_bytes: int
    """Bytes of what is in it."""


def size_trend(entries: Iterable[CatalogEntry], now: datetime, days: int) -> list[SizeOfDay]:
    """Return the sizes of the last `days` days, the oldest first; days without a usable archive are left out."""
    first = now.astimezone(UTC).date() - timedelta(days=days - 1)
    found: dict[date, list[CatalogEntry]] = {}
    for entry in entries:
        if entry.created is not None and entry.raw_bytes is not None:
            day = entry.created.astimezone(UTC).date()
            if day >= first:
                found.setdefault(day, []).append(entry)
    trend = []
    for day, of_day in sorted(found.items()):
        newest = max(of_day, key=lambda entry: (entry.seq or 0, entry.name))
        trend.append(SizeOfDay(day, len(of_day), newest.size, newest.raw_bytes or 0))
    return trend
