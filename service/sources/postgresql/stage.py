"""Builds the scratch databases and compares them with what the manifest says."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import asyncpg

from service.blocking import run_in_thread
from service.config_sources import PostgresqlSettings
from service.errors import NotAuthentic, StageFailed
from service.processors import processors
from service.progress import Progress
from service.sources.base import Record, StoredSource, StoredStream, StreamReader
from service.sources.postgresql import aside, catalog, index_rights, roles, tools
from service.sources.postgresql.affected import globals_of
from service.sources.postgresql.connect import (
    Connection,
    at_once,
    connection_to,
    errors_as_source,
    qualified,
    quote_identifier,
    quote_literal,
    tried,
)
from service.sources.postgresql.load import lacking, load, tables_of, together
from service.sources.postgresql.materialized import fill, unseen
from service.sources.postgresql.needed import NO_CHANGE, keep_needed, only
from service.sources.postgresql.rows import ROWS, SMALL_TABLES
from service.sources.postgresql.scratch import SCRATCH_OPTIONS, Scratch
from service.sources.postgresql.settings import require_taken

_NAME_BYTES = 63
_SAMPLED_ROWS = 30_000
"""ANALYZE looks at so many rows of each table, at the default statistics target."""


async def stage(
    settings: PostgresqlSettings,
    stored: StoredSource,
    reader: StreamReader,
    record: Record,
    save: Callable[[], Awaitable[None]],
    progress: Progress,
) -> None:
    """Create missing roles and one checked scratch database for each archived one; see `Restorer.stage`."""
    databases: Sequence[dict[str, Any]] = stored.facts["databases"]
    wanted = await globals_of(stored, reader)
    maintenance = settings.maintenance_database
    async with connection_to(settings, maintenance) as connection:
        with errors_as_source("preparing the restore"):
            server = await catalog.server_facts(connection)
            jobs = at_once(settings, default=min(processors(), 8), free=await catalog.free_connections(connection))
            present = roles.names(await roles.read_globals(connection, passwords=False))
            await _journal(connection, record, databases, wanted, all_roles=stored.whole or not databases)
            if stored.exactly:
                await _set_aside(connection, settings, record)
            await save()
            for role in wanted["roles"]:
                if role["name"] in record["roles_created"]:
                    await connection.execute(roles.creation(role))
            for database, entry in zip(databases, record["databases"], strict=True):
                await create_database(connection, database, entry["scratch"])
                entry["scratch_oid"] = await oid_of(connection, entry["scratch"])
                await save()
            await require_taken(connection, wanted if record["all_roles"] else NO_CHANGE, record, databases)
    directory = tools.client_directory(settings, server["server_version_num"])
    new = only(wanted, record["roles_created"], present)
    for database, entry in zip(databases, record["databases"], strict=True):
        streams = [stream for stream in stored.streams if stream.labels.get("database") == database["name"]]
        build = _Build(settings, directory, database, entry["scratch"], streams, reader, progress, jobs=jobs, new=new)
        await build.run()
    async with connection_to(settings, maintenance) as connection:
        with errors_as_source("applying the settings of the databases"):
            for database, entry in zip(databases, record["databases"], strict=True):
                async with connection.transaction():
                    for statement in roles.database_statements(database, entry["scratch"]):
                        await connection.execute(statement)
            if not record["all_roles"]:
                await _only_needed_roles(connection, record, databases, wanted, progress)
                await save()


async def _journal(
    connection: Connection,
    record: Record,
    databases: Sequence[dict[str, Any]],
    wanted: roles.Globals,
    *,
    all_roles: bool,
) -> None:
    """Write down what will be made and what is there now, so that `undo` can tell them apart."""
    live = {database["name"]: database for database in await catalog.databases(connection)}
    current = await roles.read_globals(connection, passwords=True)
    identifier = record["id"]
    record["databases"] = [
        {
            "name": database["name"],
            "scratch": beside(database["name"], f"__r_{identifier}_{index}"),
            "old": beside(database["name"], f"__old_{identifier}_{index}"),
            "live_oid": live[database["name"]]["oid"] if database["name"] in live else None,
            "live_allowed_connections": live.get(database["name"], {}).get("allow_connections", True),
            "scratch_oid": None,
        }
        for index, database in enumerate(databases)
    ]
    record["roles_created"] = sorted(roles.names(wanted) - roles.names(current))
    record["all_roles"] = all_roles  # else roles that are there stay as they are, now and when this is undone
    record["globals_before"] = current if all_roles else NO_CHANGE
    record["globals_wanted"] = wanted if all_roles else NO_CHANGE


async def _set_aside(connection: Connection, settings: PostgresqlSettings, record: Record) -> None:
    """Write down which databases the swap takes away, since the archive does not have them."""
    names = [entry["name"] for entry in record["databases"]]
    record["aside"] = [
        aside.entry(database, beside(database["name"], f"__old_{record['id']}_{index}"))
        for index, database in enumerate(aside.added(await catalog.databases(connection), names, settings), len(names))
    ]


async def _only_needed_roles(
    connection: Connection,
    record: Record,
    databases: Sequence[dict[str, Any]],
    wanted: roles.Globals,
    progress: Progress,
) -> None:
    """Have the swap bring the roles that were made to their archived state, and touch no other."""
    made = record["roles_created"]
    oids = [entry["scratch_oid"] for entry in record["databases"]]
    record["roles_created"] = await keep_needed(connection, made, databases, oids)
    present = roles.names(await roles.read_globals(connection, passwords=False))
    record["globals_wanted"] = only(wanted, record["roles_created"], present)
    await require_taken(connection, record["globals_wanted"], record, databases)
    if record["roles_created"]:
        progress.say(f"Roles that were missing and are made: {', '.join(record['roles_created'])}")
    if absent := sorted(set(made) - set(record["roles_created"])):
        progress.warn(
            f"not made are roles of the archive that no restored database needs: {', '.join(absent)};"
            " restore the roles, too, if applications log in with them"
        )


def beside(name: str, suffix: str) -> str:
    """Return a database name made of `name` and `suffix` that fits PostgreSQL's 63 bytes."""
    cut = name.encode()[: _NAME_BYTES - len(suffix)].decode(errors="ignore")
    return cut + suffix


async def oid_of(connection: Connection, name: str) -> int:
    """Return the OID of a database."""
    oid: int = await connection.fetchval("SELECT oid::bigint FROM pg_catalog.pg_database WHERE datname = $1", name)
    return oid


async def create_database(connection: Connection, database: dict[str, Any], scratch: str) -> None:
    """Make an empty database with the archived one's owner, encoding, locale and tablespace, for superusers alone.

    What is not to be run by everybody can be, for a moment: until it is made, its rights cannot be taken from others.
    Its settings are there from the start: generated columns, checks and expressions of indexes go by them.
    """
    await connection.execute(creation(database, scratch, connection.get_server_version().major))
    for setting in roles.computing(database):
        await tried(connection, roles.set_statement(f"DATABASE {quote_identifier(scratch)}", setting))


def creation(database: dict[str, Any], scratch: str, version: int) -> str:
    """Return the statement of `create_database` for a server of this major version."""
    words = [
        f"CREATE DATABASE {quote_identifier(scratch)} TEMPLATE template0",
        f"OWNER {quote_identifier(database['owner'])}",
        f"ENCODING {quote_literal(database['encoding'])}",
        f"LC_COLLATE {quote_literal(database['collate'])} LC_CTYPE {quote_literal(database['ctype'])}",
        f"TABLESPACE {quote_identifier(database['tablespace'])}",
        "CONNECTION LIMIT 0",
    ]
    provider = database["provider"]
    if provider == "i":
        words.append(f"LOCALE_PROVIDER icu ICU_LOCALE {quote_literal(database['locale'])}")
        if database["icu_rules"]:
            words.append(f"ICU_RULES {quote_literal(database['icu_rules'])}")
    elif provider == "b":
        words.append(f"LOCALE_PROVIDER builtin BUILTIN_LOCALE {quote_literal(database['locale'])}")
    elif version >= 15:
        words.append("LOCALE_PROVIDER libc")
    return " ".join(words)


def _digest(piece: bytes) -> bytes:
    return hashlib.sha256(piece).digest()


class _Build(Scratch):
    """Fills one scratch database from its streams."""

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
        new: roles.Globals,
    ) -> None:
        super().__init__(settings, directory, database, scratch, reader, progress, jobs=jobs)
        self._new_roles = new
        self._rows = [stream for stream in streams if stream.kind in (ROWS, SMALL_TABLES)]
        self._tables = tables_of(self._rows)
        self._schemas = [stream for stream in streams if stream.kind == "postgresql.schema"]
        self._large_objects = [stream for stream in streams if stream.kind == "postgresql.large_objects"]

    async def run(self) -> None:
        """Create the definitions, load, then build indexes and constraints on the loaded data, and check."""
        if len(self._schemas) != 1 or self._database["tables"] != len(self._tables) or lacking(self._rows):
            raise StageFailed(f"the archive does not hold every stream of database {self._database['name']!r}")
        self._progress.say(f"Restoring database {self._database['name']} beside the live one")
        with tools.anonymous_file("schema") as schema:
            await self._write_schema(self._schemas[0], schema)
            async with self._open("preparing an empty database") as connection:
                await bare_template(connection, self._database)
            await self._definitions(schema, "--section=pre-data")
            with self._progress.part("rows"):
                await load(
                    self._database["name"], self._rows, connect=self._connect, read=self._read, workers=self._jobs
                )
            with self._progress.part("large objects"):
                for stream in self._large_objects:
                    await tools.restore_stream(
                        self._settings, self._directory, self._scratch, self._proven(stream), options=SCRATCH_OPTIONS
                    )
            self._progress.say(f"Building indexes and constraints of database {self._database['name']}")
            async with self._open("lending rights for indexes") as connection, unseen(connection):
                take_back = await index_rights.lend(connection, self._database.get("index_functions", ()))
            with self._progress.part("indexes", quiet=True):
                await self._build(schema, await tools.entries(self._settings, self._directory, schema))
        with self._progress.part("statistics", quiet=True):
            await self._finish(take_back)

    async def _proven(self, stream: StoredStream) -> AsyncGenerator[bytes, None]:
        """Yield a stream's bytes after all of it was found to be what the manifest says.

        pg_restore runs what it is fed as it comes. Who knows an archive's key can put another chunk in the place of
        one, which shows at the end of the stream only; so a stream of several chunks is read twice.
        """
        digests: list[bytes] = []
        if stream.chunks > 1:
            async with contextlib.aclosing(self._reader.read(stream)) as pieces:
                async for piece in pieces:
                    digests.append(await run_in_thread(_digest, piece))
                    self._progress.steps += 1
        expected = iter(digests)
        async with contextlib.aclosing(self._read(stream)) as pieces:
            async for piece in pieces:
                if digests and await run_in_thread(_digest, piece) != next(expected, b""):
                    raise NotAuthentic(
                        "the archive's large objects are not the same when they are read again",
                        hint="The target gives different bytes for one archive. Use another copy of it.",
                    )
                yield piece

    @contextlib.asynccontextmanager
    async def _open(self, doing: str) -> AsyncIterator[Connection]:
        """Connect, and say what was being done when something fails."""
        async with self._connect() as connection:
            with errors_as_source(f"{doing} (database {self._database['name']!r})"):
                yield connection

    async def _finish(self, take_back: Sequence[str]) -> None:
        """Do what needs all rows and indexes: sequences, materialized views, statistics; then compare.

        Indexes of views are filled, and statistics of indexes are gathered, with rights that are taken back then.
        """
        async with self._open("finishing") as connection:
            await set_sequences(connection, self._database["sequences"])
            sampled = {
                table: size.bytes * min(1.0, _SAMPLED_ROWS / max(size.rows, 1)) for table, size in self._tables.items()
            }
            waiting = await catalog.to_analyze(connection, sampled)

        async def analyze(connection: Connection) -> None:
            while waiting:
                await self._analyze(connection, waiting.pop())

        async def views_first() -> None:
            async with self._open("filling the materialized views") as connection:
                await fill(connection, self._database, self._new_roles, self._progress)
                waiting.extend(qualified(schema, name) for schema, name in self._database["materialized_views"])
                await analyze(connection)

        async def tables() -> None:
            async with self._open("gathering statistics") as connection:
                await analyze(connection)

        await together([views_first(), *(tables() for _ in range(self._jobs - 1))])
        async with self._open("taking back the rights for indexes") as connection, unseen(connection):
            for statement in take_back:
                await connection.execute(statement)
        async with self._open("comparing") as connection:
            inside = await catalog.database_facts(connection)
        for part in ("objects", "extensions", "schemas"):
            archived, restored = _comparable(self._database, inside, part), _comparable(inside, self._database, part)
            if archived != restored:
                raise StageFailed(
                    f"the restored copy of database {self._database['name']!r} differs from the archived one in its"
                    f" {part}: {_difference(archived, restored)}",
                    hint="Nothing live was changed. Please report this with the output of `inspect --json`.",
                )
        self._tell_owners(inside["extensions"])

    async def _analyze(self, connection: Connection, table: str) -> None:
        """Gather the statistics of one table. Where that cannot be, the planner does without, which is told."""
        try:
            await connection.execute(f"ANALYZE {table}")
        except asyncpg.PostgresError as error:
            if connection.is_closed():
                raise
            self._progress.warn(
                f"there are no statistics of table {table} of database {self._database['name']}: {error}"
            )

    def _tell_owners(self, restored: Sequence[dict[str, Any]]) -> None:
        """Tell of extensions that belong to somebody else now: PostgreSQL gives one to whoever makes it."""
        owners = {extension["name"]: extension["owner"] for extension in restored}
        for extension in self._database["extensions"]:
            name, owner = extension["name"], extension.get("owner")  # archives of earlier versions do not tell
            if owner and owner != owners[name]:
                self._progress.warn(
                    f"extension {name} of database {self._database['name']} belongs to role {owners[name]} now, it was"
                    f" {owner}'s: PostgreSQL gives an extension to the role that makes it"
                )


async def bare_template(connection: Connection, database: dict[str, Any]) -> None:
    """Drop what template0 has and the archived database had not: pg_dump does not say that it was dropped."""
    if "plpgsql" not in {extension["name"] for extension in database["extensions"]}:
        await connection.execute("DROP EXTENSION IF EXISTS plpgsql")
    if "public" not in database["schemas"]:
        await connection.execute("DROP SCHEMA IF EXISTS public")


async def set_sequences(connection: Connection, found: Sequence[dict[str, Any]]) -> None:
    """Set sequences to their archived values."""
    await connection.execute(
        """SELECT pg_catalog.setval(pg_catalog.format('%I.%I', s.schema, s.name)::pg_catalog.regclass,
                                    s.value, s.called)
           FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bool[])
                AS s(schema, name, value, called)""",
        [sequence["schema"] for sequence in found],
        [sequence["name"] for sequence in found],
        [sequence["value"] for sequence in found],
        [sequence["called"] for sequence in found],
    )


def _comparable(facts: dict[str, Any], other: dict[str, Any], part: str) -> Any:
    if part == "objects":
        return catalog.objects(facts, other)
    if part == "extensions":  # another version is an obstacle of the plan, which may have been allowed
        return sorted((extension["name"], extension["schema"]) for extension in facts[part])
    return sorted(facts[part])


def _difference(archived: Any, restored: Any) -> str:
    if isinstance(archived, dict):
        keys = sorted(set(archived) | set(restored))
        return ", ".join(
            f"{key} {archived.get(key, 0)} archived, {restored.get(key, 0)} restored"
            for key in keys
            if archived.get(key) != restored.get(key)
        )
    missing = [str(item) for item in archived if item not in restored]
    added = [str(item) for item in restored if item not in archived]
    return f"missing {missing}, added {added}"
