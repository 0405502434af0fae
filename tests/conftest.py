"""Real parts for the tests. A missing part fails the test; nothing is skipped."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from demo import sample
from demo.postgresql_server import PostgresqlServer
from demo.smb_server import SambaServer
from service import secret
from tests.ftp_server import FtpServer
from tests.scoreboard import (  # noqa: F401  hooks of pytest
    pytest_runtest_call,
    pytest_sessionfinish,
    pytest_terminal_summary,
)
from tests.sftp_server import SftpServer

if TYPE_CHECKING:
    from demo.software_tpm import SoftwareTpm

NewDatabase = Callable[..., Awaitable[str]]
"""`await new_database(sql="", template="template0")` makes an empty database and returns its name."""
NewServer = Callable[..., PostgresqlServer]
"""`new_postgresql(**options)` starts one more server (0.7 s) for tests that break it or change what is global."""

_database_numbers = itertools.count(1)

if "DEVICEON_BACKUP_SEED" not in os.environ:  # which the scoreboard gives, and Hypothesis too
    settings.register_profile("the same dice each time", derandomize=True)
    settings.load_profile("the same dice each time")


@pytest.fixture(autouse=True)
def _no_secrets_of_other_tests() -> None:
    """Forget what other tests let be read as secrets: they would be taken out of this one's messages."""
    secret._remembered.clear()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    """Give the one server that all tests share. Change only databases you made, and no roles that others use."""
    with PostgresqlServer(fsync=False, settings={"max_connections": 200, "max_prepared_transactions": 10}) as server:
        yield server


@pytest.fixture
async def new_database(postgresql: PostgresqlServer) -> AsyncIterator[NewDatabase]:
    """Make databases on the shared server; they are dropped after the test."""
    made: list[str] = []

    async def new(sql: str = "", *, template: str = "template0") -> str:
        name = f"test_{os.getpid()}_{next(_database_numbers)}"
        await postgresql.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        made.append(name)
        if sql:
            await postgresql.execute(sql, database=name)
        return name

    yield new
    for name in made:
        await postgresql.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture
def new_postgresql() -> Iterator[NewServer]:
    """Start servers of the test's own; they are gone after the test."""
    with ExitStack() as servers:

        def new(**options: object) -> PostgresqlServer:
            server = PostgresqlServer(**({"fsync": False} | options))  # type: ignore[arg-type]
            return servers.enter_context(server)

        yield new


@pytest.fixture
def own_postgresql(new_postgresql: NewServer) -> PostgresqlServer:
    """Give a server of the test's own."""
    return new_postgresql()


@pytest.fixture(scope="session")
def _sample_template() -> Iterator[PostgresqlServer]:
    with PostgresqlServer(fsync=False) as server:
        asyncio.run(sample.create(server, scale=0))
        server.stop()
        yield server


@pytest.fixture
def sample_server(_sample_template: PostgresqlServer) -> Iterator[PostgresqlServer]:
    """Give a server of the test's own that holds the whole sample (`demo.sample`) at its smallest."""
    with PostgresqlServer.copy_of(_sample_template) as server:
        yield server


@pytest.fixture
def software_tpm() -> Iterator[SoftwareTpm]:
    """Give a software TPM of the test's own, started."""
    from demo.software_tpm import SoftwareTpm  # noqa: PLC0415  (tests without a TPM do not need its library)

    with SoftwareTpm() as tpm:
        yield tpm


@pytest.fixture(scope="session")
def samba() -> Iterator[SambaServer]:
    """Give the one SMB server that tests share; each makes a directory of its own in the share."""
    with SambaServer() as server:
        yield server


@pytest.fixture(scope="session")
def ftp_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FtpServer]:
    """Give the one FTP server that tests share; each makes a directory of its own."""
    with FtpServer(tmp_path_factory.mktemp("ftp")) as server:
        yield server


@pytest.fixture(scope="session")
def sftp_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SftpServer]:
    """Give the one SFTP server that tests share; each makes a directory of its own."""
    with SftpServer(tmp_path_factory.mktemp("sftp")) as server:
        yield server


@pytest.fixture
def workspace() -> Iterator[Path]:
    """Give an empty directory that other users can reach too (pytest's `tmp_path` is closed to `postgres`)."""
    directory = Path(tempfile.mkdtemp(prefix="deviceon-backup-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
