"""Finding the chunks of a stream in an archive, and opening one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from service.archive.chunk import decompress, max_body
from service.archive.names import parse_stream_entry
from service.archive.zip64 import Entry, check_entry
from service.errors import CorruptArchive, NotAuthentic
from service.sealing.suite import TAG_BYTES, ArchiveKeys

DAMAGED = "The archive was damaged or altered. Use another archive."


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk belongs."""

    stream: int
    index: int
    last: bool


class ChunkMap:
    """The chunk entries by stream. Of a checked directory: each stream's chunks are in the order of the file."""

    def __init__(self, entries: Sequence[Entry], *, max_raw: int) -> None:
        """Raises CorruptArchive for an entry that is larger than a chunk can be, before anybody fetches it."""
        self._streams: dict[int, list[Entry]] = {}
        most = max_body(max_raw)
        for entry in entries:
            parsed = parse_stream_entry(entry.name)
            if parsed is None:
                continue
            stream, _, sealed = parsed
            if entry.size > most + (TAG_BYTES if sealed else 0):
                raise CorruptArchive(f"{entry.name} is larger than a chunk may be", hint=DAMAGED)
            self._streams.setdefault(stream, []).append(entry)

    def entries(self, stream: int) -> list[Entry]:
        """Return the entries of a stream in the order of its chunks."""
        return self._streams[stream]

    def place(self, entry: Entry) -> Place | None:
        """Return which chunk an entry of this archive holds; None for the JSON parts."""
        parsed = parse_stream_entry(entry.name)
        if parsed is None:
            return None
        stream, index, _ = parsed
        return Place(stream, index, index == len(self._streams[stream]) - 1)


class ChunkOpener:
    """Turns the bytes of an entry into raw bytes of its stream. Works in many threads at once."""

    def __init__(self, keys: ArchiveKeys | None, *, max_raw: int) -> None:
        self._keys = keys
        self._max_raw = max_raw

    def open(self, entry: Entry, record: memoryview, place: Place, *, what: str) -> bytes:
        """Check, decrypt and decompress one chunk of the stream called `what`.

        Raises CorruptArchive when its CRC-32 is wrong, before NotAuthentic when it is not what was sealed there: a
        damaged disk is told apart from an altered archive.
        """
        try:
            body = check_entry(record, entry)
            if self._keys is None:
                return decompress(body, max_raw=self._max_raw)
            # A cipher for each chunk: 20 us of HKDF beside milliseconds, and no cache that grows with the streams.
            cipher = self._keys.stream(place.stream)
            return decompress(cipher.open(place.index, body, last=place.last), max_raw=self._max_raw)
        except NotAuthentic as exc:
            raise NotAuthentic(f"chunk {place.index} of {what} is not what was sealed there", hint=exc.hint) from exc
        except CorruptArchive as exc:
            raise CorruptArchive(f"chunk {place.index} of {what} is damaged: {exc}", hint=DAMAGED) from exc


class StreamSum:
    """The running length and SHA-256 of one stream's raw bytes."""

    def __init__(self) -> None:
        self.bytes = 0
        self.chunks = 0
        self._digest = hashlib.sha256()

    def add(self, raw: bytes) -> None:
        """Count the next chunk. SHA-256 releases the GIL."""
        self._digest.update(raw)
        self.bytes += len(raw)
        self.chunks += 1

    def sha256(self) -> str:
        """Return the hex digest so far."""
        return self._digest.hexdigest()
