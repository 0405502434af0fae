"""Where entries lie in the archive file, and the directory that says so at its end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from service.archive.zip64 import MAX_ENTRIES, Entry, directory_record, end_records
from service.errors import SourceError
from service.pipeline.lane import FileEntry

_DIRECTORY_PIECE = 1 << 20


class Layout:
    """Places entries one behind the other.

    Remembers only their directory records: some 80 bytes an entry, 20 MB for a terabyte in chunks of 4 MiB.
    """

    def __init__(self) -> None:
        self.entries = 0
        self.offset = 0
        self._records = bytearray()

    def place(self, entry: FileEntry) -> bytes | bytearray:
        """Give the entry its place at the end of what there is; return the bytes to be written there.

        Raises SourceError when the archive has as many entries as it may have: no reader would take one more.
        """
        if self.entries == MAX_ENTRIES:
            raise SourceError(
                f"there is more than an archive can hold in {MAX_ENTRIES} chunks of this size",
                hint="Set `compression.chunk_bytes` to more.",
            )
        self._records += directory_record(
            Entry(name=entry.name, offset=self.offset, size=entry.size, crc32=entry.crc32)
        )
        self.entries += 1
        self.offset += len(entry.blob)
        return entry.blob

    def directory_sha256(self) -> str:
        """Hex SHA-256 over the directory records of all entries placed so far."""
        return hashlib.sha256(self._records).hexdigest()

    def finish(self) -> Iterator[bytes]:
        """Yield the directory and the end records."""
        start, size = self.offset, len(self._records)
        for at in range(0, size, _DIRECTORY_PIECE):
            yield bytes(self._records[at : at + _DIRECTORY_PIECE])
        ending = end_records(entries=self.entries, directory_offset=start, directory_size=size)
        self.offset += size + len(ending)
        yield ending
