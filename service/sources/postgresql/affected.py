"""Who is affected by a restore into this server: sessions that it would end, roles that it would make or change."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from service.config_sources import PostgresqlSettings
from service.errors import Obstacle
from service.sources.base import PlanItem, StoredSource, StreamReader
from service.sources.postgresql import roles
from service.sources.postgresql.connect import Connection

LOOKS, LOOK_SECONDS = 4, 0.4
"""A session that is gone after so many looks was on its way out, as after any short query."""


async def globals_of(stored: StoredSource, reader: StreamReader) -> roles.Globals:
    """Read the archive's roles. Raises CorruptArchive, StorageError."""
    [stream] = [stream for stream in stored.streams if stream.kind == "postgresql.globals"]
    async with contextlib.aclosing(reader.read(stream)) as pieces:
        wanted = roles.load_globals(b"".join([piece async for piece in pieces]))
    if not stored.facts["server"]["superuser"]:
        for role in wanted["roles"]:
            role.pop("password", None)  # not known, which is something else than none
    return wanted


async def live_connections(
    connection: Connection, settings: PostgresqlSettings, names: Sequence[str]
) -> list[Obstacle]:
    """Tell of each database among `names` that others are connected to, and who they are."""
    found = await _sessions(connection, settings, names)
    for _ in range(LOOKS):
        if not found:
            break
        await asyncio.sleep(LOOK_SECONDS)
        still = await _sessions(connection, settings, names)
        found = {pid: row for pid, row in still.items() if pid in found}
    told: dict[str, dict[str, int]] = {}
    for row in found.values():
        who = f"{row['application'] or 'a program without a name'} as {row['role']}{row['origin']}"
        counts = told.setdefault(row["database"], {})
        counts[who] = counts.get(who, 0) + 1
    return [
        Obstacle(
            "LIVE_CONNECTIONS",
            f"database {name!r} is in use: {', '.join(f'{count} x {who}' for who, count in sorted(counts.items()))}",
            "Stop these applications, or have restore.hooks.stop do that; allow LIVE_CONNECTIONS to have them"
            " disconnected when the databases are exchanged.",
        )
        for name, counts in sorted(told.items())
    ]


async def _sessions(
    connection: Connection, settings: PostgresqlSettings, names: Sequence[str]
) -> dict[int, dict[str, Any]]:
    rows = await connection.fetch(
        """SELECT pid, datname::text AS database, application_name AS application, usename::text AS role,
                  coalesce(' from ' || host(client_addr), '') AS origin
           FROM pg_catalog.pg_stat_activity
           WHERE datname = ANY($1::text[]) AND backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid()
             AND NOT (usename = current_user AND application_name = $2)""",
        list(names),
        settings.application_name,
    )
    return {row["pid"]: dict(row) for row in rows}


async def role_items(
    connection: Connection, stored: StoredSource, wanted: roles.Globals, *, superuser: bool
) -> list[PlanItem]:
    """Say of each role what becomes of it. Without all roles wanted, those that are there stay as they are."""
    current = await roles.read_globals(connection, passwords=superuser)
    me = await connection.fetchval("SELECT current_user::text")
    present = roles.names(current)
    items = []
    every = stored.whole or not stored.facts["databases"]
    changes = roles.changes(wanted, current) if every else {}
    for name in sorted(roles.names(wanted)):
        if name not in present:
            items.append(PlanItem(f"role {name}", "create", "" if every else "if a restored database needs it"))
        elif name == me and name in changes:
            items.append(PlanItem(f"role {name}", "keep", "the restore connects as it: its attributes stay"))
        elif name in changes:
            items.append(PlanItem(f"role {name}", "replace", f"other {', '.join(changes[name])}"))
    items += [PlanItem(f"role {name}", "keep", "not in this archive") for name in sorted(present - roles.names(wanted))]
    return items
