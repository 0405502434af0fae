"""Settings of roles and databases that this server does not take, found before anything live is touched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from service.errors import StageFailed
from service.sources.base import Record
from service.sources.postgresql import roles
from service.sources.postgresql.connect import Connection, tried


async def require_taken(
    connection: Connection, wanted: roles.Globals, record: Record, databases: Sequence[dict[str, Any]]
) -> None:
    """Try each setting that an exchange, or a rollback of it, makes to have `wanted`, and take it back at once.

    The roles and the copies of `databases` must be there; those have their settings tried, too. Raises
    StageFailed, which names all that are refused.
    """
    role = await connection.fetchval("SELECT current_user::text")
    current = await roles.read_globals(connection, passwords=False)
    changed = roles.changed_settings(wanted, current, keep=[role], everybody=record["all_roles"])
    refused = []
    for name, archived, present in changed:
        refused += await _refused(connection, f"{_who(name)} of the archive", roles.role_target(name), archived)
        refused += await _refused(connection, f"{_who(name)} of this server", roles.role_target(name), present)
    for who, target, settings in _of_databases(databases, [entry["scratch"] for entry in record["databases"]]):
        refused += await _refused(connection, who, target, settings)
    if refused:
        raise StageFailed(
            f"PostgreSQL does not take these settings: {'; '.join(refused)}",
            hint="Give the server what they name, such as a locale. Reset one of this server that is of no use any more"
            " (ALTER ROLE ... RESET ...). `--only databases` leaves roles that are there as they are.",
        )


def _who(role: str | None) -> str:
    return "all roles" if role is None else f"role {role!r}"


def _of_databases(
    databases: Sequence[dict[str, Any]], copies: Iterable[str]
) -> Iterator[tuple[str, str, Sequence[str]]]:
    for database, copy in zip(databases, copies, strict=True):
        for row in database["settings"]:
            where = f"database {database['name']!r} of the archive"
            who = where if row["role"] is None else f"{_who(row['role'])} in {where}"
            yield who, roles.database_target(copy, row["role"]), row["settings"]


async def _refused(connection: Connection, who: str, target: str, settings: Iterable[str]) -> list[str]:
    """Return sentences on those of `settings` (`name=value`) that the server does not take."""
    told = []
    for setting in settings:
        await connection.execute("BEGIN")
        if error := await tried(connection, roles.set_statement(target, setting)):
            told.append(f"{setting.partition('=')[0]} of {who}: {error}")
        await connection.execute("ROLLBACK")
    return told
