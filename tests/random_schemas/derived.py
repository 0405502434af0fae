"""Views, recursive and materialized ones, rules."""

from __future__ import annotations

from tests.random_schemas.world import DBA, READER, World, kind, quoted


def _columns(w: World) -> tuple[str, list[str]]:
    """Return what a query may read, and its columns: a table or a view."""
    if w.views and w.chance():
        return w.pick(w.views)
    found = w.table()
    return found.name, [found.key, *(column.name for column in found.columns)]


def _query(w: World) -> tuple[str, list[str]]:
    """Return a query and the names of its columns."""
    name, columns = _columns(w)
    key, value = columns[0], w.pick(columns)
    a, b, c = w.new(), w.new(), w.new()
    other, others = _columns(w)
    forms = [
        f"SELECT {key} AS {a}, {value}::text AS {b} FROM {name} WHERE {key} IS NOT NULL",
        f'SELECT {key} AS {a}, t::text AS {b} FROM {name} AS t ORDER BY 1 DESC NULLS LAST, t::text COLLATE "C" '
        f"LIMIT 100",
        f"SELECT DISTINCT ON (1) {key} AS {a}, {w.text()}::text AS {b} FROM {name} ORDER BY 1",
        f"WITH {c} AS MATERIALIZED (SELECT * FROM {name}) SELECT {key} AS {a}, count(*) AS {b} FROM {c} GROUP BY 1",
        f"SELECT {key} AS {a}, sum({key}) OVER (ORDER BY {key} ROWS 1 PRECEDING EXCLUDE TIES) AS {b} FROM {name}",
        f"SELECT {key} AS {a}, NULL::text AS {b} FROM {name} UNION ALL (SELECT {others[0]}, 'x' FROM {other} "
        f"EXCEPT SELECT 7::bigint, 'y')",
        f"SELECT x.{key} AS {a}, y.{others[0]} AS {b} FROM {name} AS x LEFT JOIN LATERAL (SELECT * FROM {other} "
        f"AS z WHERE z.{others[0]} = x.{key}) AS y ON true",
        f"SELECT {key} AS {a}, max({value}::text) FILTER (WHERE {key} > 1) AS {b} FROM {name} GROUP BY GROUPING "
        f"SETS ((1), ())",
        f"SELECT {a}.{c} AS {a}, {a}.ordinality AS {b} FROM ROWS FROM (generate_series(1::bigint, 3)) WITH "
        f"ORDINALITY AS {a}({c})",
        f"SELECT {key} AS {a}, CASE {key} WHEN 1 THEN 'one' ELSE {w.text()} END AS {b} FROM {name} WHERE EXISTS "
        f"(SELECT FROM {other})",
    ]
    return w.pick(forms), [a, b]


def _able(w: World) -> str:
    """Return who may read every table, since materialized views are filled with their owners' rights."""
    return w.pick((quoted(DBA), quoted(READER), "CURRENT_USER"))


@kind
def view(w: World) -> None:
    name = w.placed()
    query, columns = _query(w)
    option = w.pick(("", "WITH (security_barrier)", "WITH (security_invoker = true, security_barrier = false)"))
    w.do(f"CREATE VIEW {name} {option} AS {query}")
    w.views.append((name, columns))
    w.note("VIEW", name)
    w.later.append(f"ALTER VIEW {name} OWNER TO {_able(w)}")
    if w.chance(0.3):
        w.do(f"ALTER VIEW {name} ALTER {columns[0]} SET DEFAULT 12")


@kind
def grouped_by_key(w: World) -> None:
    """A view that rests on a primary key: a dump makes it twice."""
    found = w.table(lambda table: table.unique and table.relkind == "r")
    name, count = w.placed(), w.new()
    every = [found.key, *(column.name for column in found.columns if column.type.sql not in ("json", "xml"))]
    w.do(f"CREATE VIEW {name} AS SELECT {', '.join(every)}, count(*) AS {count} FROM {found.name} GROUP BY {found.key}")
    w.views.append((name, [found.key, count]))
    if w.chance():
        other = w.placed()
        w.do(f"CREATE MATERIALIZED VIEW {other} AS SELECT {found.key}, {count} FROM {name}")
        w.materialized.append(other)
        w.views.append((other, [found.key, count]))


@kind
def updatable_view(w: World) -> None:
    found, name = w.table(), w.placed()
    check = w.pick(("", "WITH LOCAL CHECK OPTION", "WITH CASCADED CHECK OPTION"))
    every = ", ".join([found.key, *(column.name for column in found.columns)])
    w.do(f"CREATE VIEW {name} AS SELECT {every} FROM {found.name} WHERE {found.key} < 100 {check}")
    w.views.append((name, [found.key]))
    w.note("VIEW", name)


@kind
def recursive_view(w: World) -> None:
    name, other, column = w.schema(), w.new(), w.new()
    w.do(
        f"CREATE RECURSIVE VIEW {name}.{other} ({column}) AS"
        f" SELECT 1::bigint UNION ALL SELECT {column} + 1 FROM {other} WHERE {column} < 5"
    )
    w.views.append((f"{name}.{other}", [column]))


@kind
def materialized_view(w: World) -> None:
    name = w.placed()
    query, columns = _query(w)
    filled = w.chance(0.7)
    options = w.pick(("", "WITH (fillfactor = 50)", "USING heap"))
    w.do(f"CREATE MATERIALIZED VIEW {name} {options} AS {query} WITH {'' if filled else 'NO '}DATA")
    if filled:
        w.views.append((name, columns))
        w.materialized.append(name)
    w.do(f"CREATE INDEX {w.new()} ON {name} ({columns[0]})")
    w.later.append(f"ALTER MATERIALIZED VIEW {name} OWNER TO {_able(w)}")
    w.objects.append(("MATERIALIZED VIEW", name))


@kind
def rule(w: World) -> None:
    found, name = w.table(lambda table: table.relkind == "r"), w.new()
    forms = [
        f"ON INSERT TO {found.name} DO ALSO NOTIFY {w.new()}",
        f"ON DELETE TO {found.name} DO INSTEAD NOTHING",
        f"ON UPDATE TO {found.name} WHERE OLD.{found.key} = -7 DO ALSO (DELETE FROM {found.name} WHERE "
        f"{found.key} = -8; SELECT OLD.{found.key})",
    ]
    w.later.append(f"CREATE RULE {name} AS {w.pick(forms)}")
    if w.chance(0.4):
        w.later.append(f"ALTER TABLE {found.name} {w.pick(('DISABLE', 'ENABLE ALWAYS', 'ENABLE REPLICA'))} RULE {name}")
    w.later.append(f"COMMENT ON RULE {name} ON {found.name} IS {w.text()}")


@kind
def rule_of_view(w: World) -> None:
    if not w.views:
        w.make("updatable_view")
    name, columns = w.pick([view for view in w.views if view[0] not in w.materialized] or [_made(w)])
    w.later.append(f"CREATE RULE {w.new()} AS ON DELETE TO {name} WHERE OLD.{columns[0]} IS NULL DO INSTEAD NOTHING")


def _made(w: World) -> tuple[str, list[str]]:
    w.make("updatable_view")
    return w.views[-1]
