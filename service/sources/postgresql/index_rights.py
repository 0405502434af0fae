"""The rights that it takes to build an index again: PostgreSQL runs its functions as the owner of the table.

An index stays when that right is taken from the owner later, and he may have it by a membership that the server does
not have before the exchange. So rights are lent while indexes are built. Nobody gets power by that: everybody may run
what has its caller's rights alone, and an owner what he could run when the backup was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.sources.postgresql.connect import Connection, quote_identifier

_OWN_POWER = "(p.prosecdef OR NOT l.lanpltrusted)"
"""Whoever runs such a function can do more than by himself; whoever runs another one cannot."""

_RESTRICTED = """
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
    WHERE p.proacl IS NOT NULL AND p.prokind <> 'p'
      AND NOT EXISTS (SELECT FROM aclexplode(p.proacl) WHERE grantee = 0 AND privilege_type = 'EXECUTE')
"""
"""Functions that not everybody may run, those of PostgreSQL itself among them."""


async def used(connection: Connection) -> list[dict[str, Any]]:
    """Tell of each restricted function with a power of its own that an index runs, and whether the owner may run it.

    Each is {"index", "function", "owner", "may_run"}. What PostgreSQL itself brings stands in no pg_depend, but in the
    index's expressions.
    """
    rows = await connection.fetch(
        f"""SELECT DISTINCT i.indexrelid::regclass::text AS index, r.oid::regprocedure::text AS function,
                   pg_get_userbyid(t.relowner)::text AS owner,
                   has_function_privilege(t.relowner, r.oid, 'EXECUTE') AS may_run
            FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class t ON t.oid = i.indrelid
            CROSS JOIN LATERAL regexp_matches(concat(i.indexprs::text, i.indpred::text), ':(?:op)?funcid (\\d+)', 'g')
                AS found(oid)
            JOIN (SELECT p.oid {_RESTRICTED} AND {_OWN_POWER}) AS r ON r.oid = found.oid[1]::oid
            WHERE i.indisvalid AND t.relpersistence <> 't' ORDER BY 1, 2"""
    )
    return [dict(row) for row in rows]


async def lend(connection: Connection, used: Sequence[dict[str, Any]]) -> list[str]:
    """Lend the rights in a scratch database; return the statements that take them back."""
    rows = await connection.fetch(
        f"SELECT p.oid::regprocedure::text, p.oid::bigint, {_OWN_POWER} {_RESTRICTED} ORDER BY 1"
    )
    harmless = [function for function, _, own_power in rows if not own_power]
    lent = [(", ".join(harmless), "PUBLIC")] if harmless else []
    for function, oid, _ in rows:
        for owner in sorted({each["owner"] for each in used if each["function"] == function and each["may_run"]}):
            if not await connection.fetchval(
                "SELECT has_function_privilege($1::name, $2::bigint::oid, 'EXECUTE')", owner, oid
            ):
                lent.append((function, quote_identifier(owner)))
    for functions, role in lent:
        await connection.execute(f"GRANT EXECUTE ON FUNCTION {functions} TO {role}")
    return [f"REVOKE EXECUTE ON FUNCTION {functions} FROM {role}" for functions, role in lent]
