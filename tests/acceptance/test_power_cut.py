"""The power is cut, or one fsync fails, somewhere in a day of a service; what counts is what the next start finds.

State directory, target and live tree are on a disk that forgets what was not made durable (`tests.power_cut_disk`).
Everything that was reported done before the cut has to be there afterwards, and nothing may be half there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service.app import App
from service.catalog import verify
from service.errors import ServiceError
from service.holding import delete, hold
from service.journal import journals
from service.progress import Progress
from service.prune import prune
from service.restore import commit, restore, rollback
from service.settle import settle
from service.sources import config_tree, directories
from service.state_directory import next_sequence
from storage_backends import StorageError
from tests.power_cut import PowerCutDisk, power_cut_disk
from tests.power_cut_disk import SYNC_ALL
from tests.scoreboard import counted
from tests.service_parts import Place
from tests.sizes import SEED, size

CUTS = size("POWER_CUTS", 30)
FAILED_SYNCS = size("FAILED_SYNCS", 16)
NEW = "port = 8080\n" * 2000
NAMES = ("server.conf", "a/deep/tree.conf", "link")

Told = Callable[..., None]


def write_tree(place: Place, content: str) -> None:
    """Have live data; what a server writes is not what is tried here, so it is durable."""
    (place.tree / "a" / "deep").mkdir(parents=True, exist_ok=True)
    for name in NAMES[:2]:
        (place.tree / name).write_text(content)
    with suppress(FileExistsError):
        (place.tree / NAMES[2]).symlink_to("server.conf")
    for path in (*place.tree.rglob("*"), place.tree):
        if not path.is_symlink():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def look(place: Place) -> dict[str, str]:
    """Return the live data: path and digest, of everything that is there."""
    found = {}
    for path in sorted(place.tree.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(place.tree))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sync_all(root: Path) -> None:
    """Make everything durable: FUSE does not pass syncfs on."""
    (root / SYNC_ALL).exists()


# The stories: what a service does, told line by line as soon as it is done.


async def backups(place: Place, app: App, told: Told) -> None:
    """Backups, a hold, retention, a removal by hand, values that are remembered."""
    config = place.config
    for number in range(3):
        place.clock.now += timedelta(days=1)
        write_tree(place, f"number = {number}\n" * (3000 * number + 10))
        name = await place.backup(app.archives)
        told("backup", name=name, digest=digest(place.target / name))
        await app.values.set("told", number)
        told("value", value=number)
        if number == 0:
            await hold(config, name, reason="for ever", by="me", now=place.clock(), ledger=app.archives)
            told("hold", name=name)
    told("may go", names=sorted(await place.archives()))
    place.settings = {"retention": {"keep_last": 2}}
    result = await prune(place.config, ledger=app.archives, clock=place.clock, progress=Progress())
    told("gone", names=result.removed)
    last = min(set(await place.archives()) - {entry.name for entry in (await place.archives()).values() if entry.held})
    await delete(config, last, even_the_last=False, ledger=app.archives)
    told("gone", names=[last])
    place.clock.now += timedelta(days=1)
    name = await place.backup(app.archives)
    told("backup", name=name, digest=digest(place.target / name))


async def restores(place: Place, app: App, told: Told) -> None:
    """A restore that is committed, and one that is rolled back."""
    archive = min(await place.archives())
    await restore(place.config, archive, progress=Progress())
    told("live", state="old")  # what the archive has
    await commit(place.config, progress=Progress())
    told("committed")
    write_tree(place, NEW)
    told("live", state="new")
    await restore(place.config, archive, progress=Progress())
    told("live", state="old")
    await rollback(place.config, progress=Progress())
    told("live", state="new")


STORIES = {"backups": backups, "restores": restores}


@dataclass(slots=True)
class Ground:
    """A disk with two archives of a tree on it, which has changed since; and one service to do with it."""

    disk: PowerCutDisk
    old: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    archives: dict[str, str] = field(default_factory=dict)
    """Digests of the archives that are there from the start."""
    started: Any = None

    def place(self) -> Place:
        place = Place(self.disk.root)
        if self.started is not None:
            place.clock.now = self.started
        return place

    async def prepare(self) -> None:
        place = Place(self.disk.root)
        place.tree.joinpath("server.conf").write_text("")
        async with place.app() as app:
            write_tree(place, "port = 80\n" * 1000)
            self.old = look(place)
            names = [await place.backup(app.archives) for _ in range(2)]
            self.archives = {name: digest(place.target / name) for name in names}
            write_tree(place, NEW)
            self.new = look(place)
        self.started = place.clock.now
        self.disk.save()

    def run(self, story: str, *, cut_at: int = 0, fail_sync_at: int = 0) -> tuple[list[dict[str, Any]], str]:
        """Do a story in a process of its own; return what it told, and how it ended."""
        self.disk.load()
        reading, writing = os.pipe()
        begin, begun = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            os.read(begin, 1)
            os._exit(asyncio.run(self._child(story, writing)))
        os.close(writing)
        self.disk.arm(victim=child, cut_at=cut_at, fail_sync_at=fail_sync_at)
        os.write(begun, b"x")
        for each in (begin, begun):
            os.close(each)
        with os.fdopen(reading) as lines:
            said = [json.loads(line) for line in lines]
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 3, -signal.SIGKILL), f"the story ended with {status}; see its traceback above"
        return said, {0: "done", 3: "refused"}.get(status, "cut")

    async def _child(self, story: str, writing: int) -> int:
        def told(what: str, **facts: Any) -> None:
            os.write(writing, json.dumps({"what": what, **facts}).encode() + b"\n")

        def sync_file_system(fd: int) -> None:
            sync_all(self.disk.root)

        for module in (directories, config_tree):
            vars(module)["sync_file_system"] = sync_file_system
        try:
            place = self.place()
            async with place.app() as app:
                await STORIES[story](place, app, told)
        except (ServiceError, StorageError, OSError) as error:
            told("refused", error=repr(error))
            return 3
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            return 1
        return 0

    async def check(self, story: str, said: list[dict[str, Any]]) -> None:
        """Start again, and compare with what was told."""
        place = self.place()
        facts = Facts.of_restores(self, said) if story == "restores" else Facts(self, said)
        place.clock.now += timedelta(days=30)
        async with place.app() as app:
            assert not list(place.state_dir.glob("*.damaged*")), "the memory was damaged"
            settled = await settle(place.config, archives=app.archives, clock=place.clock, progress=Progress())
            assert settled.damaged == []
            listed = await place.archives(app.archives)
            for name, entry in listed.items():
                assert entry.problem is None, (name, entry.problem)
                await verify(place.config, name, progress=Progress(), ledger=app.archives)
            for name, content in facts.there.items():
                assert name in listed, f"{name} was reported, and is not there"
                assert digest(place.target / name) == content, f"{name} is not what was reported"
            assert facts.gone.isdisjoint(listed)
            assert facts.held <= {name for name, entry in listed.items() if entry.held}
            if facts.value is not None:
                assert await app.values.get("told") in facts.value
            if facts.reported:
                assert next_sequence(place.state_dir, 0) > facts.reported + len(self.archives)
            assert await app.archives.intents() == []
        assert [name for name in place.names() if name.startswith(".")] == []
        self._check_live(place, facts)

    def _check_live(self, place: Place, facts: Facts) -> None:
        waiting = journals(place.state_dir)
        assert all(journal.state == "swapped" for journal in waiting), waiting
        assert facts.may_wait or waiting == [], waiting
        if facts.live:
            now = look(place)
            state = "old" if now == self.old else "new" if now == self.new else "mixed"
            assert state in facts.live, (state, facts.live)
        left = [path.name for path in self.disk.root.iterdir() if path.name not in ("archives", "etc", "state")]
        assert waiting or left == [], left


@dataclass(slots=True)
class Facts:
    """What was told, and what therefore has to be true after the next start."""

    ground: Ground
    said: list[dict[str, Any]]
    there: dict[str, str] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    value: set[int] | None = None
    live: set[str] = field(default_factory=set)
    """What the live data may be; empty when that is not known."""
    may_wait: bool = True
    """Whether a restore may wait for commit or rollback."""
    reported: int = 0

    def __post_init__(self) -> None:
        self.there = dict(self.ground.archives)
        for fact in self.said:
            match fact["what"]:
                case "backup":
                    self.there[fact["name"]] = fact["digest"]
                    self.reported += 1
                case "value":
                    self.value = {fact["value"], fact["value"] + 1}  # the next one may have become durable untold
                case "hold":
                    self.held.add(fact["name"])
                case "may go":
                    for name in set(fact["names"]) - self.held:
                        self.there.pop(name)
                case "gone":
                    self.gone |= set(fact["names"])

    @classmethod
    def of_restores(cls, ground: Ground, said: list[dict[str, Any]]) -> Facts:
        """What was begun and not told may have come to either end."""
        facts = cls(ground, said)
        done = sum(fact["what"] in ("live", "committed") for fact in said)
        # a restore, its commit, (the server writes), a restore, its rollback
        facts.live = [{"new", "old"}, {"old"}, set[str](), {"new", "old"}, {"old", "new"}, {"new"}][done]
        facts.may_wait = done in (0, 1, 3, 4)
        return facts


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with power_cut_disk(tmp_path_factory.mktemp("power") / "disk") as disk:
        made = Ground(disk)
        asyncio.run(made.prepare())
        yield made


def length(ground: Ground, story: str) -> dict[str, int]:
    """Count the changes and fsyncs of a whole story."""
    said, ended = ground.run(story)
    assert ended == "done", said
    counts = ground.disk.counted()
    asyncio.run(ground.check(story, said))
    return counts


@pytest.mark.timeout(3600)
def test_what_was_reported_outlives_a_power_cut_at_any_change_and_nothing_is_half_there(
    ground: Ground, record_property: Callable[[str, object], None]
) -> None:
    dice, ends = random.Random(SEED), Counter[str]()
    lengths = {story: length(ground, story) for story in STORIES}
    lost = 0
    for number in range(CUTS):
        story = list(STORIES)[number % 2]
        at, seed = dice.randint(1, lengths[story]["changes"]), dice.randrange(2**32)
        said, ended = ground.run(story, cut_at=at)
        lost += ground.disk.cut(seed)["lost"]
        ends[ended if ended == "cut" else "not_met"] += 1
        try:
            asyncio.run(ground.check(story, said))
        except Exception as error:
            raise AssertionError(f"cut before change {at} of {story} (dice {seed}), told {said}: {error!r}") from error
    assert ends["not_met"] < 0.2 * CUTS, "most stories are as long as the first one"
    assert lost > CUTS, "hardly anything was ever lost: the disk does not forget"
    changes = ", ".join(f"{counts['changes']} changes in {story}" for story, counts in lengths.items())
    record_property("counted", counted(ends["cut"], changes, ends, seed=SEED, pages_and_names_lost=lost))


@pytest.mark.timeout(3600)
def test_what_a_failed_fsync_has_lost_was_never_reported(
    ground: Ground, record_property: Callable[[str, object], None]
) -> None:
    """The fsync fails once; the next ones succeed, though what they were for is gone. Then the power is cut."""
    dice, ends, failed = random.Random(SEED), Counter[str](), Counter[str]()
    lengths = {story: length(ground, story) for story in STORIES}
    for number in range(FAILED_SYNCS):
        story = list(STORIES)[number % 2]
        at, seed = dice.randint(1, lengths[story]["syncs"]), dice.randrange(2**32)
        said, ended = ground.run(story, fail_sync_at=at)
        told = [fact for fact in said if fact["what"] != "refused"]
        what = ground.disk.cut(seed)["failed"]
        failed[f"of_a_{what}" if what else "not_met"] += 1
        if what:
            ends[ended] += 1
        try:
            asyncio.run(ground.check(story, told))
        except Exception as error:
            raise AssertionError(f"fsync {at} of {story} failed (dice {seed}), told {said}: {error!r}") from error
    assert failed["not_met"] < 0.2 * FAILED_SYNCS, "most stories are as long as the first one"
    fsyncs = ", ".join(f"{counts['syncs']} fsyncs in {story}" for story, counts in lengths.items())
    record_property("counted", counted(ends.total(), fsyncs, ends + failed, seed=SEED))
