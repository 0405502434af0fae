"""Functions, procedures, aggregates, operators, casts, triggers, event triggers, policies."""

from __future__ import annotations

from tests.random_schemas.data_types import any_type
from tests.random_schemas.world import World, kind, literal

_SETTINGS = (
    "search_path = pg_catalog, \"odd \"\" schema\"", "search_path = ''", "DateStyle = 'German, DMY'", "work_mem "
    "= '4MB'",
    "my.own = 'it''s \\ \"odd\"'", "TimeZone = 'Asia/Kathmandu'", "standard_conforming_strings = off",
)  # fmt: skip
_BODIES = (
    "BEGIN\n  RETURN $1::text || $q$ it's \"quoted\" $q$ || E'\\n\\\\' || '$$';\nEND",
    "DECLARE\r\n  x text := '%s 100%';\r\nBEGIN\r\n\tRETURN x; -- \\' ünïcödé\r\nEND",
    "-- $_$ $body$ /* \nBEGIN RETURN format('%I.%L', 'a', 'b''c'); EXCEPTION WHEN OTHERS THEN RETURN NULL; END;",
    '<<"odd label">> DECLARE "a.b" int := 1; BEGIN RETURN "odd label"."a.b"; END',
)


@kind
def function_of_number(w: World) -> None:
    """One that indexes, checks and generated columns may use."""
    name = w.placed()
    forms = [
        "LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN $1 * 3",
        "LANGUAGE sql IMMUTABLE STRICT AS 'SELECT pg_catalog.abs($1) -- it''s'",
        "LANGUAGE plpgsql IMMUTABLE SET search_path = '' AS $f$BEGIN RETURN $1 % 1000; END$f$",
    ]
    w.do(f"CREATE FUNCTION {name}(bigint) RETURNS bigint {w.pick(forms)}")
    w.functions.append(name)
    w.note("FUNCTION", f"{name}(bigint)")


@kind
def function(w: World) -> None:
    name, its = w.placed(), any_type(w, own=0.7)
    options = w.pick(
        ("", "STRICT", "STABLE SECURITY DEFINER", "LEAKPROOF PARALLEL RESTRICTED COST 7", "CALLED ON NULL INPUT")
    )
    body = w.pick([body for body in _BODIES if w.encodes(body)])
    settings = " ".join(f"SET {setting}" for setting in w.some(_SETTINGS, 0, 2))
    argument = w.new()
    default = f" DEFAULT {w.pick(its.values)}" if w.chance() else ""
    w.do(
        f"CREATE FUNCTION {name}({argument} {its.sql}{default}) RETURNS text LANGUAGE plpgsql {options} "
        f"{settings} AS {literal(body)}"
    )
    w.note("FUNCTION", f"{name}({its.sql})")
    if w.chance(0.4):  # the same name for other arguments
        w.do(f"CREATE FUNCTION {name}(VARIADIC {argument} anyarray) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'")


@kind
def function_of_tables(w: World) -> None:
    found, name = w.table(), w.placed()
    one, two = w.new(), w.new()
    forms = [
        f"() RETURNS SETOF {found.name} STABLE ROWS 5 BEGIN ATOMIC SELECT * FROM {found.name}; SELECT * FROM "
        f"{found.name}; END",
        f"({one} bigint DEFAULT 1, OUT {two} text) LANGUAGE sql AS "
        f"{literal(f'SELECT t::text FROM {found.name} AS t WHERE {found.key} = $1')}",
        f"() RETURNS TABLE ({one} bigint) LANGUAGE sql STABLE AS {literal(f'SELECT {found.key} FROM {found.name}')}",
        f"({one} {found.name}) RETURNS bigint IMMUTABLE RETURN ({one}).{found.key} + 1",
        f"({one} {found.name}.{found.key}%TYPE) RETURNS {found.name}[] LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    ]
    w.do(f"CREATE FUNCTION {name}{w.pick(forms)}")


@kind
def procedure(w: World) -> None:
    name, argument, other = w.placed(), w.new(), w.new()
    its = any_type(w)
    w.do(
        f"CREATE PROCEDURE {name}({argument} {its.sql}, INOUT {other} int DEFAULT 5) LANGUAGE plpgsql"
        f" AS {literal('BEGIN COMMIT; END')}"
    )
    w.note("PROCEDURE", f"{name}({its.sql}, int)")


@kind
def aggregate(w: World) -> None:
    name = w.placed()
    forms = [
        ("(float8)", "(SFUNC = float8mul, STYPE = float8, INITCOND = '1', PARALLEL = safe, SSPACE = 99)"),
        (
            "(bigint)",
            "(SFUNC = int8larger, STYPE = bigint, COMBINEFUNC = int8larger, SORTOP = OPERATOR(pg_catalog.>))",
        ),
        (
            "(bigint)",
            "(SFUNC = int8pl, STYPE = bigint, MSFUNC = int8pl, MINVFUNC = int8mi, MSTYPE = bigint, MINITCOND = '0')",
        ),
        (
            "(ORDER BY anyelement)",
            "(SFUNC = ordered_set_transition, STYPE = internal, FINALFUNC = mode_final, FINALFUNC_EXTRA)",
        ),
        ("(text)", f"(SFUNC = textcat, STYPE = text, INITCOND = {w.text()})"),
    ]
    arguments, options = w.pick(forms)
    w.do(f"CREATE AGGREGATE {name}{arguments} {options}")
    w.note("AGGREGATE", f"{name}{arguments}")


@kind
def operator(w: World) -> None:
    place, function = w.schema(), w.placed()
    its = any_type(w, own=0.7)
    sign = "".join("~!@#^&|?%="[int(digit)] for digit in str(len(w.names))) + w.pick("~@#")
    w.do(f"CREATE FUNCTION {function}({its.sql}, {its.sql}) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true'")
    w.do(
        f"CREATE OPERATOR {place}.{sign} (FUNCTION = {function}, LEFTARG = {its.sql}, RIGHTARG = {its.sql},"
        f" COMMUTATOR = OPERATOR({place}.{sign}), NEGATOR = OPERATOR({place}.{sign}!), RESTRICT = eqsel)"
    )
    w.note("OPERATOR", f"{place}.{sign} ({its.sql}, {its.sql})")


@kind
def operator_class(w: World) -> None:
    name, compare, index, family = w.placed(), w.placed(), w.new(), w.placed()
    w.do(
        f"CREATE FUNCTION {compare}(bigint, bigint) RETURNS int LANGUAGE sql IMMUTABLE STRICT RETURN btint8cmp($2, $1)"
    )
    w.do(f"CREATE OPERATOR FAMILY {family} USING btree")
    w.do(
        f"CREATE OPERATOR CLASS {name} FOR TYPE bigint USING btree FAMILY {family} AS OPERATOR 1 >, OPERATOR 2 >=,"
        f" OPERATOR 3 =, OPERATOR 4 <=, OPERATOR 5 <, FUNCTION 1 {compare}(bigint, bigint)"
    )
    found = w.table()
    w.do(f"CREATE INDEX {index} ON {found.name} (({found.key}::bigint) {name})")
    w.note("OPERATOR CLASS", f"{name} USING btree")


@kind
def cast(w: World) -> None:
    if not any(t for t in w.types if "[" not in t.sql):
        w.make("composite")
    w.make("composite")
    its, function = w.types[-1], w.placed()
    w.do(f"CREATE FUNCTION {function}({its.sql}) RETURNS bigint LANGUAGE sql IMMUTABLE RETURN 7")
    w.do(
        f"CREATE CAST ({its.sql} AS bigint) WITH FUNCTION {function}({its.sql}) AS {w.pick(('ASSIGNMENT', 'IMPLICIT'))}"
    )
    w.do(f"CREATE CAST ({its.sql} AS json) WITH INOUT")
    w.note("CAST", f"({its.sql} AS bigint)")


@kind
def trigger_function(w: World) -> None:
    """It changes the row and leaves a mark, so that a restore that fires it is seen."""
    name, marks = w.placed(), w.placed()
    w.do(f"CREATE TABLE {marks} (at text)")
    body = f"BEGIN INSERT INTO {marks} VALUES (TG_NAME || TG_OP); RETURN NEW; END"
    w.do(f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS {literal(body)}")
    w.trigger_functions.append(name)


@kind
def trigger(w: World) -> None:
    found, name, function = w.table(lambda table: table.relkind in "rp"), w.new(), w.trigger_function()
    row = "FOR EACH ROW"
    forms = [
        f"TRIGGER {name} BEFORE INSERT OR UPDATE ON {found.name} {row}",
        f"TRIGGER {name} AFTER UPDATE OF {found.key} ON {found.name} {row} WHEN (OLD.{found.key} < NEW.{found.key})",
        f"TRIGGER {name} AFTER INSERT ON {found.name} FOR EACH STATEMENT",
        f"TRIGGER {name} BEFORE TRUNCATE ON {found.name} FOR EACH STATEMENT",
        f"CONSTRAINT TRIGGER {name} AFTER INSERT ON {found.name} DEFERRABLE INITIALLY DEFERRED {row}",
    ]
    if found.relkind == "r" and not found.family:
        forms.append(
            f"TRIGGER {name} AFTER INSERT ON {found.name} REFERENCING NEW TABLE AS new_ones FOR EACH STATEMENT"
        )
    w.later.append(f"CREATE {w.pick(forms)} EXECUTE FUNCTION {function}({w.text()}, 7)")
    state = w.pick(("", "", "DISABLE", "ENABLE ALWAYS", "ENABLE REPLICA"))
    if state:
        w.later.append(f"ALTER TABLE {found.name} {state} TRIGGER {name}")
    w.later.append(f"COMMENT ON TRIGGER {name} ON {found.name} IS {w.text()}")


@kind
def trigger_of_view(w: World) -> None:
    if not w.views:
        w.make("updatable_view")
    plain = [name for name, _ in w.views if name not in w.materialized]
    if not plain:
        w.make("updatable_view")
        plain = [w.views[-1][0]]
    w.later.append(
        f"CREATE TRIGGER {w.new()} INSTEAD OF UPDATE ON {w.pick(plain)} FOR EACH ROW EXECUTE FUNCTION "
        f"{w.trigger_function()}()"
    )


@kind
def event_trigger(w: World) -> None:
    """It leaves a mark for each command, or refuses it: whoever restores must not be stopped by it."""
    name, function, marks = w.new(), w.placed(), w.placed()
    w.do(f"CREATE TABLE {marks} (at text)")
    refuses = w.chance(0.3)
    act = "RAISE EXCEPTION 'no % here', tg_tag;" if refuses else f"INSERT INTO {marks} VALUES (tg_tag);"
    w.do(f"CREATE FUNCTION {function}() RETURNS event_trigger LANGUAGE plpgsql AS {literal(f'BEGIN {act} END')}")
    event = w.pick(("ddl_command_start", "ddl_command_end", "sql_drop", "table_rewrite"))
    tags = w.pick(("", "WHEN TAG IN ('ALTER TABLE', 'CREATE TABLE')")) if event != "table_rewrite" else ""
    w.watchers.append(f"CREATE EVENT TRIGGER {name} ON {event} {tags} EXECUTE FUNCTION {function}()")
    state = w.pick(("", "DISABLE", "ENABLE ALWAYS", "ENABLE REPLICA"))
    if state:
        w.watchers.append(f"ALTER EVENT TRIGGER {name} {state}")
    if not refuses:
        w.watchers.append(f"COMMENT ON EVENT TRIGGER {name} IS {w.text()}")


@kind
def policy(w: World) -> None:
    found, name = w.table(lambda table: table.relkind in "rp"), w.new()
    w.later.append(f"ALTER TABLE {found.name} ENABLE ROW LEVEL SECURITY")
    if w.chance():
        w.later.append(f"ALTER TABLE {found.name} FORCE ROW LEVEL SECURITY")
    roles = ", ".join(dict.fromkeys(w.role() for _ in range(3)))
    forms = [
        f"FOR SELECT TO {roles} USING ({found.key} < 2)",
        f"AS RESTRICTIVE FOR ALL TO PUBLIC USING ({found.key} > 0) WITH CHECK (CURRENT_USER <> {w.text()})",
        f"FOR INSERT TO {roles} WITH CHECK (EXISTS (SELECT FROM {w.table().name} AS other))",
        "AS RESTRICTIVE FOR DELETE USING (false)",
    ]
    w.later.append(f"CREATE POLICY {name} ON {found.name} {w.pick(forms)}")
    w.later.append(f"COMMENT ON POLICY {name} ON {found.name} IS {w.text()}")


@kind
def language(w: World) -> None:
    """With functions of its own: pg_dump cannot write one whose handler lies in pg_catalog so that it comes back."""
    name, handler, inline = w.new(), w.placed(), w.placed()
    library = "LANGUAGE c AS '$libdir/plpgsql',"
    w.do(f"CREATE FUNCTION {handler}() RETURNS language_handler {library} 'plpgsql_call_handler'")
    w.do(f"CREATE FUNCTION {inline}(internal) RETURNS void STRICT {library} 'plpgsql_inline_handler'")
    w.do(f"CREATE {w.pick(('', 'TRUSTED'))} LANGUAGE {name} HANDLER {handler} INLINE {inline}")
    w.do(f"CREATE FUNCTION {w.placed()}() RETURNS int LANGUAGE {name} AS 'BEGIN RETURN 1; END'")
    w.note("LANGUAGE", name)


@kind
def conversion(w: World) -> None:
    name = w.placed()
    w.do(f"CREATE CONVERSION {name} FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8")
    w.note("CONVERSION", name)


@kind
def access_method(w: World) -> None:
    name, table = w.new(), w.placed()
    w.do(f"CREATE ACCESS METHOD {name} TYPE TABLE HANDLER heap_tableam_handler")
    w.do(f"CREATE TABLE {table} (a int) USING {name}")
    w.do(f"INSERT INTO {table} VALUES (1)")
    w.note("ACCESS METHOD", name)


@kind
def transform(w: World) -> None:
    """For a type of the database's own: to and from SQL."""
    w.make("composite")
    its, reads, writes = w.types[-1], w.placed(), w.placed()
    w.do(f"CREATE FUNCTION {reads}(internal) RETURNS internal LANGUAGE internal IMMUTABLE AS 'prsd_end'")
    w.do(f"CREATE FUNCTION {writes}(internal) RETURNS {its.sql} LANGUAGE internal IMMUTABLE AS 'prsd_end'")
    w.do(
        f"CREATE TRANSFORM FOR {its.sql} LANGUAGE plpgsql"
        f" (FROM SQL WITH FUNCTION {reads}(internal), TO SQL WITH FUNCTION {writes}(internal))"
    )
