"""One upload to a share: written under a hidden name, made durable, then given its name whole or not at all.

Blocking; the methods of one upload run in one thread, in the order create, write..., flush, publish, discard.

Until it has its name the file is open with nothing shared, so that no other program reads or changes it, and no virus
scanner keeps it from being renamed. Publishing is FLUSH of the file, a hard link that refuses a taken name in place of
the hidden one, FLUSH of the directory, and a look at what is there now: the same file, the same size, the same first
and last block. Every byte is read back by who wrote it; this look is for a server that answers yes and does nothing.

Samba looks whether a name is taken and then renames: of two that do so at the same time the second replaces the first,
and neither is told. A hard link is refused by its kernel. Where there are none (FAT, some NAS) it is a rename.

A connection that breaks ends the upload; whoever wrote starts anew under another hidden name. Going on would be less
safe: what the server has acknowledged and not yet flushed is gone when it was the server that broke down, which neither
the file's size nor a new connection tells, and the source cannot give it a second time. Only what lies behind a FLUSH
could be relied on, so that gigabytes would be flushed in small steps for the sake of a rare event. And the file stays
open, with nothing shared, until the server notices that the old connection is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from smbprotocol.exceptions import SMBResponseException
from smbprotocol.header import NtStatus

from storage_backends.base import ObjectInfo, StorageError
from storage_backends.smb.connection import SmbConnection
from storage_backends.smb.errors import exists, mapped_errors, status_of
from storage_backends.smb.flow import Writer
from storage_backends.smb.handle import Handle, closing
from storage_backends.temporary import temporary_name

SAMPLE_BYTES = 64 << 10
_NO_LINKS = {
    NtStatus.STATUS_NOT_SUPPORTED,
    NtStatus.STATUS_INVALID_DEVICE_REQUEST,
    NtStatus.STATUS_INVALID_PARAMETER,
    NtStatus.STATUS_INVALID_INFO_CLASS,
    NtStatus.STATUS_ACCESS_DENIED,
    0xC0000002,  # STATUS_NOT_IMPLEMENTED
    0xC0000265,  # STATUS_TOO_MANY_LINKS
}


class Upload:
    """A file of the place that will be called `key`."""

    def __init__(self, connection: SmbConnection, key: str, *, overwrite: bool = False) -> None:
        self._connection = connection
        self._place = connection.place
        self._key = key
        self._overwrite = overwrite
        self.hidden_name = temporary_name()
        self._temporary = ""  # the hidden name, from when the file may have it to when it has another
        self._handle: Handle | None = None
        self._writer: Writer | None = None
        self._file_id = 0
        self._size = 0
        self._head = b""
        self._tail = b""
        self.published = False  # the server has given the name, or may have

    def create(self) -> None:
        """Make the file; ObjectExists at once when the name is taken already."""
        if self._connection.describe(self._key) is not None and not self._overwrite:
            raise exists(self._place, self._key)
        if self._place.auto_mkdir:
            self._connection.make_directory()
        self._temporary = self.hidden_name
        self._handle = self._connection.create_upload(self._temporary)
        self._writer = self._handle.writer()

    def write(self, pieces: Sequence[bytes | bytearray]) -> None:
        """Append `pieces`. Some of them are still on their way when this returns; `flush` waits for them."""
        assert self._writer is not None
        batch = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        with mapped_errors(self._place, self._key):
            self._writer.write(batch)
        if len(self._head) < SAMPLE_BYTES:
            self._head += batch[: SAMPLE_BYTES - len(self._head)]
        self._tail = (self._tail + bytes(batch[-SAMPLE_BYTES:]))[-SAMPLE_BYTES:]
        self._size += len(batch)

    def flush(self) -> None:
        """Have the server write all of it to its medium."""
        assert self._handle is not None
        assert self._writer is not None
        with mapped_errors(self._place, self._key):
            self._writer.settle()
            self._handle.flush()
            self._file_id = self._handle.file_id()
            stored = self._handle.stored_size()
        if stored != self._size:
            raise self._wrong(f"has {stored} bytes of {self._size}")

    def publish(self) -> ObjectInfo:
        """Give the file its name, durably. ObjectExists when the name was taken meanwhile."""
        assert self._handle is not None
        with mapped_errors(self._place, self._key):
            self.published = True
            try:
                self._give_name(self._handle)
            except BaseException as exc:
                self.published = status_of(exc) is None  # without an answer, the server may have done it
                raise
            self._temporary = ""
            self._handle.close()
            self._handle = None
            self._connection.flush_directory()
        return self._look()

    def discard(self, connection: SmbConnection) -> None:
        """Leave nothing, also when the name was given already. What was replaced on purpose stays replaced.

        `connection` is another one when the upload's own broke.
        """
        if self._handle is not None and connection is self._connection:
            if self._writer is not None:
                self._writer.drop()
            handle, self._handle = self._handle, None
            with mapped_errors(self._place), closing(handle):
                if self._temporary:
                    handle.delete()
                    self._temporary = ""
        self.forget()
        if self._temporary:
            with suppress(StorageError):  # the server may not have noticed that the connection broke; `sweep` finds it
                connection.remove(self._temporary)
        if self.published and not self._overwrite and self._file_id:
            connection.remove(self._key, file_id=self._file_id)
            self.published = False

    def forget(self) -> None:
        """Let go of the handle: its connection is gone."""
        if self._handle is not None:
            self._handle.forget()
            self._handle = None

    def _give_name(self, handle: Handle) -> None:
        if self._overwrite:
            handle.rename(self._key, replace=True)
            return
        try:
            handle.link(self._key)
        except SMBResponseException as exc:
            if exc.status not in _NO_LINKS:
                raise
            handle.rename(self._key, replace=False)
        else:
            handle.delete()  # the hidden name, when it is closed

    def _look(self) -> ObjectInfo:
        with mapped_errors(self._place, self._key), closing(self._connection.open_for_reading(self._key)) as handle:
            info = handle.info(self._key)
            same = info is not None and info.size == self._size and handle.file_id() == self._file_id
            sample = min(SAMPLE_BYTES, self._size)
            same = same and handle.read(0, sample) == self._head
            same = same and handle.read(self._size - sample, sample) == self._tail
        if info is None or not same:
            raise self._wrong("is not what was written")
        return info

    def _wrong(self, what: str) -> StorageError:
        return StorageError(
            f"{self._place.url}/{self._key} {what}, though the server reported no error",
            hint="Nothing was left there. Do not trust this server before its disks and its log were looked at.",
        )
