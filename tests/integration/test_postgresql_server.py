"""The server that all other tests stand on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.postgresql_server import PostgresqlMissing, PostgresqlServer, find_programs
from tests.conftest import NewDatabase


async def test_a_killed_server_recovers_on_its_port_with_its_data(own_postgresql: PostgresqlServer) -> None:
    port = own_postgresql.port
    await own_postgresql.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    own_postgresql.kill()
    assert not own_postgresql.running
    own_postgresql.start()
    assert own_postgresql.port == port
    assert [row["answer"] for row in await own_postgresql.fetch("SELECT answer FROM kept")] == [42]


async def test_a_restart_adds_settings(own_postgresql: PostgresqlServer) -> None:
    own_postgresql.restart({"max_connections": 33})
    assert (await own_postgresql.fetch("SHOW max_connections"))[0][0] == "33"


def test_passwords_are_asked_for_on_tcp_and_on_the_socket(postgresql: PostgresqlServer) -> None:
    for host in (postgresql.host, str(postgresql.socket_directory)):
        command = ["psql", "-h", host, "-p", str(postgresql.port), "-U", "postgres", "-wAtc", "SELECT 1"]
        refused = subprocess.run(command, capture_output=True, check=False, env={"PATH": os.environ["PATH"]})
        assert b"no password supplied" in refused.stderr
        allowed = {"PATH": os.environ["PATH"], "PGPASSWORD": postgresql.password}
        assert subprocess.run(command, capture_output=True, check=True, env=allowed).stdout == b"1\n"


def test_the_server_dies_with_the_process_that_started_it() -> None:
    script = "import demo.postgresql_server as d; s = d.PostgresqlServer(fsync=False); s.initialise(); s.start();"
    script += "print(s.pid, s.directory, flush=True); input()"
    owner = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout and owner.stdin
    pid, directory = owner.stdout.readline().split()
    assert Path(f"/proc/{pid}/cmdline").read_bytes().startswith(os.fsencode(find_programs()))
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()
    subprocess.run(["rm", "-rf", directory], check=True)


async def test_each_database_is_new(postgresql: PostgresqlServer, new_database: NewDatabase) -> None:
    first, second = await new_database("CREATE TABLE a ()"), await new_database()
    count = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    assert [(await postgresql.fetch(count, database=name))[0][0] for name in (first, second)] == [1, 0]


def test_a_missing_server_is_named_with_its_package() -> None:
    with pytest.raises(PostgresqlMissing, match="postgresql-99"):
        find_programs(99)
