"""Extensions, foreign data, publications, large objects."""

from __future__ import annotations

from tests.random_schemas.data_types import any_type
from tests.random_schemas.world import DBA, Column, Table, Type, World, kind, literal, quoted

_TYPES = {
    "hstore": Type("hstore", ('\'"a b"=>"c\\"d", e=>NULL\'', "''"), ordered=True),
    "citext": Type("citext", ("'CiText'", "'citext '"), ordered=True),
    "ltree": Type("ltree", ("'a.b.c'", "''"), ordered=True),
    "cube": Type("cube", ("'(1,2),(3,4)'", "'0'"), ordered=True),
    "isn": Type("isbn", ("'978-0-393-04002-9'",), ordered=True),
    "seg": Type("seg", ("'1.0 .. 2.5'", "'~3'"), ordered=True),
    "intarray": Type("query_int", ("'1 & (2 | !3)'",)),
    "lo": Type("lo", ("4294967295",)),
}
_OTHERS = (
    "pg_trgm", "btree_gist", "btree_gin", "bloom", "pgcrypto", "unaccent", "dict_int", "dict_xsyn", "tablefunc",
    "dblink",
    "fuzzystrmatch", "uuid-ossp", "intagg", "pg_stat_statements", "tsm_system_rows", "earthdistance", "moddatetime",
    "pg_visibility", "pageinspect", "xml2", "tcn", "autoinc", "refint", "adminpack", "file_fdw", "amcheck", "sslinfo",
)  # fmt: skip
_INDEXED = {
    "hstore": "USING gin ({})", "ltree": "USING gist ({})", "cube": "USING gist ({})", "seg": "USING gist ({})",
    "pg_trgm": "USING gin (({}::text) {}.gin_trgm_ops)", "btree_gist": "USING gist ({})", "btree_gin": "USING gin ({})",
    "bloom": "USING bloom (({}::int) {}.int4_ops) WITH (length = 32)", "citext": "({})",
}  # fmt: skip


@kind
def extension(w: World) -> None:
    """One that this PostgreSQL brings, with a column of its type and an index of its kind."""
    left = sorted({*_TYPES, *_OTHERS} - w.extensions)
    if not left:
        return
    name = w.pick(left)
    w.extensions.add(name)
    place = w.schema()
    if name == "earthdistance":
        w.do(f"CREATE EXTENSION IF NOT EXISTS cube SCHEMA {place}")
        w.extensions.add("cube")
    where = "" if name == "adminpack" else f"SCHEMA {place}"
    w.do(f"CREATE EXTENSION {quoted(name)} {where} {'CASCADE' if name == 'earthdistance' else ''}")
    w.note("EXTENSION", quoted(name))
    table, key, column = w.placed(), w.new(), w.new()
    its = _TYPES.get(name)
    kind_of = f"{place}.{its.sql}" if its else "bigint"
    w.do(f"CREATE TABLE {table} ({key} bigint PRIMARY KEY, {column} {kind_of})")
    values = its.values if its else ("1", "2")
    for number, value in enumerate(values, 1):
        w.do(f"INSERT INTO {table} VALUES ({number}, {value}{f'::{kind_of}' if its else ''})")
    if name in _INDEXED:
        w.do(f"CREATE INDEX {w.new()} ON {table} {_INDEXED[name].format(column, place)}")
    w.tables.append(Table(table, [Column(column, Type(kind_of, values))], key, len(values)))
    if its:
        w.types.append(Type(kind_of, tuple(f"{value}::{kind_of}" for value in values), its.ordered))


@kind
def no_plpgsql(w: World) -> None:
    """The language that every database begins with is replaced by one of its own."""
    if "plpgsql" in w.extensions or w.statements:
        return
    w.extensions.add("plpgsql")
    w.do("DROP EXTENSION plpgsql")
    w.do("CREATE EXTENSION plpgsql")


@kind
def foreign_server(w: World) -> None:
    wrapper, name = w.new(), w.new()
    if w.chance() and w.schema():
        w.do(f"CREATE EXTENSION IF NOT EXISTS postgres_fdw SCHEMA {w.schema()}")
        w.extensions.add("postgres_fdw")
        wrapper = "postgres_fdw"
        options = f"host '127.0.0.1', dbname {w.text()}"
        w.do(f"CREATE SERVER {name} TYPE 'odd ''type' VERSION '1' FOREIGN DATA WRAPPER {wrapper} OPTIONS ({options})")
        w.do(f"CREATE USER MAPPING FOR {w.role()} SERVER {name} OPTIONS (user 'far', password {w.text()})")
    else:
        w.do(f'CREATE FOREIGN DATA WRAPPER {wrapper} OPTIONS ("an option" {w.text()})')
        w.note("FOREIGN DATA WRAPPER", wrapper)
        w.do(f"CREATE SERVER {name} FOREIGN DATA WRAPPER {wrapper}")
        w.do(f'CREATE USER MAPPING FOR PUBLIC SERVER {name} OPTIONS ("an option" {w.text()})')
    w.servers.append(name)
    w.note("SERVER", name)


@kind
def foreign_table(w: World) -> None:
    if not w.servers:
        w.make("foreign_server")
    name, column, other = w.placed(), w.new(), w.new()
    its = any_type(w)
    w.do(
        f"CREATE FOREIGN TABLE {name} ({column} bigint NOT NULL DEFAULT 7, {other} {its.sql}, CHECK ({column} > 0))"
        f" SERVER {w.pick(w.servers)}"
    )
    w.note("FOREIGN TABLE", name)


@kind
def publication(w: World) -> None:
    name = w.new()
    found = w.table(lambda table: table.relkind == "r" and table.permanent)
    other = w.table(lambda table: table.permanent and table.relkind in "rp")
    forms = [
        f"FOR TABLE {found.name} ({found.key}) WHERE ({found.key} > 1) WITH (publish = 'insert')",
        f"FOR TABLE ONLY {found.name} WITH (publish_via_partition_root = true)",
        f"FOR TABLE {other.name} WITH (publish_via_partition_root)",
        f"FOR TABLES IN SCHEMA {w.schema()}",
        "FOR ALL TABLES WITH (publish = 'truncate, delete')",
        "",
    ]
    w.later.append(f"CREATE PUBLICATION {name} {w.pick(forms)}")  # updates of keyless tables are refused from now on
    w.later.append(f"COMMENT ON PUBLICATION {name} IS {w.text()}")


@kind
def large_object(w: World) -> None:
    number = 1_000_000 + len(w.names)
    w.names.add(f"large object {number}")
    contents = w.pick(("'\\x00010203ff'", "''", "decode(repeat('ab', 5000), 'hex')"))
    w.do(f"SELECT lo_from_bytea({number}, {contents})")
    if w.chance(0.3):
        w.do(f"SELECT lo_put({number}, 100000, '\\xcafe')")
    w.note("LARGE OBJECT", str(number))
    w.do(f"COMMENT ON LARGE OBJECT {number} IS {w.text()}")


@kind
def own_extension_rights(w: World) -> None:
    """Rights on what an extension brought."""
    place = w.schema()
    if "pgcrypto" in w.extensions:
        return
    w.extensions.add("pgcrypto")
    w.do(f"CREATE EXTENSION pgcrypto SCHEMA {place}")
    w.last.append(f"REVOKE EXECUTE ON FUNCTION {place}.crypt(text, text) FROM PUBLIC")
    w.last.append(f"GRANT EXECUTE ON FUNCTION {place}.crypt(text, text) TO {quoted(DBA)} WITH GRANT OPTION")


@kind
def subscription(w: World) -> None:
    """A switched off one without a slot: it is told that a backup has none."""
    name = w.new()
    w.last.append(
        f"CREATE SUBSCRIPTION {name} CONNECTION {literal('host=127.0.0.1')} PUBLICATION p WITH (connect = false)"
    )
    w.subscriptions.append(name[1:-1].replace('""', '"'))
