"""A directory of an SMB share (Windows, Samba, a NAS) as a target.

An object is a regular file directly in the directory. Subdirectories, symbolic links and files whose name is no valid
key are somebody else's: never listed, read or removed. Most servers take `A` and `a` for the same name.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import islice

from storage_backends.base import (
    KEY_PATTERN,
    Announce,
    ObjectChanged,
    ObjectExists,
    ObjectInfo,
    Promise,
    StorageBackend,
    StorageError,
    TargetUnavailable,
    check_key,
)
from storage_backends.pool import Line, Pool
from storage_backends.smb.connection import SmbConnection
from storage_backends.smb.errors import mapped_errors, not_found
from storage_backends.smb.flow import Reader
from storage_backends.smb.handle import Handle, closing
from storage_backends.smb.place import SmbPlace
from storage_backends.smb.upload import Upload
from storage_backends.temporary import is_temporary
from storage_backends.worker import fill, settled

LISTED_AT_ONCE = 500
CLEAN_UP_SECONDS = 10.0
FLUSH_TIMES = 10
"""A FLUSH may take as many times longer than other calls: a NAS then writes gigabytes that it took into memory."""


class SmbBackend(StorageBackend):
    """The objects are files of `place`. SMB 3 with signing, and with encryption unless `place.encrypt` is false."""

    promise = Promise(
        whole_or_not_at_all="Yes: an archive gets its name after the server has stored every byte.",
        no_overwrite="Yes: the server gives only a name that is free. Where it has no hard links, Samba can miss a "
        "second writer of the same name at the very same moment.",
        durable="As durable as the server makes it: it is told to write file and directory to its disks (FLUSH). "
        "Samba does so unless `strict sync = no`.",
    )

    def __init__(self, place: SmbPlace) -> None:
        self.url = place.url
        if not place.encrypt:
            self.cautions = ("What is sent is signed, but not encrypted (encrypt: false): others can read it.",)
        self._place = place
        self._pool = Pool(partial(SmbConnection, place), place.url, within=place.timeout)

    async def put(
        self,
        key: str,
        data: AsyncIterable[bytes | bytearray],
        *,
        overwrite: bool = False,
        announce: Announce | None = None,
    ) -> ObjectInfo:
        """Store an object. A connection that breaks meanwhile ends it with TargetUnavailable.

        A cancelled or failed `put` returns after its thread has let go and the hidden file is removed; when the server
        cannot be reached for that within the timeout, the file is left to `sweep`. Two cases cannot be taken back: with
        `overwrite`, a failure after the new object got the name leaves the new one, whole; and when the connection
        breaks while the name is given, and the server cannot be reached again or does not notice and still holds the
        file for it, the object may be there, whole. The error's hint says so.
        """
        check_key(key)
        long = FLUSH_TIMES * self._place.timeout
        async with self._pool.line() as line:
            upload = Upload(line.connection, key, overwrite=overwrite)
            try:
                if announce is not None:
                    await announce(upload.hidden_name)
                await line.run(upload.create)
                await fill(line.worker, upload.write, data, within=self._place.timeout)
                await line.run(upload.flush, within=long)
                return await line.run(upload.publish)
            except BaseException as exc:
                await self._clean_up(upload, line)
                if upload.published and isinstance(exc, StorageError):
                    exc.hint += f" The connection broke while {key} got its name: it may be there, whole."
                raise

    async def get(
        self, key: str, *, offset: int = 0, length: int | None = None, etag: str | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield a range, while the next piece is read. The file is opened once: what is read is one object."""
        check_key(key)
        if offset < 0 or (length is not None and length < 0):
            raise ValueError("offset and length count from the start")
        async with self._pool.line() as line:
            reader = _Reader(line.connection, key)
            try:
                info = await line.run(reader.open)
                if etag is not None and info.etag != etag:
                    raise ObjectChanged(f"{self.url}/{key} is not the file that was looked at before")
                end = info.size if length is None else min(info.size, offset + length)
                if offset >= end:
                    return
                reader.begin(offset, end)
                ahead = line.worker.start(reader.read, within=line.within)
                while True:
                    piece = await settled(ahead)
                    offset += len(piece)
                    if offset < end:
                        ahead = line.worker.start(reader.read, within=line.within)
                    yield piece
                    if offset >= end:
                        return
            finally:
                # The one thread does this after the piece it may still be at.
                with suppress(StorageError):
                    await line.run(reader.close)

    async def stat(self, key: str) -> ObjectInfo:
        """Describe one object."""
        check_key(key)
        async with self._pool.line() as line:
            return await line.run(partial(_stat, line.connection, key))

    async def list_objects(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Yield the objects, of one query of the directory."""
        for info in await self._look(lambda name: name.startswith(prefix) and KEY_PATTERN.fullmatch(name) is not None):
            yield info

    async def delete(self, key: str) -> None:
        """Remove an object; when it returns, the server has been told to make that durable."""
        check_key(key)
        async with self._pool.line() as line:
            if await line.run(partial(line.connection.remove, key)):
                await line.run(line.connection.flush_directory)

    async def sweep(self, before: datetime) -> int:
        """Remove hidden files of ours; one that is being written is refused by the server, and left."""
        removed = 0
        for info in await self._look(is_temporary):
            if info.modified < before:
                removed += await self.discard(info.key)
        return removed

    async def discard(self, unfinished: str) -> bool:
        """Remove a hidden file; one that the server still holds for somebody is left."""
        if not is_temporary(unfinished):
            return False
        async with self._pool.line() as line:
            try:
                return await line.run(partial(line.connection.remove, unfinished))
            except TargetUnavailable:
                if not line.connection.usable:
                    raise
                return False

    async def free_bytes(self) -> int | None:
        """Tell how many bytes the share still takes from this user."""
        async with self._pool.line() as line:
            return await line.run(partial(_free_bytes, line.connection))

    async def aclose(self) -> None:
        """Close the connections that are kept."""
        await self._pool.aclose()

    async def _look(self, wanted: Callable[[str], bool]) -> list[ObjectInfo]:
        async with self._pool.line() as line:
            listing = _Listing(line.connection, wanted)
            found: list[ObjectInfo] = []
            try:
                await line.run(listing.open)
                while (some := await line.run(listing.more)) is not None:
                    found += some
            finally:
                with suppress(StorageError):
                    await line.run(listing.close)
        return sorted(found, key=lambda info: info.key)

    async def _clean_up(self, upload: Upload, line: Line[SmbConnection]) -> None:
        """Discard the upload, over a new connection when its own is broken."""
        if line.connection.usable and not line.worker.stuck:
            with suppress(StorageError):
                return await line.run(partial(upload.discard, line.connection), within=FLUSH_TIMES * line.within)
        line.broken = True
        place = replace(self._place, timeout=min(self._place.timeout, CLEAN_UP_SECONDS))
        other = Line(SmbConnection(place), self.url, within=place.timeout)
        try:
            with suppress(StorageError):
                await other.run(other.connection.open)
                await other.run(partial(upload.discard, other.connection))
        finally:
            upload.forget()
            await other.close()


class _Reader:
    """One opened object; used by one thread."""

    def __init__(self, connection: SmbConnection, key: str) -> None:
        self._connection = connection
        self._key = key
        self._handle: Handle | None = None
        self._reader: Reader | None = None

    def open(self) -> ObjectInfo:
        looked_at = _stat(self._connection, self._key)
        self._handle = self._connection.open_for_reading(self._key)
        with mapped_errors(self._connection.place, self._key):
            info = self._handle.info(self._key)
        return info if info is not None else looked_at

    def begin(self, offset: int, end: int) -> None:
        """Say what will be read."""
        assert self._handle is not None
        self._reader = self._handle.reader(offset, end)

    def read(self) -> bytes:
        """Read the next piece; never nothing."""
        assert self._reader is not None
        with mapped_errors(self._connection.place, self._key):
            piece = self._reader.read()
        if not piece:
            raise ObjectChanged(f"{self._connection.place.url}/{self._key} became shorter while it was read")
        return piece

    def close(self) -> None:
        if self._reader is not None:
            self._reader.drop()
        if self._handle is not None:
            with mapped_errors(self._connection.place, self._key):
                self._handle.close()


class _Listing:
    """The entries of the target's directory whose name is `wanted`, some at a time."""

    def __init__(self, connection: SmbConnection, wanted: Callable[[str], bool]) -> None:
        self._connection = connection
        self._wanted = wanted
        self._handle: Handle | None = None
        self._entries: Iterator[tuple[str, bool, ObjectInfo]] = iter(())

    def open(self) -> None:
        self._handle = self._connection.open_directory()
        if self._handle is not None:
            self._entries = self._handle.entries()

    def more(self) -> list[ObjectInfo] | None:
        """Return the wanted ones of the next entries; None at the end."""
        with mapped_errors(self._connection.place):
            entries = list(islice(self._entries, LISTED_AT_ONCE))
        return [info for name, regular, info in entries if regular and self._wanted(name)] if entries else None

    def close(self) -> None:
        if self._handle is not None:
            with mapped_errors(self._connection.place):
                self._handle.close()


def _stat(connection: SmbConnection, key: str) -> ObjectInfo:
    try:
        info = connection.describe(key)
    except ObjectExists as exc:  # as something else
        raise not_found(connection.place, key) from exc
    if info is None:
        raise not_found(connection.place, key)
    return info


def _free_bytes(connection: SmbConnection) -> int | None:
    """Ask for the free space of the directory, or of the share while the directory is not made yet."""
    with mapped_errors(connection.place):
        handle = connection.open_directory() or connection.open_directory(of_share=True)
        if handle is None:
            return None
        with closing(handle):
            return handle.free_bytes()
