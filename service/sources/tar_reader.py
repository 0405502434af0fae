"""Reading the record format of `tar_stream`, strictly. Pure: bytes in, members out, CorruptArchive at the first oddity.

What is the same from file to file (owners, pax headers) is looked at once and then recognised by its bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from service.errors import CorruptArchive
from service.sources.tar_stream import BLOCK, XATTR, Kind, Member, byte_sum

MAX_RECORDS = 16 << 20
"""Bytes of one pax header: the kernel gives a file at most a few attributes of 64 KiB."""

_ZERO_BLOCK = bytes(BLOCK)
_NO_TEXT = bytes(100)
_NO_NAMES = (b"", b".", b"..")
_KINDS = {kind.value: kind for kind in Kind}
_KNOWN = frozenset({b"path", b"linkpath", b"size", b"uid", b"gid", b"uname", b"gname", b"mtime", b"hdrcharset"})
_OCTAL = re.compile(rb"([0-7]{1,11})\0+").fullmatch
_RECORD = re.compile(rb"([1-9][0-9]{0,8}) ([^=\n]+|SCHILY\.xattr\.[^=]+)=").match
_TIME = re.compile(rb"(-?)([0-9]{1,12})\.([0-9]{9})").fullmatch
_BAD_PATH = re.compile(rb"(?:^|/)\.{0,2}(?:/|\Z)|\0", re.DOTALL).search
_CHECK_SUM = re.compile(rb"([0-7]{6})\0 ").fullmatch
_FIELD_SUM = 8 * 0x20  # the checksum counts its own field as spaces
_REMEMBERED = 4096
_USUAL = re.compile(
    rb"30 mtime=([0-9]{10})\.([0-9]{9})\n\0{482}"
    rb"(.{100})(.{24})([0-7]{11}\0)([0-7]{11}\0)([0-7]{6})\0 0\0{100}(ustar.{250})",
    re.DOTALL,
).match
"""What follows the pax header of nearly every file: its time, then name, owner, size, time, checksum, owner."""


@dataclass(slots=True)
class Piece:
    """What the reader found next: a new member (None: the last one goes on), bytes of its body, whether it ends."""

    member: Member | None
    body: bytes
    ends: bool


class TarReader:
    """Cuts a stream, fed in pieces of any size, into members. Raises CorruptArchive at the first oddity."""

    def __init__(self) -> None:
        self._rest = b""
        self._records: dict[bytes, bytes] = {}
        self._xattrs: list[tuple[str, bytes]] = []
        self._extended = -1  # bytes of a pax header still to come, or -1
        self._body = 0
        self._padding = 0
        self._zero_blocks = 0
        self._pax_headers: dict[bytes, int] = {}
        self._usual = b""  # a pax header, found good, of a time alone
        self._owners: dict[bytes, tuple[int, int, int, str, str]] = {}
        self._owner_sums: dict[bytes, int] = {}
        self._above = b""  # of the last path, up to its last slash; it was found good

    def feed(self, data: bytes) -> Iterator[Piece]:
        """Yield what can be told now."""
        data = self._rest + data if self._rest else data
        at, end = 0, len(data)
        while True:
            if self._body:
                taken = min(self._body, end - at)
                if not taken:
                    break
                self._body -= taken
                yield Piece(None, data[at : at + taken], ends=not self._body)
                at += taken
            elif self._padding:
                taken = min(self._padding, end - at)
                if not taken:
                    break
                _check_padding(data, at, taken)
                self._padding -= taken
                at += taken
            elif self._extended >= 0:
                padded = -(-self._extended // BLOCK) * BLOCK
                if end - at < padded:
                    break
                self._take_records(data[at : at + self._extended])
                _check_padding(data, at + self._extended, padded - self._extended)
                at += padded
                self._extended = -1
            else:
                if end - at < BLOCK:
                    break
                piece, at = self._header_at(data, at)
                if piece is not None:
                    body = data[at : at + self._body]
                    at += len(body)
                    self._body -= len(body)
                    piece.body, piece.ends = body, not self._body
                    yield piece
        self._rest = data[at:]

    def finish(self) -> None:
        """Say that the stream is over."""
        if self._rest or self._body or self._padding or self._extended >= 0 or self._zero_blocks != 2:
            raise CorruptArchive("The tree's stream ends in the middle.")

    def _header_at(self, data: bytes, at: int) -> tuple[Piece | None, int]:
        """Take the next header; return the member that it tells of, if it does, and where to go on."""
        member = self._usual_file(data, at)
        if member is not None:
            return Piece(member, b"", ends=False), at + 3 * BLOCK
        return self._take_header(data[at : at + BLOCK]), at + BLOCK

    def _usual_file(self, data: bytes, at: int) -> Member | None:
        """Take all three blocks of a file with nothing unusual at once; None for what the other methods shall judge.

        Accepts nothing that they would not: it is they that have judged the pax header and the owner before.
        """
        if not self._usual or self._zero_blocks or self._records or not data.startswith(self._usual, at):
            return None
        found = _USUAL(data, at + BLOCK)
        if found is None:
            return None
        seconds, nanoseconds, name, ids, size, mtime, checksum, rest = found.groups()
        key = ids + rest
        path = name.rstrip(b"\0")
        owner = self._owners.get(key)
        if owner is None or not path or b"\0" in path:
            return None
        total = self._owner_sums.get(key)
        if total is None:
            total = self._owner_sums[key] = byte_sum(ids) + byte_sum(rest) + ord("0") + _FIELD_SUM
        if int(checksum, 8) != total + byte_sum(name + size + mtime):
            return None
        mode, uid, gid, user, group = owner
        mtime_ns = int(seconds) * 1_000_000_000 + int(nanoseconds)
        member = Member(self._path(path, Kind.FILE), Kind.FILE, mode, uid, gid, user, group, mtime_ns)
        member.size = self._body = int(size[:11], 8)
        self._padding = -self._body % BLOCK
        return member

    def _take_header(self, block: bytes) -> Piece | None:
        if block == _ZERO_BLOCK:
            self._zero_blocks += 1
            if self._zero_blocks > 2 or self._records:
                raise CorruptArchive("The tree's stream goes on after its end.")
            return None
        if self._zero_blocks:
            raise CorruptArchive("The tree's stream goes on after its end.")
        if block[156] == 0x78:  # x
            self._extended = self._pax_headers.get(block, 0) or self._pax_header(block)
            if self._records:
                raise CorruptArchive("A pax header in the tree's stream is out of place.")
            return None
        _check_sum(block)
        return Piece(self._member(block), b"", ends=False)

    def _pax_header(self, block: bytes) -> int:
        _check_sum(block)
        self._owner(block)
        size = _octal(block[124:136])
        if not 0 < size <= MAX_RECORDS:
            raise CorruptArchive("A pax header in the tree's stream is empty or too long.")
        if len(self._pax_headers) < _REMEMBERED:
            self._pax_headers[block] = size
        if size == 30:
            self._usual = block
        return size

    def _owner(self, block: bytes) -> tuple[int, int, int, str, str]:
        """Mode, user and group; from the fields around what differs from file to file."""
        key = block[100:124] + block[257:]
        found = self._owners.get(key)
        if found is None:
            if block[257:265] != b"ustar\x0000" or block[345:500].strip(b"\0"):
                raise CorruptArchive("A header in the tree's stream is not of the kind this service writes.")
            mode, uid, gid = (_octal(block[at : at + 8]) for at in (100, 108, 116))
            found = mode, uid, gid, _plain_text(_string(block[265:297])), _plain_text(_string(block[297:329]))
            if mode > 0o7777:
                raise CorruptArchive("A header in the tree's stream has an impossible mode.")
            if len(self._owners) < _REMEMBERED:
                self._owners[key] = found
        return found

    def _member(self, block: bytes) -> Member:
        kind = _KINDS.get(block[156:157])
        if kind is None:
            raise CorruptArchive(f"The tree's stream has a member of a forbidden type ({block[156:157]!r}).")
        mode, uid, gid, user, group = self._owner(block)
        records = self._records
        mtime = records.pop(b"mtime", None)
        path = self._path(records.get(b"path") or _string(block[:100]), kind)
        field = block[157:257]
        link = _plain_text(records.get(b"linkpath") or _string(field)) if records or field != _NO_TEXT else ""
        if kind is Kind.HARD_LINK:
            _path(link.encode("utf-8", "surrogateescape"), Kind.FILE)
        if (kind is Kind.SYMLINK or kind is Kind.HARD_LINK) != bool(link):
            raise CorruptArchive(
                f"In the tree's stream, {path!r} has a link where none belongs, or none where one does."
            )
        size, mtime_ns = _octal(block[124:136]), _octal(block[136:148]) * 1_000_000_000
        if mtime is not None:
            mtime_ns = _nanoseconds(mtime)
        if records:  # seldom
            size = _decimal(records[b"size"]) if b"size" in records else size
            uid = _decimal(records[b"uid"]) if b"uid" in records else uid
            gid = _decimal(records[b"gid"]) if b"gid" in records else gid
            user = _plain_text(records[b"uname"]) if b"uname" in records else user
            group = _plain_text(records[b"gname"]) if b"gname" in records else group
        if size and kind is not Kind.FILE:
            raise CorruptArchive(f"In the tree's stream, {path!r} has a body that its type cannot have.")
        if uid >= 2**32 - 1 or gid >= 2**32 - 1:
            raise CorruptArchive(f"In the tree's stream, {path!r} has an impossible owner.")
        member = Member(path, kind, mode, uid, gid, user, group, mtime_ns, size, link, tuple(self._xattrs))
        self._body, self._padding = size, -size % BLOCK
        self._records, self._xattrs = {}, []
        return member

    def _path(self, value: bytes, kind: Kind) -> str:
        """Check and decode a path; what is in the same directory as the one before has but a new last name."""
        if kind is Kind.DIRECTORY:
            return _path(value, kind)
        start = value.rfind(b"/") + 1
        above, name = value[:start], value[start:]
        if above != self._above or name in _NO_NAMES or b"\0" in name or len(name) > 255:
            _path(value, kind)
            self._above = above
        return value.decode("utf-8", "surrogateescape")

    def _take_records(self, data: bytes) -> None:
        if data[:9] == b"30 mtime=" and len(data) == 30 and data[29] == 0x0A:  # nearly always
            self._take_record(b"mtime", data[9:29])
            return
        at = 0
        while at < len(data):
            found = _RECORD(data, at)
            end = at + int(found[1]) if found else 0
            if found is None or end <= found.end() or end > len(data) or data[end - 1 : end] != b"\n":
                raise CorruptArchive("A pax record in the tree's stream is malformed.")
            self._take_record(found[2], data[found.end() : end - 1])
            at = end

    def _take_record(self, key: bytes, value: bytes) -> None:
        if key in self._records:
            raise CorruptArchive("A pax record in the tree's stream comes twice.")
        if not key.startswith(XATTR) and key not in _KNOWN:
            raise CorruptArchive(f"The tree's stream has an unknown pax record ({key[:40]!r}).")
        if key.startswith(XATTR):
            name = key[len(XATTR) :].replace(b"%3D", b"=").replace(b"%25", b"%")
            self._xattrs.append((_plain_text(name), value))
            value = b""
        self._records[key] = value


def _check_padding(data: bytes, at: int, length: int) -> None:
    if not data.startswith(_ZERO_BLOCK[:length], at):
        raise CorruptArchive("The tree's stream has bytes where its padding should be.")


def _check_sum(block: bytes) -> None:
    field = block[148:156]
    found = _CHECK_SUM(field)
    if not found or int(found[1], 8) != byte_sum(block[:256]) + byte_sum(block[256:]) - byte_sum(field) + _FIELD_SUM:
        raise CorruptArchive("A header in the tree's stream has a wrong checksum.")


def _octal(field: bytes) -> int:
    found = _OCTAL(field)
    if found is None:
        raise CorruptArchive("A header in the tree's stream has a malformed number.")
    return int(found[1], 8)


def _decimal(value: bytes) -> int:
    if not re.fullmatch(rb"[0-9]{1,18}", value):
        raise CorruptArchive("A pax record in the tree's stream has a malformed number.")
    return int(value)


def _nanoseconds(value: bytes) -> int:
    found = _TIME(value)
    if not found:
        raise CorruptArchive("A pax record in the tree's stream has a malformed time.")
    ns = int(found[2]) * 1_000_000_000 + int(found[3])
    return -ns if found[1] else ns


def _string(field: bytes) -> bytes:
    text = field.rstrip(b"\0")
    if b"\0" in text:
        raise CorruptArchive("A header in the tree's stream has bytes after the end of a text.")
    return text


def _plain_text(value: bytes) -> str:
    if b"\0" in value:
        raise CorruptArchive("The tree's stream has a text with a zero byte in it.")
    return value.decode("utf-8", "surrogateescape")


def _path(value: bytes, kind: Kind) -> str:
    if kind is Kind.DIRECTORY:
        if value == b"./":
            return ""
        if not value.endswith(b"/"):
            raise CorruptArchive("The tree's stream has a directory that is not written as one.")
        value = value[:-1]
    if _BAD_PATH(value) or (len(value) > 255 and any(len(part) > 255 for part in value.split(b"/"))):
        raise CorruptArchive(f"The tree's stream has a path that leaves the tree or is malformed ({value[:80]!r}).")
    return _plain_text(value)
