"""What stands in the way of restoring into this server, found before anything is touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.config_sources import PostgresqlSettings
from service.errors import Obstacle, SourceError
from service.sources.base import MADE_SINCE, PlanItem, SourcePlan, StoredSource, StreamReader
from service.sources.postgresql import aside, catalog, tools
from service.sources.postgresql.affected import globals_of, live_connections, role_items
from service.sources.postgresql.connect import Connection, connection_to, errors_as_source
from service.sources.postgresql.lock import lock_holder
from service.terminal import counted, size

_SESSIONS = 4
"""One that coordinates, one that holds the lock, one that loads rows, pg_restore's."""


async def plan(settings: PostgresqlSettings, stored: StoredSource, reader: StreamReader | None) -> SourcePlan:
    """List what would be replaced, and every obstacle. Touches nothing."""
    archived = stored.facts["server"]
    wanted: Sequence[dict[str, Any]] = stored.facts["databases"]
    try:
        async with connection_to(settings, settings.maintenance_database) as connection:
            with errors_as_source("looking at the server"):
                server = await catalog.server_facts(connection)
                obstacles = await _versions(settings, server, archived)
                if obstacles:
                    return SourcePlan([], obstacles)  # what follows speaks the archived version's dialect
                live = {database["name"]: database for database in await catalog.databases(connection)}
                replaced = sorted({database["name"] for database in wanted} & set(live))
                obstacles += await _state(connection)
                notes: list[Obstacle] = []
                for database in wanted:
                    obstacles += await _database(connection, database)
                    notes += await _collation_version(connection, database)
                names = {database["name"] for database in wanted}
                new = aside.added(list(live.values()), names, settings) if stored.whole else []
                gone = new if stored.exactly else []
                moved = sorted({*replaced, *(database["name"] for database in gone)})
                obstacles += await _prepared(connection, set(moved))
                obstacles += await _replication(connection, set(moved))
                obstacles += await live_connections(connection, settings, moved)
                about_roles = []
                if reader is not None:
                    cluster = await globals_of(stored, reader)
                    about_roles = await role_items(connection, stored, cluster, superuser=server["superuser"])
    except SourceError as error:
        return SourcePlan([], [Obstacle("SERVER_UNREACHABLE", str(error), error.hint)])
    items = [_item(database, live) for database in wanted]
    if not wanted:
        items.append(PlanItem(f"roles of {stored.name}", "replace", "those that the archive does not have stay"))
    items += [
        PlanItem(f"database {database['name']}", "remove", f"not in this archive; {size(database['bytes'])}")
        for database in gone
    ]
    if not stored.exactly:
        items += [PlanItem(f"database {database['name']}", "keep", MADE_SINCE) for database in new]
    extra = sorted(set(live) - names - {database["name"] for database in new})
    why = "not in this archive" if stored.whole else "not part of this restore"
    items += [PlanItem(f"database {name}", "keep", why) for name in extra]
    return SourcePlan(items + about_roles, obstacles, notes)


def _item(database: dict[str, Any], live: dict[str, Any]) -> PlanItem:
    tables = f"{counted(database['tables'], 'table')}, {size(database['bytes'])} on the server"
    action = "replace" if database["name"] in live else "create"
    return PlanItem(f"database {database['name']}", action, tables)


async def _versions(settings: PostgresqlSettings, server: dict[str, Any], archived: dict[str, Any]) -> list[Obstacle]:
    here, there = server["server_version_num"] // 10000, archived["server_version_num"] // 10000
    if here != there:
        return [
            Obstacle(
                "POSTGRESQL_VERSION",
                f"the archive is of PostgreSQL {there}, the server is PostgreSQL {here}",
                f"Restore into a PostgreSQL {there} server.",
            )
        ]
    obstacles = []
    if not server["superuser"]:
        obstacles.append(
            Obstacle(
                "POSTGRESQL_PRIVILEGE",
                f"role {server['role']!r} is not a superuser, so owners and privileges could not be restored",
                "Set `user` of this source to a superuser.",
            )
        )
    try:
        directory = tools.client_directory(settings, server["server_version_num"])
        await tools.client_version(directory, server["server_version_num"])
    except SourceError as error:
        obstacles.append(Obstacle("POSTGRESQL_CLIENT", str(error), error.hint))
    return obstacles


async def _state(connection: Connection) -> list[Obstacle]:
    """Look whether the server takes changes at all, has room for a few sessions, and is nobody else's just now."""
    obstacles = []
    if await connection.fetchval("SELECT pg_catalog.pg_is_in_recovery()"):
        obstacles.append(
            Obstacle(
                "SERVER_READ_ONLY",
                "the server is a standby, which takes no changes",
                "Restore into the primary, or promote this server first.",
            )
        )
    free = await catalog.free_connections(connection) + 1  # this one ends before a restore begins
    if free < _SESSIONS:
        obstacles.append(
            Obstacle(
                "CONNECTIONS_FULL",
                f"the server takes only {max(0, free)} more sessions, a restore needs {_SESSIONS}",
                "Stop applications that are connected, or raise max_connections.",
            )
        )
    if holder := await lock_holder(connection):
        obstacles.append(
            Obstacle(
                "SERVER_LOCKED",
                f"another service backs up or restores this server{holder}",
                "Wait until it has finished.",
            )
        )
    return obstacles


async def _collation_version(connection: Connection, database: dict[str, Any]) -> list[Obstacle]:
    """Compare the version of the locale's rules; a restore builds all indexes anew, so that another one is no harm."""
    archived = database.get("collation_version")
    if archived is None:
        return []
    if database["provider"] == "i":
        column = "colllocale" if connection.get_server_version().major >= 17 else "colliculocale"
        name = database["locale"]
    else:
        column, name = "collcollate", database["collate"]
    here = await connection.fetchval(
        f"""SELECT pg_catalog.pg_collation_actual_version(oid) FROM pg_catalog.pg_collation
            WHERE collprovider = $1::text::"char" AND lower(replace({column}, '-', '')) = lower(replace($2, '-', ''))
            ORDER BY collname LIMIT 1""",
        database["provider"],
        name,
    )
    if here is None or here == archived:
        return []
    return [
        Obstacle(
            "COLLATION_VERSION",
            f"database {database['name']!r} was sorted by version {archived} of its locale, this system has {here}",
            "Nothing has to be done: indexes are built anew. The order of text may differ in places.",
        )
    ]


async def _database(connection: Connection, database: dict[str, Any]) -> list[Obstacle]:
    obstacles = []
    for extension in database["extensions"]:
        default = await connection.fetchval(
            "SELECT default_version FROM pg_catalog.pg_available_extensions WHERE name = $1", extension["name"]
        )
        name, version = extension["name"], extension["version"]
        if default is None:
            obstacles.append(
                Obstacle(
                    "EXTENSION_MISSING",
                    f"database {database['name']!r} needs extension {name} {version}, which this server does not have",
                    f"Install the package that brings extension {name} for this PostgreSQL.",
                )
            )
        elif default != version:
            obstacles.append(
                Obstacle(
                    "EXTENSION_VERSION",
                    f"database {database['name']!r} has extension {name} {version}, this server installs {default}",
                    f"Install extension {name} {version}, or allow EXTENSION_VERSION if {default} will do.",
                )
            )
    for tablespace in {database["tablespace"], *database["tablespaces"]} - {"pg_default"}:
        if not await connection.fetchval("SELECT 1 FROM pg_catalog.pg_tablespace WHERE spcname = $1", tablespace):
            obstacles.append(
                Obstacle(
                    "TABLESPACE_MISSING",
                    f"database {database['name']!r} uses tablespace {tablespace!r}, which this server does not have",
                    f"Create it: CREATE TABLESPACE {tablespace} LOCATION '...'.",
                )
            )
    obstacles += await _locale(connection, database)
    return obstacles


async def _locale(connection: Connection, database: dict[str, Any]) -> list[Obstacle]:
    missing = []
    for name in {database["collate"], database["ctype"]} - {"C", "POSIX"}:
        # initdb lists what the operating system offers, spelt with and without the dash of UTF-8
        known = await connection.fetchval(
            """SELECT 1 FROM (SELECT collcollate AS name FROM pg_catalog.pg_collation WHERE collprovider = 'c'
                              UNION SELECT datcollate FROM pg_catalog.pg_database) known
               WHERE lower(replace(name, '-', '')) = lower(replace($1, '-', '')) LIMIT 1""",
            name,
        )
        if not known:
            missing.append(
                Obstacle(
                    "LOCALE_MISSING",
                    f"database {database['name']!r} uses locale {name!r}, which this server does not offer",
                    f"Generate the locale {name} in the server's operating system, then restart the server.",
                )
            )
    return missing


async def _prepared(connection: Connection, replaced: set[str]) -> list[Obstacle]:
    rows = await connection.fetch(
        "SELECT DISTINCT database::text FROM pg_catalog.pg_prepared_xacts WHERE database = ANY($1::text[])",
        sorted(replaced),
    )
    return [
        Obstacle(
            "PREPARED_TRANSACTIONS",
            f"database {row[0]!r} has prepared transactions, so it cannot be set aside",
            "Commit or roll back what pg_prepared_xacts lists.",
        )
        for row in rows
    ]


async def _replication(connection: Connection, replaced: set[str]) -> list[Obstacle]:
    """PostgreSQL never drops a database with a subscription or a logical slot: the old state could not be removed."""
    rows = await connection.fetch(
        """SELECT d.datname::text, 'subscription ' || s.subname FROM pg_catalog.pg_subscription s
           JOIN pg_catalog.pg_database d ON d.oid = s.subdbid WHERE d.datname = ANY($1::text[])
           UNION ALL
           SELECT database::text, 'replication slot ' || slot_name FROM pg_catalog.pg_replication_slots
           WHERE database = ANY($1::text[]) ORDER BY 1, 2""",
        sorted(replaced),
    )
    return [
        Obstacle(
            "LOGICAL_REPLICATION",
            f"database {row[0]!r} has {row[1]}, which keeps it from being replaced",
            f"Note its definition, drop the {row[1]}, restore, then make it again.",
        )
        for row in rows
    ]
