"""Is what came back what there was? By content, not by counts.

A state is a plain mapping from what a thing is to what it is like, so that a difference reads as a sentence.
Rows are digested by the server: two 64-bit sums over the text of each row, so that order does not matter and
every column of every row does. Definitions are compared as pg_dump tells them, and what pg_dump leaves to
pg_dumpall (roles, memberships, settings, owners of databases) as the catalogs have it.

Left out, since a restore cannot and need not keep it: OIDs, statistics, physical order (also of roles in a policy), and
in which hash partition a row lies when the partition key is an enum (the hash is of an OID); such tables are read
through their root.
"""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Iterable, Mapping

import asyncpg

from demo.compare_files import sqlite_dump, tree_listing
from demo.postgresql_server import PostgresqlServer

__all__ = ["ServerState", "diff", "fingerprint", "sqlite_dump", "tree_listing"]

ServerState = dict[str, str]
"""What there is -> what it is like."""

_LONGEST_TEXT_DIFF = 60  # lines

# Settings of a database or a role must not change how a value reads, nor stop a long query.
_SESSION = """
SET search_path = ''; SET timezone = 'UTC'; SET datestyle = 'ISO, MDY'; SET intervalstyle = 'postgres';
SET extra_float_digits = 1; SET bytea_output = 'hex'; SET xmlbinary = 'base64'; SET lc_monetary = 'C';
SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0;
SET row_security = off; SET quote_all_identifiers = off; SET standard_conforming_strings = on
"""

_DATABASES = """
SELECT 'databases' AS name, string_agg(quote_ident(datname), ', ' ORDER BY datname) AS value FROM pg_catalog.pg_database
"""
_ROLES = """
SELECT rolname AS name, format('%s, verifier digest %s, comment %s', to_jsonb(r) - 'oid' - 'rolpassword',
       coalesce(md5(rolpassword), '-'), coalesce(shobj_description(oid, 'pg_authid'), '-')) AS value
FROM pg_catalog.pg_authid AS r WHERE rolname !~ '^pg_'
"""
_MEMBERSHIPS = """
SELECT format('%I in %I', m.member::regrole, m.roleid::regrole) AS name,
       format('admin option %s, granted by %s', m.admin_option, m.grantor::regrole) AS value
FROM pg_catalog.pg_auth_members AS m WHERE m.member::regrole::text !~ '^pg_'
"""
_SETTINGS = """
SELECT format('of role %s in database %s', coalesce(r.rolname, '(all)'), coalesce(d.datname, '(all)')) AS name,
       array_to_string(ARRAY(SELECT unnest(setconfig) ORDER BY 1), E'\\n') AS value
FROM pg_catalog.pg_db_role_setting
LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = setrole LEFT JOIN pg_catalog.pg_database AS d ON d.oid = setdatabase
"""
_PARAMETERS = """
SELECT parname AS name, array_to_string(ARRAY(SELECT unnest(paracl)::text ORDER BY 1), ', ') AS value
FROM pg_catalog.pg_parameter_acl
"""
_TABLESPACES = """
SELECT spcname AS name,
       format('%s %s %s %s', spcowner::regrole, spcacl, spcoptions, pg_tablespace_location(oid)) AS value
FROM pg_catalog.pg_tablespace
"""
_DATABASE = """
SELECT format('owner %s, encoding %s, collate %s, ctype %s, provider %s, icu %s, template %s, connections %s %s, '
              'tablespace %s, rights %s, comment %s',
              datdba::regrole, pg_encoding_to_char(encoding), datcollate, datctype, datlocprovider,
              coalesce(daticulocale, '-'), datistemplate, datallowconn, datconnlimit,
              (SELECT spcname FROM pg_catalog.pg_tablespace AS t WHERE t.oid = dattablespace),
              array_to_string(ARRAY(SELECT unnest(coalesce(datacl, acldefault('d', datdba)))::text ORDER BY 1), ', '),
              coalesce(shobj_description(oid, 'pg_database'), '-')) AS value
FROM pg_catalog.pg_database WHERE datname = current_database()
"""
_EXTENSIONS = """
SELECT extname AS name, format('version %s, schema %s, owner %s, carries %s', extversion, extnamespace::regnamespace,
       extowner::regrole, ARRAY(SELECT unnest(extconfig)::regclass::text || ' ' || unnest(extcondition))) AS value
FROM pg_catalog.pg_extension
"""
_LARGE_OBJECTS = """
SELECT oid::text AS name, format('owner %s, rights %s, comment %s, %s bytes, sha256 %s', lomowner::regrole,
       array_to_string(ARRAY(SELECT unnest(coalesce(lomacl, acldefault('L', lomowner)))::text ORDER BY 1), ', '),
       coalesce(obj_description(oid, 'pg_largeobject'), '-'),
       length(lo_get(oid)), encode(sha256(lo_get(oid)), 'hex')) AS value
FROM pg_catalog.pg_largeobject_metadata
"""
_RELATIONS = """
WITH by_root AS (
    SELECT p.partrelid AS root FROM pg_catalog.pg_partitioned_table AS p
    WHERE p.partstrat = 'h' AND EXISTS (
        SELECT FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
        WHERE a.attrelid = p.partrelid AND a.attnum = ANY (p.partattrs::int2[]) AND t.typtype = 'e')
)
SELECT c.oid::regclass::text AS name, c.relkind::text AS kind, c.relispopulated AS filled,
       c.relpersistence::text AS persistence, c.oid IN (SELECT root FROM by_root) AS whole,
       (SELECT coalesce(string_agg(quote_ident(attname) || ' ' || format_type(atttypid, atttypmod), ', '
                                   ORDER BY attnum), '')
        FROM pg_catalog.pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) AS columns
FROM pg_catalog.pg_class AS c
WHERE (c.relkind IN ('r', 'm', 'S') OR c.oid IN (SELECT root FROM by_root)) AND c.relpersistence <> 't'
  AND c.relnamespace::regnamespace::text !~ '^(pg_catalog|information_schema|pg_toast.*)$'
  AND NOT EXISTS (SELECT FROM by_root, pg_partition_tree(root) AS leaf WHERE leaf.relid = c.oid AND leaf.relid <> root)
ORDER BY c.relpages DESC
"""


async def fingerprint(
    server: PostgresqlServer, databases: Iterable[str], *, unlogged: bool = True, jobs: int = 2
) -> ServerState:
    """Return the state of the server's roles and settings, and of these databases with all they hold.

    Nothing may write meanwhile: each table is read at its own moment. `unlogged=False` leaves the rows of unlogged
    tables out, which a crash of the server empties. `jobs` connections a database read at once.
    """
    state: ServerState = {}
    connection = await _connect(server, "postgres")
    try:
        for kind, query in (
            ("server's", _DATABASES),
            ("role", _ROLES),
            ("membership", _MEMBERSHIPS),
            ("settings", _SETTINGS),
            ("parameter", _PARAMETERS),
            ("tablespace", _TABLESPACES),
        ):
            state |= {f"{kind} {row['name']}": row["value"] for row in await connection.fetch(query)}
    finally:
        await connection.close()
    for database in databases:
        state |= await _database(server, database, unlogged=unlogged, jobs=jobs)
    return state


def diff(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return one sentence for each difference; nothing when the states are equal."""
    found = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        if old is None:
            found.append(f"{name}: is new")
        elif new is None:
            found.append(f"{name}: is missing")
        elif "\n" in old or "\n" in new:
            lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), "before", "after", n=2, lineterm=""))
            more = len(lines) - _LONGEST_TEXT_DIFF
            shown = [*lines[:_LONGEST_TEXT_DIFF], *([f"... {more} more lines"] if more > 0 else [])]
            found.append(f"{name}: changed\n" + "\n".join(shown))
        else:
            found.append(f"{name}: was {old!r}, is {new!r}")
    return found


async def _connect(server: PostgresqlServer, database: str) -> asyncpg.Connection[asyncpg.Record]:
    connection = await server.connect(database)
    await connection.execute(_SESSION)
    return connection


async def _database(server: PostgresqlServer, database: str, *, unlogged: bool, jobs: int) -> ServerState:
    state: ServerState = {}
    connection = await _connect(server, database)
    try:
        state["definition"] = await connection.fetchval(_DATABASE)
        for kind, query in (("extension", _EXTENSIONS), ("large object", _LARGE_OBJECTS)):
            state |= {f"{kind} {row['name']}": row["value"] for row in await connection.fetch(query)}
        relations = await connection.fetch(_RELATIONS)
    finally:
        await connection.close()

    async def work() -> None:
        own = await _connect(server, database)
        try:
            while relations:
                row = relations.pop(0)
                if unlogged or row["persistence"] != "u":
                    state.update(await _relation(own, row))
        finally:
            await own.close()

    async with asyncio.TaskGroup() as group:
        schema = group.create_task(asyncio.to_thread(_schema, server, database))
        for _ in range(jobs):
            group.create_task(work())
    state["schema"] = schema.result()
    return {f"database {database}: {name}": value for name, value in state.items()}


async def _relation(connection: asyncpg.Connection[asyncpg.Record], relation: asyncpg.Record) -> ServerState:
    name = relation["name"]
    if relation["kind"] == "S":
        last, called = (await connection.fetch(f"SELECT last_value, is_called FROM {name}"))[0]
        return {f"sequence {name}": f"last value {last}, {'called' if called else 'not called'}"}
    kind = "materialized view" if relation["kind"] == "m" else "table"
    if not relation["filled"]:
        return {f"{kind} {name} rows": "never filled", f"{kind} {name} columns": relation["columns"]}
    only = "" if relation["whole"] or kind != "table" else "ONLY "
    # OFFSET 0 keeps the server from making each row's text twice. The alias is one that no column has.
    row = await connection.fetchrow(
        f"""SELECT count(*), sum(hashtextextended(x, 0)), sum(hashtextextended(x, 1))
            FROM (SELECT "the row itself"::text COLLATE pg_catalog."C" AS x
                  FROM {only}{name} AS "the row itself" OFFSET 0) AS y"""
    )
    assert row is not None
    count, first, second = row
    digest = f"{count} rows, digest {int(first or 0) % 2**64:016x}{int(second or 0) % 2**64:016x}"
    return {f"{kind} {name} rows": digest, f"{kind} {name} columns": relation["columns"]}


def _schema(server: PostgresqlServer, database: str) -> str:
    """Return what `pg_dump --schema-only` writes, without what differs between two dumps of the same thing."""
    text = server.run("pg_dump", ["--schema-only", "--encoding=UTF8", "--dbname", server.dsn(database)])
    text = re.sub(r"^\\(un)?restrict .*$", r"\\\1restrict", text, flags=re.M)
    text = re.sub(r"^-- Dumped (from|by) .*$", r"-- Dumped \1", text, flags=re.M)
    return re.sub(r"^CREATE POLICY .*$", _sort_roles, text, flags=re.M)


def _sort_roles(policy: re.Match[str]) -> str:
    """Sort the roles of a policy: pg_dump names them as they happen to lie in pg_authid."""
    identifier = r'(?:"(?:[^"]|"")*"|[^\s",]+)'
    return re.sub(
        rf" TO ({identifier}(?:, {identifier})*)",
        lambda roles: " TO " + ", ".join(sorted(re.findall(identifier, roles[1]))),
        policy[0],
        count=1,
    )
