"""One backup or restore at a time: two services with their own state directories, and one real server between them."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo.postgresql_server import PostgresqlServer
from service.config_sources import PostgresqlSettings
from service.errors import JobRefused, RestoreRefused, SourceError, SourceUnavailable
from service.exclusive import exclusive, servers_locked
from service.journal import journals
from service.settle import settle
from service.sources.postgresql.lock import only_one
from service.state import Archives, Database
from tests.conftest import NewDatabase
from tests.recipes import Installation
from tests.service_parts import Clock

ROOT = Path(__file__).parents[2]
LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 1147500111 AND granted"


@pytest.fixture(autouse=True)
async def _alone(postgresql: PostgresqlServer) -> AsyncIterator[None]:
    """The lock is the server's: wait until no session of a test before holds it."""
    await unlocked(postgresql)
    yield
    await unlocked(postgresql)


async def unlocked(server: PostgresqlServer) -> None:
    async with asyncio.timeout(30):
        while (await server.fetch(LOCKS))[0][0]:
            await asyncio.sleep(0.01)


@pytest.fixture
async def database(new_database: NewDatabase) -> str:
    return await new_database("CREATE TABLE things AS SELECT n FROM generate_series(1, 100) AS n")


def installation(server: PostgresqlServer, workspace: Path, name: str, database: str) -> Installation:
    root = workspace / name
    root.mkdir()
    return Installation(server, root, source={"include": [database], "application_name": name})


@pytest.fixture
def one(postgresql: PostgresqlServer, workspace: Path, database: str) -> Installation:
    return installation(postgresql, workspace, "service-one", database)


@pytest.fixture
def other(postgresql: PostgresqlServer, workspace: Path, database: str) -> Installation:
    return installation(postgresql, workspace, "service-two", database)


def source(installation: Installation) -> PostgresqlSettings:
    settings = installation.config.sources[0]
    assert isinstance(settings, PostgresqlSettings)
    return settings


@contextmanager
def holder(installation: Installation) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the locks; it is gone after the block."""
    told = source(installation).model_dump_json()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.lock_holder", str(installation.config.state_dir), told],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "holding\n"
        yield process
    finally:
        process.kill()
        process.communicate()


async def test_a_second_service_is_refused_with_who_holds_the_server_and_adds_no_archive(
    one: Installation, other: Installation
) -> None:
    async with exclusive(one.config.state_dir, "a backup", one.config.sources):
        with pytest.raises(JobRefused) as caught:
            await other.backup()
        assert re.search(
            r"another service .* \(service-one from .+, since \d{4}-.+Z\), so a backup cannot begin", str(caught.value)
        )
        assert caught.value.hint
        assert list(other.target.iterdir()) == []
    assert (await other.backup()).rows == 100


async def test_the_same_state_directory_is_refused_without_asking_the_server(one: Installation) -> None:
    async with exclusive(one.config.state_dir, "a backup", []):
        with pytest.raises(JobRefused, match=r"a backup .process"):
            async with exclusive(one.config.state_dir, "a restore", one.config.sources):
                raise AssertionError("entered")


async def test_both_locks_go_when_their_holder_is_killed(one: Installation, other: Installation) -> None:
    with holder(one) as process:
        for refused in (one, other):
            with pytest.raises(JobRefused):
                await refused.backup()
        process.kill()
        process.wait()
        await unlocked(one.server)  # the server notices by itself
        assert (await other.backup()).rows == 100
        assert (await one.backup()).rows == 100


async def test_the_servers_lock_goes_with_its_connection_and_leaving_fails_nothing(
    one: Installation, other: Installation
) -> None:
    async with exclusive(one.config.state_dir, "a backup", one.config.sources):
        await one.server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = 1147500111"
        )
        await unlocked(one.server)
        assert (await other.backup()).rows == 100


@pytest.mark.parametrize("how", ["done", "failed", "cancelled"])
async def test_the_locks_are_free_at_once_however_a_job_ends(one: Installation, other: Installation, how: str) -> None:
    entered = asyncio.Event()

    async def work() -> None:
        async with exclusive(one.config.state_dir, "a backup", one.config.sources):
            entered.set()
            if how == "failed":
                raise RuntimeError(how)
            if how == "cancelled":
                await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await entered.wait()
    if how == "cancelled":
        task.cancel()
    await asyncio.wait({task})
    async with exclusive(other.config.state_dir, "a backup", other.config.sources):
        pass
    async with exclusive(one.config.state_dir, "a backup", one.config.sources):
        pass


async def test_whoever_is_refused_leaves_the_holders_lock_and_its_own_state_directory_alone(
    one: Installation, other: Installation
) -> None:
    async with exclusive(one.config.state_dir, "a backup", one.config.sources):
        for _ in range(3):
            with pytest.raises(JobRefused, match="another service"):
                async with exclusive(other.config.state_dir, "a backup", other.config.sources):
                    raise AssertionError("entered")
        assert (await one.server.fetch(LOCKS))[0][0] == 1
        async with exclusive(other.config.state_dir, "a pruning", []):
            pass


async def test_restore_rollback_and_commit_take_the_lock_too(one: Installation, other: Installation) -> None:
    archive = (await one.backup()).name
    with holder(other) as busy:
        with pytest.raises(RestoreRefused, match=r"another service backs up or restores this server \(service-two"):
            await one.restore(archive)
        assert journals(one.config.state_dir) == []
        busy.kill()
        busy.wait()
        await unlocked(one.server)
    await one.restore(archive)
    with holder(other) as busy:
        with pytest.raises(JobRefused, match=r"service-two.*so a rollback cannot begin"):
            await one.rollback()
        with pytest.raises(JobRefused, match=r"service-two.*so a commit cannot begin"):
            await one.commit()
        assert [journal.state for journal in journals(one.config.state_dir)] == ["swapped"]
        busy.kill()
        busy.wait()
        await unlocked(one.server)
    await one.rollback()
    await one.restore(archive)
    await one.commit()
    assert journals(one.config.state_dir) == []


async def test_settling_takes_the_lock_too(one: Installation, other: Installation) -> None:
    database = Database.open(one.config.state_dir)
    archives = Archives(database, Clock())
    async with exclusive(other.config.state_dir, "a backup", other.config.sources):
        with pytest.raises(JobRefused, match="so settling cannot begin"):
            await settle(one.config, archives=archives, clock=Clock(), progress=one.progress())
    await settle(one.config, archives=archives, clock=Clock(), progress=one.progress())
    database.close()


async def test_a_server_that_is_away_is_told_and_the_state_directory_is_free_again(one: Installation) -> None:
    away = source(one).model_copy(update={"port": 1})
    with pytest.raises(SourceUnavailable):
        async with exclusive(one.config.state_dir, "a backup", [away]):
            raise AssertionError("entered")
    async with exclusive(one.config.state_dir, "a backup", one.config.sources):
        pass


async def test_one_server_named_by_two_sources_is_locked_once(one: Installation) -> None:
    settings = source(one)
    twice = [settings, settings.model_copy(update={"name": "again", "include": ["other_*"]})]
    async with servers_locked(twice, "a backup"):
        assert (await one.server.fetch(LOCKS))[0][0] == 1


async def test_a_session_that_holds_the_lock_is_not_ended_for_being_idle(
    one: Installation, postgresql: PostgresqlServer
) -> None:
    role = f"impatient_{id(one)}"
    await postgresql.execute(
        f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'x'; ALTER ROLE {role} SET idle_session_timeout = 1000"
    )
    try:
        password = one.root / "password"
        password.write_text("x")
        settings = source(one).model_copy(update={"user": role, "password_file": password})
        async with only_one(settings, "a backup", recovering=False):
            await asyncio.sleep(2)
            assert (await postgresql.fetch(LOCKS))[0][0] == 1
    finally:
        await postgresql.execute(f"DROP ROLE {role}")


def test_the_holder_is_told_what_it_needs(one: Installation) -> None:
    """What the other process is given stands for the same server."""
    again = PostgresqlSettings.model_validate(json.loads(source(one).model_dump_json()), strict=False)
    assert again == source(one)


async def test_a_restore_that_closed_the_maintenance_database_can_still_be_settled(
    own_postgresql: PostgresqlServer,
) -> None:
    settings = PostgresqlSettings.model_validate(own_postgresql.source_settings(), strict=False)
    await own_postgresql.execute("ALTER DATABASE postgres WITH ALLOW_CONNECTIONS false", database="template1")
    with pytest.raises(SourceError, match="not currently accepting connections"):
        async with servers_locked([settings], "a backup"):
            pass
    async with servers_locked([settings], "a rollback", recovering=True):
        pass
