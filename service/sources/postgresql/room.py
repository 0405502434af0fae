"""What scratch databases would take of a server: space where its files are, and connections."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from service.config_sources import PostgresqlSettings
from service.errors import Obstacle
from service.sources.base import Room, StoredSource
from service.sources.postgresql import catalog
from service.sources.postgresql.connect import Connection, connection_to, errors_as_source

_LOG_SHARE = 0.2
"""Of the archived size, for the write-ahead log: rows of big tables leave none, indexes and small tables do."""
_SPACE_FACTOR = 1.2
"""The rows of single tables need about their archived size, and write-ahead log besides."""
_HERE = frozenset({"localhost", "127.0.0.1", "::1"})


async def room(settings: PostgresqlSettings, stored: StoredSource) -> Room:
    """Say what the archived databases would take of this server. Touches nothing. Raises SourceError."""
    async with connection_to(settings, settings.maintenance_database) as connection:
        with errors_as_source("looking for room on the server"):
            server = await catalog.server_facts(connection)
            free = await catalog.free_connections(connection)
            places = await _tablespaces(connection)
    data = server["data_directory"]
    if not _on_this_machine(settings, data):
        unseen = f"the server's files ({data or 'no right to see where'} on {settings.host}) are not on this machine"
        return Room({}, unseen=unseen, free_connections=free)
    return Room(_needed(Path(data), places, stored.facts["databases"]), free_connections=free)


def space(settings: PostgresqlSettings, server: dict[str, Any], archived_bytes: int) -> list[Obstacle]:
    """Compare free space with need, when the server's files are on this machine; a remote server cannot be asked."""
    directory = server["data_directory"]
    if not _on_this_machine(settings, directory):
        return []
    disk = os.statvfs(directory)
    free, need = disk.f_bavail * disk.f_frsize, round(archived_bytes * _SPACE_FACTOR)
    if free >= need:
        return []
    return [
        Obstacle(
            "SPACE",
            f"the databases need about {need / 1e9:.1f} GB beside the live ones, {directory} has {free / 1e9:.1f} GB",
            "Free or add space where the server keeps its data.",
        )
    ]


def _on_this_machine(settings: PostgresqlSettings, data: str | None) -> bool:
    # a server elsewhere may have its files below a name that is a directory here, too
    here = settings.host.startswith("/") or settings.host in _HERE
    return here and data is not None and Path(data).is_dir()


async def _tablespaces(connection: Connection) -> dict[str, str]:
    rows = await connection.fetch(
        "SELECT spcname::text, pg_catalog.pg_tablespace_location(oid) FROM pg_catalog.pg_tablespace"
    )
    return {row[0]: row[1] for row in rows if row[1]}


def _needed(data: Path, places: dict[str, str], databases: list[dict[str, Any]]) -> dict[Path, int]:
    needed = {data: 0, data / "pg_wal": 0}
    for database in databases:
        home = Path(places.get(database["tablespace"], data))
        needed[home] = needed.get(home, 0) + database["bytes"]
        needed[data / "pg_wal"] += round(database["bytes"] * _LOG_SHARE)
        for other in database["tablespaces"]:
            needed.setdefault(Path(places.get(other, data)), 0)
    return needed
