"""The backup side: one exported snapshot a database, tables by parallel COPY, everything else by pg_dump."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg

from service.config_sources import PostgresqlSettings
from service.errors import SourceError, SourceUnavailable
from service.processors import processors
from service.sources.base import Source, Stream
from service.sources.postgresql import catalog, index_rights, roles, tools, unkept
from service.sources.postgresql.catalog import Table
from service.sources.postgresql.connect import Connection, at_once, connection_to, errors_as_source
from service.sources.postgresql.copy_out import Connections
from service.sources.postgresql.rows import Held, row_streams

_LOCK_TIMEOUT_SECONDS = 60
_SNAPSHOT_ATTEMPTS = 5


class PostgresqlSource(Source):
    """The selected databases of one server, with its roles."""

    type = "postgresql"

    def __init__(self, settings: PostgresqlSettings) -> None:
        self.name = settings.name
        self._settings = settings

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[PostgresqlSnapshot]:
        """Hold one consistent view of every selected database, all opened at the start and kept to the end."""
        async with contextlib.AsyncExitStack() as stack:
            yield await _open(self._settings, stack)


@dataclass(slots=True)
class _Database:
    """One database under its snapshot."""

    facts: dict[str, Any]
    snapshot: str
    tables: list[Table]
    coordinator: Connection

    @property
    def held(self) -> Held:
        tid_range_scans = self.coordinator.get_server_version().major >= 14
        return Held(database=self, encoding=self.facts["encoding"], ranges=tid_range_scans)

    def require_snapshot(self) -> None:
        """Raise SourceError when the coordinator is gone: without its locks a TRUNCATE would not be noticed."""
        if self.coordinator.is_closed():
            raise SourceUnavailable(
                f"the connection that holds the snapshot of database {self.name!r} was closed by the server",
                hint="Look at the server's log for the reason, then run again.",
            )

    @property
    def name(self) -> str:
        name: str = self.facts["name"]
        return name


@dataclass(slots=True)
class PostgresqlSnapshot:
    """See `service.sources.base.Snapshot`."""

    streams: Sequence[Stream]
    parallel: int
    _facts: dict[str, Any]
    _databases: Sequence[_Database]

    async def facts(self) -> dict[str, Any]:
        """Server, databases and their settings, as restore needs them; SourceError when a snapshot was lost."""
        for database in self._databases:
            with errors_as_source(f"confirming the snapshot of database {database.name!r}"):
                await database.coordinator.fetchval("SELECT 1")
        return self._facts


async def _open(settings: PostgresqlSettings, stack: contextlib.AsyncExitStack) -> PostgresqlSnapshot:
    warnings: list[str] = []
    async with connection_to(settings, settings.maintenance_database) as connection:
        with errors_as_source("reading the list of databases"):
            server = await catalog.server_facts(connection)
            every = await catalog.databases(connection)
            free = await catalog.free_connections(connection)
    chosen, excluded = catalog.select(every, settings.include, settings.exclude)
    directory = tools.client_directory(settings, server["server_version_num"])
    version = await tools.client_version(directory, server["server_version_num"])
    databases = [await _hold(settings, found["name"], stack) for found in chosen]
    async with connection_to(settings, settings.maintenance_database) as connection:
        with errors_as_source("reading roles and settings"):
            # after the snapshots: a role that one of them refers to must be in the archive
            current = {database["name"]: database for database in await catalog.databases(connection)}
            cluster = await roles.read_globals(connection, passwords=server["superuser"])
            labels = await connection.fetchval("SELECT count(*) FROM pg_catalog.pg_shseclabel")
    for database in databases:
        database.facts = current[database.name] | database.facts
        warnings += unkept.warnings(database.facts)
    if not server["superuser"]:
        warnings.append(f"role {server['role']!r} is no superuser: the passwords of roles are not in this backup")
    if labels:
        warnings.append("security labels of roles and databases are not in this backup")
    cores = processors()  # one connection more keeps them busy
    parallel = at_once(settings, default=min(cores + 1, 8), free=free - len(databases))
    connections = Connections(settings, limit=parallel)
    stack.push_async_callback(connections.close)
    facts = {
        "server": {key: server[key] for key in ("server_version", "server_version_num", "role", "superuser")},
        "client_version": version,
        "databases": [database.facts for database in databases],
        "warnings": warnings,
        "excluded": excluded,
    }
    streams = _streams(settings, directory, databases, connections, cluster)
    return PostgresqlSnapshot(streams=streams, parallel=parallel, _facts=facts, _databases=databases)


async def _hold(settings: PostgresqlSettings, name: str, stack: contextlib.AsyncExitStack) -> _Database:
    """Open the coordinator of one database: export a snapshot, lock its tables against DROP, ALTER and TRUNCATE."""
    for attempt in range(1, _SNAPSHOT_ATTEMPTS + 1):
        async with contextlib.AsyncExitStack() as mine:
            connection = await mine.enter_async_context(connection_to(settings, name))
            try:
                with errors_as_source(f"taking a snapshot of database {name!r}"):
                    held = await _snapshot_of(connection, settings, name)
            except _Moved as error:
                if attempt == _SNAPSHOT_ATTEMPTS:
                    raise SourceError(
                        f"tables of database {name!r} keep being emptied, altered, dropped or renamed: {error}",
                        hint="Run the backup at another time.",
                    ) from error
                continue
            stack.push_async_exit(mine.pop_all())
            return held
    raise AssertionError("unreachable")


class _Moved(Exception):
    """A table is not what the snapshot says any more; the next snapshot will know."""


async def _snapshot_of(connection: Connection, settings: PostgresqlSettings, name: str) -> _Database:
    await connection.execute(
        f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = '{_LOCK_TIMEOUT_SECONDS}s'"
    )
    snapshot = await connection.fetchval("SELECT pg_catalog.pg_export_snapshot()")
    try:
        tables = await catalog.tables(connection)
        if tables:
            names = ", ".join(f"ONLY {table.qualified}" for table in tables)
            await connection.execute(f"LOCK TABLE {names} IN ACCESS SHARE MODE")
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError) as error:
        raise _Moved(str(error)) from error
    async with connection_to(settings, name) as now:
        moved = await catalog.moved(connection, now, tables)
    if moved:
        raise _Moved(", ".join(moved))
    facts = {
        "name": name,
        **await catalog.database_facts(connection),
        **await unkept.unkept(connection),
        "index_functions": await index_rights.used(connection),
        "tables": len(tables),
        "sequences": await catalog.sequences(connection),
        "materialized_views": await catalog.materialized_views(connection),
    }
    return _Database(facts=facts, snapshot=snapshot, tables=tables, coordinator=connection)


def _streams(
    settings: PostgresqlSettings,
    directory: Path,
    databases: Sequence[_Database],
    connections: Connections,
    cluster: roles.Globals,
) -> list[Stream]:
    """Roles first, then the schemas (they fail early), large objects, and the rows, the biggest tables first."""
    streams = [_globals_stream(cluster)]
    rows: list[Stream] = []
    for database in databases:
        dump = partial(tools.dump, settings, directory, database.name)
        timeout = f"--lock-wait-timeout={_LOCK_TIMEOUT_SECONDS}s"
        common = [*tools.dump_options(database.facts["encoding"]), f"--snapshot={database.snapshot}", timeout]
        streams.append(
            Stream(
                kind="postgresql.schema",
                labels={"database": database.name},
                read=partial(dump, [*common, "--schema-only"]),
            )
        )
        if database.facts["objects"].get("large object"):
            # -t and -T of the same table select nothing, so that only what --large-objects asks for is left
            nothing = ["--table=pg_catalog.pg_class", "--exclude-table=pg_catalog.pg_class"]
            streams.append(
                Stream(
                    kind="postgresql.large_objects",
                    labels={"database": database.name},
                    read=partial(dump, [*common, "-b", *nothing]),
                )
            )
        rows += row_streams(database.held, database.tables, connections)
    rows.sort(key=lambda stream: -stream.expected_bytes)
    return streams + rows


def _globals_stream(cluster: roles.Globals) -> Stream:
    async def read() -> AsyncGenerator[bytes, None]:
        yield roles.dump_globals(cluster)

    return Stream(kind="postgresql.globals", labels={}, read=read)
