"""Reading the record format of `tar_stream`, strictly. Pure: bytes in, members out, CorruptArchive at the first oddity.

What is the same from file to file (owners, pax headers) is looked at once and then recognised by its bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from service.errors import CorruptArchive
from service.sources.tar_stream import BLOCK, XATTR, Kind, Member

MAX_RECORDS = 16 << 20
"""Bytes of one pax header: the kernel gives a file at most a few attributes of 64 KiB."""

_ZERO_BLOCK = bytes(BLOCK)
_KINDS = {kind.value: kind for kind in Kind}
_KNOWN = frozenset({b"path", b"linkpath", b"size", b"uid", b"gid", b"uname", b"gname", b"mtime", b"hdrcharset"})
_OCTAL = re.compile(rb"([0-7]{1,11})\0+").fullmatch
_RECORD = re.compile(rb"([1-9][0-9]{0,8}) ([^=\n]+|SCHILY\.xattr\.[^=]+)=").match
_TIME = re.compile(rb"(-?)([0-9]{1,12})\.([0-9]{9})").fullmatch
_BAD_PATH = re.compile(rb"(?:^|/)\.{0,2}(?:/|\Z)|\0", re.DOTALL).search
_REMEMBERED = 4096


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
        self._owners: dict[bytes, tuple[int, int, int, str, str]] = {}

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
                if data.count(0, at, at + taken) != taken:
                    raise CorruptArchive("The tree's stream has bytes where its padding should be.")
                self._padding -= taken
                at += taken
            elif self._extended >= 0:
                padded = -(-self._extended // BLOCK) * BLOCK
                if end - at < padded:
                    break
                self._take_records(data[at : at + self._extended])
                at += self._extended
                self._padding = padded - self._extended
                self._extended = -1
            else:
                if end - at < BLOCK:
                    break
                piece = self._take_header(data[at : at + BLOCK])
                at += BLOCK
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
        path = _path(records.get(b"path") or _string(block[:100]), kind)
        link = _plain_text(records.get(b"linkpath") or _string(block[157:257]))
        if kind is Kind.HARD_LINK:
            _path(link.encode("utf-8", "surrogateescape"), Kind.FILE)
        if (kind is Kind.SYMLINK or kind is Kind.HARD_LINK) != bool(link):
            raise CorruptArchive(
                f"In the tree's stream, {path!r} has a link where none belongs, or none where one does."
            )
        size, mtime_ns = _octal(block[124:136]), _octal(block[136:148]) * 1_000_000_000
        if records:
            size = _decimal(records[b"size"]) if b"size" in records else size
            uid = _decimal(records[b"uid"]) if b"uid" in records else uid
            gid = _decimal(records[b"gid"]) if b"gid" in records else gid
            user = _plain_text(records[b"uname"]) if b"uname" in records else user
            group = _plain_text(records[b"gname"]) if b"gname" in records else group
            mtime_ns = _nanoseconds(records[b"mtime"]) if b"mtime" in records else mtime_ns
        if size and kind is not Kind.FILE:
            raise CorruptArchive(f"In the tree's stream, {path!r} has a body that its type cannot have.")
        if uid >= 2**32 - 1 or gid >= 2**32 - 1:
            raise CorruptArchive(f"In the tree's stream, {path!r} has an impossible owner.")
        member = Member(path, kind, mode, uid, gid, user, group, mtime_ns, size, link, tuple(self._xattrs))
        self._body, self._padding = size, -size % BLOCK
        self._records, self._xattrs = {}, []
        return member

    def _take_records(self, data: bytes) -> None:
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


def _check_sum(block: bytes) -> None:
    field = block[148:156]
    if not re.fullmatch(rb"[0-7]{6}\0 ", field) or int(field[:6], 8) != sum(block) - sum(field) + 8 * 0x20:
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
