"""Due times of a schedule that brought no job: remembered as stretches of time, for a minutely schedule has many."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from service.state.database import Database
from service.state.values import loaded


@dataclass(frozen=True, slots=True)
class Gap:
    """After `since` and up to `until`, which is a due time itself, what this schedule asked for did not happen."""

    kind: str
    since: datetime
    until: datetime
    schedule: Mapping[str, Any]


class Gaps:
    """What was missed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, gap: Gap) -> None:
        """Remember a gap; durable when this returns. The same one again changes nothing."""
        values = (gap.kind, gap.since.isoformat(), gap.until.isoformat(), json.dumps(dict(gap.schedule)))
        await self._database.run(lambda db: db.execute("INSERT OR REPLACE INTO gaps VALUES (?, ?, ?, ?)", values))

    async def of(self, kind: str, since: datetime) -> list[Gap]:
        """Return the gaps of a kind that reach beyond a time, the oldest first."""

        def work(db: sqlite3.Connection) -> list[Gap]:
            query = "SELECT kind, since, until, schedule FROM gaps WHERE kind = ? AND until > ? ORDER BY until"
            found = []
            for name, first, last, text in db.execute(query, (kind, since.isoformat())):
                schedule = loaded(text, "the schedule of a gap")
                if isinstance(schedule, dict):
                    found.append(Gap(name, datetime.fromisoformat(first), datetime.fromisoformat(last), schedule))
            return found

        return await self._database.run(work)
