"""Directories spoken to by descriptor, so that nothing outside them can be reached by a link.

Every component is opened with O_NOFOLLOW relative to the directory above it: a name that was swapped for a symbolic
link between looking and opening is refused by the kernel instead of followed.
"""

# Work by descriptor speaks os, not pathlib.
# ruff: noqa: PTH208

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
OWN_PREFIX = ".deviceon-backup-"
"""Names that begin so are work areas of this service: never backed up, never exchanged, swept when they are ours."""

_HELD = 64
_libc = ctypes.CDLL(None, use_errno=True)


def encode_path(path: str) -> str:
    """Make a path fit for JSON: `%`, and bytes that are not UTF-8, become %XX. `decode_path` is its inverse."""
    return re.sub("[\udc80-\udcff]", lambda found: f"%{ord(found[0]) - 0xDC00:02X}", path.replace("%", "%25"))


def decode_path(text: str) -> str:
    """Give back the path that `encode_path` was given."""
    return re.sub("%([0-9A-F]{2})", lambda f: "%" if f[1] == "25" else chr(0xDC00 + int(f[1], 16)), text)


def join(directory: str, name: str) -> str:
    """Join two parts of a path relative to a tree's root, which itself is the empty string."""
    return f"{directory}/{name}" if directory and name else directory or name


def parent(path: str) -> tuple[str, str]:
    """Split a relative path into its directory ("" at the top) and its last name."""
    above, _, name = path.rpartition("/")
    return above, name


def ancestors(path: str) -> Iterator[str]:
    """Yield every directory above a relative path, the nearest first, the root ("") last."""
    while path:
        path, _ = parent(path)
        yield path


@contextmanager
def opened(path: str | Path, flags: int = DIRECTORY, *, dir_fd: int | None = None) -> Iterator[int]:
    """Hold a descriptor open for a block."""
    fd = os.open(path, flags, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def open_beneath(root: int, path: str) -> int:
    """Open the directory `path` below the descriptor `root`; no component may be a link. The caller closes it."""
    fd = os.open(".", DIRECTORY, dir_fd=root)
    for name in path.split("/") if path else ():
        below = None
        try:
            below = os.open(name, DIRECTORY, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


@contextmanager
def opened_whole(path: str) -> Iterator[int]:
    """Hold open a directory by its absolute path, of which no component may be a link."""
    with opened("/") as top:
        fd = open_beneath(top, path.strip("/"))
    try:
        yield fd
    finally:
        os.close(fd)


def status_at(name: str, dir_fd: int) -> os.stat_result | None:
    """Lstat a name in a directory; None when there is nothing."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


@dataclass(slots=True)
class _Level:
    fd: int | None
    identity: tuple[int, int]
    pinned: bool


class Descent:
    """The way from a root directory down to where a walk is.

    Only the innermost levels are held open, so that a tree may be deeper than a process may have files. A level that
    was let go is opened again through `..` and must be the directory that it was (else OSError ESTALE). Owns the
    descriptor it is given.
    """

    def __init__(self, root: int) -> None:
        self._levels: list[_Level] = []
        self._push(root, pinned=True)

    def __enter__(self) -> Descent:
        return self

    def __exit__(self, *_: object) -> None:
        for level in self._levels:
            if level.fd is not None:
                os.close(level.fd)
        self._levels.clear()

    @property
    def fd(self) -> int:
        """The innermost directory."""
        fd = self._levels[-1].fd
        assert fd is not None
        return fd

    @property
    def depth(self) -> int:
        """How many directories below the root."""
        return len(self._levels) - 1

    def enter(self, name: str) -> int:
        """Go down into a directory of the innermost one."""
        self._push(os.open(name, DIRECTORY, dir_fd=self.fd), pinned=False)
        return self.fd

    def jump(self, fd: int) -> None:
        """Go on in a directory that lies elsewhere. Takes the descriptor over."""
        self._levels[-1].pinned = True
        self._push(fd, pinned=True)

    def leave(self) -> None:
        """Go back up."""
        inner, outer = self._levels[-1], self._levels[-2]
        if outer.fd is None:
            fd = os.open("..", DIRECTORY, dir_fd=inner.fd)
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) != outer.identity:
                os.close(fd)
                raise OSError(errno.ESTALE, "a directory was moved while it was read")
            outer.fd = fd
        self._levels.pop()
        assert inner.fd is not None
        os.close(inner.fd)

    def _push(self, fd: int, *, pinned: bool) -> None:
        found = os.fstat(fd)
        self._levels.append(_Level(fd, (found.st_dev, found.st_ino), pinned))
        if len(self._levels) > _HELD:
            far = self._levels[-_HELD]
            if far.fd is not None and not far.pinned:
                os.close(far.fd)
                far.fd = None


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the mount table as this process sees it."""

    path: str
    kind: str
    device: int


def mounts() -> list[Mount]:
    """Read the mount table; empty where there is no /proc."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        before, _, after = line.partition(b" - ")
        fields = before.split(b" ")
        major, minor = fields[2].split(b":")
        path = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), fields[4])
        kind = after.split(b" ")[0].decode("ascii", "replace")
        found.append(Mount(os.fsdecode(path), kind, os.makedev(int(major), int(minor))))
    return found


def mounts_below(root: Path) -> dict[str, Mount]:
    """The mount points at or below a directory, by their path relative to it ("" for the directory itself)."""
    top = str(root)
    inside = top.rstrip("/") + "/"
    table = mounts()
    found = {mount.path[len(inside) :]: mount for mount in table if mount.path.startswith(inside)}
    for mount in table:
        if mount.path == top:
            found[""] = mount
    return found


def remove_tree(name: str, *, dir_fd: int) -> None:
    """Remove a name and all below it. Links are removed, never followed; absent is fine.

    Refuses (OSError EXDEV) to enter another file system: a mount point inside holds what was never ours to remove.
    """
    status = status_at(name, dir_fd)
    if status is None:
        return
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=dir_fd)
        return
    with Descent(os.open(".", DIRECTORY, dir_fd=dir_fd)) as descent:
        pending = [_enter_to_remove(descent, name, status.st_dev)]
        while pending:
            if not pending[-1]:
                pending.pop()
                descent.leave()
                gone = pending[-1].pop() if pending else name
                os.rmdir(gone, dir_fd=descent.fd)
                continue
            below = pending[-1][-1]
            try:
                os.unlink(below, dir_fd=descent.fd)
                pending[-1].pop()
            except (IsADirectoryError, PermissionError):
                if not _is_directory(below, descent.fd):
                    raise
                pending.append(_enter_to_remove(descent, below, status.st_dev))


def _is_directory(name: str, dir_fd: int) -> bool:
    status = status_at(name, dir_fd)
    return status is not None and stat.S_ISDIR(status.st_mode)


def _enter_to_remove(descent: Descent, name: str, device: int) -> list[str]:
    if os.geteuid() != 0:
        # Only root may remove what lies in a directory without write permission.
        with suppress(PermissionError):
            os.chmod(name, 0o700, dir_fd=descent.fd)
    fd = descent.enter(name)
    if os.fstat(fd).st_dev != device:
        raise OSError(errno.EXDEV, "another file system is mounted there", name)
    return os.listdir(fd)


def sync_directory(fd: int) -> None:
    """Make the names in a directory durable."""
    os.fsync(fd)


def sync_file_system(fd: int) -> None:
    """Make everything written to the descriptor's file system durable: one call instead of one for each file."""
    if _libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
