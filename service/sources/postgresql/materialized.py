"""Fills the materialized views of a scratch database as the archived one would: they are derived, and not archived.

A view is filled with its owner's rights, under row security, with the settings of its database, and unseen by event
triggers. What the server does not have so before the exchange holds for one transaction, and leaves no trace.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg

from service.progress import Progress
from service.sources.postgresql import roles
from service.sources.postgresql.connect import Connection, qualified, quote_identifier, transaction, tried

_AGAIN = {"O": "ENABLE", "R": "ENABLE REPLICA", "A": "ENABLE ALWAYS"}


async def fill(connection: Connection, database: dict[str, Any], new: roles.Globals, progress: Progress) -> None:
    """Fill the views that were filled. One that cannot be stays empty, which is told.

    `new` is what the archive says of roles that were made for this restore, and are nobody's members yet.
    """
    views = [qualified(schema, name) for schema, name in database["materialized_views"]]
    if not views:
        return
    await _take_settings(connection, database)
    lend, take_back = roles.lent(new)
    async with unseen(connection):
        for statement in lend:
            await connection.execute(statement)
        failed = await _refresh(connection, views)
        for statement in take_back:
            await connection.execute(statement)
    for view, reason in failed.items():
        progress.warn(f"materialized view {view} of database {database['name']} stays empty: {reason}")


@contextlib.asynccontextmanager
async def unseen(connection: Connection) -> AsyncIterator[None]:
    """Keep event triggers from what is done inside, which is one transaction."""
    async with transaction(connection):
        watching = await connection.fetch(
            "SELECT evtname::text, evtenabled::text FROM pg_catalog.pg_event_trigger WHERE evtenabled <> 'D'"
        )
        for name, _ in watching:
            await connection.execute(f"ALTER EVENT TRIGGER {quote_identifier(name)} DISABLE")
        yield
        for name, state in watching:
            await connection.execute(f"ALTER EVENT TRIGGER {quote_identifier(name)} {_AGAIN[state]}")


async def _refresh(connection: Connection, views: Sequence[str]) -> dict[str, asyncpg.PostgresError]:
    """Refresh them, and return those that could not be, with the reason."""
    waiting = list(views)
    while waiting:
        failed: dict[str, asyncpg.PostgresError] = {}
        for view in waiting:
            try:
                async with transaction(connection):
                    await connection.execute(f"REFRESH MATERIALIZED VIEW {view}")
            except asyncpg.PostgresError as error:
                if connection.is_closed():
                    raise
                failed[view] = error  # it may read another that is still empty, through a function
        if len(failed) == len(waiting):
            return failed
        waiting = list(failed)
    return {}


async def _take_settings(connection: Connection, database: dict[str, Any]) -> None:
    """Have this session compute as those of the database do, also where a session of ours has its own settings."""
    await connection.execute("SET row_security = on")
    for setting in roles.computing(database):
        await tried(connection, roles.set_words(setting))
