"""One unfinished file of a local target: written, made durable, then given its name whole or not at all.

Blocking; the methods of one file run in one thread, in the order create, write..., publish, discard.

The file has no name while it is written (O_TMPFILE), so a killed writer leaves nothing. Publishing is
fsync(file), linkat, fsync(directory): linkat refuses an existing name, and is durable only after the second fsync.
File systems without O_TMPFILE (NFS, CIFS, many FUSE) get a hidden name that `sweep` knows, and a rename that refuses
to replace.

After a failed write or fsync Linux marks the pages clean, so that a second fsync would succeed with data lost:
every error here is final for the file.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from storage_backends.base import (
    AccessDenied,
    InvalidUrl,
    ObjectExists,
    ObjectNotFound,
    StorageError,
    TargetFull,
    TargetUnavailable,
)
from storage_backends.temporary import temporary_name

FILE_MODE = 0o640

_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS}
_NO_RENAME_FLAGS = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_IOV_MAX = 1024
WINDOW_BYTES = 8 << 20
_RENAME_NOREPLACE = 1
_SYNC_START = 2
_SYNC_AND_WAIT = 1 | 2 | 4

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def mapped_errors(directory: Path, key: str = "") -> Iterator[None]:
    """Raise a `StorageError` in place of every OSError; `key` is the object that is worked on."""
    try:
        yield
    except OSError as exc:
        raise _mapped(exc, directory, key) from exc


def open_directory(directory: Path) -> int:
    """Return a descriptor of the target's directory; its absence is the target's, not an object's."""
    with mapped_errors(directory):
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


class UnfinishedFile:
    """A file of `directory` that will be called `key`.

    `min_free` bytes of the file system are left to others. `unnamed=False` does without O_TMPFILE.
    """

    def __init__(
        self, directory: Path, key: str, *, overwrite: bool = False, min_free: int = 0, unnamed: bool = True
    ) -> None:
        self._directory = directory
        self._key = key
        self._overwrite = overwrite
        self._min_free = min_free
        self._looked_at = 0  # how much was written when the free space was last looked at
        self._unnamed = unnamed
        self.hidden_name = temporary_name()  # for while it needs one
        self._temporary = ""  # the hidden name, while there is one
        self._published = False
        self._directory_fd = -1
        self._fd = -1
        self._size = 0
        self._window = 0  # start of the bytes whose write-back was not started yet
        self._waited = 0  # end of the bytes whose write-back was waited for
        self._write_behind = hasattr(_libc, "sync_file_range")

    def create(self) -> None:
        """Make the file; ObjectExists at once when the name is taken already."""
        self._directory_fd = open_directory(self._directory)
        with mapped_errors(self._directory, self._key):
            if not self._overwrite and _exists(self._key, self._directory_fd):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self._key)
            self._leave_free()
            flags = os.O_WRONLY | os.O_CLOEXEC
            if self._unnamed and Path("/proc/self/fd").is_dir():  # what `_link` needs
                try:
                    self._fd = os.open(".", flags | os.O_TMPFILE, FILE_MODE, dir_fd=self._directory_fd)
                except OSError as exc:
                    if exc.errno not in _NO_TMPFILE:
                        raise
            self._unnamed = self._fd >= 0
            if not self._unnamed:
                name = self.hidden_name
                self._fd = os.open(
                    name, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, FILE_MODE, dir_fd=self._directory_fd
                )
                self._temporary = name

    def write(self, pieces: Sequence[bytes | bytearray]) -> None:
        """Append `pieces`, all of them, and keep the amount of unwritten pages small."""
        with mapped_errors(self._directory, self._key):
            views = [memoryview(piece) for piece in pieces if piece]
            while views:
                written = os.writev(self._fd, views[:_IOV_MAX])
                self._size += written
                views = _rest(views, written)
            if self._size - self._looked_at >= WINDOW_BYTES:
                self._leave_free()
            self._start_write_back()

    def publish(self) -> os.stat_result:
        """Make the bytes durable, then the name. When it returns, both are."""
        with mapped_errors(self._directory, self._key):
            os.fsync(self._fd)
            self._give_name()
            self._published = True
            os.fsync(self._directory_fd)
            status = os.fstat(self._fd)
            with suppress(OSError):  # so that reading back reads the medium; a wish, no promise
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return status

    def close(self) -> None:
        """Release the descriptors. The bytes were fsynced before, so an error here says nothing about them."""
        for fd in (self._fd, self._directory_fd):
            if fd >= 0:
                with suppress(OSError):
                    os.close(fd)
        self._fd = self._directory_fd = -1

    def discard(self) -> None:
        """Leave nothing, also when `publish` gave the name already. What was replaced on purpose stays replaced."""
        if self._published and not self._overwrite:
            with suppress(OSError):
                ours, named = os.fstat(self._fd), os.stat(self._key, dir_fd=self._directory_fd, follow_symlinks=False)
                if (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino):
                    os.unlink(self._key, dir_fd=self._directory_fd)
        if self._temporary:
            with suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._directory_fd)
            self._temporary = ""
        self.close()

    def _leave_free(self) -> None:
        self._looked_at = self._size
        if not self._min_free:
            return
        space = os.fstatvfs(self._directory_fd)
        free = space.f_bavail * space.f_frsize
        if free < self._min_free:
            raise TargetFull(
                f"{self._directory} has {free} bytes free, and {self._min_free} are to stay free",
                hint="Make room there, keep fewer archives, or lower storage_options: {min_free: ...}. "
                "Nothing half-made is left.",
            )

    def _start_write_back(self) -> None:
        """Start writing each full window, and wait for the one before it.

        Without this a big archive fills the page cache and all of it is written during the last fsync.
        sync_file_range reports a write error once and for all, so its error is as final as that of fsync.
        """
        if not self._write_behind or self._size - self._window < WINDOW_BYTES:
            return
        self._sync_range(self._window, self._size - self._window, _SYNC_START)
        before, length = self._waited, self._window - self._waited
        if self._write_behind and length:
            self._sync_range(before, length, _SYNC_AND_WAIT)
            os.posix_fadvise(self._fd, before, length, os.POSIX_FADV_DONTNEED)
        self._waited, self._window = self._window, self._size

    def _sync_range(self, offset: int, length: int, flags: int) -> None:
        if _libc.sync_file_range(self._fd, ctypes.c_int64(offset), ctypes.c_int64(length), flags) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.ENOSYS, errno.EINVAL, errno.ESPIPE):
            raise OSError(code, os.strerror(code))
        self._write_behind = False

    def _give_name(self) -> None:
        if not self._overwrite:
            if self._unnamed:
                self._link(self._key)
            else:
                self._rename_without_replacing()
            return
        if self._unnamed:
            self._link(self.hidden_name)
            self._temporary = self.hidden_name
        os.rename(self._temporary, self._key, src_dir_fd=self._directory_fd, dst_dir_fd=self._directory_fd)
        self._temporary = ""

    def _link(self, name: str) -> None:
        # Given descriptors os.link calls linkat with AT_SYMLINK_FOLLOW; without them it calls link(2), which tries
        # to link the entry in /proc itself and fails with EXDEV.
        fd = self._directory_fd
        os.link(f"/proc/self/fd/{self._fd}", name, src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=True)

    def _rename_without_replacing(self) -> None:
        fd = self._directory_fd
        code = errno.ENOSYS
        if hasattr(_libc, "renameat2"):
            source, destination = os.fsencode(self._temporary), os.fsencode(self._key)
            if _libc.renameat2(fd, source, fd, destination, _RENAME_NOREPLACE) == 0:
                self._temporary = ""
                return
            code = ctypes.get_errno()
        if code not in _NO_RENAME_FLAGS:
            raise OSError(code, os.strerror(code))
        try:
            os.link(self._temporary, self._key, src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
        except OSError as exc:
            if exc.errno not in _NO_LINKS:
                raise
            raise InvalidUrl(
                f"the file system of {self._directory} can neither rename without replacing nor make hard links",
                hint="An archive cannot be published safely there. Choose a directory on another file system.",
            ) from exc
        self._published = True
        os.unlink(self._temporary, dir_fd=fd)
        self._temporary = ""


def _exists(name: str, directory_fd: int) -> bool:
    try:
        os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _rest(views: list[memoryview], written: int) -> list[memoryview]:
    """Return what is left of `views` after their first `written` bytes."""
    for position, view in enumerate(views):
        if written < len(view):
            return [view[written:], *views[position + 1 :]]
        written -= len(view)
    return []


def _mapped(exc: OSError, directory: Path, key: str) -> StorageError:
    where = f"{directory}/{key}" if key else str(directory)
    reason = os.strerror(exc.errno) if exc.errno else str(exc)
    error: StorageError
    match exc.errno:
        case errno.EEXIST | errno.EISDIR:
            error = ObjectExists(f"{where} exists already", hint="Nothing was replaced. Choose another name.")
        case errno.ENOSPC | errno.EDQUOT:
            error = TargetFull(
                f"{where}: {reason}",
                hint=f"Make room on the file system of {directory}, or keep fewer archives. Nothing half-made is left.",
            )
        case errno.EFBIG:
            error = TargetFull(
                f"{where}: the file system (or a limit of this process) does not take a file of this size",
                hint="Choose a directory on a file system that takes larger files.",
            )
        case errno.EACCES | errno.EPERM:
            error = AccessDenied(
                f"{where}: {reason}", hint=f"Give user id {os.geteuid()} the right to read and write in {directory}."
            )
        case errno.EROFS:
            error = AccessDenied(f"{where}: {reason}", hint="Mount the file system so that it can be written.")
        case errno.ENOENT if key:
            error = TargetUnavailable(f"{where}: the directory was removed while it was in use", hint="Run it again.")
        case errno.ENOENT:
            error = TargetUnavailable(
                f"the directory {where} does not exist",
                hint="Create it (or mount what should be there), or set storage_options: {auto_mkdir: true}.",
            )
        case errno.ENOTDIR | errno.ELOOP | errno.ENAMETOOLONG:
            error = InvalidUrl(f"{where}: {reason}", hint="The target's URL must name a directory.")
        case _:
            error = TargetUnavailable(
                f"{where}: {reason}", hint="Look into the kernel's log for errors of the disk, then run it again."
            )
    return error


def object_status(key: str, *, directory: Path, directory_fd: int) -> os.stat_result:
    """Return the status of the regular file `key`; anything else of that name is no object."""
    with mapped_errors(directory, key):
        try:
            status = os.stat(key, dir_fd=directory_fd, follow_symlinks=False)
        except FileNotFoundError as exc:
            raise not_found(directory, key) from exc
    if not stat.S_ISREG(status.st_mode):
        raise not_found(directory, key)
    return status


def not_found(directory: Path, key: str) -> ObjectNotFound:
    """Return the error for an object that is absent."""
    return ObjectNotFound(f"{directory} has no {key}")
