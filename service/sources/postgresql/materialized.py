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
from service.sources.postgresql.connect import Connection, qualified, quote_identifier, transaction

_NOT_TAKEN = frozenset(
    {
        "client_encoding",
        "default_transaction_read_only",
        "role",
        "row_security",
        "search_path",
        "session_replication_role",
        "synchronous_commit",
    }
)
"""Settings that are about a session and not about what it computes; time-outs are not taken either."""

_AGAIN = {"O": "ENABLE", "R": "ENABLE REPLICA", "A": "ENABLE ALWAYS"}


async def fill(connection: Connection, database: dict[str, Any], new: roles.Globals, progress: Progress) -> None:
    """Fill the views that were filled. One that cannot be stays empty, which is told.

    `new` is what the archive says of roles that were made for this restore, and are nobody's members yet.
    """
    views = [qualified(schema, name) for schema, name in database["materialized_views"]]
    if not views:
        return
    await _take_settings(connection, database["settings"])
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


async def _take_settings(connection: Connection, settings: Sequence[dict[str, Any]]) -> None:
    """Have this session compute as those of the database do, such as in its time zone."""
    await connection.execute("SET row_security = on")
    for setting in (setting for row in settings if row["role"] is None for setting in row["settings"]):
        name = setting.partition("=")[0].lower()
        if name not in _NOT_TAKEN and not name.endswith("_timeout"):
            try:
                await connection.execute(roles.set_words(setting))
            except asyncpg.PostgresError:
                if connection.is_closed():
                    raise
                # such as a library that can only be loaded when a session starts
