"""The directories in which restores prepare their copies and keep the old state, and how they come to an end.

A work area lies on the file system of what it answers to. Its end is marked by renaming it, before its content is
deleted: `.undone` (everything is back) or `.removed` (the old state is let go). Whoever comes after a crash in between
only goes on deleting.
"""

# Work by descriptor speaks os, not pathlib.

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from service.errors import SwapFailed
from service.sources.attributes import strip_acls
from service.sources.directories import mounts_below, opened, remove_tree, sync_directory
from service.sources.exchange import Plan, is_complete, take_back

UNDONE, REMOVED = ".undone", ".removed"


def make_area(path: Path) -> None:
    """Make a work area; FileExistsError when the name is taken."""
    with _names_change_in(path.parent):
        path.mkdir(mode=0o700)
    with opened(path) as fd:
        strip_acls(fd)
        os.fchmod(fd, 0o700)


def mark_area(path: Path, mark: str) -> None:
    """Say durably what is to happen with the work area; nothing when it is marked so already."""
    marked = Path(f"{path}{mark}")
    if os.path.lexists(marked) or not os.path.lexists(path):
        return
    with _names_change_in(path.parent):
        path.rename(marked)


def remove_area(path: Path) -> None:
    """Remove a work area and everything in it. Refuses to touch what is mounted inside it (OSError EBUSY)."""
    if not os.path.lexists(path):
        return
    inside = mounts_below(path)
    if inside:
        raise OSError(errno.EBUSY, "a file system is mounted inside", str(path))
    with _names_change_in(path.parent) as fd:
        remove_tree(path.name, dir_fd=fd)


@contextmanager
def _names_change_in(directory: Path) -> Iterator[int]:
    """Make a change of names durable and without a trace in the directory's time: it may be the restored tree's own."""
    with opened(directory) as fd:
        before = os.fstat(fd)
        yield fd
        with suppress(PermissionError):
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
        sync_directory(fd)


def undo(plan: Plan | None, areas: Sequence[Path], *, before: Callable[[Plan], None] = lambda _: None) -> None:
    """Bring back the old state and remove the work areas. Idempotent. `before` runs while everything is in reach.

    Raises SwapFailed when the old state was let go already, or could not be brought back (then try again).
    """
    if any(os.path.lexists(f"{area}{REMOVED}") for area in areas) or _is_committed(plan, areas):
        raise SwapFailed(
            "The restore was committed: the old state is gone.", hint="Restore an older archive to go back."
        )
    try:
        # The first mark says that all units are back: marks are made only after the last of them.
        there = [os.path.lexists(area) for area in areas]
        if plan is not None and any(there) and not any(os.path.lexists(f"{area}{UNDONE}") for area in areas):
            if not all(there):
                raise SwapFailed(
                    f"The work area {areas[there.index(False)]} with a part of the old state is not there.",
                    hint="Mount the file system that it lies on, then roll back again.",
                )
            before(plan)
            take_back(plan)
        for area in areas:
            mark_area(area, UNDONE)
        for area in areas:
            remove_area(Path(f"{area}{UNDONE}"))
    except OSError as exc:
        raise SwapFailed(
            f"The state before the restore could not be brought back completely: {exc.strerror or exc} "
            f"({exc.filename or 'no name'}).",
            hint="Nothing is lost: remove the cause and roll back again.",
        ) from exc


def commit(plan: Plan | None, areas: Sequence[Path]) -> None:
    """Let the old state go: remove the work areas. Idempotent. Raises SwapFailed when the swap is not complete."""
    try:
        started = any(os.path.lexists(f"{area}{REMOVED}") for area in areas)
        if not started and not any(os.path.lexists(area) for area in areas):
            return
        if not started and (plan is None or not is_complete(plan)):
            raise SwapFailed("The restore is not complete, so the old state is kept.", hint="Roll it back instead.")
        for area in areas:
            mark_area(area, REMOVED)
        for area in areas:
            remove_area(Path(f"{area}{REMOVED}"))
    except OSError as exc:
        raise SwapFailed(
            f"The old state could not be removed completely: {exc.strerror or exc} ({exc.filename or 'no name'}).",
            hint="The restored state is in place. Remove the cause and commit again.",
        ) from exc


def _is_committed(plan: Plan | None, areas: Sequence[Path]) -> bool:
    """Whether the work areas are gone while what was prepared in them is live."""
    if plan is None or any(os.path.lexists(f"{area}{mark}") for area in areas for mark in ("", UNDONE)):
        return False
    for group in plan.groups:
        for unit in group.units:
            status = None
            try:
                status = os.lstat(os.path.join(group.live, unit.name))
            except OSError:
                continue
            if unit.staged == f"{status.st_ino}:{stat.S_IFMT(status.st_mode):o}":
                return True
    return False
