"""Tables: columns of any type with what may be said of them, constraints, indexes, inheritance, rows."""

from __future__ import annotations

import re

from tests.random_schemas.data_types import INTEGER, any_type
from tests.random_schemas.world import Column, Table, World, kind, literal


def columns(w: World, most: int = 4) -> list[Column]:
    """Think of some columns."""
    found = []
    for _ in range(w.dice.randint(0, most)):
        its = any_type(w)
        found.append(Column(w.new(), its, its.filled or w.chance(0.2)))
    return found


def defined(w: World, column: Column, *, plain: bool = False, checked: bool = True) -> str:
    """Return the definition of a column; a `plain` one has its type and nothing more than it needs."""
    words = [column.name, column.type.sql]
    if not plain and column.type.text and w.collations and w.chance():
        words.append(f"COLLATE {w.pick(w.collations)}")
    if column.filled and not column.type.filled:
        words.append(w.pick(("NOT NULL", f"CONSTRAINT {w.new()} NOT NULL")))
    if not plain and w.chance(0.4):
        words.append(f"DEFAULT {w.pick(column.type.values)}")
    if not plain and checked and w.chance(0.2):
        words.append(f"CONSTRAINT {w.new()} CHECK ({column.name}::text IS NOT NULL OR {column.name} IS NULL)")
    return " ".join(words)


def fill(w: World, table: Table, rows: int) -> None:
    """Add rows with the next keys."""
    stored = [column for column in table.columns if not column.computed]
    names = ", ".join([table.key, *(column.name for column in stored)])
    for key in range(table.rows + 1, table.rows + rows + 1):
        cells = [
            "NULL" if not (column.filled or column.type.filled) and w.chance(0.2) else w.pick(column.type.values)
            for column in stored
        ]
        w.do(f"INSERT INTO {table.name} ({names}) OVERRIDING SYSTEM VALUE VALUES ({', '.join([str(key), *cells])})")
    table.rows += rows


def _key(w: World, table: str, name: str) -> str:
    """Define the key; how its numbers are made differs."""
    how = w.dice.randrange(5)
    options = w.pick(("", "(INCREMENT -3 MINVALUE -100 MAXVALUE 50 CYCLE)", "(START 1000 CACHE 20)"))
    if how < 2:
        named = f"(SEQUENCE NAME {_schema(table)}.{w.new()} START WITH 7)" if how == 0 and w.chance() else options
        return f"{name} {w.pick(('int', 'bigint'))} GENERATED {w.pick(('ALWAYS', 'BY DEFAULT'))} AS IDENTITY {named}"
    if how == 2:
        return f"{name} {w.pick(('serial', 'bigserial'))}"
    if how == 3 and w.sequences:
        return f"{name} bigint DEFAULT nextval({literal(w.pick(w.sequences))}::regclass)"
    return f"{name} bigint"


def _schema(name: str) -> str:
    """Return the schema of a qualified name."""
    found = re.match(r'"(?:[^"]|"")*"', name)
    assert found
    return found[0]


@kind
def table(w: World) -> None:
    name, key = w.placed(), w.new()
    mine = columns(w)
    parts = [_key(w, name, key), *(defined(w, column) for column in mine)]
    computed = w.new()
    if w.chance(0.4):
        expression = f"{w.function()}({key}::bigint)" if w.chance() else f"({key} * 2)::bigint"
        parts.append(f"{computed} bigint GENERATED ALWAYS AS ({expression}) STORED")
        mine.append(Column(computed, INTEGER, computed=True))
    w.dice.shuffle(parts)
    parts.append(f"CONSTRAINT {w.new()} PRIMARY KEY ({key}){w.pick(('', ' WITH (fillfactor = 70)'))}")
    if w.chance(0.3):
        parts.append(f"CHECK ({key} > -1000) NO INHERIT")
    unlogged = w.chance(0.15)
    options = w.pick(
        ("", "fillfactor = 50", "autovacuum_enabled = off, toast.autovacuum_enabled = off", "parallel_workers = 3")
    )
    w.do(
        f"CREATE {'UNLOGGED ' if unlogged else ''}TABLE {name} ({', '.join(parts)})"
        + (f" WITH ({options})" if options else "")
    )
    found = Table(name, mine, key, 0, permanent=not unlogged)
    _tuned(w, found)
    fill(w, found, w.dice.randint(0, 4))
    w.tables.append(found)
    w.note("TABLE", name)
    w.note("COLUMN", f"{name}.{key}")


def _tuned(w: World, table: Table) -> None:
    for column in w.some(table.columns, 0, 2) if table.columns else ():
        change = f"ALTER TABLE {table.name} ALTER {column.name} SET"
        if column.type.sql in ("text", "bytea", "jsonb", "numeric"):
            w.do(f"{change} STORAGE {w.pick(('PLAIN', 'EXTERNAL', 'EXTENDED', 'MAIN'))}")
            w.do(f"{change} COMPRESSION {w.pick(('pglz', 'lz4', 'default'))}")
        w.do(f"{change} STATISTICS {w.pick((0, 1, 777))}")
        w.do(f"{change} (n_distinct = {w.pick(('-0.5', '3'))})")


@kind
def no_columns(w: World) -> None:
    name = w.placed()
    w.do(f"CREATE TABLE {name} ()")
    w.do(f"INSERT INTO {name} DEFAULT VALUES")
    w.note("TABLE", name)


@kind
def dropped_columns(w: World) -> None:
    name, key, gone, gone_too, added = (w.placed(), *(w.new() for _ in range(4)))
    old = any_type(w)
    columns = f"{gone} {old.sql} DEFAULT {old.values[0]}, {key} bigint PRIMARY KEY, {gone_too} text DEFAULT 'x'"
    w.do(f"CREATE TABLE {name} ({columns})")
    found = Table(name, [], key, 0)
    fill(w, found, 2)
    its = any_type(w)
    w.do(f"ALTER TABLE {name} DROP {gone}, ADD {added} {its.sql} DEFAULT {its.values[0]}, DROP {gone_too}")
    found.columns.append(Column(added, its))
    fill(w, found, 2)
    w.tables.append(found)
    w.note("TABLE", name)


@kind
def of_type(w: World) -> None:
    composite, name, key, other = w.placed(), w.placed(), w.new(), w.new()
    its = any_type(w)
    w.do(f"CREATE TYPE {composite} AS ({key} bigint, {other} {its.sql})")
    w.do(f"CREATE TABLE {name} OF {composite} ({key} PRIMARY KEY, {other} WITH OPTIONS DEFAULT {w.pick(its.values)})")
    found = Table(name, [Column(other, its)], key, 0, family=True)
    fill(w, found, 2)
    w.tables.append(found)
    w.note("TABLE", name)


@kind
def of_rows(w: World) -> None:
    """A table whose columns are rows of another one, and lists of them."""
    other, name = w.table(), w.placed()
    w.do(f"CREATE TABLE {name} (one {other.name}, many {other.name}[])")
    w.do(f"INSERT INTO {name} SELECT t, ARRAY[t, NULL] FROM {other.name} AS t LIMIT 2")


@kind
def children(w: World) -> None:
    """Parents and a child of both, which share a column and a check."""
    shared, key = w.new(), w.new()
    its = any_type(w)
    parents = []
    for _ in range(w.dice.randint(1, 3)):
        name, own = w.placed(), w.new()
        w.do(
            f"CREATE TABLE {name} ({key} bigint NOT NULL, {shared} {its.sql}, {own} int DEFAULT {w.dice.randint(1, 9)},"
            f" CONSTRAINT same CHECK ({key} > 0), CHECK ({own} <> 77) NO INHERIT)"
        )
        found = Table(name, [Column(shared, its)], key, 0, unique=False, family=True)
        fill(w, found, w.dice.randint(0, 2))
        parents.append(found)
        w.note("TABLE", name)
    child, extra = w.placed(), w.new()
    w.do(
        f"CREATE TABLE {child} ({extra} text, {key} bigint DEFAULT 5, CONSTRAINT same CHECK ({key} > 0))"
        f" INHERITS ({', '.join(parent.name for parent in parents)})"
    )
    found = Table(child, [Column(shared, its)], key, 0, unique=False, family=True)
    fill(w, found, 2)
    w.tables += [*parents, found]
    if w.chance():
        grandchild = w.placed()
        w.do(f"CREATE TABLE {grandchild} (PRIMARY KEY ({key})) INHERITS ({child})")
        w.do(f"INSERT INTO {grandchild} ({key}) VALUES (8)" if not its.filled else "SELECT 1")
        w.do(f"ALTER TABLE {grandchild} NO INHERIT {child}" if w.chance(0.3) else "SELECT 1")


@kind
def foreign_key(w: World) -> None:
    """A reference to another table or to the same one; several make cycles."""
    target = w.table(lambda table: table.unique and table.permanent and table.rows > 0)
    source = w.table(lambda table: table.relkind in "rp" and table.permanent and not table.family)
    column, constraint = w.new(), w.new()
    w.do(f"ALTER TABLE {source.name} ADD {column} bigint")
    w.do(f"UPDATE {source.name} SET {column} = 1 + {source.key} % {target.rows} WHERE {source.key} % 3 <> 0")
    not_valid = source.relkind == "r" and w.chance(0.25)
    if not_valid:
        w.do(f"UPDATE {source.name} SET {column} = 999 WHERE {source.key} % 2 = 0")
    actions = w.pick(("", "ON DELETE CASCADE", "ON DELETE SET NULL ON UPDATE CASCADE", "ON UPDATE RESTRICT"))
    when = w.pick(("", "DEFERRABLE", "DEFERRABLE INITIALLY DEFERRED", "NOT DEFERRABLE"))
    match = w.pick(("", "MATCH FULL"))
    w.do(
        f"ALTER TABLE {source.name} ADD CONSTRAINT {constraint} FOREIGN KEY ({column})"
        f" REFERENCES {target.name} {match} {actions} {when}{' NOT VALID' if not_valid else ''}"
    )
    source.columns.append(Column(column, INTEGER))
    w.note("CONSTRAINT", f"{constraint} ON {source.name}")


@kind
def constraint(w: World) -> None:
    found, name = w.table(lambda table: table.relkind == "r" and not table.family), w.new()
    key = found.key
    others = [column for column in found.columns if column.type.ordered]
    second = f", {w.pick(others).name}" if others else ""
    forms = [
        f"UNIQUE ({key}{second})",
        f"UNIQUE NULLS NOT DISTINCT ({key}{second}) DEFERRABLE INITIALLY DEFERRED",
        f"EXCLUDE USING gist (int8range({key}, {key} + 1) WITH &&) WHERE ({key} > 0)",
        f"EXCLUDE USING gist (int8range({key}, {key} + 1) WITH &&) DEFERRABLE",
        f"EXCLUDE USING btree ({key} WITH =) INCLUDE ({key})",
        f"EXCLUDE USING hash (({key}::text) WITH =)",
        f"CHECK ({key} < 0) NOT VALID",
        f"CHECK ({w.function()}({key}) IS NOT NULL)",
    ]
    form = w.pick(forms)
    if form.endswith("NOT VALID"):
        w.later.append(f"ALTER TABLE {found.name} ADD CONSTRAINT {name} {form}")
    else:
        w.do(f"ALTER TABLE {found.name} ADD CONSTRAINT {name} {form}")
        w.note("CONSTRAINT", f"{name} ON {found.name}")


@kind
def index(w: World) -> None:
    found, name = w.table(lambda table: table.relkind in "rp"), w.new()
    key = found.key
    others = [column for column in found.columns if column.type.ordered]
    column = w.pick(others).name if others else key
    collation = w.pick(w.collations or ['pg_catalog."C"'])
    forms = [
        f"({key} DESC NULLS LAST, {column}) WHERE {key} > 1",
        f"(({key}::text) text_pattern_ops) INCLUDE ({key}) WITH (fillfactor = 60, deduplicate_items = off)",
        f"USING hash ({key})",
        f"USING brin (({key}::bigint) int8_minmax_multi_ops(values_per_range = 16)) WITH (pages_per_range = 4, "
        f"autosummarize)",
        f"USING gin ((ARRAY[{key}::bigint])) WITH (fastupdate = off)",
        f"USING gist (int8range({key}, NULL), box(point({key}, 1), point(0, 0)))",
        f"USING spgist ((({key}::text)))",
        f"({w.function()}({key}), ({key} + 1))",
        f"(({key}::text) COLLATE {collation})",
    ]
    form = w.pick(forms)
    w.do(f"CREATE INDEX {name} ON {found.name} {form}")


@kind
def replica_identity(w: World) -> None:
    found, name = w.table(lambda table: table.relkind == "r" and table.unique), w.new()
    if w.chance():
        w.do(f"CREATE UNIQUE INDEX {name} ON {found.name} ({found.key})")
        w.do(f"ALTER TABLE {found.name} REPLICA IDENTITY USING INDEX {name}, CLUSTER ON {name}")
    else:
        w.do(f"ALTER TABLE {found.name} REPLICA IDENTITY {w.pick(('FULL', 'NOTHING', 'DEFAULT'))}")


@kind
def statistics(w: World) -> None:
    found, name = w.table(lambda table: table.relkind in "rp"), w.placed()
    others = [column.name for column in found.columns if column.type.ordered and column.type.sql != "money"]
    kinds = w.pick(("", "(ndistinct)", "(dependencies, mcv)", "(mcv)"))
    if others:
        w.do(f"CREATE STATISTICS {name} {kinds} ON {found.key}, {w.pick(others)} FROM {found.name}")
    else:
        w.do(f"CREATE STATISTICS {name} ON ({found.key} % 10), ({found.key}::text) FROM {found.name}")
    if w.chance():
        w.do(f"ALTER STATISTICS {name} SET STATISTICS {w.pick((0, 500))}")
    w.note("STATISTICS", name)
