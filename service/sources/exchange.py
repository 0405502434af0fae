"""Exchanging what is live with what was prepared, so that it can be taken back at any time, also after a crash.

Prepared things lie in a work area: a directory of mode 0700 beside the live ones, on the same file system. One unit
of work is one name: what is under it in the live directory and what is under it in the work area change places by one
`renameat2` (RENAME_EXCHANGE when both are there, RENAME_NOREPLACE when one is). When all units are done, the work area
holds exactly the old state. Taking back is the same exchange once more.

Which units are done is not remembered but looked at. The plan, saved before anything is touched, has for each unit
the inode that was live and the inode that was prepared:

    the work area still has the prepared inode (or nothing, if nothing was prepared)    not exchanged
    the live name has the inode that was live (or nothing, if there was nothing)        taken back
    otherwise                                                                           exchanged
"""

# Work by descriptor speaks os, not pathlib.
# ruff: noqa: PTH101, PTH102, PTH106, PTH120

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.errors import SwapFailed
from service.sources.attributes import Attributes, apply_attributes
from service.sources.directories import (
    OWN_PREFIX,
    decode_path,
    encode_path,
    opened,
    opened_whole,
    status_at,
    sync_directory,
)

_NOREPLACE, _EXCHANGE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


class ChangedMeanwhile(SwapFailed):
    """What is live is not what was live when the plan was made."""


class CannotMove(SwapFailed):
    """`path` cannot be renamed: something is mounted there, or a lower layer of an overlay holds it."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{encode_path(path)} cannot be moved on its file system.")
        self.path = path


@dataclass(frozen=True, slots=True)
class Unit:
    """One name; the inodes that were live and prepared (None: there was nothing)."""

    name: str
    live: str | None
    staged: str | None


@dataclass(slots=True)
class Group:
    """The units of one live directory and the directory of the work area that answers to it (absolute, no links)."""

    live: str
    staged: str
    units: list[Unit] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Passed:
    """A live directory that stays, while its names are exchanged: its attributes before and after (None: as before)."""

    live: str
    before: Attributes
    after: Attributes | None


@dataclass(slots=True)
class Plan:
    """All of one exchange. `parents` are directories to be made first, outermost first."""

    groups: list[Group] = field(default_factory=list)
    passed: list[Passed] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Give a form that JSON can hold."""
        return {
            "groups": [
                {
                    "live": encode_path(group.live),
                    "staged": encode_path(group.staged),
                    "units": [[encode_path(unit.name), unit.live, unit.staged] for unit in group.units],
                }
                for group in self.groups
            ],
            "passed": [
                [encode_path(p.live), p.before.to_json(), p.after.to_json() if p.after else None] for p in self.passed
            ],
            "parents": [encode_path(path) for path in self.parents],
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Plan:
        """Read what `to_json` gave."""
        return cls(
            [
                Group(
                    decode_path(group["live"]),
                    decode_path(group["staged"]),
                    [Unit(decode_path(name), live, staged) for name, live, staged in group["units"]],
                )
                for group in found["groups"]
            ],
            [
                Passed(decode_path(live), Attributes.from_json(before), Attributes.from_json(after) if after else None)
                for live, before, after in found["passed"]
            ],
            [decode_path(path) for path in found["parents"]],
        )


def identity(name: str, dir_fd: int) -> str | None:
    """What is under a name: inode number and kind; None for nothing.

    No device number: it may be another one after a boot, and both sides of a unit are on one file system.
    """
    status = status_at(name, dir_fd)
    return None if status is None else f"{status.st_ino}:{stat.S_IFMT(status.st_mode):o}"


def identity_in(directory: str, name: str) -> str | None:
    """The same by the directory's path; None also when there is no such directory."""
    try:
        with opened(directory) as fd:
            return identity(name, fd)
    except FileNotFoundError:
        return None


def carry_out(plan: Plan) -> None:
    """Exchange everything. Raises SwapFailed (ChangedMeanwhile) and OSError; then `take_back` is due."""
    for path in plan.parents:
        make_parent(path)
    for group in plan.groups:
        with _both(group) as (live, staged):
            for unit in group.units:
                _exchange_planned(group, unit, live, staged)
            sync_directory(live)
            sync_directory(staged)
    for passed in sorted(plan.passed, key=lambda p: -p.live.count("/")):
        if passed.after is not None:
            _set_attributes(passed.live, passed.after)


def take_back(plan: Plan) -> None:
    """Bring back what was live, from wherever the exchange stands; also what an earlier `take_back` left undone.

    Names that others added since to a directory that was passed through stay: they may be data that must stay.
    """
    for group in reversed(plan.groups):
        if not os.path.lexists(group.live):
            continue  # the parents were never made, or removed again
        with _both(group) as (live, staged):
            for unit in reversed(group.units):
                _settle(unit.name, live, staged)
                if is_exchanged(unit, live, staged):
                    if identity(unit.name, staged) is None and unit.live is not None:
                        raise SwapFailed(f"The old state of {group.live}/{encode_path(unit.name)} cannot be found.")
                    swap_names(unit.name, live, staged)
            sync_directory(live)
            sync_directory(staged)
    for passed in sorted(plan.passed, key=lambda p: -p.live.count("/")):
        _set_attributes(passed.live, passed.before)
    for path in reversed(plan.parents):
        _remove_parent(path)


def is_complete(plan: Plan) -> bool:
    """Whether every unit is exchanged."""
    for group in plan.groups:
        with opened_whole(group.staged) as staged:
            if any(identity(unit.name, staged) == unit.staged for unit in group.units if unit.live or unit.staged):
                return False
            if any(status_at(_aside(unit.name), staged) for unit in group.units):
                return False
    return True


def make_parent(path: str) -> None:
    """Make one missing directory above what is restored; already there is fine (another source's restore made it)."""
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        return
    os.chmod(path, 0o755)  # noqa: S103 - whatever the umask says: what is below has its own modes
    with opened(os.path.dirname(path)) as fd:
        sync_directory(fd)


def missing_parents(path: Path) -> tuple[Path, list[str]]:
    """Give the nearest existing directory above `path`, and those that are missing in between, outermost first."""
    missing: list[str] = []
    above = path.parent
    while not above.is_dir():
        missing.insert(0, str(above))
        above = above.parent
    return above, missing


def swap_names(name: str, live: int, staged: int) -> None:
    """Let what is under `name` in two directories of one file system change places; one or both may be absent."""
    here, there = status_at(name, live) is not None, status_at(name, staged) is not None
    if here and there:
        _exchange(name, live, staged)
    elif here:
        move(name, live, name, staged)
    elif there:
        move(name, staged, name, live)


def move(name: str, dir_fd: int, new_name: str, new_dir_fd: int) -> None:
    """Rename, never onto something that is there (OSError EEXIST)."""
    try:
        renameat2(dir_fd, name, new_dir_fd, new_name, _NOREPLACE)
    except OSError as exc:
        if exc.errno not in {errno.EINVAL, errno.ENOSYS}:
            raise
        if status_at(new_name, new_dir_fd) is not None:
            raise FileExistsError(errno.EEXIST, "is there already", new_name) from None
        os.rename(name, new_name, src_dir_fd=dir_fd, dst_dir_fd=new_dir_fd)


def renameat2(dir_fd: int, name: str, new_dir_fd: int, new_name: str, flags: int) -> None:
    """The system call, through the C library: its number differs from one processor to another."""
    if _libc.renameat2(dir_fd, os.fsencode(name), new_dir_fd, os.fsencode(new_name), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)


def _exchange(name: str, live: int, staged: int) -> None:
    try:
        renameat2(staged, name, live, name, _EXCHANGE)
    except OSError as exc:
        if exc.errno not in {errno.EINVAL, errno.ENOSYS}:
            raise
        # A file system that cannot exchange (NFS is one): three renames over a name that only they use. `_settle`
        # finishes them from any point.
        aside = _aside(name)
        move(name, live, aside, staged)
        move(name, staged, name, live)
        move(aside, staged, name, staged)


def _aside(name: str) -> str:
    return f"{OWN_PREFIX}aside-{hashlib.sha256(os.fsencode(name)).hexdigest()[:24]}"


def _settle(name: str, live: int, staged: int) -> None:
    aside = _aside(name)
    if status_at(aside, staged) is None:
        return
    if status_at(name, staged) is not None:
        move(name, staged, name, live)
    move(aside, staged, name, staged)


def is_exchanged(unit: Unit, live: int, staged: int) -> bool:
    """Look whether a unit is exchanged now."""
    return identity(unit.name, staged) != unit.staged and identity(unit.name, live) != unit.live


def _exchange_planned(group: Group, unit: Unit, live: int, staged: int) -> None:
    if (identity(unit.name, live), identity(unit.name, staged)) != (unit.live, unit.staged):
        raise ChangedMeanwhile(f"{group.live}/{encode_path(unit.name)} changed while the restore was under way.")
    try:
        swap_names(unit.name, live, staged)
    except OSError as exc:
        if exc.errno in {errno.EXDEV, errno.EBUSY}:
            raise CannotMove(os.path.join(group.live, unit.name)) from exc
        raise
    if identity(unit.name, staged) != unit.live:
        # It changed between the look and the exchange. What came in between must not be lost either.
        swap_names(unit.name, live, staged)
        raise ChangedMeanwhile(f"{group.live}/{encode_path(unit.name)} changed while the restore was under way.")


@contextmanager
def _both(group: Group) -> Iterator[tuple[int, int]]:
    with opened_whole(group.live) as live, opened_whole(group.staged) as staged:
        yield live, staged


def _set_attributes(path: str, wanted: Attributes) -> None:
    with opened_whole(path) as fd:
        apply_attributes(fd, wanted, say=_unsaid, exactly=True)
        os.fsync(fd)


def _unsaid(_: str) -> None:
    """What the system's policy decides alone was said when the copy was made."""


def _remove_parent(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError as exc:
        # Something of somebody else's lies in it by now: it stays.
        if exc.errno not in {errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST}:
            raise
