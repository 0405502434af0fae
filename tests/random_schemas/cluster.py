"""What lies outside the database: roles and what is set of them, and the settings of the database itself."""

from __future__ import annotations

from random import Random

from tests.random_schemas.world import DBA, OTHER, OWNER, READER, ROLES, TEXTS, World, kind, literal, quoted

SETTINGS = (
    "DateStyle = 'German, DMY'", "IntervalStyle = 'sql_standard'", "array_nulls = off", "bytea_output = 'escape'",
    "standard_conforming_strings = off", "quote_all_identifiers = on", "default_transaction_read_only = on",
    "default_transaction_isolation = 'serializable'", "xmloption = 'document'", "xmlbinary = 'hex'",
    "row_security = off",
    "TimeZone = 'Asia/Kathmandu'", "extra_float_digits = -15", "check_function_bodies = off",
    "statement_timeout = '3s'",
    "transform_null_equals = on", "session_replication_role = 'replica'", "lo_compat_privileges = on",
    "backslash_quote = 'on'", "search_path = \"odd, \"\" schema\", public", "search_path = ''", "lock_timeout = 100",
    "my.own = 'it''s \"odd\" \\ 100%'", "default_toast_compression = 'lz4'", "default_statistics_target = 7",
    "idle_session_timeout = '60s'", "enable_seqscan = off", "client_min_messages = 'error'",
    "escape_string_warning = off",
    "default_tablespace = 'pg_default'", "temp_tablespaces = 'pg_default'", "log_statement = 'ddl'", "jit = on",
)  # fmt: skip
"""What a database or a role may be set to, and should not mind."""


def roles(seed: int) -> list[str]:
    """Return the statements that make the roles, always other ones."""
    dice = Random(f"roles {seed}")
    statements = [
        f"CREATE ROLE {quoted(DBA)} SUPERUSER NOLOGIN",
        f"CREATE ROLE {quoted(READER)} NOINHERIT LOGIN PASSWORD 'pw {seed}' CONNECTION LIMIT 3",
        f"ALTER ROLE {quoted(READER)} INHERIT",
        f"CREATE ROLE {quoted(OWNER)} CREATEDB VALID UNTIL '2030-01-01 00:00+00'",
        f"CREATE ROLE {quoted(OTHER)} BYPASSRLS REPLICATION",
        f"GRANT pg_read_all_data TO {quoted(READER)}",
        f"GRANT {quoted(OTHER)} TO {quoted(OWNER)} WITH ADMIN OPTION",
        f"SET ROLE {quoted(OWNER)}",
        f"GRANT {quoted(OTHER)} TO {quoted(DBA)}",
        "RESET ROLE",
    ]
    statements += [f"COMMENT ON ROLE {quoted(name)} IS {literal(dice.choice(TEXTS))}" for name in ROLES]
    statements += [f"ALTER ROLE {quoted(name)} SET {dice.choice(SETTINGS)}" for name in ROLES if dice.random() < 0.5]
    return statements


@kind
def database_setting(w: World) -> None:
    """Of the database, for all or for one role, the one that restores among them."""
    setting = w.pick(SETTINGS)
    w.settings.append(f"ALTER DATABASE {{}} SET {setting}")
    whose = w.pick((w.role(), "CURRENT_USER"))
    w.of_roles.append(f"ALTER ROLE {whose} IN DATABASE {{}} SET {w.pick(SETTINGS)}")


@kind
def database_rights(w: World) -> None:
    a, b = w.dice.sample(ROLES, 2)
    forms = [
        [f"GRANT CONNECT, TEMPORARY ON DATABASE {{}} TO {quoted(a)} WITH GRANT OPTION"],
        [f"GRANT CREATE ON DATABASE {{}} TO {quoted(a)} WITH GRANT OPTION", f"SET ROLE {quoted(a)}",
         f"GRANT CREATE ON DATABASE {{}} TO {quoted(b)}", "RESET ROLE"],
        ["REVOKE ALL ON DATABASE {} FROM PUBLIC"],
    ]  # fmt: skip
    w.settings += w.pick(forms)


@kind
def database_properties(w: World) -> None:
    w.settings.append(f"ALTER DATABASE {{}} CONNECTION LIMIT {w.pick((0, 7, 100))}")
    w.settings.append(f"COMMENT ON DATABASE {{}} IS {w.text()}")
