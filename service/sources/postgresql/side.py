"""Single tables into a database of their own beside the live one, for somebody who lost some rows.

It gets the definitions of the whole archived database, so that nothing that a table needs is missing, and the rows of
the wanted tables alone. What concerns other databases or roles is left out: owners, privileges, policies, publications,
and foreign keys to tables whose rows are not there.
"""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from service.config_sources import PostgresqlSettings
from service.errors import Obstacle, RestoreRefused, SourceError, StageFailed
from service.processors import processors
from service.progress import Progress
from service.sources.base import Record, StoredSource, StoredStream, StreamReader
from service.sources.postgresql import catalog, tools
from service.sources.postgresql.connect import (
    Connection,
    at_once,
    connection_to,
    errors_as_source,
    qualified,
    quote_identifier,
)
from service.sources.postgresql.load import lacking, load, table_of, tables_of
from service.sources.postgresql.needed import NO_CHANGE
from service.sources.postgresql.room import space
from service.sources.postgresql.rows import ROWS, SMALL_TABLES
from service.sources.postgresql.scratch import Scratch
from service.sources.postgresql.stage import (
    bare_template,
    beside,
    create_database,
    oid_of,
    set_sequences,
)

_WITHOUT = (
    "--no-owner",
    "--no-acl",
    "--no-comments",
    "--no-publications",
    "--no-security-labels",
    "--no-subscriptions",
    "--no-tablespaces",
)
_LEFT_OUT = ("FK CONSTRAINT ", "POLICY ", "ROW SECURITY ", "EVENT TRIGGER ", "USER MAPPING ")
"""What refers to roles, acts on its own, or asks for rows that are not there."""

Table = tuple[str, str]


@dataclass(frozen=True, slots=True)
class SideTable:
    """A table in the side database. `copy_back` is a shell command that appends its rows to the live table.

    The rows of a partitioned table are those of its partitions, too. A table that inherits is told of by itself.
    """

    schema: str
    table: str
    rows: int
    copy_back: str


async def stage(
    settings: PostgresqlSettings,
    stored: StoredSource,
    reader: StreamReader,
    record: Record,
    save: Callable[[], Awaitable[None]],
    progress: Progress,
    *,
    tables: Sequence[Table],
    into: str,
) -> tuple[list[SideTable], list[str]]:
    """Make a database with the rows of `tables` of the one database of `stored`, under a temporary name.

    `Restorer.swap` with this record gives it the name `into`, `Restorer.undo` drops it. Returns the tables, with those
    that inherit from them and have rows, and sentences on what is not as it was. Raises RestoreRefused when `into` is
    taken, StageFailed, SourceError.
    """
    (database,) = stored.facts["databases"]
    streams = [stream for stream in stored.streams if stream.labels.get("database") == database["name"]]
    _require_known(database, streams, tables)
    async with connection_to(settings, settings.maintenance_database) as connection:
        with errors_as_source("making the database beside"):
            server = await catalog.server_facts(connection)
            free = await catalog.free_connections(connection)
            jobs = at_once(settings, default=min(processors(), 8), free=free)
            if into in {each["name"] for each in await catalog.databases(connection)}:
                told = Obstacle("DATABASE_EXISTS", f"database {into!r} is there already", "Name another one.")
                raise RestoreRefused([told])
            if lack := space(settings, server, sum(stream.bytes for stream in _with_rows(streams, tables))):
                raise RestoreRefused(lack)
            scratch = beside(into, f"__r_{record['id']}_0")
            entry: dict[str, Any] = {"name": into, "scratch": scratch, "old": beside(into, f"__old_{record['id']}_0")}
            entry |= {"live_oid": None, "live_allowed_connections": True, "scratch_oid": None}
            record |= {"databases": [entry], "roles_created": [], "all_roles": False}
            record |= {"globals_before": NO_CHANGE, "globals_wanted": NO_CHANGE}
            await save()
            here = {"owner": server["role"], "tablespace": "pg_default"}
            await create_database(connection, {**database, **here}, scratch)
            entry["scratch_oid"] = await oid_of(connection, scratch)
            await save()
            await connection.execute(f"REVOKE CONNECT, TEMPORARY ON DATABASE {quote_identifier(scratch)} FROM PUBLIC")
            await connection.execute(f"ALTER DATABASE {quote_identifier(scratch)} CONNECTION LIMIT -1")
    directory = tools.client_directory(settings, server["server_version_num"])
    build = _Side(settings, directory, database, scratch, streams, reader, progress, jobs=jobs)
    return await build.run(tables, into)


def _with_rows(streams: Sequence[StoredStream], tables: Collection[Table]) -> list[StoredStream]:
    """Return the streams that hold rows of these tables."""
    return [
        stream
        for stream in streams
        if (stream.kind == ROWS and table_of(stream) in tables)
        or (
            stream.kind == SMALL_TABLES
            and any((told["schema"], told["table"]) in tables for told in stream.details["tables"])
        )
    ]


def _require_known(database: Mapping[str, Any], streams: Sequence[StoredStream], tables: Sequence[Table]) -> None:
    """Refuse a table that the archive does not have before anything is made, where the manifest can tell."""
    if database["objects"].get("relation:p"):
        return  # a partitioned table has no rows of its own, so the manifest does not name it
    known = tables_of([stream for stream in streams if stream.kind in (ROWS, SMALL_TABLES)])
    for schema, table in tables:
        if (schema, table) not in known:
            raise _unknown(database["name"], schema, table, known)


def _unknown(database: str, schema: str, table: str, known: Collection[Table]) -> StageFailed:
    alike = sorted(f"{s}.{t}" for s, t in known if t == table or s == schema)
    return StageFailed(
        f"database {database!r} of the archive has no table {schema}.{table}",
        hint=f"It has, for instance, {', '.join(alike[:10])}." if alike else "`extract --list` shows its tables.",
    )


class _Side(Scratch):
    """Fills the side database."""

    def __init__(
        self,
        settings: PostgresqlSettings,
        directory: Path,
        database: dict[str, Any],
        scratch: str,
        streams: Sequence[StoredStream],
        reader: StreamReader,
        progress: Progress,
        *,
        jobs: int,
    ) -> None:
        super().__init__(settings, directory, database, scratch, reader, progress, jobs=jobs)
        self._streams = streams

    async def run(self, tables: Sequence[Table], into: str) -> tuple[list[SideTable], list[str]]:
        name = self._database["name"]
        schemas = [stream for stream in self._streams if stream.kind == "postgresql.schema"]
        if len(schemas) != 1 or lacking(self._streams):
            raise StageFailed(f"the archive does not hold every stream of database {name!r}")
        with tools.anonymous_file("schema") as schema:
            await self._write_schema(schemas[0], schema)
            every = await tools.entries(self._settings, self._directory, schema)
            plain = [line for line in every if not tools.is_of(line, _LEFT_OUT)]
            async with self._connect() as connection:
                with errors_as_source("preparing an empty database"):
                    await bare_template(connection, self._database)
            await self._definitions(schema, *_WITHOUT, "--section=pre-data", only=plain)
            async with self._connect() as connection:
                with errors_as_source("looking for the tables"):
                    parts: dict[Table, list[Table]] = {}
                    for table in tables:
                        parts |= await self._parts(connection, *table)
            wanted = {part for found in parts.values() for part in found}
            streams = _with_rows(self._streams, wanted)
            self._progress.expected_raw = sum(stream.bytes for stream in (*schemas, *streams))
            await load(name, streams, connect=self._connect, read=self._read, workers=self._jobs, only=wanted)
            self._progress.say("Building indexes and constraints")
            await self._build(schema, plain, *_WITHOUT)
            told = await self._foreign_keys(
                schema, [line for line in every if tools.is_of(line, _LEFT_OUT[:1])], wanted
            )
        async with self._connect() as connection:
            with errors_as_source("finishing"):
                await set_sequences(connection, self._database["sequences"])
                found = [await self._table(connection, *table, parts[table], into) for table in parts]
        done = [each for each in found if each.rows or (each.schema, each.table) in tables]
        return done, [*told, *self._notes()]

    async def _parts(self, connection: Connection, schema: str, table: str) -> dict[Table, list[Table]]:
        """Return what the rows of a table lie in: a partitioned one's in it and its partitions.

        What inherits from a table that is not partitioned has rows of its own, with columns of its own: it comes, too,
        after that table.
        """
        rows = await connection.fetch(
            """WITH RECURSIVE below AS (
                   SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                   WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')
                   UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN below b ON i.inhparent = b.oid)
               SELECT n.nspname::text, c.relname::text, c.relkind = 'p'
               FROM below b JOIN pg_catalog.pg_class c ON c.oid = b.oid
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind <> 'f'
               ORDER BY c.relname = $2 AND n.nspname = $1 DESC, n.nspname, c.relname""",
            schema,
            table,
        )
        if not rows:
            known = tables_of([stream for stream in self._streams if stream.kind in (ROWS, SMALL_TABLES)])
            raise _unknown(self._database["name"], schema, table, known)
        found = [(row[0], row[1]) for row in rows]
        return {(schema, table): found} if rows[0][2] else {part: [part] for part in found}

    async def _foreign_keys(self, schema: IO[bytes], lines: Sequence[str], wanted: Collection[Table]) -> list[str]:
        """Make those of the wanted tables that hold; return sentences on the others."""
        told = []
        starts = tuple(f"FK CONSTRAINT {schema} {table} " for schema, table in wanted)
        for line in lines:
            if not tools.is_of(line, starts):
                continue
            try:
                await self._definitions(schema, *_WITHOUT, only=[line])
            except SourceError as error:
                if "violates foreign key constraint" not in str(error):
                    raise
                name = " ".join(line.split(" ")[5:-1])
                told.append(f"Left out is the foreign key {name}: the rows that it refers to are not there.")
        return told

    async def _table(
        self, connection: Connection, schema: str, table: str, parts: Sequence[Table], into: str
    ) -> SideTable:
        """Compare a table's rows with the manifest, and say how they are copied back."""
        name = qualified(schema, table)
        those = name if len(parts) > 1 else f"ONLY {name}"
        rows = await connection.fetchval(f"SELECT count(*) FROM {those}")
        sizes = tables_of(_with_rows(self._streams, parts))
        archived = sum(sizes[part].rows for part in parts if part in sizes)
        if rows != archived:
            raise StageFailed(f"table {name}: {rows} rows restored, {archived} archived")
        await connection.execute(f"ANALYZE {name}")
        columns = await connection.fetchval(
            """SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_catalog.pg_attribute
               WHERE attrelid = $1::text::pg_catalog.regclass AND attnum > 0 AND NOT attisdropped
                 AND attgenerated = ''""",
            name,
        )
        out = f"COPY (SELECT {columns or ''} FROM {those}) TO STDOUT"
        back = f"COPY {name}{f' ({columns})' if columns else ''} FROM STDIN"
        server = shlex.join(["-h", self._settings.host, "-p", str(self._settings.port), "-U", self._settings.user])
        here, there = (f"psql {server} -d {_argument(name)}" for name in (into, self._database["name"]))
        command = f"{here} -c {shlex.quote(out)} | {there} -c {shlex.quote(back)}"
        return SideTable(schema, table, rows, command)

    def _notes(self) -> list[str]:
        told = ["Owners, privileges, policies and foreign keys of other tables are left out."]
        if self._database["objects"].get("large object"):
            told.append("Large objects are not there: what refers to them refers to nothing.")
        if self._database["materialized_views"]:
            told.append("Materialized views are not filled.")
        return told


def _argument(database: str) -> str:
    """Return a database's name for psql's option -d in a shell, which takes some names for connection strings."""
    if "=" in database or database.startswith(("postgres://", "postgresql://")):
        escaped = database.replace("\\", "\\\\").replace("'", "\\'")
        database = f"dbname='{escaped}'"
    return shlex.quote(database)
