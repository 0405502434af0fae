"""Reads a staged copy of a tree back and compares it with the archive: every byte, and what belongs to each file."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Generator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from service.blocking import run_until_stopped
from service.errors import StageFailed
from service.sources.base import Compared, StoredStream, StreamReader
from service.sources.directories import encode_path
from service.sources.selection import Selection
from service.sources.tar_reader import TarReader
from service.sources.tar_stream import Member
from service.sources.tree_walk import TreeWalk

_NAMED = 10


async def compare(copy: Path, stream: StoredStream, reader: StreamReader, facts: Mapping[str, Any]) -> Compared:
    """Compare the tree at `copy` with an archived one. Raises StageFailed when what it holds differs.

    Read again as a backup reads it, an equal tree gives the very same bytes. When it does not, the two are compared
    name by name: other content fails; other owners, modes, times or attributes (the place of the copy may not keep them
    all) are told.
    """
    counts = {count: facts[count] for count in ("files", "directories", "symlinks", "hard_links", "bytes")}
    digest = await run_until_stopped(lambda stop: _digest(copy, stop), discard=lambda _: None)
    if digest == stream.sha256:
        return Compared(counts | {"read_back_digests": 1})
    archived = _Listing()
    async with aclosing(reader.read(stream)) as pieces:
        async for piece in pieces:
            archived.feed(piece)
    found = await run_until_stopped(lambda stop: _listing(copy, stop), discard=lambda _: None)
    return Compared(counts | {"read_back_digests": 0}, _differences(archived.entries, found.entries))


def _pieces(copy: Path, stop: threading.Event) -> Generator[bytes, None, None]:
    for piece in TreeWalk(copy, Selection([], kept=(), mounts={})).pieces():
        if stop.is_set():
            return
        yield piece


def _digest(copy: Path, stop: threading.Event) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(copy, stop):
        digest.update(piece)
    return digest.hexdigest()


def _listing(copy: Path, stop: threading.Event) -> _Listing:
    listing = _Listing()
    for piece in _pieces(copy, stop):
        listing.feed(piece)
    return listing


@dataclass(slots=True)
class _Listing:
    """What a stream holds, by path: its header, and the digest of its content."""

    entries: dict[str, tuple[Member, str]] = field(default_factory=dict)
    _reader: TarReader = field(default_factory=TarReader)
    _member: Member | None = None
    _sum: Any = None

    def feed(self, data: bytes) -> None:
        for piece in self._reader.feed(data):
            if piece.member is not None:
                self._member, self._sum = replace(piece.member), hashlib.sha256()
            assert self._member is not None
            self._sum.update(piece.body)
            if piece.ends:
                self.entries[self._member.path] = self._member, self._sum.hexdigest()


def _differences(archived: dict[str, tuple[Member, str]], found: dict[str, tuple[Member, str]]) -> list[str]:
    if wrong := sorted(archived.keys() ^ found.keys()):
        raise StageFailed(f"the restored copy of the tree has other names than were archived: {_names(wrong)}")
    wrong = sorted(path for path, entry in archived.items() if _content(entry) != _content(found[path]))
    if wrong:
        raise StageFailed(f"the restored copy of the tree has other content than was archived: {_names(wrong)}")
    apart = sorted(path for path, (member, _) in archived.items() if member != found[path][0])
    return [f"owners, modes, times or attributes of {len(apart)} names are others than archived: {_names(apart)}"]


def _content(entry: tuple[Member, str]) -> tuple[object, ...]:
    member, digest = entry
    return member.kind, member.link, member.size, digest


def _names(paths: list[str]) -> str:
    named = ", ".join(encode_path(path) or "the tree itself" for path in paths[:_NAMED])
    return named + (f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else "")
