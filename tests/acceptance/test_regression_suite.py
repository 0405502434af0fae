"""The database that PostgreSQL's own regression suite leaves behind comes back.

`DEVICEON_BACKUP_REGRESSION_SUITE=whole` runs all files of the suite instead of those that leave most behind.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path

from demo.compare import ServerState, diff, fingerprint
from demo.postgresql_server import PostgresqlServer
from demo.regression_suite import DATABASE, DEFINING, SETTINGS, regression_database
from tests.conftest import NewServer
from tests.recipes import Installation
from tests.scoreboard import counted

WHOLE = os.environ.get("DEVICEON_BACKUP_REGRESSION_SUITE") == "whole"
CONTROL = "control"


async def test_the_regression_suites_database_comes_back_as_postgresqls_own_tools_bring_it_and_then_the_same_again(
    new_postgresql: NewServer, workspace: Path, record_property: Callable[[str, object], None]
) -> None:
    """Identical to what pg_dump and pg_restore make of it; a second time identical to itself.

    pg_dump writes the columns of a few inheriting tables in another order than they had, and materialized views are
    filled anew: so what comes back is not the first database, for PostgreSQL's tools as for this service. It is
    compared with theirs, all of it; and from there on nothing may change any more.
    """
    server = new_postgresql(settings=SETTINGS)
    await asyncio.to_thread(regression_database, server, only=None if WHOLE else DEFINING)
    control = await _by_postgresqls_own_tools(server, workspace / "control.dump")
    installation = Installation(server, workspace, source={"include": [DATABASE]})

    first, _ = await _there_and_back(installation)
    assert diff(control, first) == []
    dump = await _definitions(server)
    second, rows = await _there_and_back(installation)
    assert diff(first, second) == []
    assert await _definitions(server) == dump, "the text of pg_dump, byte by byte"

    record_property(
        "counted", counted(1, f"{dump.count(chr(10))} lines of pg_dump, {rows} rows of the regression suite the same")
    )


async def _there_and_back(installation: Installation) -> tuple[ServerState, int]:
    """Back the database up, lose it, restore it; return what there is then, and how many rows were backed up."""
    made = await installation.backup()
    await installation.server.execute(f"DROP DATABASE {DATABASE}")
    await installation.restore(made.name)
    await installation.commit()
    return _content(await fingerprint(installation.server, [DATABASE]), DATABASE), made.rows


async def _by_postgresqls_own_tools(server: PostgresqlServer, dump: Path) -> ServerState:
    await asyncio.to_thread(server.run, "pg_dump", ["-Fc", "-f", str(dump), DATABASE])
    await server.execute(f"CREATE DATABASE {CONTROL} TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    await asyncio.to_thread(server.run, "pg_restore", ["--exit-on-error", "-d", CONTROL, str(dump)])
    state = _content(await fingerprint(server, [CONTROL]), CONTROL)
    await server.execute(f"DROP DATABASE {CONTROL}")
    return state


def _content(state: ServerState, database: str) -> ServerState:
    """What is in a database, under a name that does not tell which one."""
    prefix = f"database {database}"
    return {name.removeprefix(prefix): told for name, told in state.items() if name.startswith(f"{prefix}:")}


async def _definitions(server: PostgresqlServer) -> str:
    text = await asyncio.to_thread(server.run, "pg_dump", ["--schema-only", DATABASE])
    # what psql is told first and last has a random word, to guard against names that look like its commands
    return re.sub(r"(?m)^\\(un)?restrict \w+$", "", text)
