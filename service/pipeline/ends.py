"""The two ends of an archive: its header in front, its directory and footer at the back. No key is needed here.

Both ends are fetched with one small request each. The header's version is judged before anything else that a newer
format could have changed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from service.archive.names import HEADER
from service.archive.parts import MAX_PART_BYTES, Footer, Header, check_footer
from service.archive.zip64 import (
    LOCAL_HEADER_BYTES,
    TAIL_BYTES,
    DirectoryLocation,
    Entry,
    check_entry,
    locate_directory,
    parse_directory,
    read_local_header,
)
from service.errors import CorruptArchive, IncompleteArchive, UnsupportedArchive
from service.pipeline.ranges import PinnedObject

HEAD_BYTES: Final = 64 << 10

_ALTERED: Final = "The archive was damaged or altered. Use another archive."


class Window:
    """A part of the file that was fetched already; what lies outside of it is fetched when asked for."""

    def __init__(self, archive: PinnedObject, offset: int, content: bytes) -> None:
        self._archive = archive
        self.offset = offset
        self.content = content

    @classmethod
    async def fetch(cls, archive: PinnedObject, offset: int, length: int) -> Window:
        """Fetch a range of the file."""
        return cls(archive, offset, await archive.read(offset, length))

    async def read(self, offset: int, length: int) -> bytes:
        """Return a range, from here or from the target."""
        start = offset - self.offset
        if start >= 0 and start + length <= len(self.content):
            return self.content[start : start + length]
        return await self._archive.read(offset, length)

    async def part(self, entry: Entry) -> bytes:
        """Return a JSON part; local header and CRC are checked."""
        if entry.size > MAX_PART_BYTES:
            raise CorruptArchive(f"{entry.name} has {entry.size} bytes, more than it may have", hint=_ALTERED)
        return bytes(check_entry(await self.read(entry.offset, entry.end - entry.offset), entry))


@dataclass(frozen=True, slots=True)
class Front:
    """The beginning of an archive; `content` is header.json as it stands there."""

    window: Window
    content: bytes
    header: Header


@dataclass(frozen=True, slots=True)
class Back:
    """The end of an archive, and where its directory is."""

    archive: PinnedObject
    window: Window
    location: DirectoryLocation


@dataclass(frozen=True, slots=True)
class Directory:
    """Every entry; the footer, whose MAC is not checked; and all bytes behind the last entry."""

    entries: list[Entry]
    footer_content: bytes
    footer: Footer
    rest: bytes


async def read_front(archive: PinnedObject) -> Front:
    """Read header.json: is this an archive of ours at all, and of a version that is known here?"""
    name, size = archive.info.key, archive.info.size
    window = await Window.fetch(archive, 0, min(size, HEAD_BYTES))
    head = window.content
    if not head or head[:4] != b"PK\x03\x04"[: len(head)] or not HEADER.encode().startswith(_name(head)):
        raise UnsupportedArchive(
            f"{name} is not an archive of this service" if head else f"{name} is empty: not an archive of this service",
            hint="Choose a file that this service has written.",
        )
    if len(head) < LOCAL_HEADER_BYTES + len(HEADER):
        raise _incomplete(name)
    entry = read_local_header(head, offset=0)
    if entry.end > size and entry.size <= MAX_PART_BYTES:
        raise _incomplete(name)
    content = await window.part(entry)
    return Front(window, content, Header.from_bytes(content))


def _name(head: bytes) -> bytes:
    return head[LOCAL_HEADER_BYTES : LOCAL_HEADER_BYTES + len(HEADER)]


async def read_back(archive: PinnedObject) -> Back:
    """Fetch the file's tail and find the directory."""
    size = archive.info.size
    length = min(size, TAIL_BYTES)
    window = await Window.fetch(archive, size - length, length)
    return Back(archive, window, locate_directory(window.content, file_size=size))


async def read_directory(back: Back, header: Header) -> Directory:
    """Read every directory record and the footer, and check them against each other and the header."""
    location = back.location
    rest = await back.window.read(location.offset, back.archive.info.size - location.offset)
    # Some microseconds an entry: seconds for a big archive, so not in the event loop.
    entries = await asyncio.to_thread(parse_directory, rest[: location.size], location)
    content = await back.window.part(entries[-1])
    footer = Footer.from_bytes(content)
    await asyncio.to_thread(check_footer, footer, header=header, entries=entries)
    return Directory(entries, content, footer, rest)


def _incomplete(name: str) -> IncompleteArchive:
    return IncompleteArchive(
        f"{name} is incomplete: its end is missing",
        hint="It was cut off while it was written or copied. Use another archive, or copy it again.",
    )
