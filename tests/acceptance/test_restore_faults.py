"""A fault at every step of restore, rollback and commit: live data is wholly old or wholly new, by itself.

`DEVICEON_BACKUP_FAULTS=all` tries every step, and from the moment on at which live data may be touched every step with
every kind of fault; by default some are tried. For PostgreSQL's own death around the exchange,
`DEVICEON_BACKUP_POSTGRESQL_KILLS` says how often (ten by default; 100 and more for a release).
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from demo.compare_files import tree_listing
from demo.postgresql_server import PostgresqlServer
from service import restore as recipe
from service.errors import ServerNotStarted, ServiceError
from service.journal import Journal, journals
from service.progress import Progress
from tests.faults import Steps, cancelling, failing, killed
from tests.recipes import Installation
from tests.scoreboard import counted
from tests.sizes import SEED

Count = Callable[[str, object], None]

FAULTS = os.environ.get("DEVICEON_BACKUP_FAULTS", "6")
"""How many faults are tried in each of restore, rollback and commit, or `all`."""
KILLS = int(os.environ.get("DEVICEON_BACKUP_POSTGRESQL_KILLS", "6"))

pytestmark = pytest.mark.timeout(0 if FAULTS == "all" or int(FAULTS) > 10 or KILLS > 20 else 300)

Doing = Literal["restore", "rollback", "commit"]

SAMPLE = """
    CREATE TABLE things AS SELECT n AS id, md5(n::text) AS text FROM generate_series(1, 500) AS n;
    ALTER TABLE things ADD PRIMARY KEY (id);
    CREATE SEQUENCE counter; SELECT setval('counter', 77);
"""
STATE = """
    SELECT (SELECT count(*) FROM things), (SELECT sum(hashtext(text)) FROM things), (SELECT last_value FROM counter),
           (SELECT rolconnlimit FROM pg_roles WHERE rolname = 'worker')"""


@dataclass
class Machine:
    """A server with two databases and a role, a tree, an SQLite file, and applications that hooks stop and start."""

    installation: Installation
    archive: str = ""
    old: object = None
    new: object = None

    @property
    def server(self) -> PostgresqlServer:
        return self.installation.server

    @property
    def root(self) -> Path:
        return self.installation.root

    async def make(self) -> None:
        for name in ("app", "portal"):
            await self.server.execute(f"CREATE DATABASE {name}")
            await self.server.execute(SAMPLE, database=name)
        await self.server.execute("CREATE ROLE worker CONNECTION LIMIT 5")
        (self.root / "etc").mkdir()
        (self.root / "etc" / "Server_Config.xml").write_text("<then/>")
        with closing(sqlite3.connect(self.root / "grafana.db")) as database:
            database.execute("CREATE TABLE t (v TEXT)")
            database.execute("INSERT INTO t VALUES ('then')")
            database.commit()
        self.archive = (await self.installation.backup()).name
        self.new = await self.state()
        await self.spoil()
        self.old = await self.state()
        assert self.old != self.new

    async def spoil(self) -> None:
        for name in ("app", "portal"):
            await self.server.execute("DELETE FROM things WHERE id > 10; SELECT setval('counter', 5)", database=name)
        await self.server.execute("ALTER ROLE worker CONNECTION LIMIT 1")
        (self.root / "etc" / "Server_Config.xml").write_text("<now/>")
        (self.root / "etc" / "added").write_text("now")
        with closing(sqlite3.connect(self.root / "grafana.db")) as database:
            database.execute("UPDATE t SET v = 'now'")
            database.commit()
        (self.root / "running").touch()

    async def state(self) -> object:
        rows = [tuple((await self.server.fetch(STATE, database=name))[0]) for name in ("app", "portal")]
        with closing(sqlite3.connect(self.root / "grafana.db")) as database:
            values = database.execute("SELECT v FROM t").fetchall()
        tree = {name: what for name, what in tree_listing(self.root / "etc").items() if name != "."}
        return rows, values, tree

    async def do(self, doing: Doing) -> None:
        config, progress = self.installation.config, Progress()
        if doing == "restore":
            allow = frozenset({"LIVE_CONNECTIONS"})
            await recipe.restore(config, self.archive, allow=allow, progress=progress)
        elif doing == "rollback":
            await recipe.rollback(config, progress=progress)
        else:
            await recipe.commit(config, progress=progress)

    async def begin(self, doing: Doing) -> None:
        """Bring about what `doing` begins with: a spoilt state; or a restored one, with the spoilt one kept."""
        if self.waiting() is not None:
            await self.do("rollback")
        elif doing == "commit" and await self.state() != self.old:
            await self.spoil()
            self.old = await self.state()
        if doing != "restore":
            await self.do("restore")

    def waiting(self) -> str | None:
        found = journals(self.installation.config.state_dir)
        return found[0].state if found else None

    async def settled(self, *, told_to_start: bool = False) -> str:
        """Do what a start does, then look: one whole state, which is returned, applications on it, nothing left over.

        `told_to_start`: it was the start hook that failed, on the way back, and somebody was told to start them.
        """
        await recipe.recover(self.installation.config, progress=Progress())
        waiting = self.waiting()
        assert waiting in (None, "swapped"), waiting
        state = await self.state()
        assert state in (self.old, self.new), state
        if waiting == "swapped":
            assert state == self.new
        assert (self.root / "running").exists() or told_to_start, "the applications do not run"
        databases = {name for name in await self.installation.databases() if "__" in name}
        areas = [path.name for path in self.root.iterdir() if path.name.startswith(".deviceon-backup")]
        assert not any("__r_" in name for name in databases), databases
        assert waiting == "swapped" or (databases, areas) == (set(), []), (databases, areas)
        return "wholly_new" if state == self.new else "wholly_old"


@pytest.fixture
def machine(own_postgresql: PostgresqlServer, workspace: Path) -> Iterator[Machine]:
    more = [
        {"type": "tree", "path": str(workspace / "etc")},
        {"type": "sqlite", "path": str(workspace / "grafana.db")},
    ]
    source = {"include": ["app", "portal"]}
    machine = Machine(Installation(own_postgresql, workspace, more_sources=more, source=source))
    machine.installation.hooks = {
        "stop": {"command": ["rm", "-f", str(workspace / "running")]},
        "start": {"command": ["touch", str(workspace / "running")]},
        "health": {"command": ["test", "-e", str(workspace / "running")]},
    }
    asyncio.run(machine.make())
    yield machine


def steps_of(machine: Machine, doing: Doing, monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Count the steps of one run, and where in them the journal's states begin."""
    steps = Steps()
    save = Journal.save

    async def marked(self: Journal, state: Any = None) -> None:
        if state is not None:
            steps.mark(state)
        await save(self, state)

    async def work() -> None:
        await machine.begin(doing)
        with steps.counted():
            await machine.do(doing)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "save", marked)
        asyncio.run(work())
    return steps


KINDS = ("raise before", "kill before", "cancel", "raise after", "kill after")


def faults(total: Steps) -> list[tuple[int, str]]:
    """Steps with the kind of fault to be met there: while copies are made one kind by turns, from then on all kinds."""
    live = next((total.marks[state] for state in ("stopping", "swapping") if state in total.marks), 0)
    staging = [(step, KINDS[step % len(KINDS)]) for step in range(1, live + 1)]
    touching = [(step, kind) for step in range(live + 1, total.taken + 1) for kind in KINDS]
    if FAULTS == "all":
        return staging + touching
    some = int(FAULTS)
    copying = _spread(1, live, some // 4 if live else 0)
    exchanging = _spread(live + 1, total.taken, some - len(copying))
    return [(step, KINDS[n % len(KINDS)]) for n, step in enumerate(exchanging + copying)]


def _spread(first: int, last: int, count: int) -> list[int]:
    """Take some steps at equal distances."""
    return [first + (last - first + 1) * (2 * n + 1) // (2 * count) for n in range(count)]


async def _faulty(machine: Machine, doing: Doing, steps: Steps, kind: str) -> None:
    if kind == "cancel":
        async with cancelling(steps):
            with steps.counted():
                await machine.do(doing)
    else:
        steps.act = failing
        with steps.counted():
            await machine.do(doing)


@pytest.mark.parametrize("doing", ["restore", "rollback", "commit"])
def test_a_fault_at_any_step_leaves_one_whole_state_after_the_next_start(
    machine: Machine, doing: Doing, monkeypatch: pytest.MonkeyPatch, record_property: Count
) -> None:
    total = steps_of(machine, doing, monkeypatch)
    met, after = Counter[str](), Counter[str]()
    planned = faults(total)
    for step, kind in planned:
        asyncio.run(machine.begin(doing))
        steps, told_to_start = Steps(at=step, after=kind.endswith("after")), False
        if kind.startswith("kill"):
            was = killed(steps, lambda: machine.do(doing))
        else:
            try:
                asyncio.run(_faulty(machine, doing, steps, kind))
            except ServerNotStarted:
                told_to_start = steps.met == "program"
            except (ServiceError, OSError, asyncio.CancelledError):
                pass
            was = bool(steps.met)
        met[kind.split()[0]] += was
        try:
            state = asyncio.run(machine.settled(told_to_start=told_to_start))
            after[state if was else "not_met"] += 1
        except AssertionError as error:
            raise AssertionError(f"{kind} step {step} of {total.taken} ({total.marks}): {error}") from error
    assert after["not_met"] < len(planned) * 0.3, "most of the steps that were counted are met again"
    told = ", ".join(f"{count} x {kind}" for kind, count in sorted(met.items()))
    record_property("counted", counted(met.total(), f"{doing} of {total.taken} steps: {told}", after))


def test_postgresql_killed_around_the_exchange_leaves_one_whole_state(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, record_property: Count
) -> None:
    """At random moments from the journal's `swapping` on, in restores and in rollbacks by turns."""
    moments, longest, seen = random.Random(SEED), {"restore": 0.0, "rollback": 0.0}, Counter[str]()
    after: Counter[str] = Counter()
    begun = threading.Event()
    save = Journal.save

    async def told(self: Journal, state: Any = None) -> None:
        await save(self, state)
        if state in ("swapping", "undoing"):
            begun.set()

    monkeypatch.setattr(Journal, "save", told)

    def timed(doing: Doing) -> float:
        async def work() -> float:
            await machine.begin(doing)
            begun.clear()
            running = asyncio.create_task(machine.do(doing))
            await asyncio.to_thread(begun.wait)
            started = time.monotonic()
            await running
            return time.monotonic() - started

        return asyncio.run(work())

    def kill_after(seconds: float) -> None:
        begun.wait(60)
        time.sleep(seconds)
        machine.server.kill()

    both: tuple[Doing, ...] = ("restore", "rollback")
    for doing in both:
        longest[doing] = timed(doing)
    for number in range(KILLS):
        doing = both[number % 3 == 2]
        asyncio.run(machine.begin(doing))
        begun.clear()
        killer = threading.Thread(target=kill_after, args=(moments.uniform(0, longest[doing]),))
        killer.start()
        try:
            asyncio.run(machine.do(doing))
            seen["went through"] += 1
        except (ServiceError, OSError):
            seen["failed"] += 1
        begun.set()
        killer.join()
        machine.server.start()
        exchanged = asyncio.run(is_exchanged(machine))
        seen["exchanged when it died" if exchanged else "not exchanged when it died"] += 1
        after[asyncio.run(machine.settled())] += 1
    said = ", ".join(f"{count} {what}" for what, count in sorted(seen.items()))
    record_property("counted", counted(KILLS, f"jobs: {said}", after, seed=SEED))


async def is_exchanged(machine: Machine) -> bool:
    """Whether the restored databases have the live names, before anybody settles anything."""
    names = await machine.installation.databases()
    kept = {name for name in names if "__old_" in name}
    assert len(kept) in (0, 2), f"only a part of the databases was exchanged: {names}"
    return bool(kept)
