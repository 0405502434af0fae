"""Connections to the server: session settings, quoting, and the one mapping of driver errors to ours."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

import asyncpg

from service.config_sources import PostgresqlSettings
from service.errors import SourceError, SourceUnavailable

Connection = asyncpg.Connection

_START_SECONDS = 60.0
_NOTICE_SECONDS = 1.0

T = TypeVar("T")

STARTUP_SETTINGS = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "default_transaction_read_only": "off",
}
"""Given when a session starts, ours or a client program's: those of the database or role may forbid a first query."""

# What pg_dump sets too: text that does not depend on the database's or the role's own settings, an empty search_path
# (CVE-2018-1058), and an error instead of silently filtered rows.
_SESSION = """
    SET search_path = '';
    SET client_encoding = 'UTF8';
    SET DateStyle = 'ISO';
    SET IntervalStyle = 'postgres';
    SET extra_float_digits = 3;
    SET bytea_output = 'hex';
    SET array_nulls = on;
    SET standard_conforming_strings = on;
    SET xmloption = 'content';
    SET synchronize_seqscans = off;
    SET row_security = off;
    SET jit = off;
"""

# Only for databases that nobody else uses yet: a crash of the server loses the scratch copy, which is thrown away
# anyway, and the swap's own commit flushes all of it.
_SCRATCH_SESSION = """
    SET synchronous_commit = off;
    SET vacuum_cost_delay = 0;
"""


def quote_identifier(name: str) -> str:
    """Quote a name for SQL text."""
    return '"' + name.replace('"', '""') + '"'


def quote_literal(value: str) -> str:
    """Quote a string for SQL text, whatever standard_conforming_strings says."""
    quoted = "'" + value.replace("'", "''").replace("\\", "\\\\") + "'"
    return f"E{quoted}" if "\\" in value else quoted


def qualified(schema: str, name: str) -> str:
    """Quote a schema-qualified name."""
    return f"{quote_identifier(schema)}.{quote_identifier(name)}"


def at_once(settings: PostgresqlSettings, *, default: int, free: int) -> int:
    """How many connections to work on: as many as configured, or else `default`, within the share of what is free."""
    return max(1, min(settings.connections or default, int(free * settings.max_connections_share)))


@contextlib.contextmanager
def errors_as_source(doing: str) -> Iterator[None]:
    """Map the driver's and the operating system's errors; `doing` completes 'PostgreSQL failed while ...'."""
    try:
        yield
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
        hint = "Check user, password_file and pg_hba.conf; `deviceon-backup doctor` tries the connection."
        if str(error).startswith("Peer authentication"):
            hint = (
                "Over the UNIX socket this server lets in only the system user of the role's name. Give host: 127.0.0.1"
                " and password_file, or map this user in pg_hba.conf and pg_ident.conf (docs/CONFIGURATION.md)."
            )
        raise SourceUnavailable(f"PostgreSQL refuses the connection while {doing}: {error}", hint=hint) from error
    except (asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError, asyncpg.AdminShutdownError) as error:
        raise SourceUnavailable(
            f"the connection to PostgreSQL broke while {doing}: {error}",
            hint="Look at the server's log, then run again.",
        ) from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise SourceError(
            f"PostgreSQL denies a permission while {doing}: {error}",
            hint="Back up as a role with pg_read_all_data or as a superuser; restore as a superuser.",
        ) from error
    except asyncpg.LockNotAvailableError as error:
        raise SourceError(
            f"a table stayed locked while {doing}: {error}",
            hint="Another session holds an exclusive lock (see pg_locks); run again when it is done.",
        ) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise SourceError(f"PostgreSQL failed while {doing}: {error}", hint="Look at the server's log.") from error
    except (OSError, TimeoutError) as error:
        raise SourceUnavailable(
            f"PostgreSQL cannot be reached while {doing}: {str(error) or type(error).__name__}",
            hint="Check that the server runs and that host and port are right.",
        ) from error


async def while_connected(connection: Connection, work: Coroutine[Any, Any, T]) -> T:
    """Do something on a connection; when it is lost, end it with the driver's error for that.

    asyncpg sends rows when the socket has room, and waits for that without an end when the connection breaks meanwhile.
    """
    task = asyncio.ensure_future(work)
    lost = False

    def give_up() -> None:
        nonlocal lost
        lost = not task.done()
        task.cancel()

    def gone(_: Any) -> None:
        # not at once: in most cases the driver notices, and tells the server's reason
        asyncio.get_running_loop().call_later(_NOTICE_SECONDS, give_up)

    connection.add_termination_listener(gone)
    try:
        return await task
    except asyncio.CancelledError:
        me = asyncio.current_task()
        if lost and me is not None and not me.cancelling():
            raise asyncpg.ConnectionDoesNotExistError("connection was closed while rows were being sent") from None
        raise
    finally:
        connection.remove_termination_listener(gone)


@contextlib.asynccontextmanager
async def transaction(connection: Connection) -> AsyncIterator[None]:
    """A transaction, or a part of one. The driver's own block fails when the connection is lost, and hides why."""
    block = connection.transaction()
    await block.start()
    try:
        yield
    except BaseException:
        if not connection.is_closed():
            await block.rollback()
        raise
    await block.commit()


async def tried(connection: Connection, statement: str) -> asyncpg.PostgresError | None:
    """Run a statement; return why the server refuses it, if it does."""
    try:
        await connection.execute(statement)
    except asyncpg.PostgresError as error:
        if connection.is_closed():
            raise
        return error
    return None


async def connect(settings: PostgresqlSettings, database: str, *, scratch: bool = False) -> Connection:
    """Open a connection with the session settings above. Raises SourceUnavailable, SourceError."""
    where = f"{settings.host}, port {settings.port}"
    with errors_as_source(f"connecting to database {database!r} at {where}"):
        connection = await _when_started(settings, database)
        try:
            await connection.execute(_SESSION + (_SCRATCH_SESSION if scratch else ""))
        except BaseException:
            connection.terminate()
            raise
    return connection


async def _when_started(settings: PostgresqlSettings, database: str) -> Connection:
    """Connect; while the server says that it is starting up or recovering, wait for it."""
    deadline = asyncio.get_running_loop().time() + _START_SECONDS
    while True:
        try:
            return await asyncpg.connect(
                host=settings.host,
                port=settings.port,
                user=settings.user,
                password=settings.password() or "",
                database=database,
                timeout=settings.connect_timeout,
                statement_cache_size=0,
                server_settings={"application_name": settings.application_name, **STARTUP_SETTINGS},
            )
        except asyncpg.CannotConnectNowError:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def connection_to(
    settings: PostgresqlSettings, database: str, *, scratch: bool = False
) -> AsyncIterator[Connection]:
    """Open a connection for a block and close it after; when the block fails it is dropped without ceremony."""
    connection = await connect(settings, database, scratch=scratch)
    try:
        yield connection
    except BaseException:
        connection.terminate()
        raise
    await connection.close(timeout=settings.connect_timeout)
