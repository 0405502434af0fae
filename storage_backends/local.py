"""A directory of this machine as a target: local disks and whatever is mounted.

Promise: the full contract of `StorageBackend`. `put` returns after fsync of the file and of the directory; a killed
writer leaves nothing on file systems with O_TMPFILE (ext4, XFS, Btrfs, tmpfs), and elsewhere a hidden file
`.deviceon-backup-*.part` that `sweep` removes. How is told in `local_file`.

An object is a regular file directly in the directory. Subdirectories, symbolic links, devices and files whose name is
no valid key are somebody else's: never listed, read or removed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from storage_backends.base import (
    KEY_PATTERN,
    Announce,
    ObjectChanged,
    ObjectInfo,
    Promise,
    StorageBackend,
    TargetUnavailable,
    check_key,
)
from storage_backends.local_file import (
    UnfinishedFile,
    mapped_errors,
    not_found,
    object_status,
    open_directory,
)
from storage_backends.temporary import is_temporary
from storage_backends.worker import Worker, fill, run_once

T = TypeVar("T")

READ_BYTES = 1 << 20
TIMEOUT_SECONDS = 60.0
WRITE_TIMES = 10
"""Writing and making durable may take as many times longer than other calls: a slow disk then catches up."""


class LocalBackend(StorageBackend):
    """The objects are files of `directory`, an absolute path.

    `auto_mkdir` creates the directory (0750) when it is first written to; without it an absent one is an error, since
    it is more often a disk that was not mounted. `min_free` bytes stay free on the file system: a `put` that would
    take them ends with TargetFull. A call that the file system does not answer within `timeout` seconds (a network
    mount whose server is gone; writes get ten times as long) ends with TargetUnavailable, and its thread is left
    behind. `unnamed=False` never uses O_TMPFILE.
    """

    promise = Promise(
        whole_or_not_at_all="Yes: a file gets its name after every byte is on the disk.",
        no_overwrite="Yes: the kernel gives only a name that is free.",
        durable="Yes: fsync of the file and of the directory, as far as the disk and a network mount tell the truth.",
    )

    def __init__(
        self,
        directory: Path,
        *,
        auto_mkdir: bool = False,
        min_free: int = 0,
        timeout: float = TIMEOUT_SECONDS,
        unnamed: bool = True,
    ) -> None:
        self.url = f"file://{directory}"
        self._directory = directory
        self._auto_mkdir = auto_mkdir
        self._min_free = min_free
        self._timeout = timeout
        self._unnamed = unnamed

    async def put(
        self,
        key: str,
        data: AsyncIterable[bytes | bytearray],
        *,
        overwrite: bool = False,
        announce: Announce | None = None,
    ) -> ObjectInfo:
        """Store an object; a cancelled `put` returns after its thread has let go of the file.

        One case cannot be taken back: with `overwrite`, a failure after the new object got the name leaves the new
        one, whole.
        """
        check_key(key)
        file = UnfinishedFile(self._directory, key, overwrite=overwrite, min_free=self._min_free, unnamed=self._unnamed)
        worker = Worker(str(self._directory))
        long = WRITE_TIMES * self._timeout
        try:
            if self._auto_mkdir:
                await worker.run(self._make_directory, within=self._timeout)
            if announce is not None:
                await announce(file.hidden_name)
            await worker.run(file.create, within=self._timeout)
            await fill(worker, file.write, data, within=long)
            status = await worker.run(file.publish, within=long)
        except BaseException:
            with suppress(TargetUnavailable):  # the thread hangs; it does this if it ever comes back
                await worker.run(file.discard, within=long)
            raise
        else:
            worker.start(
                file.close, within=long
            )  # not awaited: cancelled here, `put` would fail with the object in place
        finally:
            worker.close()
        return _info(key, status)

    async def get(
        self, key: str, *, offset: int = 0, length: int | None = None, etag: str | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield a range. The file is opened once: what is read is one object, whatever happens to its name."""
        check_key(key)
        if offset < 0 or (length is not None and length < 0):
            raise ValueError("offset and length count from the start")
        worker = Worker(str(self._directory))
        reader = _Reader(self._directory, key)
        try:
            info = await worker.run(partial(self._open, reader), within=self._timeout)
            if etag is not None and info.etag != etag:
                raise ObjectChanged(f"{self._directory / key} is not the file that was looked at before")
            end = info.size if length is None else min(info.size, offset + length)
            while offset < end:
                read = partial(reader.read, offset, min(READ_BYTES, end - offset))
                piece = await worker.run(read, within=self._timeout)
                if not piece:
                    return
                offset += len(piece)
                yield piece
        finally:
            worker.start(reader.close, within=self._timeout)
            worker.close()

    async def stat(self, key: str) -> ObjectInfo:
        """Describe one object."""
        check_key(key)
        return await self._run(partial(self._stat, key))

    async def list_objects(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Yield the objects, of one look at the directory."""
        for info in await self._run(partial(self._list, prefix)):
            yield info

    async def delete(self, key: str) -> None:
        """Remove an object; durable when it returns."""
        check_key(key)
        await self._run(partial(self._delete, key))

    async def sweep(self, before: datetime) -> int:
        """Remove hidden files of ours. A file being written is touched by every batch, so keep `before` a day back."""
        return await self._run(partial(self._sweep, before.timestamp()))

    async def discard(self, unfinished: str) -> bool:
        """Remove a hidden file."""
        return is_temporary(unfinished) and await self._run(partial(self._discard, unfinished))

    async def free_bytes(self) -> int | None:
        """Tell how many bytes the file system still takes from this user."""
        return await self._run(self._free_bytes)

    async def aclose(self) -> None:
        """Nothing is held between calls."""

    async def _run(self, function: Callable[[], T]) -> T:
        return await run_once(function, str(self._directory), within=self._timeout)

    def _make_directory(self) -> None:
        with mapped_errors(self._directory):
            missing = [each for each in (self._directory, *self._directory.parents) if not each.exists()]
            self._directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            for each in missing:  # without its name, what is durable in it would be lost
                with closing(_Directory(each.parent)) as above:
                    os.fsync(above.fd)

    def _stat(self, key: str) -> ObjectInfo:
        if self._not_made_yet():
            raise not_found(self._directory, key)
        with closing(_Directory(self._directory)) as directory:
            return _info(key, object_status(key, directory=self._directory, directory_fd=directory.fd))

    def _not_made_yet(self) -> bool:
        """Say whether there is no directory because nothing was written yet: then there are no objects either."""
        with mapped_errors(self._directory):
            return self._auto_mkdir and not self._directory.exists()

    def _open(self, reader: _Reader) -> ObjectInfo:
        if self._not_made_yet():
            raise not_found(self._directory, reader.key)
        return reader.open()

    def _list(self, prefix: str) -> list[ObjectInfo]:
        if self._not_made_yet():
            return []
        found = []
        with closing(_Directory(self._directory)) as directory, mapped_errors(self._directory):
            for name in directory.names():
                if name.startswith(prefix) and KEY_PATTERN.fullmatch(name):
                    status = directory.regular(name)
                    if status is not None:
                        found.append(_info(name, status))
        return sorted(found, key=lambda info: info.key)

    def _delete(self, key: str) -> None:
        if self._not_made_yet():
            return
        with closing(_Directory(self._directory)) as directory, mapped_errors(self._directory, key):
            if directory.regular(key) is not None:
                directory.remove(key)
                os.fsync(directory.fd)

    def _sweep(self, before: float) -> int:
        if self._not_made_yet():
            return 0
        with closing(_Directory(self._directory)) as directory, mapped_errors(self._directory):
            removed = 0
            for name in filter(is_temporary, directory.names()):
                status = directory.regular(name)
                if status is not None and status.st_mtime < before:
                    removed += directory.remove(name)
            return removed

    def _discard(self, name: str) -> bool:
        if self._not_made_yet():
            return False
        with closing(_Directory(self._directory)) as directory, mapped_errors(self._directory):
            return directory.regular(name) is not None and directory.remove(name) > 0

    def _free_bytes(self) -> int:
        there = self._directory
        with mapped_errors(self._directory):
            while self._auto_mkdir and not there.exists():
                there = there.parent
        with closing(_Directory(there)) as directory, mapped_errors(self._directory):
            space = os.fstatvfs(directory.fd)
            return space.f_bavail * space.f_frsize


class _Directory:
    """The opened directory; everything below is relative to it, so a rename of a parent changes nothing."""

    def __init__(self, path: Path) -> None:
        self.fd = open_directory(path)

    def names(self) -> list[str]:
        return os.listdir(self.fd)  # noqa: PTH208  pathlib cannot list a descriptor

    def regular(self, name: str) -> os.stat_result | None:
        """Return the status of a regular file, None for anything else and for what is gone."""
        try:
            status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return status if stat.S_ISREG(status.st_mode) else None

    def remove(self, name: str) -> int:
        try:
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            return 0
        return 1

    def close(self) -> None:
        os.close(self.fd)


class _Reader:
    """One opened object; used by one thread at a time."""

    def __init__(self, directory: Path, key: str) -> None:
        self._directory = directory
        self.key = key
        self._fd = -1

    def open(self) -> ObjectInfo:
        # O_NONBLOCK: opening a FIFO would otherwise wait for its writer. It changes nothing for regular files.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with closing(_Directory(self._directory)) as directory, mapped_errors(self._directory, self.key):
            try:
                self._fd = os.open(self.key, flags, dir_fd=directory.fd)
            except OSError as exc:
                if exc.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
                    raise not_found(self._directory, self.key) from exc
                raise
            status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise not_found(self._directory, self.key)
        with suppress(OSError):  # a wish: a disk is read at twice the speed when the kernel reads further ahead
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return _info(self.key, status)

    def read(self, offset: int, length: int) -> bytes:
        with mapped_errors(self._directory, self.key):
            return os.pread(self._fd, length, offset)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(
        key=key,
        size=status.st_size,
        etag=f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}",
        modified=datetime.fromtimestamp(status.st_mtime, UTC),
    )
