"""Databases that the source selects and the archive does not have: a restore that wants exactly the archive's state
takes them away with the old state. They are renamed, dropped by `commit`, and come back with everything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from service.config_sources import PostgresqlSettings
from service.errors import SwapFailed
from service.sources.base import Record
from service.sources.postgresql import catalog

Entry = dict[str, Any]


def added(
    live: Sequence[dict[str, Any]], archived: Iterable[str], settings: PostgresqlSettings
) -> list[dict[str, Any]]:
    """Return the live databases that the source selects and the archive does not have.

    Never those to connect to for work on the server, templates, or what another restore keeps.
    """
    spared = {*archived, settings.maintenance_database, "postgres"}
    chosen, _ = catalog.matching(live, settings.include, settings.exclude)
    return [database for database in chosen if database["name"] not in spared]


def entry(database: Mapping[str, Any], old: str) -> Entry:
    """Return what the record has of one database that is to be renamed to `old`."""
    return {
        "name": database["name"],
        "old": old,
        "live_oid": database["oid"],
        "live_allowed_connections": database["allow_connections"],
    }


def still_live(record: Record, now: Mapping[int, str]) -> list[Entry]:
    """Return those that have their own names yet."""
    return [each for each in record.get("aside", ()) if now.get(each["live_oid"]) == each["name"]]


def away(record: Record, now: Mapping[int, str]) -> list[Entry]:
    """Return those that were renamed."""
    return [each for each in record.get("aside", ()) if now.get(each["live_oid"]) == each["old"]]


def require_free(entries: Iterable[Entry], now: Mapping[int, str]) -> None:
    """Raise SwapFailed when another database took the name of one that is to come back."""
    if taken := [each["name"] for each in entries if each["name"] in now.values()]:
        raise SwapFailed(
            f"database {taken[0]!r} was made since, and the one of that name before the restore is to come back",
            hint=f"Rename or drop the new {taken[0]}, then roll back again.",
        )
