"""The chart of archives' sizes, a bar a day: numbers for an SVG that the page writes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

HEIGHT: Final = 100.0
"""The height of the largest bar; one day is 10 wide."""
LEAST: Final = 2.0
"""The height of the smallest bar, so that it can be seen."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One day with archives: where its bar is, and what it stands for (bytes)."""

    x: float
    y: float
    height: float
    day: date
    archives: int
    size: int
    raw_bytes: int


def bars(trend: Sequence[Mapping[str, Any]], now: str, days: int) -> list[Bar]:
    """Return the bars of `archive.list`'s trend, the oldest day at the left; `now` is the service's time."""
    first = datetime.fromisoformat(now).astimezone(UTC).date() - timedelta(days=days - 1)
    largest = max((day["size"] for day in trend), default=0)
    found = []
    for told in trend:
        day = date.fromisoformat(told["day"])
        height = round(max(LEAST, HEIGHT * told["size"] / largest), 1) if largest else LEAST
        found.append(
            Bar(
                x=(day - first).days * 10.0,
                y=HEIGHT - height,
                height=height,
                day=day,
                archives=told["archives"],
                size=told["size"],
                raw_bytes=told["raw_bytes"],
            )
        )
    return found
