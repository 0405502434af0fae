"""One upload through an fsspec driver, visible under its name whole or not at all as far as the driver can that.

Where the driver renames (SFTP, FTP, WebHDFS), the object is written under a hidden name and renamed. Where its `mv` is
fsspec's own, which copies, the object is written in a transaction: such drivers (object stores, `memory`) show what
was written when it is committed. A file is never used as a context manager: leaving that after an error completes the
upload. When a rename or a commit fails, the place is looked at: it may have happened all the same.

Blocking; the methods of one upload run in one thread, in the order create, write..., publish, discard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from threading import Lock
from typing import Any

from fsspec.spec import AbstractBufferedFile

from storage_backends.base import InvalidUrl, ObjectExists, ObjectInfo, StorageError, TargetUnavailable
from storage_backends.generic_directory import Directory, generic_sftp, publishes_by_rename
from storage_backends.temporary import temporary_name

SAMPLE_BYTES = 64 << 10

_publishing: set[str] = set()
_publishing_lock = Lock()


class Upload:
    """A file of the directory that will be called `key`."""

    def __init__(self, directory: Directory, key: str, *, overwrite: bool = False) -> None:
        self._directory = directory
        self._key = key
        self._overwrite = overwrite
        self._rename = publishes_by_rename(directory.driver)
        self.hidden_name = temporary_name() if self._rename else ""
        self._name = self.hidden_name or key
        self._file: Any = None
        self._size = 0
        self._head = self._tail = b""
        self._published: ObjectInfo | None = None
        self._asked = False  # the server was told to give the name

    def create(self) -> None:
        """Begin; ObjectExists at once when the name is taken already."""
        self._refuse_taken()
        self._directory.make_directory()
        fs = self._directory.fs
        with self._directory.mapped_errors():
            if not self._rename:
                fs.start_transaction()
            self._file = fs.open(self._directory.path(self._name), "wb")
            if self._directory.sftp:
                generic_sftp().pipelined(self._file)
            if not self._rename and not (hasattr(self._file, "commit") and hasattr(self._file, "discard")):
                raise InvalidUrl(
                    f"fsspec's driver for {self._directory.url} neither renames nor commits",
                    hint="A half-written archive would show under its name. Choose another kind of target.",
                )

    def write(self, pieces: Sequence[bytes | bytearray]) -> None:
        """Append `pieces`, all of them."""
        with self._directory.mapped_errors():
            for piece in pieces:
                self._sample(piece)
                view = memoryview(piece)
                while view:
                    written = self._file.write(view)
                    if written is None:  # paramiko's way to say all; the size is compared before the name is given
                        written = len(view)
                    if not written:
                        raise OSError("the driver takes no more bytes and does not say why")
                    self._size += written
                    view = view[written:]

    def publish(self) -> ObjectInfo:
        """Give the object its name. ObjectExists when the name was taken meanwhile."""
        with self._directory.mapped_errors():
            self._file.close()
        if self._rename:
            self._require_written()
        with _alone(self._directory.path(self._key)) if not self._overwrite else nullcontext():
            self._refuse_taken()
            self._asked = True
            try:
                self._give_name()
            except StorageError as error:
                if not self._happened(error):
                    with suppress(TargetUnavailable):
                        self._refuse_taken()
                    raise
            self._published = self._stored(self._key)
        if self._published.size != self._size:
            raise self._wrong()
        return self._published

    def _require_written(self) -> None:
        """Look at the hidden file, and have it differ from the object that it replaces."""
        written = self._stored(self._name)
        if written.size != self._size:
            raise self._wrong()
        replaced = self._directory.look(self._key) if self._overwrite and self._directory.sftp else None
        if replaced is not None and replaced.etag == written.etag:  # of one size, written within one second
            with self._directory.mapped_errors():
                seconds = replaced.modified.timestamp() + 1
                generic_sftp().make_newer(self._directory.fs, self._directory.path(self._name), seconds)

    def discard(self) -> None:
        """Leave nothing, also when it was published already. What was replaced on purpose stays replaced."""
        if self._file is not None:
            self._drop(self._file)
        self._directory.reopen()
        if self._rename:
            self._directory.remove(self.hidden_name)
        if self._asked and not self._overwrite and (self._is_what_was_published() or self._is_ours()):
            self._directory.remove(self._key)

    def _is_what_was_published(self) -> bool:
        now = None if self._published is None else self._directory.look(self._key)
        return now is not None and self._published is not None and now.etag == self._published.etag

    def _give_name(self) -> None:
        if self._rename:
            self._directory.rename(self._name, self._key, replace=self._overwrite)
            return
        with self._directory.mapped_errors():
            self._directory.fs.end_transaction()
            self._file = None

    def _happened(self, error: StorageError) -> bool:
        """Say whether the name was given although the driver reports `error`; its hint says so when nobody can tell."""
        try:
            self._directory.reopen()  # with a broken connection some drivers say of everything that it is absent
            return self._is_ours()
        except StorageError:
            error.hint += f" Whether {self._key} got its name could not be seen: it may be there, whole."
            return False

    def _is_ours(self) -> bool:
        """Say whether what is under the key is what was written: its size, its first and its last bytes."""
        if self._rename and self._directory.look(self.hidden_name) is not None:
            return False
        try:
            info = self._directory.look(self._key)
        except ObjectExists:
            return False
        if info is None or info.size != self._size:
            return False
        last = self._size - len(self._tail)
        return (
            self._directory.read(info, 0, len(self._head)) == self._head
            and self._directory.read(info, last, self._size) == self._tail
        )

    def _sample(self, piece: bytes | bytearray) -> None:
        if len(self._head) < SAMPLE_BYTES:
            self._head += piece[: SAMPLE_BYTES - len(self._head)]
        self._tail = (self._tail + bytes(piece[-SAMPLE_BYTES:]))[-SAMPLE_BYTES:]

    def _drop(self, file: Any) -> None:
        with suppress(Exception):
            if self._rename:
                file.close()
            else:
                file.discard()
        if isinstance(file, AbstractBufferedFile):
            file.closed = True  # or it would complete the upload when it is collected
        self._file = None

    def _refuse_taken(self) -> None:
        if self._directory.look(self._key) is not None and not self._overwrite:
            raise ObjectExists(
                f"{self._directory.url}/{self._key} exists already", hint="Nothing was replaced. Choose another name."
            )

    def _stored(self, name: str) -> ObjectInfo:
        info = self._directory.look(name)
        if info is None:
            raise self._wrong()
        return info

    def _wrong(self) -> StorageError:
        return StorageError(
            f"{self._directory.url}/{self._key} is not there as it was written, though no error was reported",
            hint="Do not trust this target before its server was looked at.",
        )


@contextmanager
def _alone(path: str) -> Iterator[None]:
    """Keep other uploads of this process from publishing the same name meanwhile."""
    with _publishing_lock:
        if path in _publishing:
            raise ObjectExists(f"{path} is being stored by another task", hint="Nothing was replaced.")
        _publishing.add(path)
    try:
        yield
    finally:
        with _publishing_lock:
            _publishing.discard(path)
