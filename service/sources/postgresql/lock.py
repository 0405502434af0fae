"""A lock in the server itself, so that no two services back up or restore it at once, wherever they run.

It is an advisory lock of a session in `maintenance_database`, which all services of one server have to name alike; it
goes when the session ends, however that ends. A restore that replaces that database ends the session: while databases
are exchanged, nobody else is kept out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import asyncpg

from service.config_sources import PostgresqlSettings
from service.errors import JobRefused, SourceError
from service.sources.postgresql.connect import Connection, connect, errors_as_source

_CLASS, _OBJECT = 0x4465_764F, 0x6E42_6B70  # "DevO", "nBkp"

# A session that waits for hours is not to be ended for that (PostgreSQL 14 and later would); one whose client is gone
# is, within a minute or so.
_SESSION = """
    SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name = 'idle_session_timeout';
    SET tcp_keepalives_idle = 30;
    SET tcp_keepalives_interval = 10;
    SET tcp_keepalives_count = 3;
"""

_HOLDER = """
    SELECT a.application_name, coalesce(host(a.client_addr), 'a local socket') AS address, a.backend_start
    FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.classid::bigint = $1 AND l.objid::bigint = $2 AND l.granted
      AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
"""


@contextlib.asynccontextmanager
async def only_one(settings: PostgresqlSettings, what: str, *, recovering: bool) -> AsyncIterator[None]:
    """Hold the server's lock for a block. Raises JobRefused when another service holds it, SourceUnavailable.

    `recovering`: an interrupted restore is being settled, which may have closed the maintenance database itself.
    """
    connection = await _connected(settings, recovering=recovering)
    try:
        with errors_as_source("asking for the server's backup lock"):
            await connection.execute(_SESSION)
            if not await connection.fetchval("SELECT pg_catalog.pg_try_advisory_lock($1, $2)", _CLASS, _OBJECT):
                raise await _refusal(connection, what)
        yield
    finally:
        await _let_go(connection, settings)


async def _connected(settings: PostgresqlSettings, *, recovering: bool) -> Connection:
    try:
        return await connect(settings, settings.maintenance_database)
    except SourceError as error:
        if not recovering or not isinstance(error.__cause__, asyncpg.ObjectNotInPrerequisiteStateError):
            raise
    # It takes no connections: so nobody can hold or get its lock before this restore is settled.
    return await connect(settings, "template1")


async def lock_holder(connection: Connection) -> str:
    """Say who holds the lock, in brackets; empty when nobody does. `connection` is to the maintenance database."""
    holder = await connection.fetchrow(_HOLDER, _CLASS, _OBJECT)
    return f" ({holder[0]} from {holder[1]}, since {holder[2]:%Y-%m-%d %H:%M:%SZ})" if holder else ""


async def _refusal(connection: Connection, what: str) -> JobRefused:
    told = await lock_holder(connection)
    return JobRefused(
        f"another service backs up or restores this PostgreSQL server{told}, so {what} cannot begin",
        hint="Wait until it has finished, then try again.",
    )


async def _let_go(connection: Connection, settings: PostgresqlSettings) -> None:
    """Unlock before leaving: the server notices the end of a session only some time after we do."""
    try:
        async with asyncio.timeout(settings.connect_timeout):
            await connection.execute("SELECT pg_catalog.pg_advisory_unlock($1, $2)", _CLASS, _OBJECT)
            await connection.close()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        pass  # the session is gone, and its lock with it
    finally:
        connection.terminate()
