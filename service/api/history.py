"""What was, at a glance and in full."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pydantic import TypeAdapter

from service.api import params as p
from service.api.context import Family
from service.api.registry import WrongParams, method
from service.errors import NotFound
from service.job import ADDING
from service.schedule import is_timezone
from service.timeline import Day, days


@dataclass(frozen=True, slots=True)
class LogLine:
    """Something that a job said."""

    number: int
    time: datetime
    level: Literal["info", "warning", "error"]
    stage: str
    text: str


@dataclass(frozen=True, slots=True)
class JobLogPage:
    """What a job said, in order; `more` says whether there is more after it."""

    lines: list[LogLine]
    omitted: int
    """How many lines of a long log were not kept: they came after the first hundred."""
    more: bool


@dataclass(frozen=True, slots=True)
class HistoryOfDays:
    """What became of each day, the oldest first; the last one is today."""

    timezone: str
    recorded_since: datetime | None
    """When the oldest job that is remembered was asked for; nothing is known of the time before."""
    days: list[Day]


_LINES = TypeAdapter(list[LogLine])


class HistoryMethods(Family):
    """What was, at a glance and in full."""

    @method("history.days")
    async def days(self, params: p.HistoryDays) -> HistoryOfDays:
        """Tell what became of each of the last days: what ran, failed, was missed, and where nothing was due."""
        context, now = self.context, self.context.clock()
        if params.timezone is not None and not is_timezone(params.timezone):
            raise WrongParams("history.days: timezone is not a known time zone; give a name such as Europe/Berlin")
        schedule = context.file().system_backup(context.stored.value).schedule
        timezone = params.timezone or (schedule.timezone if schedule else "UTC")
        kinds = sorted(ADDING) if params.kind == "backup" else [params.kind]
        begin = now - timedelta(days=params.count + 1)
        # what was due on the first day may have been made up for long after
        stubs = await context.history.stubs(kinds, begin)
        gaps = await context.history.gaps.of(params.kind, begin)
        found = await asyncio.to_thread(days, stubs, gaps, now=now, count=params.count, timezone=timezone)
        return HistoryOfDays(timezone, await context.history.oldest(), found)

    @method("job.log")
    async def log(self, params: p.JobLogOf) -> JobLogPage:
        """Return what a job said while it ran: its steps, its warnings, what each target answered."""
        if await self.context.history.job(params.id) is None:
            raise NotFound(f"there is no job {params.id}", hint="`job.list` tells which there are.")
        found = await self.context.history.logs.of(params.id, after=params.after, limit=params.limit)
        return JobLogPage(_LINES.validate_python(found.lines), found.omitted, found.more)
