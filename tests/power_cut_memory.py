"""What the disk that forgets remembers: inodes as everybody sees them, and what of them is durable."""

from __future__ import annotations

import copy
import errno
import random
import stat
import time
from dataclasses import dataclass, field

ROOT = 1
PAGE, SECTOR = 4096, 512


@dataclass(slots=True)
class Change:
    """One change of names that is not durable yet: of one directory, or of two that a rename has to do with."""

    number: int
    names: list[tuple[int, str, int | None]]
    """Directory, name, and the inode that it names from then on; None when it is gone."""


@dataclass(slots=True)
class Inode:
    """A file, directory or symbolic link. `durable` and `durable_names` are what a power cut leaves for certain."""

    number: int
    mode: int
    uid: int
    gid: int
    generation: int
    data: bytearray = field(default_factory=bytearray)
    entries: dict[str, int] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    link: bytes = b""
    atime: int = 0
    mtime: int = 0
    durable: bytearray = field(default_factory=bytearray)
    durable_names: dict[str, int] = field(default_factory=dict)
    dirty: set[int] = field(default_factory=set)
    """Pages that were written since, or whose place in the file has come or gone."""

    def write(self, offset: int, content: bytes) -> None:
        """Write as a process does."""
        if offset > len(self.data):
            self.resize(offset)
        self.data[offset : offset + len(content)] = content
        self._touched(offset, offset + len(content))

    def resize(self, size: int) -> None:
        """Cut or extend the file."""
        before = len(self.data)
        if size < before:
            del self.data[size:]
        else:
            self.data.extend(bytes(size - before))
        self._touched(min(size, before), max(size, before) or 1)

    def _touched(self, start: int, end: int) -> None:
        self.dirty.update(range(start // PAGE, (end - 1) // PAGE + 1))

    def sync(self) -> None:
        """Make the content durable as it is."""
        if len(self.durable) > len(self.data):
            del self.durable[len(self.data) :]
        for page in self.dirty:
            self._keep(page, bytes(self.data[page * PAGE : (page + 1) * PAGE]))
        self.durable.extend(bytes(len(self.data) - len(self.durable)))
        self.dirty.clear()

    def _keep(self, page: int, content: bytes) -> None:
        start = page * PAGE
        if content:
            self.durable.extend(bytes(max(0, start + len(content) - len(self.durable))))
            self.durable[start : start + len(content)] = content

    def cut(self, dice: random.Random) -> bool:
        """Leave of what is not durable what the dice say; tell whether something was lost."""
        before = bytes(self.data)
        if self.dirty:
            new_size = len(self.data) if dice.random() < 0.5 else len(self.durable)
            mood = dice.choice((0.0, 0.5, 0.5, 1.0))
            for page in sorted(self.dirty):
                start = page * PAGE
                if dice.random() >= mood:
                    continue
                new = bytes(self.data[start : start + PAGE])
                if dice.random() < 0.3:  # torn: one part is new, the other what was there
                    old = bytes(self.durable[start : start + PAGE]).ljust(len(new), b"\0")
                    at = SECTOR * dice.randrange(PAGE // SECTOR)
                    new = new[:at] + old[at : len(new)] if dice.random() < 0.5 else old[:at] + new[at:]
                self._keep(page, new)
            del self.durable[new_size:]
            self.durable.extend(bytes(new_size - len(self.durable)))
        self.data = bytearray(self.durable)
        self.dirty.clear()
        return bytes(self.data) != before


class World:
    """All inodes, and the changes of names in the order in which they were made."""

    def __init__(self) -> None:
        self.inodes: dict[int, Inode] = {}
        self.pending: list[Change] = []
        self._numbers = 0
        self.new(stat.S_IFDIR | 0o755, 0, 0)

    def copy(self) -> World:
        """Return another disk with the same content."""
        return copy.deepcopy(self)

    def now(self) -> int:
        """Return the time in nanoseconds."""
        return time.time_ns()

    def new(self, mode: int, uid: int, gid: int) -> Inode:
        """Make an inode without a name."""
        self._numbers += 1
        made = Inode(self._numbers, mode, uid, gid, generation=1, atime=self.now(), mtime=self.now())
        self.inodes[made.number] = made
        return made

    def child(self, directory: Inode, name: str) -> Inode:
        """Return what a name names."""
        if name not in directory.entries:
            raise OSError(errno.ENOENT, name)
        return self.inodes[directory.entries[name]]

    def links(self, inode: Inode) -> int:
        """Count the names of a file; a directory has two, which is what nobody looks at."""
        if stat.S_ISDIR(inode.mode):
            return 2
        return sum(list(each.entries.values()).count(inode.number) for each in self.inodes.values() if each.entries)

    def name(self, directory: Inode, name: str, inode: Inode) -> None:
        """Give a name."""
        self._change([(directory.number, name, inode.number)])

    def unname(self, directory: Inode, name: str) -> None:
        """Take a name away."""
        self.child(directory, name)
        self._change([(directory.number, name, None)])

    def rename(self, old: Inode, name: str, new: Inode, to: str, *, exchange: bool) -> None:
        """Give a name to what had another; both are one change."""
        moved = self.child(old, name).number
        if exchange:
            self._change([(old.number, name, self.child(new, to).number), (new.number, to, moved)])
        else:
            self._change([(old.number, name, None), (new.number, to, moved)])

    def _change(self, names: list[tuple[int, str, int | None]]) -> None:
        number = self.pending[-1].number + 1 if self.pending else 1
        self.pending.append(Change(number, names))
        for directory, name, inode in names:
            _set(self.inodes[directory].entries, name, inode)
            self.inodes[directory].mtime = self.now()

    def sync(self, inode: Inode) -> None:
        """Make a file's content or a directory's names durable."""
        if not stat.S_ISDIR(inode.mode):
            inode.sync()
            return
        self._settle([change for change in self.pending if _concerns(change, inode)])

    def sync_all(self) -> None:
        """Make everything durable."""
        for inode in self.inodes.values():
            inode.sync()
        self._settle(list(self.pending))

    def forget(self, inode: Inode) -> None:
        """What Linux does after a failed fsync: it takes for clean what never got to the disk."""
        inode.dirty.clear()
        if stat.S_ISDIR(inode.mode):
            self.pending = [change for change in self.pending if not _concerns(change, inode)]

    def _settle(self, changes: list[Change]) -> None:
        for change in changes:
            for directory, name, inode in change.names:
                _set(self.inodes[directory].durable_names, name, inode)
        done = {change.number for change in changes}
        self.pending = [change for change in self.pending if change.number not in done]

    def cut(self, seed: int) -> int:
        """Cut the power: keep what is durable, and of the rest what the dice say. Return how much was lost."""
        dice = random.Random(seed)
        if dice.random() < 0.5:  # as a journal does: all up to some moment
            kept = self.pending[: dice.randint(0, len(self.pending))]
        else:
            kept = [change for change in self.pending if dice.random() < 0.5]
        lost = len(self.pending) - len(kept)
        self._settle(kept)
        self.pending.clear()
        for inode in self.inodes.values():
            inode.entries = dict(inode.durable_names)
            lost += inode.cut(dice)
        self._drop_what_has_no_name()
        return lost

    def _drop_what_has_no_name(self) -> None:
        reached, waiting = {ROOT}, [ROOT]
        while waiting:
            for child in self.inodes[waiting.pop()].entries.values():
                if child not in reached:
                    reached.add(child)
                    waiting.append(child)
        self.inodes = {number: inode for number, inode in self.inodes.items() if number in reached}


def _set(names: dict[str, int], name: str, inode: int | None) -> None:
    if inode is None:
        names.pop(name, None)
    else:
        names[name] = inode


def _concerns(change: Change, directory: Inode) -> bool:
    return any(number == directory.number for number, _, _ in change.names)
