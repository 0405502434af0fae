"""What a device-management server's PostgreSQL looks like, at any size, the same for the same seed.

Rows are made by the server itself from hash functions, so that 2 GB take a minute or two. Scale 1.0 is about 8 million
events and 200 thousand devices; the schema, the odd names and the edge values are the same at every scale.

    deviceon              the main database (sample_sql/20 to 60)
    grafana_reports       a small one: LATIN1, read-only by default, old string syntax
    Old "Reports" 100%    a tiny one: SQL_ASCII with bytes that are no text
    postgres              left alone
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg

from demo.postgresql_server import PostgresqlServer

MAIN = "deviceon"
REPORTS = "grafana_reports"
LEGACY = 'Old "Reports" 100%'
DATABASES = (MAIN, REPORTS, LEGACY)
OPS_ROLE = 'Ops Team\\"; drop'
LOGINS = ("deviceon_app", "deviceon_legacy", "deviceon_expired", "deviceon_replica", OPS_ROLE)
ROLES = (*LOGINS, "deviceon_owner", "deviceon_readonly", "deviceon_operators", "rôle-ü")

EXTENSION = "deviceon_sample_ext"
_SQL = Path(__file__).with_name("sample_sql")
_EXTENSION_FILES = Path(__file__).with_name("sample_extension")
_FIRST_MONTH = datetime(2025, 7, 1, tzinfo=UTC)
_DAYS = 365
_KINDS = "ARRAY['heartbeat','temperature','disk','network','watchdog','login','update','alarm']"
_MESSAGES = """ARRAY['device reported in', 'temperature above threshold on board sensor', 'disk health changed',
'link down on eth1, retrying', 'watchdog restarted the agent', E'login from\\t"operator"', 'update finished', NULL]"""

_EVENTS = f"""
INSERT INTO telemetry.events (id, device_id, at, severity, kind, message, value, details)
SELECT n, 1 + ((h >> 8) & 2147483647) % $3::int, $5::timestamptz + (n - 1) * $6::interval,
       ((h >> 3) & 31) / 7, ({_KINDS})[1 + (h & 7)], ({_MESSAGES})[1 + (h & 7)] || ' #' || (h & 4095),
       ((h >> 12) & 1048575) / 1000.0,
       CASE WHEN h & 3 > 0 THEN jsonb_build_object('seq', n, 'sensor', 's' || (h & 63), 'raw', (h >> 20) & 65535) END
FROM (SELECT n, hashint8extended(n, $4::bigint) & 9223372036854775807 AS h
      FROM generate_series($1::bigint, $2::bigint) AS n) AS made
"""
_AUDIT = """
INSERT INTO security.audit_log (at, user_id, action, detail)
SELECT timestamptz '2024-01-01 00:00+00' + n * interval '31 seconds', 100 + n % 20,
       (ARRAY['login','logout','change setting','restart device','export'])[1 + h % 5],
       'User ' || n % 20 || ' from 10.1.' || (h & 255) || '.' || ((h >> 8) & 255) || ' changed /system/settings/'
       || (h & 1023) || ' from "' || ((h >> 3) & 65535) || '" to "' || ((h >> 5) & 65535)
       || '"; session ' || md5(n::text)
FROM (SELECT n, hashint8extended(n, $2::bigint) & 9223372036854775807 AS h
      FROM generate_series(1, $1::bigint) AS n) AS made
"""


class ExtensionNotInstallable(RuntimeError):
    """The sample's own extension cannot be put where the server looks for extensions; the message says what to do."""


def password_of(role: str) -> str:
    """Return the password that `create` gave to a login role of the sample."""
    return f"pass of {role}"


def install_extension(server: PostgresqlServer) -> None:
    """Put the sample's extension into the server's directory of extensions, as its Debian package would."""
    target = Path(server.program_output("pg_config", "--sharedir")) / "extension"
    for source in sorted(_EXTENSION_FILES.iterdir()):
        path = target / source.name
        if path.exists() and path.read_bytes() == source.read_bytes():
            continue
        try:
            with tempfile.NamedTemporaryFile(dir=target, delete=False) as file:
                file.write(source.read_bytes())
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except OSError as exc:
            raise ExtensionNotInstallable(
                f"The sample's extension cannot be written to {target} ({exc.strerror}): "
                "run as root once, or create the sample with extension=False"
            ) from exc


async def create(
    server: PostgresqlServer, *, scale: float, seed: int = 7, extension: bool = True, jobs: int | None = None
) -> None:
    """Make the sample's roles and databases; the server must not have them yet.

    `jobs` connections fill the big tables, by default one for each core.
    """
    if extension:
        install_extension(server)
    await _create_roles(server, seed)
    await _create_databases(server)
    sizes = {
        "devices": max(200, round(200_000 * scale)),
        "events": max(2_000, round(8_000_000 * scale)),
        "audit": max(500, round(1_500_000 * scale)),
        "firmware": max(3, round(100 * scale)),
        "firmware_blocks": max(100, min(32_768, round(32_768 * scale * 10))),
    }
    async with _connection(server, MAIN) as connection:
        await _set_sizes(connection, sizes, seed)
        await _run_file(connection, "20_schema.sql")
        await _fill(server, connection, sizes, seed, jobs or os.cpu_count() or 1)
        await _run_file(connection, "40_features.sql")
        if extension:
            await _run_file(connection, "60_extension.sql")
        await connection.execute("ANALYZE")
        await _run_file(connection, "50_finish.sql")
    for database, file in ((REPORTS, "70_reports.sql"), (LEGACY, "75_legacy.sql")):
        async with _connection(server, database) as connection:
            if database == LEGACY:
                # The file has the bytes as escapes; without this the server would refuse to see them as UTF-8.
                await connection.execute("SET client_encoding = 'SQL_ASCII'")
            await _run_file(connection, file)
    async with _connection(server, "postgres") as connection:
        await _run_file(connection, "80_databases.sql")


async def destroy(server: PostgresqlServer) -> None:
    """Drop everything that `create` made, as a disaster would. Databases that are not there are no error."""
    async with _connection(server, "postgres") as connection:
        for database in DATABASES:
            await connection.execute(f"DROP DATABASE IF EXISTS {_quoted(database)} WITH (FORCE)")
        present = {row[0] for row in await connection.fetch("SELECT rolname FROM pg_roles")}
        await connection.execute("ALTER ROLE ALL RESET ALL")
        parameters = await connection.fetch("SELECT DISTINCT parname FROM pg_parameter_acl")
        for role in ROLES:
            if role in present:
                for row in parameters:
                    await connection.execute(f"REVOKE ALL ON PARAMETER {row['parname']} FROM {_quoted(role)} CASCADE")
        # The odd role granted a membership: it goes after those it granted to.
        for role in sorted(present & set(ROLES), key=lambda name: name == OPS_ROLE):
            await connection.execute(f"DROP OWNED BY {_quoted(role)} CASCADE; DROP ROLE {_quoted(role)}")


async def _create_roles(server: PostgresqlServer, seed: int) -> None:
    async with _connection(server, "postgres") as connection:
        await _run_file(connection, "10_roles.sql")
        for role in LOGINS:
            if role == "deviceon_legacy":
                verifier = "md5" + hashlib.md5((password_of(role) + role).encode()).hexdigest()
            else:
                verifier = _scram_verifier(
                    password_of(role), salt=hashlib.sha256(f"{seed}{role}".encode()).digest()[:16]
                )
            await connection.execute(f"ALTER ROLE {_quoted(role)} PASSWORD '{verifier}'")


async def _create_databases(server: PostgresqlServer) -> None:
    async with _connection(server, "postgres") as connection:
        for database, more in (
            (MAIN, "ENCODING 'UTF8' LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8' OWNER deviceon_owner"),
            (REPORTS, "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' OWNER deviceon_app"),
            (LEGACY, "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"),
        ):
            await connection.execute(f"CREATE DATABASE {_quoted(database)} TEMPLATE template0 {more}")


async def _fill(
    server: PostgresqlServer,
    connection: asyncpg.Connection[asyncpg.Record],
    sizes: dict[str, int],
    seed: int,
    jobs: int,
) -> None:
    """Fill the big tables on some connections at once; each takes the next piece until none is left."""
    step = timedelta(days=_DAYS) / sizes["events"]
    piece = max(1_000, sizes["events"] // 16)
    events = [
        (_EVENTS, first, min(first + piece - 1, sizes["events"]), sizes["devices"], seed, _FIRST_MONTH, step)
        for first in range(1, sizes["events"] + 1, piece)
    ]
    small = sizes["events"] < 100_000

    async def work(own: asyncpg.Connection[asyncpg.Record]) -> None:
        while events:
            await own.execute(*events.pop(0))

    async def others() -> None:
        await _run_file(connection, "30_data.sql")
        await connection.execute(_AUDIT, sizes["audit"], seed)
        await work(connection)

    async with _connection(server, MAIN) as second, asyncio.TaskGroup() as group:
        group.create_task(others())
        if jobs > 1 and not small:
            group.create_task(work(second))
    await connection.execute("SELECT setval('telemetry.event_numbers', $1)", sizes["events"])


async def _set_sizes(connection: asyncpg.Connection[asyncpg.Record], sizes: dict[str, int], seed: int) -> None:
    for name, value in {**sizes, "seed": seed}.items():
        await connection.execute("SELECT set_config($1, $2, false)", f"sample.{name}", str(value))


async def _run_file(connection: asyncpg.Connection[asyncpg.Record], name: str) -> None:
    try:
        await connection.execute((_SQL / name).read_text(encoding="utf-8"))
    except asyncpg.PostgresError as exc:
        exc.add_note(f"in {_SQL / name}, at character {exc.as_dict().get('position')}")
        raise


@asynccontextmanager
async def _connection(server: PostgresqlServer, database: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await server.connect(database)
    try:
        yield connection
    finally:
        await connection.close()


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _scram_verifier(password: str, *, salt: bytes, iterations: int = 4096) -> str:
    """Return what PostgreSQL stores (RFC 5803), with a salt that does not change from run to run."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    parts = (salt, hashlib.sha256(client_key).digest(), hmac.digest(salted, b"Server Key", "sha256"))
    encoded = [base64.b64encode(part).decode() for part in parts]
    return f"SCRAM-SHA-256${iterations}:{encoded[0]}${encoded[1]}:{encoded[2]}"
