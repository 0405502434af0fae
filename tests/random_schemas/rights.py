"""Owners, grants, default privileges, comments."""

from __future__ import annotations

from tests.random_schemas.world import OTHER, OWNER, ROLES, World, kind, quoted

_RIGHTS = {
    "TABLE": ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER", "ALL"),
    "VIEW": ("SELECT", "INSERT", "ALL"),
    "MATERIALIZED VIEW": ("SELECT", "ALL"),
    "FOREIGN TABLE": ("SELECT", "INSERT"),
    "SEQUENCE": ("USAGE", "SELECT", "UPDATE", "ALL"),
    "SCHEMA": ("USAGE", "CREATE", "ALL"),
    "TYPE": ("USAGE",),
    "DOMAIN": ("USAGE",),
    "FUNCTION": ("EXECUTE",),
    "PROCEDURE": ("EXECUTE",),
    "SERVER": ("USAGE",),
    "FOREIGN DATA WRAPPER": ("USAGE",),
    "LARGE OBJECT": ("SELECT", "UPDATE"),
}
_WORDS = {"VIEW": "TABLE", "MATERIALIZED VIEW": "TABLE", "FOREIGN TABLE": "TABLE", "SERVER": "FOREIGN SERVER"}
_OWNED = (
    "TABLE", "SEQUENCE", "TYPE", "DOMAIN", "FUNCTION", "PROCEDURE", "AGGREGATE", "OPERATOR", "COLLATION",
    "CONVERSION", "TEXT SEARCH CONFIGURATION", "TEXT SEARCH DICTIONARY", "SERVER", "STATISTICS", "LARGE OBJECT",
    "FOREIGN TABLE", "OPERATOR CLASS", "LANGUAGE",
)  # fmt: skip


@kind
def comment(w: World) -> None:
    for what, name in w.some(w.objects, 1, 6) if w.objects else ():
        w.do(f"COMMENT ON {what} {name} IS {w.text()}")


@kind
def owner(w: World) -> None:
    owned = [each for each in w.objects if each[0] in _OWNED]
    for what, name in w.some(owned, 1, 6) if owned else ():
        w.later.append(f"ALTER {what} {name} OWNER TO {quoted(w.pick((OWNER, OTHER)))}")


@kind
def grant(w: World) -> None:
    """Also by those who were given the right to, and taken from owners and from everybody."""
    given = [each for each in w.objects if each[0] in _RIGHTS]
    for what, name in w.some(given, 1, 6) if given else ():
        right, on = w.pick(_RIGHTS[what]), f"ON {_WORDS.get(what, what)} {name}"
        some = w.dice.sample(ROLES, 2)
        w.last.append(f"GRANT {right} {on} TO {quoted(some[0])} WITH GRANT OPTION")
        if w.chance():
            w.last += [f"SET ROLE {quoted(some[0])}", f"GRANT {right} {on} TO {quoted(some[1])}", "RESET ROLE"]
        if w.chance(0.3):
            w.last.append(f"REVOKE ALL {on} FROM PUBLIC")
        if w.chance(0.3):
            w.last.append(f"REVOKE {right} {on} FROM CURRENT_USER")
        if w.chance(0.2) and what not in ("LARGE OBJECT",):
            w.last.append(f"GRANT {right} {on} TO PUBLIC")


@kind
def grant_columns(w: World) -> None:
    found = w.table()
    names = [found.key, *(column.name for column in found.columns)]
    w.last.append(
        f"GRANT SELECT ({found.key}), UPDATE ({w.pick(names)}) ON {found.name} TO {w.role()} WITH GRANT OPTION"
    )
    w.last.append(f"GRANT REFERENCES ({', '.join(names)}) ON {found.name} TO PUBLIC")


@kind
def grant_catalog(w: World) -> None:
    """Rights on what PostgreSQL itself brings."""
    forms = [
        f"GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_waldir() TO {w.role()}",
        "REVOKE EXECUTE ON FUNCTION pg_catalog.pg_sleep(float8) FROM PUBLIC",
        f"GRANT SELECT (rolname) ON pg_catalog.pg_authid TO {w.role()}",
        "REVOKE SELECT ON pg_catalog.pg_stat_activity FROM PUBLIC",
        "REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC",
        "REVOKE USAGE ON TYPE pg_catalog.money FROM PUBLIC",
    ]
    w.last.append(w.pick(forms))


@kind
def default_privileges(w: World) -> None:
    where = w.pick(("", f"IN SCHEMA {w.schema()}"))
    whose = w.pick(("", f"FOR ROLE {w.role()}"))
    forms = [f"GRANT ALL ON TABLES TO {w.role()}", f"GRANT USAGE ON SEQUENCES TO {w.role()} WITH GRANT OPTION",
             f"GRANT EXECUTE ON FUNCTIONS TO {w.role()}"]  # fmt: skip
    if not where:
        forms += [
            "REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC",
            "REVOKE USAGE ON TYPES FROM PUBLIC",
            "GRANT USAGE ON SCHEMAS TO PUBLIC",
        ]
    w.last.append(f"ALTER DEFAULT PRIVILEGES {whose} {where} {w.pick(forms)}")


@kind
def public_schema(w: World) -> None:
    """The schema that every database begins with: given away, closed, renamed, gone."""
    if "public" in w.names:
        return
    w.names.add("public")
    w.do(
        w.pick(
            (
                f"ALTER SCHEMA public OWNER TO {w.role()}",
                "DROP SCHEMA public",
                f"GRANT CREATE ON SCHEMA public TO {w.role()} WITH GRANT OPTION",
                "REVOKE ALL ON SCHEMA public FROM PUBLIC",
                "COMMENT ON SCHEMA public IS NULL",
                f"COMMENT ON SCHEMA public IS {w.text()}",
                "DROP SCHEMA public; CREATE SCHEMA public",
            )
        )
    )
