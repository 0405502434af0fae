"""Any schema comes back as it was: random databases, with rows that meet their constraints, through a real server."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from demo.compare import diff, fingerprint
from demo.postgresql_server import PostgresqlServer
from tests.conftest import NewServer
from tests.random_schemas import Plan, World, cluster, everything, made, quoted, random_plan
from tests.random_schemas.catalogs import catalogs
from tests.random_schemas.world import OTHER
from tests.recipes import Installation
from tests.scoreboard import counted
from tests.sizes import examples

DATABASE = 'Odd "data" base\'s %s'
_NAME = r'(?:"(?:[^"]|"")*"|\w+)'
GRANTEES = re.compile(rf"(?<= TO ){_NAME}(?:, {_NAME})+(?= (?:USING|WITH))")
"""The roles of a policy."""
SUBSCRIPTION = re.compile(r"-- Name: [^\n]*; Type: SUBSCRIPTION; .*?\n--\n.*?\n--\n", re.S)


class Trials:
    """One server and its installation; each trial makes a database, backs it up, and restores it."""

    def __init__(self, server: PostgresqlServer, workspace: Path) -> None:
        self.server = server
        self.installation = Installation(server, workspace, source={"include": [DATABASE]})
        self.databases = 0
        self.statements = 0
        self.kinds: Counter[str] = Counter()

    async def state(self) -> dict[str, str]:
        """Return all that is known of the server and the database: two kinds of evidence."""
        told = await fingerprint(self.server, [DATABASE])
        schema = f"database {DATABASE}: schema"
        told[schema] = SUBSCRIPTION.sub("", told[schema])  # which a backup leaves out, and tells
        told[schema] = GRANTEES.sub(_sorted, told[schema])  # which pg_dump writes as they happen to lie
        return {**told, **await catalogs(self.server, DATABASE)}

    async def clear(self) -> None:
        """Take away the database, and the roles."""
        async with self.server.connected() as connection:
            if await connection.fetch("SELECT FROM pg_database WHERE datname = $1", DATABASE):
                await self.without_subscriptions()
                await connection.execute(f"DROP DATABASE {quoted(DATABASE)} WITH (FORCE)")
            for (name,) in await connection.fetch("SELECT rolname FROM pg_roles WHERE rolname !~ '^(pg_|postgres$)'"):
                await connection.execute(f"DROP OWNED BY {quoted(name)}; DROP ROLE {quoted(name)}")

    async def without_subscriptions(self) -> None:
        async with self.server.connected(DATABASE) as connection:
            await connection.execute("SET session_replication_role = replica; SET default_transaction_read_only = off")
            await connection.execute("SET statement_timeout = 0")
            for (name,) in await connection.fetch("SELECT evtname FROM pg_event_trigger"):
                await connection.execute(f"ALTER EVENT TRIGGER {quoted(name)} DISABLE")
            for (name,) in await connection.fetch("SELECT subname FROM pg_subscription"):
                await connection.execute(f"ALTER SUBSCRIPTION {quoted(name)} SET (slot_name = NONE)")
                await connection.execute(f"DROP SUBSCRIPTION {quoted(name)}")

    async def create(self, world: World, properties: str, roles: int) -> None:
        """Make the roles and the database."""
        await self.clear()
        async with self.server.connected() as connection:
            for statement in cluster.roles(roles):
                await connection.execute(statement)
            await connection.execute(f"CREATE DATABASE {quoted(DATABASE)} TEMPLATE template0 {properties}")
            await run(self.server, [*world.statements, *world.later, *world.last])
            for statement in world.settings:
                await connection.execute(statement.replace("{}", quoted(DATABASE)))
            # with the database's settings, as its own sessions would
            await run(self.server, [f"REFRESH MATERIALIZED VIEW {view}" for view in world.materialized])
            await run(self.server, world.watchers)
            for statement in world.of_roles:
                await connection.execute(statement.replace("{}", quoted(DATABASE)))
        self.databases += 1
        self.statements += sum(map(len, (world.statements, world.later, world.last, world.watchers)))
        self.kinds.update(world.kinds)

    async def change(self, world: World) -> None:
        """Make more in the database that is there, and take some away."""
        emptied = [f"TRUNCATE {table.name} CASCADE" for table in world.tables[:2]]
        await run(self.server, [*world.statements, *world.later, *world.last, *emptied])
        async with self.server.connected() as connection:
            for statement in (
                *world.settings,
                f"ALTER ROLE {quoted(OTHER)} LOGIN PASSWORD 'x'",
                "CREATE ROLE newcomer",
            ):
                await connection.execute(statement.replace("{}", quoted(DATABASE)))

    async def backup(self, world: World) -> str:
        """Make an archive, the only one; return its name."""
        for path in self.installation.target.iterdir():
            path.unlink()
        result = await self.installation.backup()
        lost = ", ".join(sorted(world.subscriptions))
        told = f"postgresql: subscriptions of database {DATABASE!r} are not in this backup: {lost}"
        assert result.warnings == ([told] if lost else [])
        return result.name

    async def restore(self, archive: str) -> None:
        """Restore, without a warning."""
        restored = await self.installation.restore(archive)
        assert not [each.message for each in restored.attention if each.code == "RESTORE_WARNING"]

    def counted(self) -> dict[str, object]:
        """Return what was tried."""
        kinds = ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in sorted(self.kinds.items()))
        return counted(self.databases, f"databases, made by {self.statements} statements: {kinds}")


def _sorted(roles: re.Match[str]) -> str:
    return ", ".join(sorted(re.findall(_NAME, roles[0])))


async def run(server: PostgresqlServer, statements: Sequence[str]) -> None:
    """Run the statements; the triggers that are there do not fire."""
    async with server.connected(DATABASE) as connection:
        await connection.execute("SET session_replication_role = replica; SET default_transaction_read_only = off")
        await connection.execute("SET statement_timeout = 0; SET search_path = ''; SET row_security = on")
        await connection.execute("SET default_tablespace = ''")  # or no table can be partitioned
        for statement in statements:
            try:
                await connection.execute(statement)
            except Exception as error:
                error.add_note(statement)
                raise


async def round_trip(trials: Trials, plan: Plan, *, properties: str, encoding: str, gone: bool, roles: int) -> None:
    """Back up what is planned, and restore it: where all of it is gone, or beside what is there."""
    world = made(plan, encoding=encoding)
    await trials.create(world, properties, roles)
    before = await trials.state()
    archive = await trials.backup(world)
    await (trials.clear() if gone else trials.without_subscriptions())  # these are in the way of a restore
    await trials.restore(archive)
    await trials.installation.commit()
    equal(before, await trials.state())


async def changed_meanwhile(trials: Trials, plan: Plan, more: Plan, roles: int) -> None:
    """Change the live database after its backup: `rollback` returns to that, `commit` keeps what was archived."""
    world = made([(kind, seed) for kind, seed in plan if kind not in LASTING])
    await trials.create(world, "", roles)
    archived = await trials.state()
    archive = await trials.backup(world)
    await trials.change(made([(kind, seed) for kind, seed in more if kind not in LASTING], world))
    changed = await trials.state()
    assert diff(archived, changed)
    await trials.restore(archive)
    await trials.installation.rollback()
    equal(changed, await trials.state())
    await trials.restore(archive)
    await trials.installation.commit()
    await trials.server.execute("DROP ROLE newcomer")  # a role that the archive does not know stays
    equal(archived, await trials.state())


def equal(before: dict[str, str], after: dict[str, str]) -> None:
    """Say what differs."""
    differences = diff(before, after)
    assert not differences, "\n".join(differences)


PROPERTIES = [
    ("", "UTF8"),
    ("ENCODING 'UTF8' LOCALE 'C.UTF-8'", "UTF8"),
    ("ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'sv' LOCALE 'C.UTF-8'", "UTF8"),
    ("ENCODING 'LATIN1' LOCALE 'C'", "LATIN1"),
]
LASTING = ("event_trigger", "subscription", "foreign_key", "constraint", "no_plpgsql")
"""What would refuse later changes."""

plans = st.integers(0, 2**32 - 1).map(random_plan)
some = partial(settings, deadline=None, database=None, phases=[Phase.explicit, Phase.generate])
some = partial(some, suppress_health_check=list(HealthCheck))


@pytest.fixture
def trials(new_postgresql: NewServer, workspace: Path) -> Trials:
    return Trials(new_postgresql(settings={"max_locks_per_transaction": 256}), workspace)


def test_a_database_with_every_kind_of_object_comes_back_where_all_of_it_is_gone(
    trials: Trials, record_property: Callable[[str, object], None]
) -> None:
    asyncio.run(round_trip(trials, everything(2), properties="", encoding="UTF8", gone=True, roles=1))
    record_property("counted", trials.counted())


def test_random_schemas_come_back_as_they_were(trials: Trials, record_property: Callable[[str, object], None]) -> None:
    @some(max_examples=examples(3))
    @given(plans, st.sampled_from(PROPERTIES), st.booleans(), st.integers(0, 99))
    def run(plan: Plan, properties: tuple[str, str], gone: bool, roles: int) -> None:
        made_as, encoding = properties
        asyncio.run(round_trip(trials, plan, properties=made_as, encoding=encoding, gone=gone, roles=roles))

    run()
    record_property("counted", trials.counted())


def test_a_database_changed_at_random_comes_back_by_rollback_and_the_archived_one_by_commit(
    trials: Trials, record_property: Callable[[str, object], None]
) -> None:
    @some(max_examples=examples(1))
    @given(plans, plans, st.integers(0, 99))
    def run(plan: Plan, more: Plan, roles: int) -> None:
        asyncio.run(changed_meanwhile(trials, plan, more, roles))

    run()
    record_property("counted", trials.counted())
