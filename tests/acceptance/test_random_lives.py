"""Random lives of one installation against a model: whatever happens, in whatever order, nothing good is lost.

Backups, kills, removals, retention, clocks that jump, bytes that change, TPMs that are swapped, restores that are kept
or taken back. After each step the archives and the live data are compared with what they have to be.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from demo.software_tpm import SoftwareTpm
from service.app import App
from service.archive.names import archive_name
from service.backup import backup
from service.catalog import verify
from service.errors import (
    ArchiveError,
    DamagedSlot,
    JobRefused,
    NotAuthentic,
    RestoreRefused,
    ServiceError,
    TpmChanged,
    WrongTpm,
)
from service.holding import delete, hold, release
from service.journal import journals
from service.progress import Progress
from service.prune import prune
from service.restore import commit, restore, rollback
from service.settle import settle
from tests.faults import Steps, killed
from tests.scoreboard import counted
from tests.service_parts import Place
from tests.sizes import size

LIVES = size("LIVES", 8)
STEPS = size("STEPS", 18)
BACKUP_STEPS, RESTORE_STEPS, PRUNE_STEPS = 20, 95, 14
"""At which of its steps a recipe is killed; one that has fewer is not killed at all."""
WHICH = st.integers(0, 5)
"""Which archive, counted from the newest."""

Work = Callable[[App], Awaitable[object]]


@dataclass(slots=True)
class Archive:
    """What has to be true of one archive."""

    digest: str
    tpm: int
    content: int
    number: int
    """Which one it is, in the order in which they were made."""
    damaged: bool = False
    held: bool = False
    proven: bool = True


class Life(RuleBasedStateMachine):
    """One installation with two TPMs, of which one is in the machine."""

    tpms: ClassVar[list[SoftwareTpm]] = []
    counts: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="life-", dir="/dev/shm"))
        self.place = Place(self.root)
        self.archives: dict[str, Archive] = {}
        self.made = 0
        self.tpm = 0
        self.pinned: int | None = None
        self.waiting: int | None = None
        """The content that was live before a restore that waits for commit or rollback."""
        self.live = self.written = 0
        self._write(0)
        self._configure()

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    # The machine and what is on it

    def _configure(self, **more: Any) -> None:
        self.place.settings = {
            "sealing": {"mode": "tpm", "tcti": self.tpms[self.tpm].tcti},
            "sources": [
                {"type": "tree", "path": str(self.place.tree)},
                {"type": "sqlite", "path": str(self.root / "grafana.db")},
            ],
        } | more

    def _write(self, content: int) -> None:
        (self.place.tree / "server.conf").write_text(f"content = {content}\n" * 50)
        (self.place.tree / f"only-in-{content}").touch()
        for path in self.place.tree.glob("only-in-*"):
            if path.name != f"only-in-{content}":
                path.unlink()
        with closing(sqlite3.connect(self.root / "grafana.db")) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS content (number INTEGER)")
            database.execute("DELETE FROM content")
            database.execute("INSERT INTO content VALUES (?)", (content,))

    def _look(self) -> set[int]:
        """Return which contents the live data are made of: one, unless it is mixed."""
        found = {int((self.place.tree / "server.conf").read_text().split()[2])}
        found |= {int(path.name.removeprefix("only-in-")) for path in self.place.tree.glob("only-in-*")}
        with closing(sqlite3.connect(f"file:{self.root}/grafana.db?mode=ro", uri=True)) as database:
            found |= {row[0] for row in database.execute("SELECT number FROM content")}
        return found

    def _do(self, work: Work) -> Any:
        """Start the service's parts, do something, stop them."""

        async def run() -> Any:
            async with self.place.app() as app:
                return await work(app)

        return asyncio.run(run())

    def _killed(self, at: int, work: Work) -> bool:
        """Do it in a process that is killed at a step; then start, which settles what is left. Tell whether it was."""

        async def run() -> None:
            async with self.place.app() as app:
                try:
                    await work(app)
                except ServiceError:
                    return

        def starting() -> Coroutine[Any, Any, None]:
            return run()

        was = killed(Steps(at=at), starting)
        for tpm in self.tpms:
            tpm.restart()  # the kernel frees what a killed process held in a TPM; these have no kernel
        self.counts["kills"] += was
        self.counts["kills not met"] += not was
        settled = self._do(
            lambda app: settle(self.place.config, archives=app.archives, clock=self.place.clock, progress=Progress())
        )
        assert settled.damaged == []
        return was

    def _chosen(self, which: int) -> str:
        names = sorted(self.archives, key=lambda name: -self.archives[name].number)
        return names[which % len(names)]

    def _digest(self, name: str) -> str:
        return hashlib.sha256((self.place.target / name).read_bytes()).hexdigest()

    def _found(self) -> set[str]:
        return {path.name for path in self.place.target.glob("Backup_*.zip")}

    def _learn(self, name: str, *, proven: bool = True) -> None:
        self.made += 1
        self.archives[name] = Archive(self._digest(name), self.tpm, self.live, self.made, proven=proven)
        self.pinned = self.tpm if self.pinned is None else self.pinned

    def _free_minute(self) -> None:
        self.place.clock.go(seconds=61)
        while (self.place.target / archive_name(self.place.clock())).exists():
            self.place.clock.go(seconds=61)

    def _backup(self) -> Work:
        self._free_minute()
        return lambda app: backup(self.place.config, progress=Progress(), ledger=app.archives, clock=self.place.clock)

    # What happens

    @precondition(lambda self: self.waiting is None)
    @rule()
    def live_data_change(self) -> None:
        self.written += 1
        self.live = self.written
        self._write(self.live)

    @initialize()
    def the_first_backup(self) -> None:
        self.a_backup()

    @rule()
    def a_backup(self) -> None:
        work = self._backup()
        if self.pinned not in (None, self.tpm):
            with pytest.raises(TpmChanged):
                self._do(work)
            self.counts["backups refused for another TPM"] += 1
            return
        name: str = self._do(work).name
        self._learn(name)
        self.counts["backups"] += 1

    @precondition(lambda self: self.pinned in (None, self.tpm))
    @rule(at=st.integers(1, BACKUP_STEPS))
    def a_backup_that_is_killed(self, at: int) -> None:
        before = self._found()
        self._killed(at, self._backup())
        new = self._found() - before
        assert len(new) <= 1
        for name in new:
            self._learn(name)
        if self.pinned is None and (self.place.state_dir / "tpm.json").exists():
            self.pinned = self.tpm

    @precondition(lambda self: self.archives)
    @rule(which=WHICH)
    def a_removal(self, which: int) -> None:
        name = self._chosen(which)
        archive = self.archives[name]
        try:
            self._do(lambda app: delete(self.place.config, name, even_the_last=False, ledger=app.archives))
        except JobRefused:
            assert archive.held or archive.number == self._newest_proven()
            return
        assert not archive.held
        # Of a damaged one it depends on where the damage is whether a listing shows it; then it protects nothing.
        assert archive.number != self._newest_proven() or not archive.proven or archive.damaged
        del self.archives[name]
        self.counts["removals"] += 1

    def _newest_proven(self) -> int:
        proven = [archive.number for archive in self.archives.values() if archive.proven and not archive.damaged]
        return max(proven, default=max((archive.number for archive in self.archives.values()), default=0))

    @rule(keep=st.integers(1, 3))
    def retention(self, keep: int) -> None:
        good = self._good()
        gone = self._pruned(keep, self._do)
        assert {archive.number for archive in gone} == {
            archive.number for archive in good[:-keep] if not archive.held
        }, "retention did not do what the policy says"

    @rule(keep=st.integers(1, 3), at=st.integers(1, PRUNE_STEPS))
    def retention_that_is_killed(self, keep: int, at: int) -> None:
        self._pruned(keep, lambda work: self._killed(at, work))

    def _good(self) -> list[Archive]:
        """Return the archives that count for retention, the oldest first."""
        good = [archive for archive in self.archives.values() if archive.proven and not archive.damaged]
        return sorted(good, key=lambda archive: archive.number)

    def _pruned(self, keep: int, carry_out: Callable[[Work], object]) -> list[Archive]:
        """Let retention remove what it will; return what is gone, none of which may be one that counts."""
        good = [archive.number for archive in self._good()]
        self._configure(retention={"keep_last": keep})
        carry_out(
            lambda app: prune(self.place.config, ledger=app.archives, clock=self.place.clock, progress=Progress())
        )
        self._configure()
        gone = [self.archives.pop(name) for name in self.archives.keys() - self._found()]
        for archive in gone:
            assert not archive.held
            assert archive.number not in good[-keep:], f"one of the last {keep} is gone"
            assert archive.proven and not archive.damaged, "what does not count is not removed"
        self.counts["archives that retention removed"] += len(gone)
        return gone

    @rule(jump=st.sampled_from([-3600, 3600, -86400, 40 * 86400, -10 * 365 * 86400, 10 * 365 * 86400]))
    def the_clock_jumps(self, jump: int) -> None:
        self.place.clock.now += timedelta(seconds=jump)
        self.counts["clock jumps"] += 1

    @precondition(lambda self: self.archives)
    @rule(which=WHICH, where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def a_byte_changes(self, which: int, where: float, bit: int) -> None:
        name = self._chosen(which)
        assume(not self.archives[name].damaged)
        path = self.place.target / name
        content = bytearray(path.read_bytes())
        content[int(where * len(content))] ^= 1 << bit
        path.write_bytes(content)
        self.archives[name].damaged = True
        self.archives[name].digest = self._digest(name)
        self.counts["bytes changed"] += 1

    @rule()
    def the_tpm_is_swapped(self) -> None:
        self.tpm = 1 - self.tpm
        self._configure()
        self.counts["TPMs swapped"] += 1

    @precondition(lambda self: self.archives)
    @rule(which=WHICH, on=st.booleans())
    def a_hold(self, which: int, on: bool) -> None:
        name = self._chosen(which)
        if on:
            self._do(
                lambda app: hold(
                    self.place.config, name, reason="r", by="me", now=self.place.clock(), ledger=app.archives
                )
            )
        else:
            self._do(lambda app: release(self.place.config, name, ledger=app.archives))
        self.archives[name].held = on

    @precondition(lambda self: self.archives)
    @rule(which=WHICH)
    def a_verification(self, which: int) -> None:
        name = self._chosen(which)
        self._judged(name, lambda app: verify(self.place.config, name, progress=Progress(), ledger=app.archives))
        self.counts["verifications"] += 1

    def _judged(self, name: str, work: Work) -> bool:
        """Do what needs a good archive of this TPM; tell whether it was one."""
        archive = self.archives[name]
        if archive.damaged:
            with pytest.raises((ArchiveError, NotAuthentic, DamagedSlot, WrongTpm, RestoreRefused)):
                self._do(work)
            return False
        if archive.tpm != self.tpm:
            with pytest.raises((WrongTpm, RestoreRefused)):
                self._do(work)
            return False
        self._do(work)
        archive.proven = True
        return True

    @precondition(lambda self: self.archives)
    @rule(which=WHICH, then=st.sampled_from(["wait", "commit", "rollback"]))
    def a_restore(self, which: int, then: str) -> None:
        name = self._chosen(which)

        def work(app: App) -> Awaitable[object]:
            return restore(self.place.config, name, progress=Progress())

        if self.waiting is not None:
            with pytest.raises(JobRefused):
                self._do(work)
            return
        if not self._judged(name, work):
            self.counts["restores refused"] += 1
            return
        self.waiting, self.live = self.live, self.archives[name].content
        self.counts["restores"] += 1
        if then != "wait":
            self._end(then)

    @precondition(lambda self: self.waiting is not None)
    @rule(how=st.sampled_from(["commit", "rollback"]))
    def the_end_of_a_restore(self, how: str) -> None:
        self._end(how)

    def _end(self, how: str) -> None:
        assert self.waiting is not None
        if how == "commit":
            asyncio.run(commit(self.place.config, progress=Progress()))
        else:
            asyncio.run(rollback(self.place.config, progress=Progress()))
            self.live = self.waiting
        self.waiting = None

    @precondition(lambda self: self.archives)
    @rule(which=WHICH, at=st.integers(1, RESTORE_STEPS))
    def a_restore_that_is_killed(self, which: int, at: int) -> None:
        name = self._chosen(which)
        assume(self.waiting is None)
        archive = self.archives[name]
        was = self._killed(at, lambda app: restore(self.place.config, name, progress=Progress()))
        if journals(self.place.state_dir):
            assert not archive.damaged and archive.tpm == self.tpm
            self.waiting, self.live = self.live, archive.content
        self.counts["restores killed"] += was

    @rule()
    def a_list(self) -> None:
        listed = self._do(lambda app: self.place.archives(app.archives))
        assert listed.keys() == self.archives.keys()
        good = {name: entry for name, entry in listed.items() if not self.archives[name].damaged}
        assert [entry.problem for entry in good.values() if entry.problem] == []
        numbers = [self.archives[name].number for name in sorted(good, key=lambda name: good[name].seq)]
        assert numbers == sorted(numbers), "archives are not in the order in which they were made"
        assert {name for name, entry in listed.items() if entry.held} == {
            name for name, archive in self.archives.items() if archive.held
        }

    # What has to be true at any time

    @invariant()
    def archives_are_what_they_were(self) -> None:
        assert self._found() == self.archives.keys()
        for name, archive in self.archives.items():
            assert self._digest(name) == archive.digest, f"{name} has changed"

    @invariant()
    def live_data_are_of_one_piece(self) -> None:
        assert self._look() == {self.live}

    @invariant()
    def nothing_is_left(self) -> None:
        assert [path.name for path in self.place.target.iterdir() if path.name.startswith(".")] == []
        assert (self.waiting is None) == (journals(self.place.state_dir) == [])
        if self.waiting is None:
            beside = {path.name for path in self.root.iterdir()} - {"archives", "etc", "state", "grafana.db"}
            assert {name for name in beside if not name.startswith("grafana.db-")} == set()


@pytest.fixture(scope="module")
def tpms() -> Iterator[list[SoftwareTpm]]:
    with SoftwareTpm() as one, SoftwareTpm() as other:
        yield [one, other]


@pytest.mark.timeout(7200)
def test_no_random_life_loses_a_good_archive_or_mixes_live_data(
    tpms: list[SoftwareTpm], record_property: Callable[[str, object], None]
) -> None:
    Life.tpms, Life.counts = tpms, Counter()
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=LIVES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    record_property("counted", counted(LIVES, f"lives of up to {STEPS} steps", Life.counts))
