"""Looks at one PostgreSQL source as a backup and a restore would, and says what is in the way."""

from __future__ import annotations

import time
from typing import Any

from service.config_sources import PostgresqlSettings
from service.errors import ServiceError
from service.finding import Finding
from service.sources.postgresql import catalog, tools
from service.sources.postgresql.connect import Connection, connection_to, errors_as_source

CLOCKS_APART_SECONDS = 120.0
"""So far apart, times in logs, archives and databases no longer belong together."""


async def diagnose(settings: PostgresqlSettings) -> list[Finding]:
    """Return one finding each on the connection, the client programs, privileges and what is selected."""
    name = f"source {settings.name}"
    try:
        async with connection_to(settings, settings.maintenance_database) as connection:
            with errors_as_source("looking at the server"):
                server = await catalog.server_facts(connection)
                every = await catalog.databases(connection)
                reads_all = await _reads_all(connection)
                apart = await _clock(connection)
    except ServiceError as error:
        return [Finding(name, False, str(error), error.hint)]
    findings = [Finding(name, True, f"PostgreSQL {server['server_version']} as role {server['role']}")]
    findings.append(await _client(settings, server))
    findings.append(_privileges(name, server, reads_all=reads_all))
    if apart > CLOCKS_APART_SECONDS:
        told = f"the server's clock and this machine's are {apart:.0f} s apart"
        findings.append(Finding(f"{name} clock", None, told, "Have both machines keep time (NTP)."))
    try:
        chosen, _ = catalog.select(every, settings.include, settings.exclude)
    except ServiceError as error:
        return [*findings, Finding(f"{name} databases", False, str(error), error.hint)]
    size = sum(database["bytes"] for database in chosen)
    names = ", ".join(database["name"] for database in chosen)
    return [*findings, Finding(f"{name} databases", True, f"{names} ({size / 1e6:.0f} MB)")]


async def _reads_all(connection: Connection) -> bool:
    if connection.get_server_version().major < 14:
        return False
    granted: bool = await connection.fetchval("SELECT pg_catalog.pg_has_role('pg_read_all_data', 'USAGE')")
    return granted


async def _clock(connection: Connection) -> float:
    """Return by how many seconds the server's clock and ours differ, at least."""
    before = time.time()
    theirs = float(await connection.fetchval("SELECT extract(epoch FROM pg_catalog.clock_timestamp())"))
    return max(theirs - time.time(), before - theirs, 0.0)


async def _client(settings: PostgresqlSettings, server: dict[str, Any]) -> Finding:
    name = f"source {settings.name} client"
    try:
        directory = tools.client_directory(settings, server["server_version_num"])
        version = await tools.client_version(directory, server["server_version_num"])
    except ServiceError as error:
        return Finding(name, False, str(error), error.hint)
    return Finding(name, True, f"pg_dump {version} in {directory}")


def _privileges(name: str, server: dict[str, Any], *, reads_all: bool) -> Finding:
    name = f"{name} privileges"
    if server["superuser"]:
        return Finding(name, True, "superuser: can back up everything and restore")
    if reads_all:
        return Finding(
            name, None, "can back up all rows, but not the passwords of roles, and cannot restore", "Use a superuser."
        )
    return Finding(
        name,
        False,
        f"role {server['role']} can neither read everything nor restore",
        f"GRANT pg_read_all_data TO {server['role']}, or use a superuser.",
    )
