"""One database that tests back up, spoil and restore: rows, a sequence, a materialized view, a large object, a role."""

from __future__ import annotations

from pathlib import Path

from demo.postgresql_server import PostgresqlServer
from service.journal import journals
from tests.recipes import Installation

SAMPLE = """
    CREATE TABLE things AS SELECT n AS id, md5(n::text) AS text FROM generate_series(1, 200000) AS n;
    ALTER TABLE things ADD PRIMARY KEY (id);
    CREATE SEQUENCE counter; SELECT setval('counter', 77, false);
    CREATE MATERIALIZED VIEW total AS SELECT count(*) AS n FROM things;
    SELECT lo_from_bytea(4711, 'large');
"""


async def make(server: PostgresqlServer, workspace: Path) -> Installation:
    """Make the database `app` and the role `worker` on an empty server."""
    await server.execute("CREATE DATABASE app")
    await server.execute(SAMPLE, database="app")
    await server.execute("CREATE ROLE worker LOGIN PASSWORD 'first' CONNECTION LIMIT 5")
    return Installation(server, workspace)


async def contents(installation: Installation) -> list[object]:
    [row] = await installation.server.fetch(
        """SELECT (SELECT count(*) FROM things), (SELECT sum(hashtext(text)) FROM things),
                  (SELECT last_value FROM counter),
                  (SELECT n FROM total), convert_from(lo_get(4711), 'UTF8'),
                  (SELECT rolpassword FROM pg_authid WHERE rolname = 'worker')""",
        database="app",
    )
    return list(row)


async def spoil(installation: Installation) -> None:
    await installation.server.execute("DELETE FROM things WHERE id > 10; SELECT setval('counter', 1)", database="app")
    await installation.server.execute("ALTER ROLE worker PASSWORD 'second' CONNECTION LIMIT 1; CREATE ROLE newcomer")


async def untouched(installation: Installation, before: list[object]) -> None:
    """Live data is as it was, and nothing of the restore is left."""
    assert await contents(installation) == before
    assert await installation.databases() == {"app", "postgres"}
    assert journals(installation.config.state_dir) == []
