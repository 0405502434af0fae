"""Small named values: the System Backup settings, and what the scheduler has to remember."""

from __future__ import annotations

import json
import logging
import sqlite3
from typing import Any

from service.state.database import Database

log = logging.getLogger(__name__)


class Values:
    """JSON values by name."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, name: str) -> Any:
        """Return a value; None when it was never set, or cannot be read."""
        rows = await self._database.run(
            lambda db: db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        )
        return None if rows is None else loaded(rows[0], name)

    async def set(self, name: str, value: Any) -> None:
        """Set a value; durable when this returns."""
        await self._database.run(lambda db: put(db, name, value))


def put(connection: sqlite3.Connection, name: str, value: Any) -> None:
    """Set a value as a part of a transaction."""
    connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, json.dumps(value)))


def loaded(text: str, what: str) -> Any:
    """Return a JSON value; None, which is logged, when it is none: what cannot be read is taken as absent."""
    try:
        return json.loads(text)
    except ValueError as error:
        log.error("what is remembered as %s cannot be read: %s", what, error)
        return None
