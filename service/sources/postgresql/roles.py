"""Roles, memberships and role settings: read as data, restored as statements that are built here.

`pg_dumpall --globals-only` writes SQL text for psql; replaying such text is how a hostile dump runs code
(CVE-2025-8714). Here nothing but names, flags and password verifiers travels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from service.errors import CorruptArchive
from service.sources.postgresql.connect import Connection, quote_identifier, quote_literal

Globals = dict[str, Any]
"""{"roles": [...], "memberships": [...], "settings": [...], "parameters": [...]}, each a list of plain objects.

A setting whose role is None holds for all roles; `parameters` are privileges on configuration parameters.
"""

_FLAGS = {
    "superuser": "SUPERUSER",
    "inherit": "INHERIT",
    "create_role": "CREATEROLE",
    "create_database": "CREATEDB",
    "login": "LOGIN",
    "replication": "REPLICATION",
    "bypass_rls": "BYPASSRLS",
}

_PARAMETER_PRIVILEGES = ("SET", "ALTER SYSTEM")

# Settings whose stored value is already a quoted list (GUC_LIST_QUOTE in PostgreSQL's guc_tables.c).
_LIST_SETTINGS = frozenset(
    {
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "shared_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    }
)

_OF_SESSIONS = frozenset(
    {
        "client_encoding",
        "default_transaction_read_only",
        "lc_messages",
        "local_preload_libraries",
        "quote_all_identifiers",
        "role",
        "row_security",
        "search_path",
        "session_preload_libraries",
        "session_replication_role",
        "synchronous_commit",
        "temp_file_limit",
    }
)


async def read_globals(connection: Connection, *, passwords: bool) -> Globals:
    """Read every role that is not predefined; `password` (None: has none) only when `passwords` (a superuser may)."""
    source = "pg_catalog.pg_authid" if passwords else "pg_catalog.pg_roles"
    version = connection.get_server_version().major
    options = "m.inherit_option, m.set_option" if version >= 16 else "NULL::bool, NULL::bool"
    roles = await connection.fetch(
        f"""SELECT rolname::text AS name, rolsuper AS superuser, rolinherit AS inherit, rolcreaterole AS create_role,
                   rolcreatedb AS create_database, rolcanlogin AS login, rolreplication AS replication,
                   rolbypassrls AS bypass_rls, rolconnlimit AS connection_limit,
                   {"rolpassword::text AS password," if passwords else ""} rolvaliduntil::text AS valid_until,
                   shobj_description(oid, 'pg_authid') AS comment
            FROM {source} WHERE rolname !~ '^pg_' ORDER BY 1"""
    )
    memberships = await connection.fetch(
        f"""SELECT pg_get_userbyid(m.roleid)::text AS role, pg_get_userbyid(m.member)::text AS member,
                   pg_get_userbyid(m.grantor)::text AS grantor, m.admin_option AS admin, o.inherit, o.set
            FROM pg_catalog.pg_auth_members m, LATERAL (SELECT {options}) AS o(inherit, set)
            WHERE pg_get_userbyid(m.member) !~ '^pg_' OR pg_get_userbyid(m.roleid) !~ '^pg_' ORDER BY 1, 2, 3"""
    )
    settings = await connection.fetch(
        """SELECT r.rolname::text AS role, s.setconfig AS settings
           FROM pg_catalog.pg_db_role_setting s LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
           WHERE s.setdatabase = 0 AND coalesce(r.rolname !~ '^pg_', s.setrole = 0) ORDER BY 1 NULLS FIRST"""
    )
    return {
        "roles": [dict(row) for row in roles],
        "memberships": [dict(row) for row in memberships],
        "settings": [dict(row) for row in settings],
        "parameters": await _parameters(connection) if version >= 15 else [],
    }


async def _parameters(connection: Connection) -> list[dict[str, Any]]:
    rows = await connection.fetch(
        """SELECT p.parname AS parameter, pg_get_userbyid(a.grantor)::text AS grantor,
                  CASE WHEN a.grantee = 0 THEN NULL ELSE pg_get_userbyid(a.grantee)::text END AS grantee,
                  a.privilege_type AS privilege, a.is_grantable AS grantable
           FROM pg_catalog.pg_parameter_acl p, aclexplode(p.paracl) WITH ORDINALITY
                AS a(grantor, grantee, privilege_type, is_grantable, position)
           WHERE a.grantee <> 10 ORDER BY p.parname, a.position"""  # 10: the bootstrap superuser, by default
    )
    return [dict(row) for row in rows]


def dump_globals(found: Globals) -> bytes:
    """Write globals as the bytes of a `postgresql.globals` stream."""
    return json.dumps(found, ensure_ascii=False, sort_keys=True).encode()


def load_globals(data: bytes) -> Globals:
    """Read the bytes of a `postgresql.globals` stream. Raises CorruptArchive."""
    try:
        found = json.loads(data)
        for role in found["roles"]:
            assert isinstance(role["name"], str) and all(isinstance(role[flag], bool) for flag in _FLAGS)
        for row in found["memberships"]:
            assert all(isinstance(row[name], str) for name in ("role", "member", "grantor"))
            assert isinstance(row["admin"], bool) and all(
                isinstance(row[key], bool | None) for key in ("inherit", "set")
            )
        for row in found["settings"]:
            assert isinstance(row["role"], str | None) and all("=" in setting for setting in row["settings"])
        for row in found["parameters"]:
            assert isinstance(row["parameter"], str) and row["privilege"] in _PARAMETER_PRIVILEGES
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise CorruptArchive(f"the archive's list of roles cannot be read: {error!r}") from error
    result: Globals = found
    return result


def names(found: Globals) -> set[str]:
    """The names of all roles in `found`."""
    return {role["name"] for role in found["roles"]}


def changes(desired: Globals, current: Globals) -> dict[str, list[str]]:
    """Say of each role that is in both what about it differs: attributes, password, settings, memberships."""
    found: dict[str, list[str]] = {}
    before = {role["name"]: role for role in current["roles"]}
    for role in desired["roles"]:
        now = before.get(role["name"])
        if now is None:
            continue
        differing = {key for key, value in role.items() if value != now.get(key)}
        if "password" not in now:
            differing.discard("password")
        kinds = [kind for kind in ("password",) if kind in differing]
        if differing - {"password"}:
            kinds.insert(0, "attributes")
        for kind, of in (("settings", "role"), ("memberships", "member")):
            if _rows_of(desired[kind], of, role["name"]) != _rows_of(current[kind], of, role["name"]):
                kinds.append(kind)
        if kinds:
            found[role["name"]] = kinds
    return found


def _rows_of(rows: Sequence[dict[str, Any]], key: str, name: str) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True) for row in rows if row[key] == name)


def statements(
    desired: Globals, current: Globals, *, keep: Iterable[str], forget: Iterable[str] = (), everybody: bool = True
) -> list[str]:
    """Return the statements that bring the roles of `desired` from `current` to `desired`.

    Every role of `desired` must exist already. Roles that are only in `current` are left alone, and so are the
    attributes of roles in `keep` (the one that this very connection uses); those in `forget`, which are about to be
    dropped, lose their privileges on parameters. `everybody`: also what holds for all roles.
    """
    kept = set(keep)
    wanted = names(desired)
    before = {role["name"]: role for role in current["roles"]}
    result = []
    for role in desired["roles"]:
        now = before.get(role["name"], {})
        if role["name"] not in kept and any(value != now.get(key) for key, value in role.items()):
            result += _attributes(role, now)
    for name, settings, _ in changed_settings(desired, current, keep=kept, everybody=everybody):
        target = role_target(name)
        result.append(f"ALTER {target} RESET ALL")
        result += [set_statement(target, setting) for setting in settings]
    result += _memberships(desired["memberships"], current["memberships"], wanted)
    result += _parameter_privileges(
        desired["parameters"], current["parameters"], {*([None] if everybody else []), *wanted, *forget}
    )
    return result


def changed_settings(
    desired: Globals, current: Globals, *, keep: Iterable[str], everybody: bool
) -> list[tuple[str | None, list[str], list[str]]]:
    """Return the roles whose settings `statements` changes (None: all roles), with the desired and the current ones."""
    before = {row["role"]: row["settings"] for row in current["settings"]}
    after = {row["role"]: row["settings"] for row in desired["settings"]}
    who = [*([None] if everybody else []), *sorted(names(desired) - set(keep))]
    return [(name, after.get(name, []), before.get(name, [])) for name in who if before.get(name) != after.get(name)]


def role_target(name: str | None) -> str:
    """Return what ALTER is told for the settings of a role, or of all."""
    return "ROLE ALL" if name is None else f"ROLE {quote_identifier(name)}"


def database_target(name: str, role: str | None) -> str:
    """Return what ALTER is told for the settings of a database, or of a role in it."""
    database = f"DATABASE {quote_identifier(name)}"
    return database if role is None else f"ROLE {quote_identifier(role)} IN {database}"


def _parameter_privileges(
    desired: Sequence[dict[str, Any]], current: Sequence[dict[str, Any]], wanted: set[str | None]
) -> list[str]:
    def words(row: dict[str, Any]) -> str:
        parameter = ".".join(quote_identifier(part) for part in row["parameter"].split("."))
        return f"{row['privilege']} ON PARAMETER {parameter}"

    def grantee(row: dict[str, Any]) -> str:
        return "PUBLIC" if row["grantee"] is None else quote_identifier(row["grantee"])

    result = [
        f"REVOKE {words(row)} FROM {grantee(row)} CASCADE"
        for row in current
        if row["grantee"] in wanted and row not in desired
    ]
    for row in desired:
        if row not in current:
            option = " WITH GRANT OPTION" if row["grantable"] else ""
            grant = f"GRANT {words(row)} TO {grantee(row)}{option}"
            by = row["grantor"]
            result += [grant] if by is None else [f"SET LOCAL ROLE {quote_identifier(by)}", grant, "RESET ROLE"]
    return result


def _attributes(role: dict[str, Any], before: dict[str, Any]) -> list[str]:
    name = quote_identifier(role["name"])
    words = [word if role[flag] else f"NO{word}" for flag, word in _FLAGS.items()]
    words.append(f"CONNECTION LIMIT {int(role['connection_limit'])}")
    if "password" in role and role["password"] != before.get("password"):
        words.append(f"PASSWORD {quote_literal(role['password']) if role['password'] else 'NULL'}")
    if role["valid_until"] != before.get("valid_until"):
        words.append(f"VALID UNTIL {quote_literal(role['valid_until'] or 'infinity')}")
    result = [f"ALTER ROLE {name} WITH {' '.join(words)}"]
    if role["comment"] != before.get("comment"):
        comment = quote_literal(role["comment"]) if role["comment"] is not None else "NULL"
        result.append(f"COMMENT ON ROLE {name} IS {comment}")
    return result


def _memberships(desired: Sequence[dict[str, Any]], current: Sequence[dict[str, Any]], wanted: set[str]) -> list[str]:
    def ours(row: dict[str, Any]) -> bool:
        return all(name in wanted or name.startswith("pg_") for name in (row["role"], row["member"]))

    result = []
    for row in reversed(_grantors_first([row for row in current if ours(row)])):
        if row not in desired:
            result.append(_revoke(row))
    result += [_grant(row) for row in _grantors_first(desired) if row not in current]
    return result


def _grantors_first(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Order memberships so that a grantor has its own ADMIN OPTION before it grants (PostgreSQL 16 insists)."""
    ordered: list[dict[str, Any]] = []
    waiting = list(rows)
    while waiting:
        to_come = {(row["role"], row["member"]) for row in waiting if row["admin"]}
        ready = [row for row in waiting if (row["role"], row["grantor"]) not in to_come] or waiting
        ordered += ready
        waiting = [row for row in waiting if row not in ready]
    return ordered


def _grant(row: dict[str, Any]) -> str:
    options = []
    if row["inherit"] is not None:  # PostgreSQL 16 and later
        options = [f"ADMIN {row['admin']}", f"INHERIT {row['inherit']}", f"SET {row['set']}"]
    elif row["admin"]:
        options = ["ADMIN OPTION"]
    with_options = f" WITH {', '.join(options).upper()}" if options else ""
    # None or "unknown (OID=...)": the grantor is not here or was dropped since; the present role grants instead
    known = row["grantor"] is not None and not row["grantor"].startswith("unknown (OID=")
    granted_by = f" GRANTED BY {quote_identifier(row['grantor'])}" if known else ""
    return f"GRANT {quote_identifier(row['role'])} TO {quote_identifier(row['member'])}{with_options}{granted_by}"


def _revoke(row: dict[str, Any]) -> str:
    by = f" GRANTED BY {quote_identifier(row['grantor'])}" if row["grantor"] and row["inherit"] is not None else ""
    return f"REVOKE {quote_identifier(row['role'])} FROM {quote_identifier(row['member'])}{by}"


def creation(role: dict[str, Any]) -> str:
    """Return the statement that makes a role which can do, as the owner of something, what it could, but not log in."""
    rights = ("superuser", "inherit", "bypass_rls")
    words = " ".join(_FLAGS[right] if role[right] else f"NO{_FLAGS[right]}" for right in rights)
    return f"CREATE ROLE {quote_identifier(role['name'])} NOLOGIN {words}"


def lent(new: Globals) -> tuple[list[str], list[str]]:
    """Return statements that give the memberships of `new`, and that take them back."""
    rows = _grantors_first(new["memberships"])
    return [_grant(row) for row in rows], [_revoke(row) for row in reversed(rows)]


def set_statement(target: str, setting: str) -> str:
    """Return `ALTER <target> SET name TO value` for one stored `name=value`."""
    return f"ALTER {target} {set_words(setting)}"


def set_words(setting: str) -> str:
    """Return `SET name TO value` for one stored `name=value`."""
    name, _, value = setting.partition("=")
    if name.lower() in _LIST_SETTINGS:
        literals = ", ".join(quote_literal(item) for item in split_list(value)) or "''"
    else:
        literals = quote_literal(value)
    dotted = ".".join(quote_identifier(part) for part in name.split("."))
    return f"SET {dotted} TO {literals}"


def split_list(value: str) -> list[str]:
    """Split the stored value of a list setting, whose elements may be double-quoted."""
    items: list[str] = []
    position = 0
    while position < len(value):
        if value[position] in ", \t\n":
            position += 1
            continue
        if value[position] == '"':
            item, position = _quoted_item(value, position + 1)
            items.append(item)
            continue
        end = value.find(",", position)
        end = len(value) if end < 0 else end
        items.append(value[position:end].strip())
        position = end
    return items


def _quoted_item(value: str, position: int) -> tuple[str, int]:
    item = ""
    while position < len(value):
        if value[position] != '"':
            item += value[position]
        elif value[position + 1 : position + 2] == '"':
            item, position = item + '"', position + 1
        else:
            return item, position + 1
        position += 1
    return item, position


def computing(database: dict[str, Any]) -> list[str]:
    """Return the settings (`name=value`) of a database that decide what is computed in it, such as its time zone.

    Left out are limits, and what is about a session, its messages or what it may do.
    """
    settings = [setting for row in database["settings"] if row["role"] is None for setting in row["settings"]]
    return [setting for setting in settings if _computes(setting.partition("=")[0].lower())]


def _computes(name: str) -> bool:
    return "." in name or not (name in _OF_SESSIONS or name.endswith("_timeout"))


def database_statements(database: dict[str, Any], name: str) -> list[str]:
    """Return the statements that give database `name` the stored limit, comment, privileges and settings."""
    quoted = quote_identifier(name)
    result = [f"ALTER DATABASE {quoted} CONNECTION LIMIT {int(database['connection_limit'])}"]
    if database["comment"] is not None:
        result.append(f"COMMENT ON DATABASE {quoted} IS {quote_literal(database['comment'])}")
    if database["acl"] is not None:
        result.append(f"REVOKE ALL ON DATABASE {quoted} FROM PUBLIC, {quote_identifier(database['owner'])}")
        for item in database["acl"]:
            grantee = "PUBLIC" if item["grantee"] is None else quote_identifier(item["grantee"])
            grantable = " WITH GRANT OPTION" if item["grantable"] else ""
            grant = f"GRANT {_privilege(item['privilege'])} ON DATABASE {quoted} TO {grantee}{grantable}"
            if item["grantor"] != database["owner"]:
                result += [f"SET LOCAL ROLE {quote_identifier(item['grantor'])}", grant, "RESET ROLE"]
            else:
                result.append(grant)
    for row in database["settings"]:
        target = database_target(name, row["role"])
        result += [set_statement(target, setting) for setting in row["settings"]]
    return result


def _privilege(name: str) -> str:
    if name not in ("CREATE", "CONNECT", "TEMPORARY"):
        raise CorruptArchive(f"the archive names an unknown database privilege: {name!r}")
    return name
