"""Small named values: the System Backup settings, and what the scheduler has to remember."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from service.state.database import Database


class Values:
    """JSON values by name."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, name: str) -> Any:
        """Return a value; None when it was never set."""
        rows = await self._database.run(
            lambda db: db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        )
        return None if rows is None else json.loads(rows[0])

    async def set(self, name: str, value: Any) -> None:
        """Set a value; durable when this returns."""
        await self._database.run(lambda db: put(db, name, value))


def put(connection: sqlite3.Connection, name: str, value: Any) -> None:
    """Set a value as a part of a transaction."""
    connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, json.dumps(value)))
