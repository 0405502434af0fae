"""What a backup of a database does not keep as it is, and is told of instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from service.sources.postgresql.catalog import not_of_extension
from service.sources.postgresql.connect import Connection

_TO_NOBODY = """EXISTS (SELECT FROM pg_catalog.aclexplode(initprivs) WHERE grantee <> 0
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid = grantee))"""
_FORGET = f"DELETE FROM pg_catalog.pg_init_privs WHERE {' '.join(_TO_NOBODY.split())}"


async def unkept(connection: Connection) -> dict[str, list[str]]:
    """Read what `warnings` tells of, from inside the database."""
    found = {
        "subscriptions": """
            SELECT s.subname::text FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid
            WHERE d.datname = current_database() ORDER BY 1""",
        "in_pg_catalog": f"""
            SELECT p.oid::regprocedure::text FROM pg_catalog.pg_proc p
            WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.oid >= 16384
              AND {not_of_extension("pg_proc", "p.oid")}
            UNION ALL SELECT o.oid::regoperator::text FROM pg_catalog.pg_operator o
            WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oid >= 16384
              AND {not_of_extension("pg_operator", "o.oid")}
            UNION ALL SELECT 'type ' || t.oid::regtype::text FROM pg_catalog.pg_type t
            WHERE t.typnamespace = 'pg_catalog'::regnamespace AND t.oid >= 16384
              AND (t.typtype IN ('d', 'e', 'r') OR (t.typtype = 'b' AND t.typcategory <> 'A'))
              AND {not_of_extension("pg_type", "t.oid")}
            UNION ALL SELECT 'collation ' || pg_catalog.quote_ident(c.collname) FROM pg_catalog.pg_collation c
            WHERE c.collnamespace = 'pg_catalog'::regnamespace AND c.oid >= 16384
              AND {not_of_extension("pg_collation", "c.oid")}
              -- pg_import_system_collations adds hundreds: only those that something uses are missed
              AND EXISTS (SELECT FROM pg_catalog.pg_depend d
                          WHERE d.refclassid = 'pg_catalog.pg_collation'::regclass AND d.refobjid = c.oid)
            ORDER BY 1""",
        # DROP OWNED leaves it there before PostgreSQL 17, and pg_dump takes rights from a role that has no name
        "rights_of_nobody": f"""
            SELECT DISTINCT e.extname::text FROM pg_catalog.pg_init_privs i
            JOIN pg_catalog.pg_depend d ON d.classid = i.classoid AND d.objid = i.objoid AND d.deptype = 'e'
            JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid WHERE {_TO_NOBODY} ORDER BY 1""",
    }
    if connection.get_server_version().major >= 14:
        found["detach_pending"] = """
            SELECT pg_catalog.format('ALTER TABLE %s DETACH PARTITION %s FINALIZE',
                                     inhparent::regclass, inhrelid::regclass)
            FROM pg_catalog.pg_inherits WHERE inhdetachpending ORDER BY 1"""
    return {key: [row[0] for row in await connection.fetch(query)] for key, query in found.items()}


def warnings(facts: dict[str, Any]) -> Iterator[str]:
    """Say what is not kept of one database."""
    name = facts["name"]
    if lost := facts["subscriptions"]:
        yield f"subscriptions of database {name!r} are not in this backup: {', '.join(lost)}"
    if lost := facts["in_pg_catalog"]:
        yield (
            f"what was added to pg_catalog of database {name!r} is not in this backup, and what uses it cannot be"
            f" restored: {', '.join(lost)}"
        )
    if lost := facts.get("detach_pending"):
        yield (
            f"partitions of database {name!r} whose detaching was interrupted come back attached,"
            f" with their rows; finish it, and back up again: {'; '.join(lost)}"
        )
    if lost := facts["rights_of_nobody"]:
        yield (
            f"a restore of database {name!r} will fail at rights that extensions gave to a role that was dropped"
            f" ({', '.join(lost)}); run this there as a superuser, and back up again: {_FORGET}"
        )
    if lost := [each for each in facts["index_functions"] if not each["may_run"]]:
        told = ", ".join(f"{each['index']} (runs {each['function']})" for each in lost)
        yield (
            f"a restore may fail to build these indexes of database {name!r}, since the owner of the table may not run"
            f" their function (grant EXECUTE, or drop them): {told}"
        )
