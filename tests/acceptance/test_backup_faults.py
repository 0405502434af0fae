"""A fault at each numbered step of a backup: an error, a cancellation, a hang that is given up, a killed process.

A step is every change to the disk, every statement and connection of PostgreSQL, every program (`tests.faults`).
`DEVICEON_BACKUP_BACKUP_FAULTS` says how many faults are spread over them; `all` is every step with every kind.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import pytest

from demo.postgresql_server import PostgresqlServer
from demo.software_tpm import SoftwareTpm
from service.backup import BackupResult, backup
from service.catalog import list_archives, verify
from service.errors import ServiceError
from service.progress import Progress
from service.settle import settle
from service.state import Archives, Database
from storage_backends import StorageError, open_target
from tests.faults import Steps, cancelling, failing, killed
from tests.recipes import Installation
from tests.scoreboard import counted
from tests.service_parts import Clock

FAULTS = os.environ.get("DEVICEON_BACKUP_BACKUP_FAULTS", "24")
KINDS = ("raise", "cancel", "hang", "kill")
PATIENCE = 0.15
"""Seconds after which a backup that hangs is given up, as the service's watchdog does by cancelling it."""
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'deviceon-backup'"


@dataclass(slots=True)
class Machine:
    """A server with a tree and an SQLite file, sealed to a TPM."""

    installation: Installation
    tpm: SoftwareTpm
    clock: Clock = field(default_factory=Clock)
    proven: set[str] = field(default_factory=set)

    async def back_up(self) -> BackupResult:
        self.clock.go(minutes=1)
        with closing(Database.open(self.installation.config.state_dir)) as database:
            ledger = Archives(database, self.clock)
            return await backup(self.installation.config, progress=Progress(), ledger=ledger, clock=self.clock)

    async def settled(self) -> None:
        """Start again, and look at everything."""
        config = self.installation.config
        deadline = time.monotonic() + 20
        while (await self.installation.server.fetch(SESSIONS))[0][0]:
            assert time.monotonic() < deadline, "sessions of the backup stay"
            await asyncio.sleep(0.01)
        with closing(Database.open(config.state_dir)) as database:
            ledger = Archives(database, self.clock)
            found = await settle(config, archives=ledger, clock=self.clock, progress=Progress())
            assert found.damaged == []
            assert await ledger.intents() == []
            async with open_target(config.target.url) as target:
                listed = {entry.name: entry for entry in await list_archives(target, ledger)}
        assert {name for name, entry in listed.items() if entry.problem} == set()
        assert self.proven <= listed.keys(), "an archive that was reported is gone"
        for name in listed.keys() - self.proven:
            await verify(config, name, progress=Progress())
        self.proven = set(listed)
        names = {path.name for path in self.installation.target.iterdir()}
        assert names == listed.keys(), "something is left in the target"
        left = {path.name for path in config.state_dir.iterdir() if path.name.startswith("sqlite")}
        assert left <= {"sqlite"} and not list(config.state_dir.glob("sqlite/*")), "a copy is left"


@pytest.fixture
def machine(own_postgresql: PostgresqlServer, software_tpm: SoftwareTpm, workspace: Path) -> Machine:
    tree = workspace / "etc"
    tree.mkdir()
    (tree / "Server_Config.xml").write_text("<server/>" * 5000)
    with closing(sqlite3.connect(workspace / "grafana.db")) as grafana, grafana:
        grafana.execute("CREATE TABLE dashboard (title TEXT)")
    asyncio.run(own_postgresql.execute("CREATE TABLE things AS SELECT n FROM generate_series(1, 100) AS n"))
    installation = Installation(
        own_postgresql,
        workspace,
        sealing={"mode": "tpm", "tcti": software_tpm.tcti},
        more_sources=[
            {"type": "tree", "path": str(tree)},
            {"type": "sqlite", "path": str(workspace / "grafana.db")},
        ],
    )
    return Machine(installation, software_tpm)


def spread(total: int) -> list[tuple[int, str]]:
    """Return steps with a kind of fault each."""
    if FAULTS == "all":
        return [(step, kind) for step in range(1, total + 1) for kind in KINDS]
    some = int(FAULTS)
    return [(1 + total * (2 * n + 1) // (2 * some), KINDS[n % len(KINDS)]) for n in range(some)]


async def faulty(machine: Machine, steps: Steps, kind: str) -> BackupResult:
    if kind == "cancel":
        async with cancelling(steps):
            with steps.counted():
                return await machine.back_up()
    if kind == "raise":
        steps.act = failing
        with steps.counted():
            return await machine.back_up()
    # a statement hangs for ever, a change to the disk for a while: nobody can call a thread back from there
    steps.act = lambda kind: time.sleep(2 * PATIENCE) if kind == "disk" else None
    with steps.counted():
        async with asyncio.timeout(None) as limit:
            watching = asyncio.create_task(give_up(steps, limit))
            try:
                return await machine.back_up()
            finally:
                watching.cancel()


async def give_up(steps: Steps, limit: asyncio.Timeout) -> None:
    while not steps.met:
        await asyncio.sleep(0.01)
    await asyncio.sleep(PATIENCE)
    with suppress(RuntimeError):  # it has ended
        limit.reschedule(0)


@pytest.mark.timeout(7200)
def test_a_fault_at_any_step_of_a_backup_leaves_whole_archives_and_nothing_else(
    machine: Machine, record_property: Callable[[str, object], None]
) -> None:
    total = Steps()
    asyncio.run(machine.back_up())

    async def whole() -> None:
        with total.counted():
            await machine.back_up()

    asyncio.run(whole())
    asyncio.run(machine.settled())
    ends: Counter[str] = Counter()
    planned = spread(total.taken)
    for step, kind in planned:
        steps, before = Steps(at=step, hang=kind == "hang"), set(machine.proven)
        if kind == "kill":
            was = killed(steps, lambda: _to_its_end(machine))
            machine.clock.go(minutes=1)  # the child's clock went on by itself
            machine.tpm.restart()  # the kernel frees what a killed process held in a TPM; this one has no kernel
            end = "killed"
        else:
            try:
                result = asyncio.run(faulty(machine, steps, kind))
                machine.proven.add(result.name)
                end = "went_through"
            except (ServiceError, StorageError) as error:
                said = f"{error} {' '.join(getattr(error, '__notes__', ()))}"
                assert str(error)
                new = set(asyncio.run(machine.installation.archives())) - machine.proven
                assert not new or "was written whole but could not be read back" in said, f"{new} is there: {said}"
                end = "told"
            except (asyncio.CancelledError, TimeoutError):
                end = "cancelled" if kind == "cancel" else "given_up"
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                raise AssertionError(
                    f"{kind} at step {step} ({steps.met}): {error!r} is not told in plain words"
                ) from error
            was = bool(steps.met)
        ends[end if was else "not_met"] += 1
        try:
            asyncio.run(machine.settled())
            assert len(machine.proven - before) <= 1
        except Exception as error:
            raise AssertionError(f"{kind} at step {step} ({steps.met}) of {total.taken}: {error!r}") from error
    result = asyncio.run(machine.back_up())
    assert result.rows == 100
    assert ends["told"] and ends["killed"]
    assert ends["not_met"] < 0.2 * len(planned), "most of the steps that were counted are met again"
    record_property("counted", counted(len(planned) - ends["not_met"], f"{total.taken} steps", ends))


async def _to_its_end(machine: Machine) -> None:
    await machine.back_up()
