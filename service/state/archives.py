"""The ledger (`service.ledger`) in the state: what was about to be done to a target, what is known of its archives."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, get_args

from service.ledger import Evidence, Intent, Known
from service.state.database import Database
from service.state.values import loaded

_FACTS = {"created", "seq", "server_version", "sealing", "fingerprint", "raw_bytes", "seconds"}


class Archives:
    """A durable ledger. `clock` tells the time of evidence."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    async def writing(self, target: str, name: str) -> None:
        """Remember that an archive is about to be written."""
        await self._intend(target, name, "write")

    async def unfinished(self, target: str, name: str, what: str) -> None:
        """Remember what a write has begun in the target."""
        await self._database.run(
            lambda db: db.execute("INSERT OR REPLACE INTO unfinished VALUES (?, ?, ?)", (target, name, what))
        )

    async def deleting(self, target: str, name: str) -> None:
        """Remember that an archive is about to be removed."""
        await self._intend(target, name, "delete")

    async def settled(self, target: str, name: str) -> None:
        """Forget what was about to be done."""

        def work(db: sqlite3.Connection) -> None:
            for table in ("intents", "unfinished"):
                db.execute(f"DELETE FROM {table} WHERE (target, name) = (?, ?)", (target, name))

        await self._database.run(work)

    async def found(self, target: str, name: str, etag: str, evidence: Evidence) -> None:
        """Remember the evidence for an archive; facts are kept when it is still the same object. See `Ledger.found`."""
        now = self._clock().isoformat()

        def work(db: sqlite3.Connection) -> None:
            before = db.execute(
                "SELECT evidence FROM archives WHERE (target, name, etag) = (?, ?, ?)", (target, name, etag)
            ).fetchone()
            if before == ("restorable",) and evidence in ("written", "verified"):
                return
            db.execute(
                "INSERT INTO archives VALUES (?, ?, ?, ?, ?, NULL) ON CONFLICT (target, name) DO UPDATE SET "
                "facts = CASE WHEN etag = excluded.etag THEN facts END, "
                "etag = excluded.etag, evidence = excluded.evidence, since = excluded.since",
                (target, name, etag, evidence, now),
            )

        await self._database.run(work)

    async def known(self, target: str) -> dict[str, Known]:
        """Return what is remembered of a target's archives."""
        rows = await self._database.run(
            lambda db: db.execute(
                "SELECT name, etag, evidence, since, facts FROM archives WHERE target = ?", (target,)
            ).fetchall()
        )
        return {
            name: Known(
                etag,
                evidence if evidence in get_args(Evidence) else "unknown",
                _moment(since),
                _facts(facts),
            )
            for name, etag, evidence, since, facts in rows
        }

    async def listed(self, target: str, facts: Mapping[str, Known], gone: Sequence[str]) -> None:
        """Remember the facts of some archives; forget those that are gone.

        Evidence that was found while the target was being listed is newer than what the listing knew, and stays.
        """

        def work(db: sqlite3.Connection) -> None:
            for name, known in facts.items():
                db.execute(
                    "INSERT INTO archives VALUES (?, ?, ?, 'unknown', NULL, ?) "
                    "ON CONFLICT (target, name) DO UPDATE SET "
                    "evidence = CASE WHEN etag = excluded.etag THEN evidence ELSE excluded.evidence END, "
                    "since = CASE WHEN etag = excluded.etag THEN since END, "
                    "etag = excluded.etag, facts = excluded.facts",
                    (target, name, known.etag, json.dumps(known.facts or {})),
                )
            db.executemany(
                "DELETE FROM archives WHERE (target, name) = (?, ?) "
                "AND NOT EXISTS (SELECT 1 FROM intents i WHERE (i.target, i.name) = (archives.target, archives.name))",
                [(target, name) for name in gone],
            )

        await self._database.run(work)

    async def intents(self) -> list[Intent]:
        """Return everything that was about to be done and of which no end was told."""

        def work(db: sqlite3.Connection) -> list[Intent]:
            rows = db.execute("SELECT action, target, name FROM intents ORDER BY target, name").fetchall()
            return [Intent(action, target, name, _unfinished(db, target, name)) for action, target, name in rows]

        return await self._database.run(work)

    async def _intend(self, target: str, name: str, action: str) -> None:
        await self._database.run(
            lambda db: db.execute("INSERT OR REPLACE INTO intents VALUES (?, ?, ?)", (target, name, action))
        )


def _unfinished(db: sqlite3.Connection, target: str, name: str) -> tuple[str, ...]:
    rows = db.execute("SELECT what FROM unfinished WHERE (target, name) = (?, ?) ORDER BY what", (target, name))
    return tuple(what for (what,) in rows)


def _facts(text: str | None) -> dict[str, Any] | None:
    """Return facts without what only another version knows; None, so that the archive is looked at anew, when bad."""
    facts = None if text is None else loaded(text, "facts of an archive")
    if not isinstance(facts, dict) or ("created" in facts and _moment(facts["created"]) is None):
        return None
    return {name: facts[name] for name in facts if name in _FACTS}


def _moment(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
