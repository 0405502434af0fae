"""Reading a tree into the record format of `tar_stream`, in one blocking generator.

The tree is live while it is read. What changes meanwhile is noticed (size, times, names before and after) and told;
a file that cannot be read is an error, never left out in silence. The walk goes by descriptor and follows no link.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.errors import SourceError
from service.sources.attributes import group_name, read_link_xattrs, read_xattrs, user_name
from service.sources.directories import DIRECTORY, Descent, encode_path, join
from service.sources.selection import Selection, scan
from service.sources.tar_stream import END, HeaderWriter, Kind, Member, padding

BATCH = 1 << 20
"""Bytes handed over at once; also the largest file that is read whole before its header is written."""

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # O_NONBLOCK: a pipe put there meanwhile
_TRIES = 3
_TOLD = 200


@dataclass(slots=True)
class Found:
    """What a walk met, for the manifest."""

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    hard_links: int = 0
    bytes: int = 0
    excluded: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    owners: set[tuple[int, int]] = field(default_factory=set)
    xattrs: set[str] = field(default_factory=set)
    root: dict[str, Any] = field(default_factory=dict)
    changes: int = 0
    omitted: int = 0

    def changed(self, path: str, what: str) -> None:
        """Note that something changed while it was read."""
        self.changes += 1
        if self.changes <= _TOLD:
            self.warnings.append(f"{encode_path(path) or 'the tree'} {what}")

    def close(self) -> None:
        """Say how much was not listed."""
        if self.changes > _TOLD:
            self.warnings.append(f"{self.changes - _TOLD} more changed while they were read")


@dataclass(slots=True)
class _Level:
    path: str
    kinds: Iterator[tuple[str, int]]
    mtime_ns: int


class TreeWalk:
    """One reading of a tree. `pieces()` is run once; `found` is complete when it has ended."""

    def __init__(self, root: Path, selection: Selection) -> None:
        self._root = root
        self._selection = selection
        self._writer = HeaderWriter()
        self._batch: list[bytes] = []
        self._size = 0
        self._links: dict[tuple[int, int], str] = {}
        self._names: dict[tuple[int, int], tuple[str, str]] = {}
        self.found = Found()

    def pieces(self) -> Generator[bytes, None, None]:
        """Yield the tar stream in pieces of about BATCH bytes. Raises SourceError."""
        try:
            with Descent(os.open(self._root, DIRECTORY)) as descent:
                yield from self._walk(descent)
        except FileNotFoundError as exc:
            raise SourceError(f"{self._root} is gone.") from exc
        except OSError as exc:
            raise SourceError(f"{self._root} cannot be read: {exc.strerror or exc}.") from exc
        self._put(END)
        yield self._flush()
        self.found.close()

    def _walk(self, descent: Descent) -> Generator[bytes, None, None]:
        levels = [self._open_level(descent, "")]
        while levels:
            level = levels[-1]
            name, kind = next(level.kinds, ("", 0))
            if not name:
                if os.fstat(descent.fd).st_mtime_ns != level.mtime_ns:
                    self.found.changed(level.path, "got or lost names while it was read")
                levels.pop()
                if levels:
                    descent.leave()
                continue
            path = join(level.path, name)
            try:
                rest = self._entry(descent, name, path, kind)
                if rest is not None:
                    yield from rest
            except FileNotFoundError:
                self.found.changed(path, "vanished while the tree was read")
                continue
            except OSError as exc:
                raise _unreadable(self._root, path, exc) from exc
            if descent.depth == len(levels):
                levels.append(self._open_level(descent, path))
            if self._size >= BATCH:
                yield self._flush()

    def _entry(self, descent: Descent, name: str, path: str, kind: int) -> Generator[bytes, None, None] | None:
        """Write one entry, or enter it when it is a directory; of a large file, return what is to be yielded."""
        for attempt in range(1, _TRIES + 1):
            try:
                if kind == stat.S_IFREG:
                    return self._file(descent.fd, name, path)
                if kind == stat.S_IFLNK:
                    self._symlink(descent.fd, name, path)
                elif kind == stat.S_IFDIR:
                    descent.enter(name)
                else:
                    self.found.changed(path, "became a socket, pipe or device while the tree was read")
                break
            except OSError as exc:
                # Another kind of thing took the name since the directory was listed.
                if exc.errno not in {errno.ELOOP, errno.ENOTDIR, errno.EINVAL, errno.ENXIO} or attempt == _TRIES:
                    raise
                kind = stat.S_IFMT(os.stat(name, dir_fd=descent.fd, follow_symlinks=False).st_mode)
        return None

    def _open_level(self, descent: Descent, path: str) -> _Level:
        fd = descent.fd
        status = os.fstat(fd)
        kinds = scan(fd)
        left_out = self._selection.left_out(path, kinds, fd)
        for name, reason in left_out.items():
            self.found.excluded.append({"path": encode_path(join(path, name)), "reason": reason})
            del kinds[name]
        member = self._member(path, Kind.DIRECTORY, status, read_xattrs(fd))
        if not path:
            self.found.root = {"mode": member.mode, "uid": member.uid, "gid": member.gid}
        self._put(self._writer.header(member))
        self.found.directories += 1
        return _Level(path, iter(kinds.items()), status.st_mtime_ns)

    def _file(self, dir_fd: int, name: str, path: str) -> Generator[bytes, None, None] | None:
        for attempt in range(1, _TRIES + 1):
            fd = os.open(name, _FILE, dir_fd=dir_fd)
            try:
                before = os.fstat(fd)
                if not stat.S_ISREG(before.st_mode):
                    raise OSError(errno.ENXIO, "not a regular file any more", name)
                if before.st_nlink > 1 and self._linked(before, path):
                    return None
                xattrs = read_xattrs(fd)
                if before.st_size > BATCH:
                    own, fd = fd, -1
                    return self._large_file(own, before, self._member(path, Kind.FILE, before, xattrs))
                body = _read_up_to(fd, before.st_size + 1)
                after = os.fstat(fd)
            finally:
                if fd >= 0:
                    os.close(fd)
            if len(body) == before.st_size and _same(before, after):
                break
            if attempt == _TRIES:
                self.found.changed(path, "kept changing while it was read; what is kept may be a mixture")
                body = body[: before.st_size]
            else:
                # the next attempt may find another file under this name; the other names of this one are still its own
                self._links.pop((before.st_dev, before.st_ino), None)
                time.sleep(0.01 * attempt)
        member = self._member(path, Kind.FILE, before, xattrs)
        member.size = size = len(body)
        self._put(self._writer.header(member) + body + padding(size))
        self.found.files += 1
        self.found.bytes += size
        return None

    def _large_file(self, fd: int, before: os.stat_result, member: Member) -> Generator[bytes, None, None]:
        try:
            left = member.size = before.st_size
            self._put(self._writer.header(member))
            while left and (piece := os.read(fd, min(left, BATCH))):
                left -= len(piece)
                self._put(piece)
                yield self._flush()
            after = os.fstat(fd)
        finally:
            os.close(fd)
        if left:
            self.found.changed(member.path, f"shrank while it was read; its last {left} bytes are zeros here")
            while left:
                self._put(bytes(min(left, BATCH)))
                left -= min(left, BATCH)
                yield self._flush()
        elif not _same(before, after):
            self.found.changed(member.path, "changed while it was read; what is kept may be a mixture")
        self._put(padding(member.size))
        self.found.files += 1
        self.found.bytes += member.size

    def _symlink(self, dir_fd: int, name: str, path: str) -> None:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if status.st_nlink > 1 and self._linked(status, path):
            return
        member = self._member(path, Kind.SYMLINK, status, read_link_xattrs(name, dir_fd))
        member.link = os.readlink(name, dir_fd=dir_fd)
        self._put(self._writer.header(member))
        self.found.symlinks += 1

    def _linked(self, status: os.stat_result, path: str) -> bool:
        first = self._links.setdefault((status.st_dev, status.st_ino), path)
        if first == path:
            return False
        member = self._member(path, Kind.HARD_LINK, status, ())
        member.link = first
        self._put(self._writer.header(member))
        self.found.hard_links += 1
        return True

    def _member(self, path: str, kind: Kind, status: os.stat_result, xattrs: tuple[tuple[str, bytes], ...]) -> Member:
        uid, gid = status.st_uid, status.st_gid
        if (uid, gid) not in self._names:
            self.found.owners.add((uid, gid))
            self._names[uid, gid] = (user_name(uid), group_name(gid))
        user, group = self._names[uid, gid]
        if xattrs:
            self.found.xattrs.update(name for name, _ in xattrs)
        mode = status.st_mode & 0o7777
        return Member(path, kind, mode, uid, gid, user, group, status.st_mtime_ns, xattrs=xattrs)

    def _put(self, data: bytes) -> None:
        self._batch.append(data)
        self._size += len(data)

    def _flush(self) -> bytes:
        data = b"".join(self._batch)
        self._batch.clear()
        self._size = 0
        return data


def _same(before: os.stat_result, after: os.stat_result) -> bool:
    return (
        before.st_size == after.st_size
        and before.st_mtime_ns == after.st_mtime_ns
        and before.st_ctime_ns == after.st_ctime_ns
    )


def _read_up_to(fd: int, size: int) -> bytes:
    data = os.read(fd, size)
    if len(data) < size - 1:
        while len(data) < size and (more := os.read(fd, size - len(data))):
            data += more
    return data


def _unreadable(root: Path, path: str, exc: OSError) -> SourceError:
    shown = f"{root}/{encode_path(path)}"
    if exc.errno in {errno.EACCES, errno.EPERM}:
        return SourceError(
            f"{shown} cannot be read: permission denied.",
            hint="Run the backup as a user who may read the whole tree, or name the path in the source's exclude list.",
        )
    return SourceError(f"{shown} cannot be read: {exc.strerror or exc}.", hint="Nothing was left out; no backup made.")
