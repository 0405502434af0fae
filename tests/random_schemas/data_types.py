"""Schemas and types: enums, domains, composites, ranges, arrays, base types, collations, sequences."""

from __future__ import annotations

from tests.properties.test_postgresql_round_trip import VALUES
from tests.random_schemas.world import ROLES, TEXTS, Type, World, kind, literal, quoted

_OWN = {"mood", "mood[]", "feeling", "positive", "pair", "pair[]", "span"}
# fmt: off
_ORDERED = {
    "bool", "smallint", "int", "bigint", "oid", "real", "float8", "numeric", "numeric(7,2)", "text", "varchar(5)",
    "char(4)",
    "name", "date", "time", "timetz", "timestamp", "timestamptz", "interval", "uuid", "inet", "bytea", "money",
    "macaddr",
}
# fmt: on
_TEXT = {"text", "varchar(5)", "char(4)", "name"}


def _builtin(sql: str) -> Type:
    values = [value for value in VALUES[sql] if len(value) < 1000]  # an index takes no long ones
    return Type(sql, tuple(f"{literal(value)}::{sql}" for value in values), sql in _ORDERED, text=sql in _TEXT)


BUILTIN = [_builtin(sql) for sql in VALUES if sql not in _OWN]
INTEGER = Type("bigint", ("1", "0", "-5"), ordered=True)


def any_type(w: World, *, ordered: bool = False, own: float = 0.4) -> Type:
    """Return a type, with some luck one of the database's own."""
    pool = w.types if w.types and w.chance(own) else BUILTIN
    found = [t for t in pool if (t.ordered or not ordered) and all(map(w.encodes, t.values))]
    return w.pick(found or [t for t in BUILTIN if t.ordered and all(map(w.encodes, t.values))])


def _add(w: World, kind_of: str, found: Type) -> None:
    w.types.append(found)
    w.note(kind_of, found.sql)


@kind
def schema(w: World) -> None:
    name = w.new()
    owner = f" AUTHORIZATION {w.role()}" if w.chance(0.3) else ""
    w.do(f"CREATE SCHEMA {name}{owner}")
    w.do(f"GRANT USAGE ON SCHEMA {name} TO {', '.join(map(quoted, ROLES))}")
    w.schemas.append(name)
    w.note("SCHEMA", name)


@kind
def enum(w: World) -> None:
    name = w.placed()
    pool = [text for text in TEXTS if len(text.encode()) <= 63 and w.encodes(text)]
    labels = w.some([*pool, "e" * 63], 2, 6)
    w.do(f"CREATE TYPE {name} AS ENUM ({', '.join(map(literal, labels[:-1]))})")
    if w.chance():
        w.do(f"ALTER TYPE {name} ADD VALUE {literal(labels[-1])} BEFORE {literal(labels[0])}")
    else:
        w.do(f"ALTER TYPE {name} RENAME VALUE {literal(labels[0])} TO {literal(labels[-1])}")
        labels = [labels[-1], *labels[1:-1]]
    _add(w, "TYPE", Type(name, tuple(f"{literal(label)}::{name}" for label in labels), ordered=True))


@kind
def domain(w: World) -> None:
    name, base = w.placed(), any_type(w)
    while base.sql in w.given:  # what a domain has from its type is told in other words after a dump
        base = any_type(w)
    words = [f"CREATE DOMAIN {name} AS {base.sql}"]
    if base.text and base.sql != "name" and w.collations and w.chance():
        words.append(f"COLLATE {w.pick(w.collations)}")
    if base in BUILTIN and w.chance():
        w.given.add(name)
        words.append(f"DEFAULT {w.pick(base.values)}")
    filled = base.filled or w.chance(0.25)
    if filled and not base.filled:
        words.append("NOT NULL")
    for _ in range(w.dice.randint(0, 2)):
        words.append(f"CONSTRAINT {w.new()} CHECK (VALUE IS NULL OR VALUE::text <> {w.text()} || 'never')")
    w.do(" ".join(words))
    if w.chance(0.3):
        constraint = w.new()
        w.do(f"ALTER DOMAIN {name} ADD CONSTRAINT {constraint} CHECK (VALUE::text <> 'neither') NOT VALID")
        w.note("CONSTRAINT", f"{constraint} ON DOMAIN {name}")
    values = tuple(f"({value})::{name}" for value in base.values)
    _add(w, "DOMAIN", Type(name, values, base.ordered, filled, base.text))


@kind
def composite(w: World) -> None:
    name = w.placed()
    attributes = [(w.new(), any_type(w)) for _ in range(w.dice.randint(1, 4))]
    if w.chance(0.4):
        gone = w.new()
        w.do(f"CREATE TYPE {name} AS ({gone} int, {', '.join(f'{a} {t.sql}' for a, t in attributes[:-1]) or 'a int'})")
        if len(attributes) == 1:
            w.do(f"ALTER TYPE {name} DROP ATTRIBUTE a")
        w.do(f"ALTER TYPE {name} DROP ATTRIBUTE {gone}, ADD ATTRIBUTE {attributes[-1][0]} {attributes[-1][1].sql}")
    else:
        w.do(f"CREATE TYPE {name} AS ({', '.join(f'{a} {t.sql}' for a, t in attributes)})")
    values = tuple(f"ROW({', '.join(w.pick(t.values) for _, t in attributes)})::{name}" for _ in range(3))
    _add(w, "TYPE", Type(name, values))
    w.note("COLUMN", f"{name}.{attributes[0][0]}")


@kind
def range_type(w: World) -> None:
    name, multi = w.placed(), w.placed()
    while len(multi.rpartition(".")[2].encode()) > 60:  # PostgreSQL names its array by the beginning, and `name`'s too
        multi = w.placed()
    base = any_type(w, ordered=True)
    while base.filled or base.sql in ("name", "char(4)", "varchar(5)"):
        base = any_type(w, ordered=True)
    options = [f"subtype = {base.sql}", f"multirange_type_name = {multi}"]
    if base.sql == "float8":
        options.append("subtype_diff = float8mi")
    if base.sql == "text" and w.collations:
        options.append(f"collation = {w.pick(w.collations)}")
    w.do(f"CREATE TYPE {name} AS RANGE ({', '.join(options)})")
    spans = [f"{name}({value}, {value}, '[]')" for value in base.values]
    spans += [f"{name}(NULL, {base.values[0]})", f"{name}({base.values[-1]}, NULL, '(]')", f"'empty'::{name}"]
    _add(w, "TYPE", Type(name, tuple(spans), ordered=True))
    w.types.append(Type(multi, (f"({spans[0]})::{multi}", f"({spans[-1]})::{multi}", f"'{{}}'::{multi}"), ordered=True))


@kind
def array(w: World) -> None:
    base = any_type(w, own=0.7)
    while "[" in base.sql:
        base = any_type(w, own=0)
    nothing = "" if base.filled else ", NULL"
    one = f"ARRAY[{w.pick(base.values)}{nothing}]::{base.sql}[]"
    two = f"ARRAY[ARRAY[{w.pick(base.values)}], ARRAY[{w.pick(base.values)}]]::{base.sql}[]"
    w.types.append(Type(f"{base.sql}[]", (one, two, f"'{{}}'::{base.sql}[]"), base.ordered))


@kind
def base_type(w: World) -> None:
    name, reads, writes = w.placed(), w.placed(), w.placed()
    w.do(f"CREATE TYPE {name}")
    w.do(f"CREATE FUNCTION {reads}(cstring) RETURNS {name} LANGUAGE internal IMMUTABLE STRICT AS 'textin'")
    w.do(f"CREATE FUNCTION {writes}({name}) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout'")
    w.do(f"CREATE TYPE {name} (INPUT = {reads}, OUTPUT = {writes}, LIKE = text, DEFAULT = {w.text()}, CATEGORY = 'x')")
    w.given.add(name)
    _add(w, "TYPE", Type(name, (f"'one'::{name}", f"{w.text()}::{name}")))
    w.do(f"CREATE TYPE {w.placed()}")  # a shell


@kind
def collation(w: World) -> None:
    name = w.placed()
    options = ["locale = 'C'", "provider = libc, lc_collate = 'C', lc_ctype = 'POSIX'"]
    if w.encoding == "UTF8":
        options += ["provider = icu, locale = 'en-u-kn-true'", "provider = icu, locale = 'sv', deterministic = false"]
    w.do(f"CREATE COLLATION {name} ({w.pick(options)})")
    w.collations.append(name)
    w.note("COLLATION", name)


@kind
def sequence(w: World) -> None:
    name = w.placed()
    size, top = w.pick((("smallint", 32767), ("integer", 2147483647), ("bigint", 9223372036854775807)))
    step = w.pick((1, 7, -1, -300, 32767))
    low, high = w.pick(((1, 100), (-100, top), (top - 1, top), (-32768, -1), (0, top)))
    start = w.dice.randint(low, high)
    step = max(-(high - low) or -1, min(step, high - low or 1))
    cycle = w.pick(("CYCLE", "NO CYCLE"))
    unlogged = "UNLOGGED " if w.chance(0.2) else ""
    w.do(
        f"CREATE {unlogged}SEQUENCE {name} AS {size} INCREMENT {step} MINVALUE {low} MAXVALUE {high} START {start}"
        f" CACHE {w.pick((1, 5))} {cycle}"
    )
    if w.chance(0.7):
        w.last.append(f"SELECT setval({literal(name)}, {w.dice.randint(low, high)}, {w.pick(('true', 'false'))})")
    w.sequences.append(name)
    w.note("SEQUENCE", name)
