"""The ZIP container of an archive, in exactly one profile.

Entries are stored, not compressed; names are ASCII; sizes and CRC-32 stand in the local header; there are no flags,
comments, prefixes, suffixes, gaps or data descriptors; ZIP64 records are there when, and only when, a number does
not fit. So for each list of entries there is exactly one sequence of bytes, and every reader here works the same
way: take the few facts out, write them again, and compare. What differs is refused.

Layouts: PKWARE APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (directory), 4.3.14 to 4.3.16 (end records).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from service.archive import names
from service.archive.chunk import crc32 as compute_crc32
from service.errors import ArchiveError, CorruptArchive, IncompleteArchive, UnsupportedArchive

TAIL_BYTES: Final = 64 * 1024
"""How much of a file's end `locate_directory` may want to see; it always holds the last directory record too."""
LOCAL_HEADER_BYTES: Final = 30
"""Bytes of a local header before the name."""
MAX_ENTRIES: Final = 1 << 22
"""More entries than this are refused: a bound for what a reader may have to hold (16 TiB in 4 MiB chunks)."""

_MAX16: Final = 0xFFFF
_MAX32: Final = 0xFFFF_FFFF
_STORED: Final = 0
_DOS_EPOCH: Final = 0x0021  # 1980-01-01; the times that count are in header.json and footer.json
_MADE_BY: Final = 3 << 8 | 45  # Unix, version 4.5: what the mode below belongs to
_MODE: Final = 0o100600 << 16  # a regular file for its owner only, should somebody unzip an archive
_VERSION: Final = 10
_VERSION_ZIP64: Final = 45

# signature, version, flags, method, time, date, crc, packed size, size, name length, extra length
_LOCAL: Final = struct.Struct("<4s5H3I2H")
# signature, made by, version, flags, method, time, date, crc, packed size, size, name length, extra length,
# comment length, disk, internal attributes, external attributes, offset
_RECORD: Final = struct.Struct("<4s6H3I5H2I")
_ZIP64_OFFSET: Final = struct.Struct("<2HQ")  # extra field 0x0001 that holds just the offset
_ZIP64_END: Final = struct.Struct("<4sQ2H2I4Q")
_ZIP64_LOCATOR: Final = struct.Struct("<4sIQI")
_END: Final = struct.Struct("<4s4H2IH")

_MAX_RECORD: Final = 128  # our names are shorter

_ALTERED: Final = "The archive was damaged or altered. Use another archive."
_NOT_OURS: Final = "Give an archive named Backup_YYYYMMDD_HHMMZ.zip that this service wrote."
_CUT: Final = "It was cut off while it was written or copied. Use another archive, or copy it again."


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. `offset` is that of its local header; `size` counts its content only."""

    name: str
    offset: int
    size: int
    crc32: int

    @property
    def data_offset(self) -> int:
        """Where the content starts."""
        return self.offset + LOCAL_HEADER_BYTES + len(self.name)

    @property
    def end(self) -> int:
        """Where the next entry starts."""
        return self.data_offset + self.size


@dataclass(frozen=True, slots=True)
class DirectoryLocation:
    """Where the central directory is and how many entries it lists."""

    offset: int
    size: int
    entries: int


def local_header(name: str, *, size: int, crc32: int) -> bytes:
    """Return the local header of an entry of `size` < 4 GiB - 1 bytes."""
    if not 0 <= size < _MAX32:
        raise ValueError(f"an entry of {size} bytes does not fit the format")
    encoded = name.encode("ascii")
    fields = (_VERSION, 0, _STORED, 0, _DOS_EPOCH, crc32, size, size, len(encoded), 0)
    return _LOCAL.pack(b"PK\x03\x04", *fields) + encoded


def directory_record(entry: Entry) -> bytes:
    """Return the central directory's record of `entry`; its offset goes into a ZIP64 field when it does not fit."""
    if not 0 <= entry.size < _MAX32:
        raise ValueError(f"an entry of {entry.size} bytes does not fit the format")
    encoded = entry.name.encode("ascii")
    far = entry.offset >= _MAX32
    extra = _ZIP64_OFFSET.pack(1, 8, entry.offset) if far else b""
    version = _VERSION_ZIP64 if far else _VERSION
    head = (_MADE_BY, version, 0, _STORED, 0, _DOS_EPOCH, entry.crc32, entry.size, entry.size)
    tail = (len(encoded), len(extra), 0, 0, 0, _MODE, min(entry.offset, _MAX32))
    return _RECORD.pack(b"PK\x01\x02", *head, *tail) + encoded + extra


def end_records(*, entries: int, directory_offset: int, directory_size: int) -> bytes:
    """Return all that follows the central directory."""
    if not 0 < entries <= MAX_ENTRIES:
        raise ValueError(f"an archive of {entries} entries does not fit the format")
    count, size, offset = min(entries, _MAX16), min(directory_size, _MAX32), min(directory_offset, _MAX32)
    end = _END.pack(b"PK\x05\x06", 0, 0, count, count, size, offset, 0)
    if count < _MAX16 and size < _MAX32 and offset < _MAX32:
        return end
    versions = (_MADE_BY, _VERSION_ZIP64)
    zip64 = _ZIP64_END.pack(b"PK\x06\x06", 44, *versions, 0, 0, entries, entries, directory_size, directory_offset)
    return zip64 + _ZIP64_LOCATOR.pack(b"PK\x06\x07", 0, directory_offset + directory_size, 1) + end


def directory_digest(entries: Iterable[Entry]) -> str:
    """Return the SHA-256 (hex) over the directory records of `entries`, in their order."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(directory_record(entry))
    return digest.hexdigest()


def locate_directory(tail: bytes, *, file_size: int) -> DirectoryLocation:
    """Find the directory from the last bytes of a file: `TAIL_BYTES` of them, or all when the file is smaller.

    Raises IncompleteArchive when the end record is missing, CorruptArchive when it is there but not as this format
    writes it, UnsupportedArchive when it is that of a ZIP file which cannot be an archive.
    """
    if len(tail) != min(file_size, TAIL_BYTES):
        raise ValueError("the tail must be the last 64 KiB of the file, or all of it")
    if tail[-_END.size : -_END.size + 4] != b"PK\x05\x06" or len(tail) < _END.size:
        raise _no_end_record(tail)
    fields = _END.unpack(tail[-_END.size :])
    count, size, offset = fields[4], fields[5], fields[6]
    zip64_at = len(tail) - _END.size - _ZIP64_LOCATOR.size - _ZIP64_END.size
    if _MAX16 in (count,) or _MAX32 in (size, offset):
        if zip64_at < 0 or tail[zip64_at : zip64_at + 4] != b"PK\x06\x06":
            raise CorruptArchive("the archive's ZIP64 end record is missing", hint=_ALTERED)
        count, size, offset = _ZIP64_END.unpack_from(tail, zip64_at)[-3:]
    if count == 0:
        raise UnsupportedArchive("this is an empty ZIP file, not an archive of this service", hint=_NOT_OURS)
    if count > MAX_ENTRIES:
        raise CorruptArchive(f"the archive claims {count} entries, more than the format allows", hint=_ALTERED)
    expected = end_records(entries=count, directory_offset=offset, directory_size=size)
    if tail[-len(expected) :] != expected:
        raise CorruptArchive("the archive's end record is not as this format writes it", hint=_ALTERED)
    if offset + size + len(expected) != file_size:
        raise CorruptArchive("the archive's directory is not where its end record says", hint=_ALTERED)
    if size > count * _MAX_RECORD:  # a bound for what a reader has to hold
        raise UnsupportedArchive("this is a ZIP file, but not an archive of this service", hint=_NOT_OURS)
    return DirectoryLocation(offset=offset, size=size, entries=count)


def parse_directory(data: bytes, location: DirectoryLocation) -> list[Entry]:
    """Return the entries, in the order of the file, after checking the directory against every rule of the format.

    What holds afterwards: the entries fill the file from its first byte to the directory; header.json is first,
    footer.json last; keyslots.json is second when, and only when, the chunks are sealed; the chunks of each stream
    are numbered from 0 in the order of the file; the manifest's come after all others.
    Raises CorruptArchive, UnsupportedArchive (a ZIP file that is no archive).
    """
    if len(data) != location.size:
        raise CorruptArchive("the archive's directory could not be read whole", hint=_CUT)
    if data[_RECORD.size : _RECORD.size + len(names.HEADER)] != names.HEADER.encode():
        raise UnsupportedArchive("this is a ZIP file, but not an archive of this service", hint=_NOT_OURS)
    entries: list[Entry] = []
    position = expected_offset = 0
    for _ in range(location.entries):
        entry, position = _parse_record(data, position)
        if entry.offset != expected_offset:
            raise CorruptArchive(f"entry {entry.name} is not where the one before it ends", hint=_ALTERED)
        expected_offset = entry.end
        entries.append(entry)
    if position != len(data):
        raise CorruptArchive("bytes follow the last record of the archive's directory", hint=_ALTERED)
    if expected_offset != location.offset:
        raise CorruptArchive("the archive's entries do not end where its directory starts", hint=_ALTERED)
    _check_order(entries)
    return entries


def last_entry(tail: bytes, location: DirectoryLocation) -> Entry:
    """Return the last entry (footer.json) from a file's tail alone, to look at an archive without its directory.

    Raises CorruptArchive when the last record is not one of footer.json.
    """
    after = end_records(entries=location.entries, directory_offset=location.offset, directory_size=location.size)
    end = len(tail) - len(after)
    for extra in (0, _ZIP64_OFFSET.size):
        start = end - extra - len(names.FOOTER) - _RECORD.size
        if start >= 0 and tail[start : start + 4] == b"PK\x01\x02":
            entry, position = _parse_record(tail, start)
            if position == end and entry.name == names.FOOTER and entry.end == location.offset:
                return entry
    raise CorruptArchive("the last record of the archive's directory is not the footer's", hint=_ALTERED)


def read_local_header(data: bytes | memoryview, *, offset: int) -> Entry:
    """Return the entry whose local header `data` starts with; `offset` is where that is in the file.

    Raises CorruptArchive when it is not a local header as this format writes it.
    """
    fixed = bytes(data[:LOCAL_HEADER_BYTES])
    if len(fixed) == LOCAL_HEADER_BYTES and fixed[:4] == b"PK\x03\x04":
        *_, crc32, _packed, size, name_length, _extra = _LOCAL.unpack(fixed)
        encoded = bytes(data[LOCAL_HEADER_BYTES : LOCAL_HEADER_BYTES + name_length])
        entry = Entry(encoded.decode("ascii", "replace"), offset, size, crc32)
        if _is_name(entry.name) and size < _MAX32 and is_local_header(fixed + encoded, entry):
            return entry
    raise CorruptArchive(f"there is no entry of an archive at byte {offset}", hint=_ALTERED)


def is_local_header(data: bytes | memoryview, entry: Entry) -> bool:
    """Tell whether `data` is exactly the local header that the directory record of `entry` implies."""
    return data == local_header(entry.name, size=entry.size, crc32=entry.crc32)


def check_entry(data: bytes | memoryview, entry: Entry) -> memoryview:
    """Return the content of `entry` out of its bytes in the file (local header and content), without copying.

    Raises CorruptArchive unless the local header is what the directory implies and the CRC-32 is right.
    """
    view = memoryview(data)
    start = LOCAL_HEADER_BYTES + len(entry.name)
    if len(view) != start + entry.size:
        raise CorruptArchive(f"entry {entry.name} could not be read whole", hint=_CUT)
    if not is_local_header(view[:start], entry):
        raise CorruptArchive(f"the local header of {entry.name} differs from the directory", hint=_ALTERED)
    content = view[start:]
    if compute_crc32(content) != entry.crc32:
        raise CorruptArchive(f"the CRC-32 of {entry.name} is wrong", hint=_ALTERED)
    return content


def _no_end_record(tail: bytes) -> ArchiveError:
    at = tail.rfind(b"PK\x05\x06")
    if 0 <= at <= len(tail) - _END.size:
        return CorruptArchive("bytes follow the end of the archive, or its end record has a comment", hint=_ALTERED)
    return IncompleteArchive("the end of the archive is missing", hint=_CUT)


def _parse_record(data: bytes, position: int) -> tuple[Entry, int]:
    """Return the entry of the record at `position` and where the next one starts."""
    try:
        fields = _RECORD.unpack_from(data, position)
    except struct.error as exc:
        raise CorruptArchive("the archive's directory is cut off", hint=_ALTERED) from exc
    crc32, size, name_length, extra_length, offset = fields[7], fields[9], fields[10], fields[11], fields[16]
    name_end = position + _RECORD.size + name_length
    name = data[position + _RECORD.size : name_end].decode("ascii", "replace")
    if not _is_name(name):
        raise CorruptArchive(f"{name[:80]!r} is no name for an entry of an archive", hint=_ALTERED)
    end = name_end + extra_length
    if offset == _MAX32 and extra_length == _ZIP64_OFFSET.size and end <= len(data):
        offset = _ZIP64_OFFSET.unpack_from(data, name_end)[2]
    entry = Entry(name, offset, size, crc32)
    if size >= _MAX32 or data[position:end] != directory_record(entry):
        raise CorruptArchive(f"the directory record of {name} is not as this format writes it", hint=_ALTERED)
    return entry, end


def _is_name(name: str) -> bool:
    if name in (names.HEADER, names.KEYSLOTS, names.FOOTER):
        return True
    return names.parse_stream_entry(name) is not None


def _check_order(entries: list[Entry]) -> None:
    sealed = len(entries) > 1 and entries[1].name == names.KEYSLOTS
    first_chunk = 2 if sealed else 1
    if entries[0].name != names.HEADER or entries[-1].name != names.FOOTER or len(entries) < first_chunk + 2:
        raise CorruptArchive("the archive lacks its header, manifest or footer", hint=_ALTERED)
    next_index: dict[int, int] = {}
    for entry in entries[first_chunk:-1]:
        parsed = names.parse_stream_entry(entry.name)
        if parsed is None or parsed[2] != sealed:
            raise CorruptArchive(f"entry {entry.name} is out of place", hint=_ALTERED)
        stream, index, _ = parsed
        if index != next_index.get(stream, 0):
            raise CorruptArchive(f"entry {entry.name} is missing, doubled or out of order", hint=_ALTERED)
        if names.MANIFEST_STREAM in next_index and stream != names.MANIFEST_STREAM:
            raise CorruptArchive(f"entry {entry.name} follows the manifest", hint=_ALTERED)
        next_index[stream] = index + 1
    if names.MANIFEST_STREAM not in next_index:
        raise CorruptArchive("the archive has no manifest", hint=_ALTERED)
