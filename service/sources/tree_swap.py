"""Where a tree's copy is put, and which names change places: as high up as what must stay where it is allows.

What a backup leaves out on purpose (MongoDB data, excluded paths, files of other sources, sockets) is not in the
archive, so it must survive a restore: such live paths are never moved, not for a moment. A directory that holds one
somewhere below is passed through: it stays, its names are exchanged one by one, its attributes are set in place.
Mount points are passed through for another reason: they cannot be renamed. Everything else is exchanged whole.
"""

# Work by descriptor speaks os, not pathlib.
# ruff: noqa: PTH102, PTH208

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from service.errors import StageFailed
from service.sources.attributes import Attributes, read_attributes
from service.sources.directories import (
    DIRECTORY,
    OWN_PREFIX,
    Descent,
    ancestors,
    encode_path,
    join,
    mounts_below,
    opened,
    opened_whole,
)
from service.sources.exchange import Group, Passed, Plan, Unit, identity, identity_in, missing_parents
from service.sources.selection import Selection, scan


@dataclass(slots=True)
class Survey:
    """What of the live tree restricts the exchange, by paths relative to its root."""

    exists: bool = False
    kept: dict[str, str] = field(default_factory=dict)
    """What must stay, with the reason; nothing below such a path is looked at."""
    through: set[str] = field(default_factory=set)
    """Directories that have something to stay, or a mount point, below them, and mount points themselves."""
    mounted: set[str] = field(default_factory=set)
    """Directories on which a file system is mounted."""
    mounted_files: list[str] = field(default_factory=list)
    """Single files that are mounted: these cannot be exchanged at all."""

    def passes(self, path: str) -> None:
        """Note that the directories above a path must stay."""
        self.through.update(ancestors(path))


def survey(root: Path, selection: Callable[[], Selection]) -> Survey:
    """Look at the live tree. OSError when it cannot be read."""
    found = Survey()
    try:
        status = os.lstat(root)
    except FileNotFoundError:
        return found
    found.exists = True
    if not stat.S_ISDIR(status.st_mode):
        return found
    points = mounts_below(root)
    rules = selection()
    with Descent(os.open(root, DIRECTORY)) as descent:
        if "" in points or os.stat("..", dir_fd=descent.fd).st_dev != status.st_dev:
            found.mounted.add("")
            found.through.add("")
        paths, devices = [""], [status.st_dev]
        pending = [_look(descent.fd, "", rules, found)]
        while pending:
            if not pending[-1]:
                pending.pop()
                paths.pop()
                devices.pop()
                if pending:
                    descent.leave()
                continue
            name, kind = pending[-1].pop()
            path = join(paths[-1], name)
            if kind != stat.S_IFDIR:
                if path in points:
                    found.mounted_files.append(path)
                continue
            device = os.fstat(descent.enter(name)).st_dev
            if path in points or device != devices[-1]:
                found.mounted.add(path)
                found.through.add(path)
                found.passes(path)
            paths.append(path)
            devices.append(device)
            pending.append(_look(descent.fd, path, rules, found))
    return found


def _look(fd: int, path: str, rules: Selection, found: Survey) -> list[tuple[str, int]]:
    kinds = scan(fd)
    for name, reason in rules.left_out(path, kinds, fd).items():
        found.kept[join(path, name)] = reason
        found.passes(join(path, name))
        del kinds[name]
    return list(kinds.items())


@dataclass(frozen=True, slots=True)
class Area:
    """A work area: the part of the tree at `at` (relative) is prepared under `name` in it."""

    at: str
    path: Path
    name: str


def may_write(directory: Path) -> bool:
    """Whether this process may make names in a directory."""
    return os.access(directory, os.W_OK | os.X_OK, effective_ids=True)


def choose_areas(root: Path, found: Survey, area_name: str) -> list[Area]:
    """Say where the copy goes, so that each name is on the file system of the one that it changes places with."""
    areas = []
    if not found.exists:
        above, _ = missing_parents(root)
        areas.append(Area("", above / area_name, root.name))
    elif "" in found.mounted or not may_write(root.parent):
        areas.append(Area("", root / area_name, "tree"))
    else:
        areas.append(Area("", root.parent / area_name, root.name))
    areas += [Area(path, root / path / area_name, "tree") for path in sorted(found.mounted) if path]
    return areas


class Planner:
    """Works out the exchange of one live tree with its copy in the work areas."""

    def __init__(self, root: Path, areas: Sequence[Area], found: Survey) -> None:
        self._root = str(root)
        self._areas = {area.at: area for area in areas}
        self._found = found
        self._inside = areas[0].path.parent == root
        self._wanted: dict[str, Attributes | None] = {}

    def pass_through(self, path: str) -> None:
        """Exchange the names in this directory one by one: it turned out that itself cannot be renamed."""
        self._found.through.add(path)
        self._found.passes(path)

    def check(self) -> None:
        """Raise StageFailed when the copy has something else where a live directory must stay."""
        for path in self._found.through:
            try:
                status = os.lstat(self._staged(path))
            except (FileNotFoundError, NotADirectoryError):
                continue
            if not stat.S_ISDIR(status.st_mode):
                raise StageFailed(
                    f"{encode_path(path) or self._root} is no directory in the archive, but the live one holds what "
                    "must stay.",
                    hint="Move away what lies there, then restore again.",
                )

    def plan(self) -> Plan:
        """Compare both sides; makes nothing but empty directories in the work areas. Raises StageFailed."""
        self.check()
        if not self._found.mounted <= self._areas.keys():
            raise StageFailed("A file system was mounted below the tree since the copy was made.")
        plan = Plan()
        _, plan.parents = missing_parents(Path(self._root))
        if "" not in self._found.through and not self._inside:
            area = self._areas[""]
            live, name = os.path.split(self._root)
            unit = Unit(name, identity_in(live, name), identity_in(str(area.path), name))
            plan.groups.append(Group(live, str(area.path), [unit]))
            return plan
        pending = [""]
        while pending:
            pending += self._directory(plan, pending.pop())
        return plan

    def _directory(self, plan: Plan, path: str) -> list[str]:
        """Plan what is directly in a passed directory; return the passed directories in it."""
        live, staged = join(self._root, path), self._staged(path)
        below: list[str] = []
        group = Group(live, staged)
        with opened_whole(live) as live_fd:
            if not os.path.lexists(staged):
                os.mkdir(staged, 0o700)
                self._wanted[path] = None
            with opened(staged) as staged_fd:
                if path not in self._wanted:  # before any exchange changed its time
                    self._wanted[path] = read_attributes(staged_fd)
                plan.passed.append(Passed(live, read_attributes(live_fd), self._wanted[path]))
                for name in sorted({*os.listdir(live_fd), *os.listdir(staged_fd)}):
                    inner = join(path, name)
                    if inner in self._found.kept or name.startswith(OWN_PREFIX):
                        continue
                    if inner in self._found.through:
                        below.append(inner)
                        continue
                    group.units.append(Unit(name, identity(name, live_fd), identity(name, staged_fd)))
        plan.groups.append(group)
        return below

    def _staged(self, path: str) -> str:
        at = max((at for at in self._areas if not at or path == at or path.startswith(at + "/")), key=len)
        area = self._areas[at]
        return join(f"{area.path}/{area.name}", path[len(at) :].lstrip("/"))
