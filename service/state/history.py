"""Jobs and events, and the answers to requests that may be repeated."""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from service.errors import JobRefused
from service.job import ENDED, Job, JobState
from service.state.database import Database
from service.state.gaps import Gaps
from service.state.job_logs import JobLogs
from service.state.values import loaded, put

log = logging.getLogger(__name__)

KEPT_EVENTS = 1000
KEY_LIFE = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Request:
    """A request that carries an idempotency key: the same one again gets the same answer, and does nothing."""

    key: str
    method: str
    params: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Return what tells this request from others."""
        text = json.dumps([self.method, self.params], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Stub:
    """What a timeline needs to know of a job; `at` is when it was due, or else when it was asked for."""

    id: str
    state: JobState
    at: datetime
    due: bool
    """Whether it was due by a schedule."""


class History:
    """What happened, newest last. `logs` has what jobs said, `gaps` the due times that brought no job."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.logs = JobLogs(database)
        self.gaps = Gaps(database)

    async def answer_before(self, request: Request, now: datetime) -> Any:
        """Return the answer that this request got before; None when it is new.

        Raises JobRefused when its key was used for another request.
        """
        return await self._database.run(lambda db: _answer_before(db, request, now))

    async def remember_answer(self, request: Request, answer: Any, now: datetime) -> None:
        """Remember the answer to a request for a day."""
        await self._database.run(lambda db: _remember(db, request, answer, now))

    async def add_job(
        self, job: Job, *, request: Request | None = None, values: Mapping[str, Any] | None = None
    ) -> Job:
        """Add a job together with the request that asked for it and some `service.state.values`, all or nothing.

        Returns the job that the same request got before, when there is one. Raises JobRefused as `answer_before`.
        """

        def work(db: sqlite3.Connection) -> Job:
            if request is not None:
                before = _answer_before(db, request, job.created)
                known = None if before is None else _job(db, before)
                if known is not None:
                    return known
                _remember(db, request, job.id, job.created)
            _save(db, job)
            for name, value in (values or {}).items():
                put(db, name, value)
            return job

        return await self._database.run(work)

    async def save_job(self, job: Job) -> None:
        """Remember how a job stands."""
        await self._database.run(lambda db: _save(db, job))

    async def job(self, identifier: str) -> Job | None:
        """Return one job; None when it is not known."""
        return await self._database.run(lambda db: _job(db, identifier))

    async def jobs(
        self,
        *,
        limit: int,
        before: str | None = None,
        kinds: Sequence[str] | None = None,
        states: Sequence[str] | None = None,
        key: str | None = None,
    ) -> list[Job]:
        """Return jobs, the newest first; `before` is the id of the last one of the page before.

        With a `key`, only the job that the request with this idempotency key got.
        """
        conditions, values = ["1"], list[Any]()
        if key is not None:
            conditions.append("id = (SELECT trim(answer, '\"') FROM idempotency WHERE key = ?)")
            values.append(key)
        if before is not None:
            conditions.append("(created, id) < (SELECT created, id FROM jobs WHERE id = ?)")
            values.append(before)
        for column, allowed in (("kind", kinds), ("state", states)):
            if allowed is not None:
                conditions.append(f"{column} IN ({', '.join('?' * len(allowed))})")
                values += allowed
        query = f"SELECT content FROM jobs WHERE {' AND '.join(conditions)} ORDER BY created DESC, id DESC"
        return await self._database.run(lambda db: list(islice(_readable(db.execute(query, values)), limit)))

    async def last_ended(self) -> list[Job]:
        """Return the last job of each kind and outcome."""
        query = (
            f"SELECT kind, state, content FROM jobs WHERE state IN ({', '.join('?' * len(ENDED))}) "
            "ORDER BY created DESC, id DESC"
        )

        def work(db: sqlite3.Connection) -> list[Job]:
            found: dict[tuple[str, str], Job] = {}
            for kind, state, content in db.execute(query, sorted(ENDED)):
                if (kind, state) not in found and (job := next(_readable([(content,)]), None)) is not None:
                    found[kind, state] = job
            return list(found.values())

        return await self._database.run(work)

    async def unfinished(self) -> list[Job]:
        """Return the jobs that have not ended, the oldest first."""
        query = f"SELECT content FROM jobs WHERE state NOT IN ({', '.join('?' * len(ENDED))}) ORDER BY created, id"
        return await self._database.run(lambda db: list(_readable(db.execute(query, sorted(ENDED)))))

    async def stubs(self, kinds: Sequence[str], since: datetime) -> list[Stub]:
        """Return the jobs of some kinds that were made since a time, the oldest first, without what is big in them."""
        query = (
            "SELECT id, state, created, CASE WHEN json_valid(content) THEN content ->> '$.scheduled_for' END FROM jobs "
            f"WHERE created >= ? AND kind IN ({', '.join('?' * len(kinds))}) ORDER BY created, id"
        )
        rows = await self._database.run(lambda db: db.execute(query, (since.isoformat(), *kinds)).fetchall())
        return [
            Stub(identifier, state, datetime.fromisoformat(due or created), due is not None)
            for identifier, state, created, due in rows
        ]

    async def oldest(self) -> datetime | None:
        """Return when the oldest job that is remembered was asked for."""
        query = "SELECT min(created) FROM jobs"
        (created,) = await self._database.run(lambda db: db.execute(query).fetchone())
        return None if created is None else datetime.fromisoformat(created)

    async def add_event(self, seq: int, content: Mapping[str, Any]) -> None:
        """Remember an event, and forget those that are too many."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO events VALUES (?, ?)", (seq, json.dumps(content)))
            db.execute("DELETE FROM events WHERE seq <= ?", (seq - KEPT_EVENTS,))

        await self._database.run(work)

    async def events(self) -> list[dict[str, Any]]:
        """Return the events that are remembered and can be read, the oldest first."""
        rows = await self._database.run(
            lambda db: db.execute("SELECT seq, content FROM events ORDER BY seq").fetchall()
        )
        found = []
        for seq, content in rows:
            event = loaded(content, f"event {seq}")
            if isinstance(event, dict) and event.get("seq") == seq:
                found.append(event)
        return found

    async def forget(self, before: datetime) -> None:
        """Forget jobs that ended before a time, but for the newest backup and the newest drill that succeeded.

        With them goes what they said, and what was missed before that time.
        """

        def work(db: sqlite3.Connection) -> None:
            db.execute(
                f"DELETE FROM jobs WHERE created < ? AND state IN ({', '.join('?' * len(ENDED))}) AND id NOT IN "
                "(SELECT id FROM jobs WHERE kind = 'backup' AND state = 'succeeded' ORDER BY created DESC LIMIT 1) "
                "AND id NOT IN "
                "(SELECT id FROM jobs WHERE kind = 'drill' AND state = 'succeeded' ORDER BY created DESC LIMIT 1)",
                (before.isoformat(), *sorted(ENDED)),
            )
            db.execute("DELETE FROM job_log WHERE job NOT IN (SELECT id FROM jobs)")
            db.execute("DELETE FROM gaps WHERE until < ?", (before.isoformat(),))

        await self._database.run(work)


def _job(db: sqlite3.Connection, identifier: str) -> Job | None:
    return next(_readable(db.execute("SELECT content FROM jobs WHERE id = ?", (identifier,))), None)


def _readable(rows: Iterable[tuple[str]]) -> Iterator[Job]:
    """Leave out what cannot be read, and members that only another version knows: neither may end the service."""
    known = {each.name for each in fields(Job)}
    for (content,) in rows:
        try:
            value = json.loads(content)
            yield Job.from_json({name: value[name] for name in value if name in known})
        except (ValueError, TypeError, KeyError) as error:
            log.error("a job that is remembered cannot be read: %r", error)


def _save(db: sqlite3.Connection, job: Job) -> None:
    content = json.dumps(job.as_json(), default=str)
    values = (job.id, job.kind, job.state, job.created.isoformat(), content)
    db.execute("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?)", values)


def _answer_before(db: sqlite3.Connection, request: Request, now: datetime) -> Any:
    db.execute("DELETE FROM idempotency WHERE created < ?", ((now - KEY_LIFE).isoformat(),))
    row = db.execute("SELECT request, answer FROM idempotency WHERE key = ?", (request.key,)).fetchone()
    if row is None:
        return None
    if row[0] != request.digest:
        raise JobRefused(
            "this idempotency key was used for another request", hint="Use a new key for each new request."
        )
    return loaded(row[1], "an answer")


def _remember(db: sqlite3.Connection, request: Request, answer: Any, now: datetime) -> None:
    values = (request.key, request.digest, json.dumps(answer, default=str), now.isoformat())
    db.execute("INSERT OR REPLACE INTO idempotency VALUES (?, ?, ?, ?)", values)
