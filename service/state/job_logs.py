"""What jobs said while they ran, bounded: of each job its first and its last lines, of all jobs the newest ones."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.state.database import Database
from service.state.values import loaded

FIRST, LAST = 100, 400
"""Lines of one job that are kept."""
KEPT = 100_000
"""Lines of all jobs that are kept, about: some 20 MB."""


@dataclass(frozen=True, slots=True)
class JobLines:
    """Lines of a job, in order: `number` (from 1), `time`, `level`, `stage`, `text`."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    omitted: int = 0
    """How many lines of the job were not kept."""
    more: bool = False
    """Whether there are lines after these."""


class JobLogs:
    """Lines by job."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, job: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Remember lines of a job, each with its `number`, and forget those that are too many. Raises StateError."""

        def work(db: sqlite3.Connection) -> None:
            db.executemany(
                "INSERT OR REPLACE INTO job_log VALUES (?, ?, ?)",
                [(job, line["number"], json.dumps(line)) for line in lines],
            )
            highest = lines[-1]["number"]
            db.execute("DELETE FROM job_log WHERE job = ? AND number > ? AND number <= ?", (job, FIRST, highest - LAST))
            db.execute("DELETE FROM job_log WHERE rowid <= (SELECT max(rowid) FROM job_log) - ?", (KEPT,))

        if lines:
            await self._database.run(work)

    async def of(self, job: str, *, after: int, limit: int) -> JobLines:
        """Return lines of a job after the one with a number."""

        def work(db: sqlite3.Connection) -> JobLines:
            rows = db.execute(
                "SELECT number, content FROM job_log WHERE job = ? AND number > ? ORDER BY number LIMIT ?",
                (job, after, limit + 1),
            ).fetchall()
            count, highest = db.execute(
                "SELECT count(*), coalesce(max(number), 0) FROM job_log WHERE job = ?", (job,)
            ).fetchone()
            found = [loaded(content, f"line {number} of job {job}") for number, content in rows[:limit]]
            return JobLines([line for line in found if isinstance(line, dict)], highest - count, len(rows) > limit)

        return await self._database.run(work)
