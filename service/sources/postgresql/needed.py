"""The roles that a restore of single databases makes: those that are missing and that the databases refer to.

Which ones these are is not told by the archive, but by the restored copies: PostgreSQL notes in pg_shdepend whom it
needs for owners, privileges and policies. So all missing roles are made at first, and what nobody needs is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import asyncpg

from service.sources.postgresql.connect import Connection, quote_identifier
from service.sources.postgresql.roles import Globals

NO_CHANGE: Globals = {"roles": [], "memberships": [], "settings": [], "parameters": []}


async def keep_needed(
    connection: Connection, made: Iterable[str], databases: Sequence[Mapping[str, Any]], oids: Sequence[int]
) -> list[str]:
    """Drop the roles of `made` that the copies with these OIDs do not need; return the others, sorted."""
    rows = await connection.fetch(
        """SELECT DISTINCT r.rolname::text FROM pg_catalog.pg_shdepend d
           JOIN pg_catalog.pg_roles r ON r.oid = d.refobjid
           WHERE d.refclassid = 'pg_catalog.pg_authid'::regclass
             AND (d.dbid = ANY($1::bigint[]::oid[])
                  OR (d.classid = 'pg_catalog.pg_database'::regclass AND d.objid = ANY($1::bigint[]::oid[])))""",
        list(oids),
    )
    needed = {row[0] for row in rows} | {row["role"] for database in databases for row in database["settings"]}
    return [name for name in sorted(made) if name in needed or not await drop_role(connection, name)]


_AS_MADE = """
    SELECT NOT (r.rolcanlogin OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication)
       AND a.rolpassword IS NULL
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_auth_members m WHERE r.oid IN (m.roleid, m.member))
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_db_role_setting s WHERE s.setrole = r.oid)
    FROM pg_catalog.pg_roles r JOIN pg_catalog.pg_authid a USING (oid) WHERE r.rolname = $1
"""


async def drop_untouched_role(connection: Connection, name: str) -> None:
    """Drop a role that was made for a restore (`roles.creation`), unless somebody has made more of it since."""
    if await connection.fetchval(_AS_MADE, name):
        await drop_role(connection, name)


async def drop_role(connection: Connection, name: str) -> bool:
    """Drop a role, and tell whether it is gone: one that something has come to depend on stays."""
    try:
        await connection.execute(f"DROP ROLE IF EXISTS {quote_identifier(name)}")
    except asyncpg.DependentObjectsStillExistError:
        return False
    return True


def only(wanted: Globals, names: Iterable[str], present: Iterable[str]) -> Globals:
    """Return what the archive says of the roles `names` alone; memberships only with roles that are `present`, too.

    Who had granted something may not be here, or not be one who may grant: unless it is one of `names`, it is left out
    (None), and whoever restores grants instead.
    """
    mine = set(names)
    known = mine | set(present)

    def joins(row: Mapping[str, Any]) -> bool:
        ends = {row["role"], row["member"]}
        return bool(ends & mine) and all(name in known or name.startswith("pg_") for name in ends)

    def granted(row: dict[str, Any]) -> dict[str, Any]:
        return row if row["grantor"] in mine else {**row, "grantor": None}

    return {
        "roles": [role for role in wanted["roles"] if role["name"] in mine],
        "memberships": [granted(row) for row in wanted["memberships"] if joins(row)],
        "settings": [row for row in wanted["settings"] if row["role"] in mine],
        "parameters": [granted(row) for row in wanted["parameters"] if row["grantee"] in mine],
    }
