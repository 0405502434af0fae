"""A restore of files killed at every step: live data is wholly old or wholly new, and what must stay never moves.

The kills are real (SIGKILL of a forked process, before each of its changes to the disk). What survives is what is on
the disk, among it the journal; undo or commit then start from that.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import sqlite3
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from service.config_sources import SqliteSettings
from service.errors import SwapFailed
from service.sources import directories, exchange
from service.sources.base import Restorer
from service.sources.sqlite import SqliteRestorer, SqliteSource
from tests.kills import killed_at
from tests.scoreboard import counted
from tests.trees import (
    Archived,
    Journal,
    Listing,
    back_up,
    back_up_tree,
    leftovers,
    listing,
    stage,
    tree_restorer,
)

Count = Callable[[str, object], None]


class Scene(ABC):
    """A live state, an archive to restore over it, and what both look like."""

    old: Listing
    new: Listing

    def __init__(self, top: Path) -> None:
        self.top = top
        self.root = top / "srv" / "config"
        self.archived = self.archive()
        self.stays: Listing = {}

    def reset(self) -> None:
        """Make the live state anew."""
        self.clear()
        (self.top / "journal").unlink(missing_ok=True)
        self.make()
        self.old = self.look()
        self.stays = self.look_at_what_stays()

    def clear(self) -> None:
        shutil.rmtree(self.top / "srv", ignore_errors=True)

    @abstractmethod
    def archive(self) -> Archived:
        """Make what is archived, set `new`, and leave nothing behind."""

    @abstractmethod
    def make(self) -> None: ...

    def use(self) -> None:
        """Do what a server does that was started again: replace, remove and add files."""
        write(self.root / "fresh.xml", "used")
        (self.root / "fresh.xml").replace(self.root / "server.xml")
        for path in self.root.iterdir():
            if path.name.startswith("only-"):
                shutil.rmtree(path)
        write(self.root / "only-old", "a file now")
        write(self.root / "only-used" / "u", "used")

    def restorer(self) -> Restorer:
        return tree_restorer(self.root)

    def look(self) -> Listing:
        return listing(self.root, skip=lambda path: ".deviceon-backup-" in path)

    def look_at_what_stays(self) -> Listing:
        """With inode and ctime, which a rename would change."""
        return {}

    @property
    def journal(self) -> Journal:
        return Journal(self.top / "journal")


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    os.utime(path, ns=(10**18, 10**18))


class WholeTree(Scene):
    """Nothing restricts: one exchange."""

    def archive(self) -> Archived:
        write(self.root / "server.xml", "new")
        write(self.root / "sub" / "a", "new a")
        (self.root / "sub" / "link").symlink_to("../server.xml")
        os.setxattr(self.root / "sub", "user.x", b"new")
        archived = asyncio.run(back_up_tree(self.root))
        self.new = self.look()
        self.clear()
        return archived

    def make(self) -> None:
        write(self.root / "server.xml", "old")
        write(self.root / "gone" / "b", "old b")
        self.root.chmod(0o750)


class NothingThere(WholeTree):
    """The worst day: not even the directories above are there."""

    def __init__(self, top: Path) -> None:
        super().__init__(top)

    def make(self) -> None:
        pass


class WithDataThatStays(Scene):
    """MongoDB's files, an excluded directory, a preserved file and a socket lie in the tree at several depths."""

    STAYS = ("data/db/WiredTiger", "data/db/WiredTiger.wt", "data/db/collection-1.wt", "data/db/journal", "cache/deep")
    MORE = ("x/y/z/app.db", "run/service.sock")

    def archive(self) -> Archived:
        write(self.root / "server.xml", "new")
        write(self.root / "data" / "readme", "new")
        write(self.root / "data" / "db" / "mongod.conf", "new", 0o600)
        write(self.root / "only-new" / "n", "new")
        write(self.root / "x" / "y" / "beside", "new")
        (self.root / "data").chmod(0o711)
        os.chown(self.root / "data" / "db", 101, 104)
        os.setxattr(self.root / "data", "user.x", b"new")
        archived = asyncio.run(self.back_up())
        self.new = self.look()
        self.clear()
        return archived

    async def back_up(self) -> Archived:
        return await back_up_tree(self.root, exclude=["cache/*"], preserve=[self.root / "x/y/z/app.db"])

    def make(self) -> None:
        write(self.root / "server.xml", "old")
        write(self.root / "data" / "db" / "mongod.conf", "old")
        write(self.root / "data" / "db" / "only-old", "old")
        write(self.root / "only-old" / "o", "old")
        for path in self.STAYS[:3]:
            write(self.root / path, f"precious {path}")
        write(self.root / "data/db/journal/WiredTigerLog.1", "precious log")
        write(self.root / "cache" / "deep" / "c", "precious c")
        write(self.root / "x/y/z/app.db", "precious database")
        (self.root / "run").mkdir()
        with closing(socket.socket(socket.AF_UNIX)) as listener:
            here = Path.cwd()
            os.chdir(self.root / "run")
            listener.bind("service.sock")
            os.chdir(here)
        os.setxattr(self.root / "data", "user.y", b"old")

    def restorer(self) -> Restorer:
        return tree_restorer(self.root, preserve=[self.root / "x/y/z/app.db"])

    def stays_here(self, path: str) -> bool:
        return any(path == stays or path.startswith(stays + "/") for stays in (*self.STAYS, *self.MORE))

    def look(self) -> Listing:
        # Directories that hold nothing but what stays are not the archive's: they stay as they were.
        only = {"cache", "run", "x/y/z"}
        return listing(self.root, skip=lambda path: self.stays_here(path) or path in only)

    def look_at_what_stays(self) -> Listing:
        return {
            stays: value
            for stays in (*self.STAYS, *self.MORE)
            for value in listing(self.root / stays, inodes=True).items()
        }


class OnAFileSystemWithoutExchange(WithDataThatStays):
    """As on NFS: renameat2 knows no flags."""


class MountPoints(Scene):
    """The tree is a volume, and has another one inside: neither can be renamed."""

    def archive(self) -> Archived:
        write(self.root / "server.xml", "new")
        write(self.root / "in" / "volume" / "v", "new")
        write(self.root / "in" / "volume" / "w" / "x", "new")
        archived = asyncio.run(back_up_tree(self.root))
        self.new = self.look()
        self.clear()
        return archived

    def make(self) -> None:
        self.root.mkdir(parents=True)
        self.mount(self.root)
        write(self.root / "server.xml", "old")
        write(self.root / "old-only", "old")
        (self.root / "in" / "volume").mkdir(parents=True)
        self.mount(self.root / "in" / "volume")
        write(self.root / "in" / "volume" / "v", "old")

    def mount(self, path: Path) -> None:
        mount(path)

    def look(self) -> Listing:
        # The work areas lie in these two; a kill right after one was made or removed leaves its trace in their times.
        return {p: (*v[:4], *v[5:]) if p in {"", "in/volume"} else v for p, v in super().look().items()}

    def clear(self) -> None:
        for point in (self.root / "in" / "volume", self.root):
            if any(mounted.path == str(point) for mounted in directories.mounts()):
                subprocess.run(["umount", point], check=True)
        super().clear()


class BoundVolumes(MountPoints):
    """As Kubernetes mounts a volume: a directory of the same file system, which only the mount table tells."""

    def mount(self, path: Path) -> None:
        volume = self.top / "volumes" / path.name
        volume.mkdir(parents=True)
        subprocess.run(["mount", "--bind", volume, path], check=True)

    def clear(self) -> None:
        super().clear()
        shutil.rmtree(self.top / "volumes", ignore_errors=True)


class Database(Scene):
    """An SQLite file whose owner died: its log has rows that are not in the database file yet."""

    def __init__(self, top: Path) -> None:
        self.file = top / "srv" / "grafana.db"
        super().__init__(top)

    def archive(self) -> Archived:
        self.fill("new")
        archived = asyncio.run(back_up(SqliteSource(SqliteSettings(path=self.file), staging=self.top / "staging")))
        self.new = self.look()
        self.clear()
        return archived

    def fill(self, text: str) -> None:
        self.file.parent.mkdir(parents=True)
        with closing(sqlite3.connect(self.file)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("CREATE TABLE t (v TEXT)")
            database.executemany("INSERT INTO t VALUES (?)", [(f"{text} {n}",) for n in range(20)])
            database.commit()
        self.file.chmod(0o640)

    def make(self) -> None:
        self.fill("old")
        self.write_into_the_log("only in the log")

    def use(self) -> None:
        self.write_into_the_log("used")

    def write_into_the_log(self, row: str) -> None:
        with closing(sqlite3.connect(self.file)) as database:
            database.execute("INSERT INTO t VALUES (?)", [row])
            database.commit()
            left = [(Path(f"{self.file}{end}"), Path(f"{self.file}{end}").read_bytes()) for end in ("-wal", "-shm")]
        for path, content in left:
            path.write_bytes(content)

    def restorer(self) -> Restorer:
        return SqliteRestorer(SqliteSettings(path=self.file))

    def look(self) -> Listing:
        # On a copy, with whatever log lies beside it: looking must not change anything.
        aside = self.top / "aside"
        shutil.rmtree(aside, ignore_errors=True)
        if not self.file.exists():
            return {}
        shutil.copytree(self.file.parent, aside, ignore=lambda *_: leftover_names(self.file.parent))
        with closing(sqlite3.connect(aside / self.file.name)) as database:
            rows = tuple(sorted(row[0] for row in database.execute("SELECT v FROM t")))
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return {"rows": rows, "mode": (self.file.stat().st_mode,)}


class QuietDatabase(Database):
    """The old database has no log; what its successor's users leave beside it must not become one."""

    def make(self) -> None:
        self.fill("old")


def leftover_names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(".deviceon-backup-")]


def mount(path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=755", "none", path], check=True)


SCENES = [
    WholeTree,
    NothingThere,
    WithDataThatStays,
    OnAFileSystemWithoutExchange,
    MountPoints,
    BoundVolumes,
    Database,
    QuietDatabase,
]


@pytest.fixture(params=SCENES, ids=lambda scene: scene.__name__)
def scene(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    if request.param is OnAFileSystemWithoutExchange:
        monkeypatch.setattr(exchange, "renameat2", refuses_flags)
    mount(tmp_path)  # thousands of fsyncs cost nothing there
    try:
        found: Scene = request.param(tmp_path)
        yield found
        found.clear()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def refuses_flags(dir_fd: int, name: str, new_dir_fd: int, new_name: str, flags: int) -> None:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def run_killed(scene: Scene, step: int, work: str) -> bool:
    async def do() -> None:
        journal = scene.journal
        restorer = scene.restorer()
        if work == "stage":
            await stage(restorer, scene.archived, journal)
        elif work == "swap":
            await restorer.swap(journal.record, journal.save)
        elif work == "undo":
            await restorer.undo(journal.record)
        else:
            await restorer.commit(journal.record)

    killed = killed_at(step, do)
    assert scene.look_at_what_stays() == scene.stays, f"what must stay was moved by {work} until step {step}"
    return killed


def undo(scene: Scene) -> None:
    asyncio.run(scene.restorer().undo(scene.journal.record))


def commit(scene: Scene) -> None:
    asyncio.run(scene.restorer().commit(scene.journal.record))


def staged(scene: Scene) -> None:
    scene.reset()
    asyncio.run(stage(scene.restorer(), scene.archived, scene.journal))


def swapped(scene: Scene) -> None:
    staged(scene)
    journal = scene.journal
    asyncio.run(scene.restorer().swap(journal.record, journal.save))
    assert scene.look() == scene.new
    assert scene.look_at_what_stays() == scene.stays


def test_killed_at_every_step_of_staging_nothing_live_has_changed(scene: Scene, record_property: Count) -> None:
    for step in range(1, 500):
        scene.reset()
        killed = run_killed(scene, step, "stage")
        assert scene.look() == scene.old
        undo(scene)
        assert scene.look() == scene.old
        assert not leftovers(scene.top / "srv", scene.top)
        if not killed:
            break
    assert 10 < step < 499
    record_property("counted", counted(step - 1, f"{type(scene).__name__}: staging", killed_in_staging=step - 1))


def test_killed_at_every_step_of_the_swap_undo_brings_back_the_old_state(scene: Scene, record_property: Count) -> None:
    for step in range(1, 500):
        staged(scene)
        killed = run_killed(scene, step, "swap")
        if killed:
            with pytest.raises(SwapFailed):
                commit(scene)
        if step % 2:
            run_killed(scene, 1 + step * 7 % 19, "undo")
        undo(scene)
        assert scene.look() == scene.old
        assert scene.look_at_what_stays() == scene.stays
        assert not leftovers(scene.top)
        undo(scene)
        assert scene.look() == scene.old
        if not killed:
            break
    assert 4 < step < 499
    record_property(
        "counted", counted(step - 1, f"{type(scene).__name__}: the exchange", killed_in_the_exchange=step - 1)
    )


def test_used_before_undo_and_undo_killed_at_every_step_the_old_state_comes_back(
    scene: Scene, record_property: Count
) -> None:
    for step in range(1, 500):
        swapped(scene)
        scene.use()
        killed = run_killed(scene, step, "undo")
        run_killed(scene, 1 + step * 5 % 23, "undo")
        undo(scene)
        assert at_the_root_as_it_must_be(scene.look(), scene.old)
        assert scene.look_at_what_stays() == scene.stays
        assert not leftovers(scene.top)
        if not killed:
            break
    assert 4 < step < 499
    record_property(
        "counted", counted(step - 1, f"{type(scene).__name__}: the way back", killed_on_the_way_back=step - 1)
    )


def at_the_root_as_it_must_be(now: Listing, old: Listing) -> bool:
    """What was added after the swap to a directory that was passed through may stay; what was there is back."""
    added = now.keys() - old.keys()
    assert all(path.startswith("only-") for path in added), added
    assert {path: value for path, value in now.items() if path not in added} == old
    return True


def test_killed_at_every_step_of_the_commit_the_new_state_stands_and_the_next_commit_ends_it(
    scene: Scene, record_property: Count
) -> None:
    for step in range(1, 500):
        swapped(scene)
        killed = run_killed(scene, step, "commit")
        assert scene.look() == scene.new
        commit(scene)
        assert scene.look() == scene.new
        assert scene.look_at_what_stays() == scene.stays
        assert not leftovers(scene.top)
        if not killed:
            break
    assert 4 < step < 499
    record_property("counted", counted(step - 1, f"{type(scene).__name__}: the commit", killed_in_the_commit=step - 1))


@pytest.mark.parametrize("scene", [WithDataThatStays, MountPoints], indirect=True, ids=lambda scene: scene.__name__)
def test_once_the_old_state_is_being_removed_undo_refuses_instead_of_mixing(scene: Scene) -> None:
    refused = 0
    for step in range(1, 500):
        swapped(scene)
        killed = run_killed(scene, step, "commit")
        try:
            undo(scene)
            assert scene.look() == scene.old
        except SwapFailed:
            refused += 1
            assert scene.look() == scene.new
        if not killed:
            break
    assert refused
