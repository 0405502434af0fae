"""How a live server differs from an archive, as far as catalogs tell: databases, objects, sizes, roles; not rows."""

from __future__ import annotations

from typing import Any

from service.config_sources import PostgresqlSettings
from service.sources.base import StoredSource, StreamReader
from service.sources.postgresql import aside, catalog, roles
from service.sources.postgresql.affected import globals_of
from service.sources.postgresql.connect import connection_to, errors_as_source
from service.terminal import counted, size

_SLACK_BYTES = 16_000_000
"""A database that was restored has not the size that it had: less is no difference."""


async def differences(settings: PostgresqlSettings, stored: StoredSource, reader: StreamReader) -> list[str]:
    """Return one sentence for each difference. Raises SourceError when the server cannot be asked."""
    archived = {database["name"]: database for database in stored.facts["databases"]}
    told: list[str] = []
    async with connection_to(settings, settings.maintenance_database) as connection:
        with errors_as_source("comparing the server with its baseline"):
            live = {database["name"]: database for database in await catalog.databases(connection)}
            present = roles.names(await roles.read_globals(connection, passwords=False))
    told += [f"database {name} is missing" for name in sorted(archived.keys() - live.keys())]
    told += [f"database {each['name']} was made since" for each in aside.added(list(live.values()), archived, settings)]
    wanted = roles.names(await globals_of(stored, reader))
    told += [f"role {name} is missing" for name in sorted(wanted - present)]
    told += [f"role {name} was made since" for name in sorted(present - wanted)]
    for name in sorted(archived.keys() & live.keys()):
        told += _sizes(name, archived[name]["bytes"], live[name]["bytes"])
        if live[name]["allow_connections"]:
            async with connection_to(settings, name) as connection:
                with errors_as_source("comparing the server with its baseline"):
                    now = await catalog.database_facts(connection)
            told += _objects(name, catalog.objects(archived[name], now), catalog.objects(now, archived[name]))
    return told


def _sizes(name: str, then: int, now: int) -> list[str]:
    if abs(now - then) <= _SLACK_BYTES + then // 2:
        return []
    return [f"database {name} has {size(now)}, {size(then)} in the baseline"]


def _objects(name: str, then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    other = sorted(kind for kind in then.keys() | now.keys() if then.get(kind, 0) != now.get(kind, 0))
    counts = ", ".join(f"{_counted(kind, now.get(kind, 0))} instead of {then.get(kind, 0)}" for kind in other[:5])
    more = f" and {len(other) - 5} kinds more" if len(other) > 5 else ""
    return [f"database {name} has other objects: {counts}{more}"] if other else []


_KINDS = {
    "relation:r": ("table",),
    "relation:p": ("partitioned table",),
    "relation:v": ("view",),
    "relation:m": ("materialized view",),
    "relation:S": ("sequence",),
    "relation:f": ("foreign table",),
    "relation:c": ("composite type",),
    "index": ("index", "indexes"),
    "type:d": ("domain",),
    "type:e": ("enumerated type",),
    "type:r": ("range type",),
    "constraint:c": ("check constraint",),
    "constraint:f": ("foreign key",),
    "constraint:n": ("not-null constraint",),
    "constraint:p": ("primary key",),
    "constraint:t": ("constraint trigger",),
    "constraint:u": ("unique constraint",),
    "constraint:x": ("exclusion constraint",),
    "trigger:O": ("trigger",),
    "trigger:D": ("disabled trigger",),
    "trigger:R": ("trigger on replicas", "triggers on replicas"),
    "trigger:A": ("trigger that always fires", "triggers that always fire"),
    "policy": ("policy", "policies"),
}
"""What `catalog.database_facts` counts, in words; of what is not here the name is one."""


def _counted(kind: str, count: int) -> str:
    return counted(count, *_KINDS.get(kind, (kind,)))
