"""Partitioned tables: by range, list and hash, below one another, attached with other columns, with a default."""

from __future__ import annotations

from tests.random_schemas.data_types import any_type
from tests.random_schemas.tables import columns, defined, fill
from tests.random_schemas.world import Column, Table, World, kind


def _root(w: World, by: str, key: str, mine: list[Column], more: str = "") -> Table:
    name = w.placed()
    # without defaults: to a partition that lacks one, pg_dump gives NULL, which is told in other words after a restore
    parts = [f"{key} bigint NOT NULL", *(defined(w, column, plain=True) for column in mine)]
    w.do(f"CREATE TABLE {name} ({', '.join(parts)}{more}) PARTITION BY {by}")
    w.note("TABLE", name)
    return Table(name, list(mine), key, 0, relkind="p", unique=False)


def _attached(w: World, root: Table, bound: str) -> None:
    """A table of an older release: another order of columns, one since dropped, other defaults; attached later."""
    name, gone = w.placed(), w.new()
    parts = [defined(w, column, plain=True) for column in root.columns]
    parts.append(f"{root.key} bigint NOT NULL DEFAULT 5")
    w.dice.shuffle(parts)
    w.do(f"CREATE TABLE {name} ({gone} text, {', '.join(parts)})")
    w.do(f"ALTER TABLE {name} DROP {gone}")
    w.do(f"ALTER TABLE {root.name} ATTACH PARTITION {name} {bound}")
    w.note("TABLE", name)


@kind
def by_range(w: World) -> None:
    key = w.new()
    root = _root(w, f"RANGE ({key})", key, columns(w), f", PRIMARY KEY ({key})" if w.chance() else "")
    root.unique = "PRIMARY KEY" in w.statements[-1]
    w.do(f"CREATE TABLE {w.placed()} PARTITION OF {root.name} FOR VALUES FROM (MINVALUE) TO (3) WITH (fillfactor = 40)")
    _attached(w, root, "FOR VALUES FROM (3) TO (4)")
    below = w.placed()
    w.do(f"CREATE TABLE {below} PARTITION OF {root.name} FOR VALUES FROM (4) TO (10) PARTITION BY LIST ({key})")
    w.do(f"CREATE TABLE {w.placed()} PARTITION OF {below} FOR VALUES IN (4, 5)")
    w.do(f"CREATE TABLE {w.placed()} PARTITION OF {below} DEFAULT")
    if w.chance():
        w.do(f"CREATE TABLE {w.placed()} PARTITION OF {root.name} DEFAULT")
    fill(w, root, 8)
    w.tables.append(root)


@kind
def by_list(w: World) -> None:
    """By a value of a type of the database's own, such as an enum; NULL has a partition too."""
    key, chosen = w.new(), w.new()
    if not any(its.ordered for its in w.types):
        w.make("enum")
    its = w.pick([t for t in w.types if t.ordered])
    column = Column(chosen, its, its.filled)
    root = _root(w, f"LIST ({chosen})", key, [column, *columns(w, 2)])
    first, *others = dict.fromkeys(its.values)
    w.do(f"CREATE TABLE {w.placed()} PARTITION OF {root.name} FOR VALUES IN ({first})")
    if others and not its.filled:
        _attached_default = w.placed()
        w.do(f"CREATE TABLE {_attached_default} PARTITION OF {root.name} FOR VALUES IN (NULL)")
    _attached(w, root, "DEFAULT") if not its.text else w.do(
        f"CREATE TABLE {w.placed()} PARTITION OF {root.name} DEFAULT"
    )
    fill(w, root, 5)
    w.tables.append(root)


@kind
def by_hash(w: World) -> None:
    """By a number, or by an enum, whose hash is another one after a restore; with partitions below."""
    key, chosen = w.new(), w.new()
    mine = columns(w, 3)
    by = key
    if w.chance(0.6):
        if not any("ENUM" in statement for statement in w.statements):
            w.make("enum")
        enums = [s.split(" AS ENUM")[0].removeprefix("CREATE TYPE ") for s in w.statements if " AS ENUM (" in s]
        its = w.pick([t for t in w.types if t.sql in enums])
        mine.append(Column(chosen, its))
        by = chosen
    root = _root(w, f"HASH ({by})", key, mine)
    below = w.placed()
    w.do(f"CREATE TABLE {w.placed()} PARTITION OF {root.name} FOR VALUES WITH (MODULUS 3, REMAINDER 0)")
    _attached(w, root, "FOR VALUES WITH (MODULUS 3, REMAINDER 1)")
    w.do(
        f"CREATE TABLE {below} PARTITION OF {root.name} FOR VALUES WITH (MODULUS 3, REMAINDER 2)"
        f" PARTITION BY RANGE ({key})"
    )
    w.do(f"CREATE TABLE {w.placed()} PARTITION OF {below} FOR VALUES FROM (1) TO (5)")
    w.do(f"CREATE TABLE {w.placed()} PARTITION OF {below} DEFAULT")
    fill(w, root, 9)
    w.tables.append(root)


@kind
def detached(w: World) -> None:
    """A partition that left, and keeps what it got; a root without partitions."""
    key = w.new()
    root = _root(w, f"RANGE ({key})", key, [], f", PRIMARY KEY ({key}), CHECK ({key} > 0)")
    left = w.placed()
    w.do(f"CREATE TABLE {left} PARTITION OF {root.name} DEFAULT")
    w.do(f"CREATE INDEX ON {root.name} ({key} DESC)")
    fill(w, root, 2)
    w.do(f"ALTER TABLE {root.name} DETACH PARTITION {left}")
    w.tables.append(Table(left, [], key, 2))
    w.do(f"CREATE INDEX {w.new()} ON ONLY {root.name} (({key} + 1))")


@kind
def indexed_in_part(w: World) -> None:
    """An index of the whole that one partition lacks, so that it stays invalid."""
    root, name = (
        w.table(lambda table: table.relkind == "p") if any(t.relkind == "p" for t in w.tables) else None,
        w.new(),
    )
    if root is None:
        w.make("by_range")
        root = w.tables[-1]
    w.do(f"CREATE INDEX {name} ON ONLY {root.name} ({root.key})")
    its = any_type(w, ordered=True)
    w.do(f"ALTER TABLE {root.name} ADD {w.new()} {its.sql}" if not its.filled else "SELECT 1")
