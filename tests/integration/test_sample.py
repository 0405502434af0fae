"""The sample is what it says: the same each time, complete, and undone without a trace."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import asyncpg
import pytest

from demo import debian_schemas, public_schemas, sample
from demo.compare import diff, fingerprint
from demo.postgresql_server import PostgresqlServer
from tests.conftest import NewServer

SCALE = 0.0  # every kind of thing, few of each


async def test_the_same_seed_gives_the_same_content(sample_server: PostgresqlServer, new_postgresql: NewServer) -> None:
    other = new_postgresql()
    await sample.create(other, scale=SCALE)
    differences = diff(await fingerprint(sample_server, sample.DATABASES), await fingerprint(other, sample.DATABASES))
    # the superuser's own password is the server's, not the sample's
    assert [line.split(":")[0] for line in differences] == ["role postgres"]


async def test_destroy_leaves_nothing(sample_server: PostgresqlServer) -> None:
    await sample.destroy(sample_server)
    state = await fingerprint(sample_server, ["postgres"])
    assert state["server's databases"] == "postgres, template0, template1"
    assert [name for name in state if name.startswith(("role", "settings", "parameter"))] == ["role postgres"]
    await sample.destroy(sample_server)
    await sample.create(sample_server, scale=SCALE)


@pytest.mark.parametrize("role", ["deviceon_app", "deviceon_legacy"])
async def test_logins_have_their_passwords(sample_server: PostgresqlServer, role: str) -> None:
    if role == "deviceon_legacy":  # an MD5 verifier does for a server that still asks so
        hba = sample_server.data / "pg_hba.conf"
        hba.write_text(hba.read_text().replace("scram-sha-256", "md5"))
        await sample_server.execute("SELECT pg_reload_conf()")
        await asyncio.sleep(0.2)
    right = await sample_server.connect(user=role, password=sample.password_of(role))
    await right.close()
    with pytest.raises(asyncpg.InvalidPasswordError):
        await sample_server.connect(user=role, password="wrong")


async def test_a_plain_dump_comes_back_equal(sample_server: PostgresqlServer, workspace: Path) -> None:
    """The comparison invents no difference: PostgreSQL's own dump of the main database is equal by it."""
    before = await fingerprint(sample_server, [sample.MAIN])
    dump = str(workspace / "dump")
    await asyncio.to_thread(sample_server.run, "pg_dump", ["-Fc", "-Z0", "--create", "-f", dump, sample.MAIN])
    await sample_server.execute(f"DROP DATABASE {sample.MAIN}")
    await asyncio.to_thread(sample_server.run, "pg_restore", ["--create", "--exit-on-error", "-d", "postgres", dump])
    assert not diff(before, await fingerprint(sample_server, [sample.MAIN]))


async def test_a_dump_without_care_fails_on_the_reports(sample_server: PostgresqlServer, workspace: Path) -> None:
    """The settings of databases are a trap, as they are meant to be."""
    dump = str(workspace / "dump")
    sample_server.run("pg_dump", ["-Fc", "--create", "-f", dump, sample.REPORTS])
    await sample_server.execute(f"DROP DATABASE {sample.REPORTS}")
    command = [str(sample_server.programs / "pg_restore"), "--create", "-d", sample_server.dsn(), dump]
    failed = subprocess.run(command, capture_output=True, check=False)
    assert b"read-only transaction" in failed.stderr


async def test_big_tables_grow_with_the_scale(
    sample_server: PostgresqlServer, own_postgresql: PostgresqlServer
) -> None:
    await sample.create(own_postgresql, scale=0.002)
    count = "SELECT (SELECT count(*) FROM telemetry.events), (SELECT count(*) FROM inventory.devices)"
    small = (await sample_server.fetch(count, database=sample.MAIN))[0]
    large = (await own_postgresql.fetch(count, database=sample.MAIN))[0]
    assert (tuple(small), tuple(large)) == ((2_100, 200), (16_100, 400))


async def test_public_schemas_hold_every_extension_of_the_package(own_postgresql: PostgresqlServer) -> None:
    assert await public_schemas.public_schemas(own_postgresql) == public_schemas.DATABASES
    left = await own_postgresql.fetch(
        "SELECT name FROM pg_available_extensions WHERE installed_version IS NULL AND name !~ '^deviceon_'",
        database=public_schemas.CONTRIB,
    )
    assert not left
    rows = await own_postgresql.fetch(
        "SELECT count(*) FROM pgbench_accounts", database=public_schemas.PGBENCH_PARTITIONED
    )
    assert rows[0][0] == 100_000


async def test_debian_ships_the_databases_of_two_real_servers(own_postgresql: PostgresqlServer) -> None:
    await debian_schemas.debian_schemas(own_postgresql)
    images = await own_postgresql.fetch("SELECT count(*) FROM images", database=debian_schemas.ZABBIX)
    assert images[0][0] == 187
    triggers = await own_postgresql.fetch(
        "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal", database=debian_schemas.KEA
    )
    assert triggers[0][0] > 50
