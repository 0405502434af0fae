"""The record format of a tree: a POSIX (pax) tar stream, written fast and read strictly. Pure: bytes in, bytes out.

Any tar can unpack it by hand. The reader accepts only what the writer writes (and refuses everything else as
CorruptArchive), because a stream that names its own paths is where restores are attacked:

    stream   := member* two-zero-blocks
    member   := [pax header] ustar header [body, padded with zeros to 512]
    types    := regular file, directory, symbolic link, hard link to an earlier member
    order    := a directory comes before what is in it, and everything in it before anything that is not
    names    := relative, without empty, `.` or `..` parts; the root is `./` and comes first
    records  := path linkpath size uid gid uname gname mtime hdrcharset=BINARY SCHILY.xattr.*

Times have nanoseconds (pax `mtime`). Extended attributes are raw bytes; `%` and `=` in their names are %25 and %3D,
as GNU tar writes them. Sparse files are written in full: the compressor makes nothing of the zeros.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from service.errors import CorruptArchive
from service.sources.attributes import Xattrs

BLOCK = 512
END = bytes(2 * BLOCK)
MAX_RECORDS = 16 << 20
"""Bytes of one pax header: the kernel gives a file at most a few attributes of 64 KiB."""

_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12s")
_XATTR = b"SCHILY.xattr."
_MAX_ID = 0o7777777
_MAX_SIZE = 0o77777777777
_NO_DEVICE = b"0000000\0"


class Kind(Enum):
    """What a member is; the value is the tar type."""

    FILE = b"0"
    HARD_LINK = b"1"
    SYMLINK = b"2"
    DIRECTORY = b"5"


@dataclass(slots=True)
class Member:
    """One entry. `path` is relative to the root, which is ""; names are surrogate-escaped; `link` as recorded."""

    path: str
    kind: Kind
    mode: int
    uid: int
    gid: int
    user: str
    group: str
    mtime_ns: int
    size: int = 0
    link: str = ""
    xattrs: Xattrs = ()


# --- writing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Owner:
    front: bytes
    back: bytes
    total: int
    records: bytes  # what the fields have no room for


class HeaderWriter:
    """Writes headers. What repeats from file to file (owner, mode, pax header of the same length) is made once."""

    def __init__(self) -> None:
        self._owners: dict[tuple[int, int, int, str, str], _Owner] = {}
        self._pax_owner = self._owner((0o600, 0, 0, "", ""))
        self._only_mtime = self._pax_header(30)
        self._only_mtime_padding = padding(30)

    def header(self, member: Member) -> bytes:
        """The bytes that come before the member's body."""
        name = member.path.encode("utf-8", "surrogateescape")
        if member.kind is Kind.DIRECTORY:
            name = name + b"/" if name else b"./"
        link = member.link.encode("utf-8", "surrogateescape") if member.link else b""
        key = (member.mode, member.uid, member.gid, member.user, member.group)
        owner = self._owners.get(key) or self._owner(key)
        seconds, nanoseconds = divmod(member.mtime_ns, 1_000_000_000)
        size = member.size
        if (
            1_000_000_000 <= seconds <= 8_000_000_000
            and len(name) <= 100
            and len(link) <= 100
            and size <= _MAX_SIZE
            and not owner.records
            and not member.xattrs
        ):  # nearly always
            pax = self._only_mtime + b"30 mtime=%d.%09d\n" % (seconds, nanoseconds) + self._only_mtime_padding
        else:
            records = _record(b"mtime", _time(member.mtime_ns)) + _names(name, link) + owner.records + _rare(member)
            pax = self._pax_header(len(records)) + records + padding(len(records))
            name, link, size = name[:100], link[:100], size if size <= _MAX_SIZE else 0
            seconds = seconds if 0 <= seconds <= _MAX_SIZE else 0
        return pax + _block(name, owner, b"%011o\0%011o\0" % (size, seconds), member.kind.value, link)

    def _owner(self, key: tuple[int, int, int, str, str]) -> _Owner:
        mode, uid, gid, user, group = key
        records = b""
        for field, number in ((b"uid", uid), (b"gid", gid)):
            records += _record(field, b"%d" % number) if number > _MAX_ID else b""
        for field, text in ((b"uname", user), (b"gname", group)):
            records += _record(field, _text(text)) if not _fits(text) else b""
        front = b"%07o\0%07o\0%07o\0" % (mode, uid if uid <= _MAX_ID else 0, gid if gid <= _MAX_ID else 0)
        texts = b"".join((_text(text) if _fits(text) else b"").ljust(32, b"\0") for text in (user, group))
        back = b"ustar\x0000" + texts + _NO_DEVICE + _NO_DEVICE + bytes(155 + 12)
        owner = self._owners[key] = _Owner(front, back, sum(front) + sum(back) + 8 * 0x20, records)
        return owner

    def _pax_header(self, size: int) -> bytes:
        return _block(b"PaxHeaders/x", self._pax_owner, b"%011o\0%011o\0" % (size, 0), b"x", b"")


def padding(size: int) -> bytes:
    """The zeros that fill a body's last block."""
    return bytes(-size % BLOCK)


def _block(name: bytes, owner: _Owner, numbers: bytes, kind: bytes, link: bytes) -> bytes:
    checksum = sum(name) + owner.total + sum(numbers) + kind[0] + sum(link)
    return b"".join(
        (
            name.ljust(100, b"\0"),
            owner.front,
            numbers,
            b"%06o\0 " % checksum,
            kind,
            link.ljust(100, b"\0"),
            owner.back,
        )
    )


def _record(key: bytes, value: bytes) -> bytes:
    body = len(key) + len(value) + 3
    length = body + len(str(body))
    if len(str(length)) > len(str(body)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def _time(ns: int) -> bytes:
    sign = b"-" if ns < 0 else b""
    return b"%s%d.%09d" % (sign, *divmod(abs(ns), 1_000_000_000))


def _names(name: bytes, link: bytes) -> bytes:
    records = _record(b"path", name) if len(name) > 100 else b""
    if len(link) > 100:
        records += _record(b"linkpath", link)
    try:
        records.decode()
    except UnicodeDecodeError:
        records = _record(b"hdrcharset", b"BINARY") + records
    return records


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _fits(text: str) -> bool:
    return text.isascii() and len(text) < 32


def _rare(member: Member) -> bytes:
    records = _record(b"size", b"%d" % member.size) if member.size > _MAX_SIZE else b""
    for name, value in member.xattrs:
        key = _text(name).replace(b"%", b"%25").replace(b"=", b"%3D")
        records += _record(_XATTR + key, value)
    return records


# --- reading ---------------------------------------------------------------------------------------------------------


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
        if not block.strip(b"\0"):
            self._zero_blocks += 1
            if self._zero_blocks > 2 or self._records:
                raise CorruptArchive("The tree's stream goes on after its end.")
            return None
        if self._zero_blocks:
            raise CorruptArchive("The tree's stream goes on after its end.")
        fields = _HEADER.unpack(block)
        if _octal(fields[6].replace(b" ", b"\0")) != sum(block) - sum(fields[6]) + 8 * 0x20:
            raise CorruptArchive("A header in the tree's stream has a wrong checksum.")
        if fields[9] != b"ustar\0" or fields[10] != b"00" or fields[15].strip(b"\0"):
            raise CorruptArchive("A header in the tree's stream is not of the kind this service writes.")
        if fields[7] == b"x":
            self._extended = _octal(fields[4])
            if self._records or not 0 < self._extended <= MAX_RECORDS:
                raise CorruptArchive("A pax header in the tree's stream is out of place or too long.")
            return None
        return Piece(self._member(fields), b"", ends=False)

    def _member(self, fields: tuple[bytes, ...]) -> Member:
        try:
            kind = Kind(fields[7])
        except ValueError:
            raise CorruptArchive(f"The tree's stream has a member of a forbidden type ({fields[7]!r}).") from None
        records = self._records
        path = _path(records.get(b"path") or _string(fields[0]), kind)
        link = _plain_text(records.get(b"linkpath") or _string(fields[8]))
        if kind is Kind.HARD_LINK:
            _path(link.encode("utf-8", "surrogateescape"), Kind.FILE)
        if (kind in {Kind.SYMLINK, Kind.HARD_LINK}) != bool(link):
            raise CorruptArchive(
                f"In the tree's stream, {path!r} has a link where none belongs, or none where one does."
            )
        size = _decimal(records[b"size"]) if b"size" in records else _octal(fields[4])
        if size and kind is not Kind.FILE:
            raise CorruptArchive(f"In the tree's stream, {path!r} has a body that its type cannot have.")
        mtime = records.get(b"mtime")
        member = Member(
            path,
            kind,
            _octal(fields[1]),
            _decimal(records[b"uid"]) if b"uid" in records else _octal(fields[2]),
            _decimal(records[b"gid"]) if b"gid" in records else _octal(fields[3]),
            _plain_text(records.get(b"uname") or _string(fields[11])),
            _plain_text(records.get(b"gname") or _string(fields[12])),
            _nanoseconds(mtime) if mtime is not None else _octal(fields[5]) * 1_000_000_000,
            size,
            link,
            tuple(self._xattrs),
        )
        if member.mode > 0o7777 or member.uid >= 2**32 - 1 or member.gid >= 2**32 - 1:
            raise CorruptArchive(f"In the tree's stream, {path!r} has an impossible mode or owner.")
        self._body, self._padding = size, -size % BLOCK
        self._records, self._xattrs = {}, []
        return member

    def _take_records(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            found = re.compile(rb"([1-9][0-9]{0,8}) ([^=\n]+|SCHILY\.xattr\.[^=]+)=").match(data, at)
            end = at + int(found[1]) if found else 0
            if found is None or end <= found.end() or end > len(data) or data[end - 1 : end] != b"\n":
                raise CorruptArchive("A pax record in the tree's stream is malformed.")
            self._take_record(found[2], data[found.end() : end - 1])
            at = end

    def _take_record(self, key: bytes, value: bytes) -> None:
        if key in self._records:
            raise CorruptArchive("A pax record in the tree's stream comes twice.")
        if not key.startswith(_XATTR) and key not in _KNOWN:
            raise CorruptArchive(f"The tree's stream has an unknown pax record ({key[:40]!r}).")
        if key.startswith(_XATTR):
            name = key[len(_XATTR) :].replace(b"%3D", b"=").replace(b"%25", b"%")
            self._xattrs.append((_plain_text(name), value))
            value = b""
        self._records[key] = value


_KNOWN = frozenset({b"path", b"linkpath", b"size", b"uid", b"gid", b"uname", b"gname", b"mtime", b"hdrcharset"})


def _octal(field: bytes) -> int:
    digits = field.rstrip(b"\0")
    if not re.fullmatch(rb"[0-7]{1,11}", digits):
        raise CorruptArchive("A header in the tree's stream has a malformed number.")
    return int(digits, 8)


def _decimal(value: bytes) -> int:
    if not re.fullmatch(rb"[0-9]{1,18}", value):
        raise CorruptArchive("A pax record in the tree's stream has a malformed number.")
    return int(value)


def _nanoseconds(value: bytes) -> int:
    found = re.fullmatch(rb"(-?)([0-9]{1,12})\.([0-9]{9})", value)
    if not found:
        raise CorruptArchive("A pax record in the tree's stream has a malformed time.")
    ns = int(found[2]) * 1_000_000_000 + int(found[3])
    return -ns if found[1] else ns


def _string(field: bytes) -> bytes:
    text, _, rest = field.partition(b"\0")
    if rest.strip(b"\0"):
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
    parts = value.split(b"/")
    if any(part in {b"", b".", b".."} or len(part) > 255 for part in parts):
        raise CorruptArchive(f"The tree's stream has a path that leaves the tree or is malformed ({value[:80]!r}).")
    return _plain_text(value)
