"""Exchanges live and scratch databases by renaming, all in one transaction; and the ways back and forward from there.

Databases are told apart by OID, which a rename does not change, so each step can look at what is really there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import asyncpg

from service.config_sources import PostgresqlSettings
from service.errors import SwapFailed
from service.sources.base import Record
from service.sources.postgresql import aside, roles
from service.sources.postgresql.connect import Connection, connection_to, errors_as_source, quote_identifier
from service.sources.postgresql.needed import drop_role, drop_untouched_role

_DISCONNECT_SECONDS = 30.0


async def ready(settings: PostgresqlSettings, record: Record) -> None:
    """Raise SourceUnavailable when the server does not answer."""
    async with connection_to(settings, _neutral(settings, record)):
        pass


async def swap(settings: PostgresqlSettings, record: Record, save: Callable[[], Awaitable[None]]) -> None:
    """Put every scratch database in place of its live one, and bring roles to their archived state."""
    record["exchanging"] = True
    await save()
    entries = record["databases"]
    async with connection_to(settings, _neutral(settings, record)) as connection:
        with errors_as_source("exchanging the databases"):
            role = await connection.fetchval("SELECT current_user::text")
            now = await _names(connection)
            leaving = aside.still_live(record, now)
            live = [now[entry["live_oid"]] for entry in (*entries, *leaving) if entry["live_oid"] in now]
            await _close_to_sessions(connection, live)
            await _disconnect(connection, [*live, *(entry["scratch"] for entry in entries)])
            current = await roles.read_globals(connection, passwords=True)
            try:
                async with connection.transaction():
                    for entry in entries:
                        if entry["live_oid"] in now:
                            await _rename(connection, now[entry["live_oid"]], entry["old"])
                        await _rename(connection, entry["scratch"], entry["name"])
                    for entry in leaving:
                        await _rename(connection, entry["name"], entry["old"])
                    for statement in roles.statements(
                        record["globals_wanted"], current, keep=[role], everybody=record.get("all_roles", True)
                    ):
                        await connection.execute(statement)
            except asyncpg.PostgresError as error:
                raise SwapFailed(
                    f"PostgreSQL did not exchange the databases: {error}",
                    hint="Nothing was exchanged. Close what uses the databases, then restore again.",
                ) from error


async def undo(settings: PostgresqlSettings, record: Record) -> None:
    """Bring the old databases and roles back and drop the copies, from whatever state the server is in."""
    if "databases" not in record:
        return
    entries = record["databases"]
    async with connection_to(settings, _neutral(settings, record)) as connection:
        with errors_as_source("undoing the restore of the databases"):
            now = await _names(connection)
            await _move_back(connection, record, now)
            every = (*entries, *aside.still_live(record, now), *aside.away(record, now))
            opened = [e["name"] for e in every if e["live_oid"] in now and e["live_allowed_connections"]]
            await _open_to_sessions(connection, opened)
            for entry in entries:
                await _drop(connection, entry["scratch"])
            # Before the exchange nobody has made more of these roles: what has more by now is somebody
            # else's, such as a later restore's. One that others have come to use stays in any case; it harms nobody.
            drop = drop_role if record.get("exchanging") else drop_untouched_role
            for name in record["roles_created"]:
                await drop(connection, name)


async def _move_back(connection: Connection, record: Record, now: dict[int, str]) -> None:
    """Reverse the swap, if it happened, in one transaction with the roles' old state."""
    entries = record["databases"]
    swapped = [entry for entry in entries if now.get(entry["scratch_oid"]) == entry["name"]]
    kept = [entry for entry in entries if now.get(entry["live_oid"]) == entry["old"]]
    left = aside.away(record, now)
    if not swapped and not kept and not left and (entries or not record.get("exchanging")):
        return
    for entry in swapped:
        if entry["live_oid"] is not None and entry not in kept:
            raise SwapFailed(
                f"the database {entry['old']!r} with the state before the restore is not there any more",
                hint="There is nothing to return to. Run `deviceon-backup commit` to keep what was restored.",
            )
    aside.require_free([*(entry for entry in kept if entry not in swapped), *left], now)
    back = [*kept, *left]
    names = [entry["name"] for entry in swapped]
    await _close_to_sessions(connection, names)
    try:
        await _disconnect(connection, [*names, *(entry["old"] for entry in back)])
        await _rename_back(connection, record, swapped, back)
    except BaseException:
        await _open_to_sessions(connection, names)
        raise


async def _rename_back(
    connection: Connection, record: Record, swapped: list[dict[str, Any]], kept: list[dict[str, Any]]
) -> None:
    before = record["globals_before"]
    role = await connection.fetchval("SELECT current_user::text")
    async with connection.transaction():
        current = await roles.read_globals(connection, passwords=True)
        for name in sorted(roles.names(before) - roles.names(current)):  # dropped or renamed since
            await connection.execute(f"CREATE ROLE {quote_identifier(name)} NOLOGIN")
        for entry in swapped:
            await _rename(connection, entry["name"], entry["scratch"])
        for entry in kept:
            await _rename(connection, entry["old"], entry["name"])
        for statement in roles.statements(
            before, current, keep=[role], forget=record["roles_created"], everybody=record.get("all_roles", True)
        ):
            await connection.execute(statement)


async def commit(settings: PostgresqlSettings, record: Record) -> None:
    """Drop the old databases. One whose successor is not in place is never dropped."""
    async with connection_to(settings, _neutral(settings, record)) as connection:
        with errors_as_source("removing the old databases"):
            now = await _names(connection)
            _require_successors(record, now)
            for entry in record["databases"]:
                if now.get(entry["live_oid"]) == entry["old"]:
                    await _drop(connection, entry["old"])
            for entry in aside.away(record, now):
                await _drop(connection, entry["old"])


async def confirm(settings: PostgresqlSettings, record: Record) -> None:
    """Raise SwapFailed unless every old database could be dropped with its successor in place. Changes nothing."""
    async with connection_to(settings, _neutral(settings, record)) as connection:
        with errors_as_source("looking at the databases"):
            _require_successors(record, await _names(connection))


def _require_successors(record: Record, now: dict[int, str]) -> None:
    for entry in record["databases"]:
        if now.get(entry["live_oid"]) == entry["old"] and now.get(entry["scratch_oid"]) != entry["name"]:
            raise SwapFailed(
                f"database {entry['name']!r} is not the restored one any more, so {entry['old']!r} is kept",
                hint=f"Look at both databases. Drop {entry['old']} by hand to keep the present one, or roll back.",
            )


def _neutral(settings: PostgresqlSettings, record: Record) -> str:
    """A database to connect to that is not one of those renamed, which template1 never is."""
    renamed = {entry["name"] for entry in (*record["databases"], *record.get("aside", ()))}
    return next(name for name in (settings.maintenance_database, "postgres", "template1") if name not in renamed)


async def _names(connection: Connection) -> dict[int, str]:
    rows = await connection.fetch("SELECT oid::bigint, datname::text FROM pg_catalog.pg_database")
    return {row[0]: row[1] for row in rows}


async def _drop(connection: Connection, name: str) -> None:
    """Drop a database if it is there, also a template, which PostgreSQL drops only when it is none any more.

    One whose dropping was killed cannot be altered, only dropped.
    """
    if await connection.fetchval("SELECT datistemplate FROM pg_catalog.pg_database WHERE datname = $1", name):
        await connection.execute(f"ALTER DATABASE {quote_identifier(name)} IS_TEMPLATE false")
    await connection.execute(f"DROP DATABASE IF EXISTS {quote_identifier(name)} WITH (FORCE)")


async def _rename(connection: Connection, old: str, new: str) -> None:
    await connection.execute(f"ALTER DATABASE {quote_identifier(old)} RENAME TO {quote_identifier(new)}")


async def _close_to_sessions(connection: Connection, names: Iterable[str]) -> None:
    for name in names:
        await connection.execute(f"ALTER DATABASE {quote_identifier(name)} WITH ALLOW_CONNECTIONS false")


async def _open_to_sessions(connection: Connection, names: Iterable[str]) -> None:
    for name in names:
        await connection.execute(f"ALTER DATABASE {quote_identifier(name)} WITH ALLOW_CONNECTIONS true")


async def _disconnect(connection: Connection, names: list[str]) -> None:
    """End every session of these databases and wait until they are gone."""
    deadline = asyncio.get_running_loop().time() + _DISCONNECT_SECONDS
    while True:
        # terminating in the select list, not in WHERE: there the planner may run it for every session, even ours
        left: list[Any] = await connection.fetch(
            """SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
               WHERE datname = ANY($1::text[]) AND pid <> pg_catalog.pg_backend_pid()
                 AND backend_type <> 'autovacuum worker'""",
            names,
        )
        if not left:
            return
        if asyncio.get_running_loop().time() > deadline:
            raise SwapFailed(
                f"{len(left)} sessions of {', '.join(names)} do not end", hint="Stop the server's applications first."
            )
        await asyncio.sleep(0.05)
