"""The last days as a calendar: a column for each week, a row for each day of the week."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from babel import Locale
from babel.dates import format_date, get_day_names, get_month_names

TROUBLED = ("partial", "failed", "missed")


@dataclass(frozen=True, slots=True)
class Cell:
    """One day. `state` is that of history.days, or `unknown` for days before anything was remembered."""

    day: date
    state: str
    name: str
    """The date in words."""
    counts: Mapping[str, int]
    jobs: Sequence[str]
    today: bool


@dataclass(frozen=True, slots=True)
class Calendar:
    """Rows are (name of the weekday, cells); a cell is None outside of the days that are told."""

    months: list[tuple[str, int]]
    """Names of months, each with the number of weeks that begin in it."""
    rows: list[tuple[str, list[Cell | None]]]
    totals: Mapping[str, int]
    troubled: list[Cell]
    """Days on which not all went well, the newest first."""
    timezone: str
    recorded: bool
    """Whether anything is remembered at all."""


def calendar(found: Mapping[str, Any], locale: Locale) -> Calendar:
    """Return the calendar of an answer of history.days."""
    since, zone = found["recorded_since"], ZoneInfo(found["timezone"])
    first = datetime.fromisoformat(since).astimezone(zone).date() if since else None
    cells = {}
    for told in found["days"]:
        day = date.fromisoformat(told["day"])
        unknown = told["state"] == "none" and (first is None or day < first)
        name = format_date(day, "full", locale=locale)
        today = told is found["days"][-1]
        cells[day] = Cell(day, "unknown" if unknown else told["state"], name, told["counts"], told["jobs"], today)
    days = list(cells)
    monday = days[0] - timedelta(days=days[0].weekday())
    weeks = [monday + timedelta(weeks=n) for n in range((days[-1] - monday).days // 7 + 1)]
    names = get_day_names("abbreviated", locale=locale)
    rows = [(names[n], [cells.get(week + timedelta(days=n)) for week in weeks]) for n in range(7)]
    totals = Counter(cell.state for cell in cells.values())
    troubled = [cell for cell in reversed(list(cells.values())) if cell.state in TROUBLED]
    return Calendar(_months(weeks, locale), rows, totals, troubled, found["timezone"], since is not None)


def _months(weeks: Sequence[date], locale: Locale) -> list[tuple[str, int]]:
    counted = Counter((week.year, week.month) for week in weeks)
    names = get_month_names("abbreviated", locale=locale)
    return [(names[month] if count > 1 else "", count) for (_, month), count in counted.items()]
