"""The state before a restore when its time is up: people are told beforehand, then it goes, if the server is well.

Only the running service does this, and only where `restore.keep_old` says so. The commit is a job like any other; one
that finds the server not well fails, which is told like every failure, and is tried again a day later.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Literal

from service.announcer import Announcer
from service.config import ConfigFile
from service.config_restore import RestoreSettings
from service.jobs import Jobs
from service.journal import Journal
from service.restore import pending
from service.state import History, Values

TOLD_BEFORE = timedelta(days=1)
"""So long before the end, or half of the time that there is, people are told."""
TRY_AGAIN = timedelta(days=1)

_TOLD = "old state told"


def expires(journal: Journal, settings: RestoreSettings) -> datetime | None:
    """Return when the state before a restore will be removed by itself (UTC); None when never."""
    if settings.keep_old is None or journal.state != "swapped" or not journal.swapped:
        return None
    return datetime.fromisoformat(journal.swapped) + timedelta(days=settings.keep_old)


def due(
    journal: Journal, settings: RestoreSettings, *, now: datetime, told: datetime | None, last_try: datetime | None
) -> tuple[Literal["", "tell", "commit"], datetime | None]:
    """Say what is to be done now, and when that state will go. Nobody's old state goes without notice.

    `told` is when people were told of it, `last_try` when such a commit began last.
    """
    end = expires(journal, settings)
    if end is None:
        return "", None
    notice = min(TOLD_BEFORE, (end - datetime.fromisoformat(journal.swapped)) / 2)
    if told is None:
        return ("tell", max(end, now + notice)) if now >= end - notice else ("", end)
    end = max(end, told + notice)
    tried = last_try is not None and now - last_try < TRY_AGAIN
    return "commit" if now >= end and not tried else "", end


class OldState:
    """Looks after the state before a restore. `on_told` gets the archive and the time, to be told to people."""

    def __init__(
        self,
        jobs: Jobs,
        history: History,
        values: Values,
        announcer: Announcer,
        on_told: Callable[[str, datetime], None],
    ) -> None:
        self._jobs = jobs
        self._history = history
        self._values = values
        self._announcer = announcer
        self._on_told = on_told

    async def look(self, file: ConfigFile, *, now: datetime) -> None:
        """Tell or commit, when it is time. Raises RestoreError, StateError, JobRefused."""
        journal = pending(file)
        if journal is None or file.restore.keep_old is None:
            return
        known = await self._values.get(_TOLD) or {}
        told = datetime.fromisoformat(known["at"]) if known.get("id") == journal.id else None
        what, end = due(journal, file.restore, now=now, told=told, last_try=await self._last_try(journal))
        if what == "tell" and end is not None:
            data = {"restore_id": journal.id, "archive": journal.archive, "expires": end.isoformat()}
            await self._announcer.tell("restore.expires", data)
            self._on_told(journal.archive, end)
            await self._values.set(_TOLD, {"id": journal.id, "at": now.isoformat()})
        elif what == "commit":
            await self._jobs.submit("commit", {"restore_id": journal.id, "if_healthy": True}, origin="service")

    async def _last_try(self, journal: Journal) -> datetime | None:
        jobs = await self._history.jobs(limit=20, kinds=["commit"])
        return next((job.created for job in jobs if job.params.get("restore_id") == journal.id), None)
