"""Writing a tree from the record format into empty work areas. Whatever the stream says, nothing outside is touched.

Safety does not rest on checking paths: each name is made with O_EXCL, mkdir, symlink or link in a directory that was
made here and is held open, and links are restored but never followed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from service.errors import CorruptArchive, ServiceError, StageFailed
from service.sources.attributes import (
    Attributes,
    apply_attributes,
    apply_link_attributes,
    group_here,
    unprivileged,
    user_here,
)
from service.sources.directories import DIRECTORY, Descent, encode_path, open_beneath, parent, status_at
from service.sources.tar_reader import Piece, TarReader
from service.sources.tar_stream import Kind, Member

HOLE = 64 << 10
"""A run of this many zero bytes, at a multiple of it, becomes a hole."""

_ZEROS = bytes(HOLE)
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part of the tree is written: `name` is made in the directory `fd`."""

    fd: int
    name: str


class MemberReader(Protocol):
    """Cuts a stream into members; see `TarReader`."""

    def feed(self, data: bytes) -> Iterator[Piece]: ...

    def finish(self) -> None: ...


@dataclass(slots=True)
class Written:
    """What was made, to be compared with the manifest."""

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    hard_links: int = 0
    bytes: int = 0


class TreeExtractor:
    """Takes the stream in pieces of any size. Blocking; raises CorruptArchive or StageFailed.

    `places` says where the tree ("") and the parts of it that live on other file systems (by relative path) go.
    `reader` cuts the stream; one that gives only some of its members gives the directories that they lie in, too.
    `lenient`: an owner or attribute that cannot be set here is said, and no failure.
    """

    def __init__(
        self,
        places: Mapping[str, Place],
        *,
        say: Callable[[str], None],
        reader: MemberReader | None = None,
        lenient: bool = False,
    ) -> None:
        self._places = places
        self._say = say
        self._reader = reader or TarReader()
        self._lenient = lenient
        self._descent: Descent | None = None
        self._open: list[Member] = []  # directories from the root to where the stream is
        self._member: Member | None = None  # the file whose body is being written
        self._file = -1
        self._offset = 0
        self._owners: dict[tuple[int, str, int, str], tuple[int, int]] = {}
        self.written = Written()

    def __enter__(self) -> TreeExtractor:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._descent is not None:
            self._descent.__exit__()
            self._descent = None

    def feed(self, data: bytes) -> None:
        """Write what the next bytes of the stream say."""
        for piece in self._reader.feed(data):
            member = piece.member or self._member
            assert member is not None
            try:
                if piece.member is not None:
                    self._begin(member)
                if member.kind is Kind.FILE:
                    self._write(member, piece.body)
                    if piece.ends:
                        self._end_file(member)
            except OSError as exc:
                raise _failed(member, exc) from exc

    def finish(self) -> Written:
        """Say that the stream is over; gives the directories their attributes and returns what was made."""
        self._reader.finish()
        if not self._open:
            raise CorruptArchive("The tree's stream is empty.")
        while self._open:
            self._leave()
        return self.written

    def _begin(self, member: Member) -> None:
        above, name = parent(member.path)
        if member.path or self._open:
            self._climb_to(member, above)
        if member.path in self._places and member.kind is not Kind.DIRECTORY:
            raise StageFailed(
                f"{encode_path(member.path)} is no directory in the archive, but a file system is mounted there now."
            )
        match member.kind:
            case Kind.DIRECTORY:
                self._directory(member, name)
            case Kind.FILE:
                self._file = os.open(name, _NEW_FILE, member.mode & 0o777, dir_fd=self._here)
                self._member, self._offset = member, 0
            case Kind.SYMLINK:
                os.symlink(member.link, name, dir_fd=self._here)
                with self._leniently():
                    apply_link_attributes(name, self._here, self._attributes(member), say=self._say)
                self.written.symlinks += 1
            case _:
                self._hard_link(member, name)

    @property
    def _here(self) -> int:
        assert self._descent is not None
        return self._descent.fd

    def _climb_to(self, member: Member, above: str) -> None:
        while self._open and self._open[-1].path != above:
            self._leave()
        if not self._open:
            raise CorruptArchive(
                f"In the tree's stream, {encode_path(member.path)!r} does not come after its directory."
            )

    def _directory(self, member: Member, name: str) -> None:
        place = self._places.get(member.path)
        if place is not None:
            os.mkdir(place.name, 0o700, dir_fd=place.fd)
            fd = os.open(place.name, DIRECTORY, dir_fd=place.fd)
            if self._descent is None:
                self._descent = Descent(fd)
            else:
                self._descent.jump(fd)
        else:
            assert self._descent is not None
            os.mkdir(name, 0o700, dir_fd=self._here)
            self._descent.enter(name)
        self._open.append(member)
        self.written.directories += 1

    def _leave(self) -> None:
        # Only now: what is made in a directory changes its time, and its default ACL would be inherited.
        member = self._open.pop()
        assert self._descent is not None
        try:
            with self._leniently():
                apply_attributes(self._here, self._attributes(member), say=self._say)
            if self._open:
                self._descent.leave()
        except OSError as exc:
            raise _failed(member, exc) from exc

    def _hard_link(self, member: Member, new_name: str) -> None:
        link = member.link
        at = max((p for p in self._places if not p or link.startswith(p + "/")), key=len)
        place = self._places[at]
        rest = link[len(at) + 1 :] if at else link
        above, name = parent(rest)
        top = os.open(place.name, DIRECTORY, dir_fd=place.fd)
        try:
            fd = open_beneath(top, above)
        except OSError as exc:
            raise CorruptArchive(
                f"The tree's stream links {encode_path(member.path)!r} to what it does not hold."
            ) from exc
        finally:
            os.close(top)
        try:
            target = status_at(name, fd)
            if target is None or stat.S_ISDIR(target.st_mode):
                raise CorruptArchive(f"The tree's stream links {encode_path(member.path)!r} to what it does not hold.")
            os.link(name, new_name, src_dir_fd=fd, dst_dir_fd=self._here, follow_symlinks=False)
        finally:
            os.close(fd)
        self.written.hard_links += 1

    def _write(self, member: Member, body: bytes) -> None:
        start, at, end = 0, 0, len(body)
        view = memoryview(body)
        while member.size >= HOLE and at < end:
            # To the next multiple of HOLE in the file; the first and last stretch of a piece may be shorter.
            stop = min(end, at + HOLE - (self._offset + at) % HOLE)
            if body.startswith(_ZEROS[: stop - at], at):
                self._write_all(view[start:at], self._offset + start)
                start = stop
            at = stop
        self._write_all(view[start:end], self._offset + start)
        self._offset += end

    def _write_all(self, data: memoryview, offset: int) -> None:
        while data:
            done = os.pwrite(self._file, data, offset)
            data, offset = data[done:], offset + done

    def _end_file(self, member: Member) -> None:
        if member.size >= HOLE:
            os.ftruncate(self._file, member.size)
        with self._leniently():
            apply_attributes(self._file, self._attributes(member), say=self._say)
        os.close(self._file)
        self._file, self._member = -1, None
        self.written.files += 1
        self.written.bytes += member.size

    @contextmanager
    def _leniently(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            if not self._lenient:
                raise
            self._say("Owners or attributes of some files could not be set here.")

    def _attributes(self, member: Member) -> Attributes:
        if self._lenient and os.geteuid() != 0:
            return unprivileged(Attributes(member.mode, 0, 0, member.mtime_ns, member.xattrs))
        key = (member.uid, member.user, member.gid, member.group)
        owner = self._owners.get(key)
        if owner is None:
            owner = self._owners[key] = (user_here(member.uid, member.user), group_here(member.gid, member.group))
        return Attributes(member.mode, *owner, member.mtime_ns, member.xattrs)


def _failed(member: Member, exc: OSError) -> ServiceError:
    shown = encode_path(member.path) or "the tree's root"
    if exc.errno == errno.EEXIST:
        return CorruptArchive(f"The tree's stream has {shown!r} twice.")
    if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StageFailed(
            f"There is no room left for the copy (at {shown}). The live tree is as it was.",
            hint="Make room on the file system that holds the tree, then restore again.",
        )
    if exc.errno in {errno.EPERM, errno.EACCES}:
        return StageFailed(
            f"{shown} could not be made as it was: {exc.strerror}. The live tree is as it was.",
            hint="Run the restore as root: owners, capabilities and some attributes can only be set by root.",
        )
    return StageFailed(f"{shown} could not be written: {exc.strerror or exc}. The live tree is as it was.")
