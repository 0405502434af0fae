"""What the system catalogs say: databases, tables, sequences, extensions. Plain queries, read inside the snapshot."""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.errors import SourceError
from service.sources.postgresql.connect import Connection, qualified, quote_literal

# Types whose binary form holds no OID and is the same on every server of one major version. Anything else travels as
# text: reg* and arrays of user-defined types carry OIDs, composites carry the OIDs of their columns. Not tsquery: the
# server sends an empty one in a form that it refuses to read.
# fmt: off
_SCALARS = (
    "bool", "bytea", "char", "name", "int8", "int2", "int4", "text", "oid", "json",
    "point", "lseg", "path", "box", "polygon", "line", "float4", "float8", "circle", "money",
    "macaddr", "macaddr8", "inet", "cidr", "bpchar", "varchar", "date", "time", "timestamp", "timestamptz",
    "interval", "timetz", "bit", "varbit", "numeric", "uuid", "pg_lsn", "tsvector", "jsonb",
    "int4range", "numrange", "tsrange", "tstzrange", "daterange", "int8range",
)
# fmt: on
BINARY_TYPES = frozenset(_SCALARS) | frozenset(f"_{name}" for name in _SCALARS if name not in ("char", "money"))

_USER_SCHEMA = "n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)'"


def not_of_extension(catalog: str, oid: str) -> str:
    return f"""NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                WHERE d.classid = 'pg_catalog.{catalog}'::regclass AND d.objid = {oid} AND d.deptype = 'e')"""


# Objects whose numbers must be the same in the restored database; what an extension brings is its own business.
_OBJECT_COUNTS = (
    f"""SELECT 'relation:' || c.relkind::text, count(*) FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE {_USER_SCHEMA} AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c') AND c.relpersistence <> 't'
          AND {not_of_extension("pg_class", "c.oid")} GROUP BY 1""",
    f"""SELECT 'index', count(*) FROM pg_catalog.pg_index i
        JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE {_USER_SCHEMA} AND i.indisvalid AND c.relpersistence <> 't'
          AND {not_of_extension("pg_class", "i.indrelid")}""",
    f"""SELECT 'function', count(*) FROM pg_catalog.pg_proc p
        JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
        WHERE {_USER_SCHEMA} AND {not_of_extension("pg_proc", "p.oid")}""",
    f"""SELECT 'type:' || t.typtype::text, count(*) FROM pg_catalog.pg_type t
        JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
        WHERE {_USER_SCHEMA} AND t.typtype IN ('d', 'e', 'r') AND {not_of_extension("pg_type", "t.oid")} GROUP BY 1""",
    f"""SELECT 'constraint:' || k.contype::text, count(*) FROM pg_catalog.pg_constraint k
        JOIN pg_catalog.pg_namespace n ON n.oid = k.connamespace
        WHERE {_USER_SCHEMA} AND {not_of_extension("pg_class", "k.conrelid")}
          AND {not_of_extension("pg_type", "k.contypid")} GROUP BY 1""",
    f"""SELECT 'trigger:' || t.tgenabled::text, count(*) FROM pg_catalog.pg_trigger t
        WHERE NOT t.tgisinternal AND {not_of_extension("pg_class", "t.tgrelid")} GROUP BY 1""",
    f"""SELECT 'policy', count(*) FROM pg_catalog.pg_policy p
        WHERE {not_of_extension("pg_class", "p.polrelid")}""",
    f"""SELECT 'rule', count(*) FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE {_USER_SCHEMA} AND r.rulename <> '_RETURN' AND {not_of_extension("pg_class", "c.oid")}""",
    "SELECT 'large object', count(*) FROM pg_catalog.pg_largeobject_metadata",
    f"""SELECT 'event trigger', count(*) FROM pg_catalog.pg_event_trigger e
        WHERE {not_of_extension("pg_event_trigger", "e.oid")}""",
    "SELECT 'publication', count(*) FROM pg_catalog.pg_publication",
    f"""SELECT 'foreign server', count(*) FROM pg_catalog.pg_foreign_server f
        WHERE {not_of_extension("pg_foreign_server", "f.oid")}""",
    f"""SELECT 'statistics object', count(*) FROM pg_catalog.pg_statistic_ext s
        WHERE {not_of_extension("pg_class", "s.stxrelid")}""",
)


@dataclass(frozen=True, slots=True)
class Table:
    """An ordinary table (or leaf partition) whose rows are copied. `pages` are 8 KiB heap pages."""

    oid: int
    schema: str
    name: str
    pages: int
    bytes: int
    columns: tuple[str, ...]
    """In order; generated columns left out."""
    binary: bool
    """Whether every column's type may travel in binary COPY."""
    condition: str
    """For configuration tables of extensions: the WHERE clause of pg_extension_config_dump, else empty."""
    configuration: bool
    """Whether the rows belong to an extension's configuration table."""
    load_via: tuple[str, str] | None
    """The partitioned root that rows must be loaded through, since their hash may place them elsewhere."""

    @property
    def qualified(self) -> str:
        """The quoted name."""
        return qualified(self.schema, self.name)


async def server_facts(connection: Connection) -> dict[str, Any]:
    """Describe the server and the role that reads it."""
    row = await connection.fetchrow(
        """SELECT current_setting('server_version') AS server_version,
                  current_setting('server_version_num')::int AS server_version_num,
                  CASE WHEN pg_has_role('pg_read_all_settings', 'USAGE')
                       THEN current_setting('data_directory') END AS data_directory,
                  current_user::text AS role, rolsuper AS superuser
           FROM pg_catalog.pg_roles WHERE rolname = current_user"""
    )
    assert row is not None
    return dict(row)


async def free_connections(connection: Connection) -> int:
    """Say how many more sessions the server takes from others than superusers."""
    free: int = await connection.fetchval(
        """SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
                  - (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend')"""
    )
    return free


async def databases(connection: Connection) -> list[dict[str, Any]]:
    """Describe every database but template0 and template1, ordered by name."""
    version = connection.get_server_version().major
    locale = "d.datlocale" if version >= 17 else "d.daticulocale" if version >= 15 else "NULL"
    rows = await connection.fetch(
        f"""SELECT d.oid::bigint, d.datname::text AS name, r.rolname::text AS owner,
                  pg_encoding_to_char(d.encoding)::text AS encoding, d.datcollate::text AS collate,
                  d.datctype::text AS ctype,
                  {"d.datlocprovider::text" if version >= 15 else "'c'::text"} AS provider,
                  {locale}::text AS locale,
                  {"d.daticurules" if version >= 16 else "NULL"}::text AS icu_rules,
                  {"d.datcollversion" if version >= 15 else "NULL"}::text AS collation_version,
                  t.spcname::text AS tablespace, d.datconnlimit AS connection_limit,
                  d.datallowconn AS allow_connections, d.datistemplate AS template,
                  shobj_description(d.oid, 'pg_database') AS comment, d.datacl IS NOT NULL AS has_acl,
                  pg_database_size(d.oid)::bigint AS bytes
           FROM pg_catalog.pg_database d
           JOIN pg_catalog.pg_roles r ON r.oid = d.datdba JOIN pg_catalog.pg_tablespace t ON t.oid = d.dattablespace
           WHERE d.datname NOT IN ('template0', 'template1') ORDER BY d.datname"""
    )
    found = [dict(row) for row in rows]
    for database in found:
        database["acl"] = await _database_acl(connection, database["oid"]) if database.pop("has_acl") else None
        database["settings"] = await _settings_of_database(connection, database["oid"])
    return found


_OF_A_RESTORE = re.compile(r"__(r|old)_[0-9a-f]{8}_[0-9]+")


def select(
    found: Sequence[dict[str, Any]], include: Sequence[str], exclude: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Return the databases to back up, and those that match but are left out as {path, reason}.

    A database is selected when its name matches one of `include` and none of `exclude` (shell patterns). Raises
    SourceError when nothing is, and when a plain name in `include` is no database: a misspelt or renamed one must not
    go unnoticed.
    """
    chosen, left_out = matching(found, include, exclude)
    names = {database["name"] for database in found}
    absent = [name for name in include if name not in names and not set(name) & set("*?[")]
    if absent or not chosen:
        raise SourceError(
            f"the server has no database {', '.join(absent)}"
            if absent
            else f"no database of the server matches include {list(include)} without exclude {list(exclude)}",
            hint="Compare the names with those that `psql -l` shows, and correct include or exclude.",
        )
    return chosen, left_out


def matching(
    found: Sequence[dict[str, Any]], include: Sequence[str], exclude: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Return the databases that the patterns select, and those that match but are left out as {path, reason}."""
    chosen, left_out = [], []
    for database in found:
        name = database["name"]
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in include):
            continue
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude):
            continue
        if reason := _reason_against(database):
            left_out.append({"path": name, "reason": reason})
        else:
            chosen.append(database)
    return chosen, left_out


def _reason_against(database: dict[str, Any]) -> str:
    if database["template"]:
        return "the database is a template"
    if not database["allow_connections"] or database["connection_limit"] == -2:
        return "the database does not accept connections"
    if _OF_A_RESTORE.search(database["name"][-30:]):
        return "the database belongs to a restore that was not committed or rolled back"
    return ""


async def moved(connection: Connection, now: Connection, found: Sequence[Table]) -> list[str]:
    """Name the tables that were truncated, rewritten, dropped, renamed or given other columns before they were locked.

    Their rows are not to be had under this snapshot: a TRUNCATE or a rewriting ALTER leaves an empty table to those
    who look from before it, and a column that came in the place of one with its name is empty to them. `connection`
    looks from its snapshot, `now` at what is there.
    """
    query = """SELECT c.oid::bigint, ROW(n.nspname, c.relname, c.relfilenode, (
                   SELECT array_agg(ROW(a.attnum, a.attname, a.atttypid, a.attisdropped)::text ORDER BY a.attnum)
                   FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0))::text
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE c.oid = ANY($1::bigint[]::oid[])"""
    oids = [table.oid for table in found]
    then, present = [{row[0]: row[1] for row in await each.fetch(query, oids)} for each in (connection, now)]
    return [table.qualified for table in found if then.get(table.oid) != present.get(table.oid)]


async def _database_acl(connection: Connection, oid: int) -> list[dict[str, Any]]:
    rows = await connection.fetch(
        """SELECT pg_get_userbyid(a.grantor)::text AS grantor,
                  CASE WHEN a.grantee = 0 THEN NULL ELSE pg_get_userbyid(a.grantee)::text END AS grantee,
                  a.privilege_type AS privilege, a.is_grantable AS grantable
           FROM pg_catalog.pg_database d, aclexplode(d.datacl) WITH ORDINALITY
                AS a(grantor, grantee, privilege_type, is_grantable, position)
           WHERE d.oid = $1::bigint::oid ORDER BY a.position""",
        oid,
    )
    return [dict(row) for row in rows]


async def _settings_of_database(connection: Connection, oid: int) -> list[dict[str, Any]]:
    rows = await connection.fetch(
        """SELECT r.rolname::text AS role, s.setconfig AS settings
           FROM pg_catalog.pg_db_role_setting s LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
           WHERE s.setdatabase = $1::bigint::oid ORDER BY r.rolname NULLS FIRST""",
        oid,
    )
    return [dict(row) for row in rows]


async def tables(connection: Connection) -> list[Table]:
    """List what has rows to copy: ordinary tables, leaf partitions, configuration tables of extensions."""
    rows = await connection.fetch(
        f"""
        WITH configuration AS (
            SELECT unnest(e.extconfig) AS oid, unnest(e.extcondition) AS condition FROM pg_catalog.pg_extension e)
        SELECT c.oid::bigint, n.nspname::text AS schema, c.relname::text AS name,
               coalesce(pg_relation_size(c.oid), 0)::bigint AS heap,
               -- not pg_table_size: it looks at ten files of each table, which takes long where there are many
               coalesce(pg_relation_size(nullif(c.reltoastrelid, 0)), 0)::bigint AS toast,
               k.oid IS NOT NULL AS configuration, coalesce(k.condition, '') AS condition,
               CASE WHEN c.relispartition THEN (
                   SELECT ARRAY[rn.nspname::text, rc.relname::text]
                   FROM pg_catalog.pg_class rc JOIN pg_catalog.pg_namespace rn ON rn.oid = rc.relnamespace
                   WHERE rc.oid = pg_catalog.pg_partition_root(c.oid) AND EXISTS (
                       SELECT FROM pg_catalog.pg_partition_ancestors(c.oid) a
                       JOIN pg_catalog.pg_partitioned_table p ON p.partrelid = a.relid WHERE p.partstrat = 'h'))
               END AS load_via
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN configuration k ON k.oid = c.oid
        WHERE c.relkind = 'r' AND c.relpersistence <> 't'
          AND (k.oid IS NOT NULL OR ({_USER_SCHEMA} AND {not_of_extension("pg_class", "c.oid")}))
        ORDER BY c.oid"""
    )
    columns = await _columns(connection)
    utf8 = await connection.fetchval("SELECT current_setting('server_encoding') = 'UTF8'")
    found = []
    for row in rows:
        names, binary = columns.get(row["oid"], ((), False))
        found.append(
            Table(
                oid=row["oid"],
                schema=row["schema"],
                name=row["name"],
                pages=row["heap"] // 8192,
                bytes=row["heap"] + row["toast"],
                columns=names,
                binary=bool(binary and utf8 and names),
                condition=row["condition"],
                configuration=row["configuration"],
                load_via=tuple(row["load_via"]) if row["load_via"] else None,
            )
        )
    return found


async def _columns(connection: Connection) -> dict[int, tuple[tuple[str, ...], bool]]:
    """Map each table's OID to its columns and whether all of them may travel in binary."""
    rows = await connection.fetch(
        """WITH RECURSIVE base AS (
               SELECT t.oid, t.oid AS root, t.typtype, t.typbasetype FROM pg_catalog.pg_type t
               UNION ALL
               SELECT b.oid, t.oid, t.typtype, t.typbasetype
               FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.typbasetype WHERE b.typtype = 'd')
           SELECT a.attrelid::bigint AS oid, array_agg(a.attname::text ORDER BY a.attnum) AS names,
                  bool_and(b.typtype = 'e' OR (b.root < 16384 AND t.typname = ANY($1::text[]))) AS binary
           FROM pg_catalog.pg_attribute a
           JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relkind = 'r'
           JOIN base b ON b.oid = a.atttypid AND b.typtype <> 'd' JOIN pg_catalog.pg_type t ON t.oid = b.root
           WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
           GROUP BY a.attrelid""",
        sorted(BINARY_TYPES),
    )
    return {row["oid"]: (tuple(row["names"]), row["binary"]) for row in rows}


async def sequences(connection: Connection) -> list[dict[str, Any]]:
    """Read where every sequence stands. Not part of any snapshot, so never behind the rows of one taken before."""
    rows = await connection.fetch(
        f"""WITH configuration AS (SELECT unnest(extconfig) AS oid FROM pg_catalog.pg_extension)
            SELECT n.nspname::text AS schema, c.relname::text AS name
            FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind = 'S' AND c.relpersistence <> 't'
              AND (c.oid IN (SELECT oid FROM configuration)
                   OR ({_USER_SCHEMA} AND {not_of_extension("pg_class", "c.oid")}))
            ORDER BY 1, 2"""
    )
    found: list[dict[str, Any]] = []
    for start in range(0, len(rows), 500):
        query = " UNION ALL ".join(
            f"SELECT {quote_literal(row['schema'])} AS schema, {quote_literal(row['name'])} AS name, "
            f"last_value AS value, is_called AS called FROM {qualified(row['schema'], row['name'])}"
            for row in rows[start : start + 500]
        )
        found += [dict(row) for row in await connection.fetch(query)]
    return found


async def materialized_views(connection: Connection) -> list[tuple[str, str]]:
    """List the populated materialized views, each after those that it reads, also through plain views."""
    rows = await connection.fetch(
        """SELECT DISTINCT r.ev_class::bigint AS view, d.refobjid::bigint AS reads
           FROM pg_catalog.pg_rewrite r
           JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid
                AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid <> r.ev_class
           JOIN pg_catalog.pg_class c ON c.oid = d.refobjid AND c.relkind IN ('v', 'm')"""
    )
    reads: dict[int, list[int]] = {}
    for row in rows:
        reads.setdefault(row["view"], []).append(row["reads"])
    populated = {
        row["oid"]: (row["schema"], row["name"])
        for row in await connection.fetch(
            """SELECT c.oid::bigint, n.nspname::text AS schema, c.relname::text AS name
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE c.relkind = 'm' AND c.relispopulated AND NOT EXISTS (
                   SELECT FROM pg_catalog.pg_depend d
                   WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
               ORDER BY 2, 3"""
        )
    }
    ordered: dict[int, None] = {}

    def visit(view: int, path: frozenset[int]) -> None:
        if view in ordered or view in path:
            return
        for read in reads.get(view, ()):
            visit(read, path | {view})
        ordered[view] = None

    for view in populated:
        visit(view, frozenset())
    return [populated[view] for view in ordered if view in populated]


async def to_analyze(connection: Connection, sampled: Mapping[tuple[str, str], float]) -> list[str]:
    """Name every table to gather statistics of, the dearest last. A partitioned table stands for its partitions.

    `sampled` says how many bytes of a table (schema, name) ANALYZE will look at.
    """
    rows = await connection.fetch(
        """SELECT n.nspname::text, c.relname::text, c.relispartition,
                  (CASE WHEN c.relispartition THEN pg_catalog.pg_partition_root(c.oid) ELSE c.oid END)::bigint
           FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
           WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND NOT c.relisshared"""
    )
    cost: dict[int, float] = defaultdict(float)
    for schema, name, _, unit in rows:
        cost[unit] += sampled.get((schema, name), 0.0)
    units = [(cost[unit], qualified(schema, name)) for schema, name, is_partition, unit in rows if not is_partition]
    return [name for _, name in sorted(units)]


async def database_facts(connection: Connection) -> dict[str, Any]:
    """Describe one database from inside: what the restored one must have."""
    counts: dict[str, int] = {}
    for query in _OBJECT_COUNTS:
        counts |= {row[0]: row[1] for row in await connection.fetch(query) if row[1]}
    extensions = await connection.fetch(
        """SELECT e.extname::text AS name, e.extversion AS version, n.nspname::text AS schema,
                  pg_get_userbyid(e.extowner)::text AS owner
           FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace ORDER BY 1"""
    )
    schemas = await connection.fetch(
        f"SELECT n.nspname::text FROM pg_catalog.pg_namespace n WHERE {_USER_SCHEMA} ORDER BY 1"
    )
    tablespaces = await connection.fetch(
        """SELECT DISTINCT t.spcname::text FROM pg_catalog.pg_class c
           JOIN pg_catalog.pg_tablespace t ON t.oid = c.reltablespace
           WHERE t.spcname NOT IN ('pg_default', 'pg_global') ORDER BY 1"""
    )
    invalid = await connection.fetchval(
        f"""SELECT count(*) FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE {_USER_SCHEMA} AND c.relkind = 'I' AND NOT i.indisvalid
              AND {not_of_extension("pg_class", "i.indrelid")}"""
    )
    return {
        "invalid_partitioned_indexes": invalid,
        "objects": dict(sorted(counts.items())),
        "extensions": [dict(row) for row in extensions],
        "schemas": [row[0] for row in schemas],
        "tablespaces": [row[0] for row in tablespaces],
    }


def objects(facts: dict[str, Any], other: dict[str, Any]) -> dict[str, int]:
    """Return what `database_facts` counted, for a comparison with `other`.

    pg_dump keeps an index of a partitioned table whether it is valid or not, and a restore makes it what its parts are.
    Archives of earlier versions count only valid ones.
    """
    counts: dict[str, int] = facts["objects"]
    if invalid := "invalid_partitioned_indexes" in other and facts.get("invalid_partitioned_indexes"):
        counts = counts | {"index": counts.get("index", 0) + invalid}
    return counts
