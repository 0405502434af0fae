"""Unpacking a tree's stream: all of it, or only the members that somebody wants."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing

from service.blocking import run_in_thread
from service.progress import Progress
from service.sources.directories import ancestors, encode_path
from service.sources.tar_reader import Piece, TarReader
from service.sources.tar_stream import Kind, Member
from service.sources.tree_extract import TreeExtractor

_BATCH = 1 << 20


async def unpack(stream: AsyncGenerator[bytes, None], extractor: TreeExtractor, progress: Progress) -> None:
    """Feed the whole stream to the extractor, in pieces that are worth a thread. `finish` is left to the caller."""
    async with aclosing(stream) as pieces:
        batch = bytearray()
        async for piece in pieces:
            progress.raw += len(piece)
            if not batch and len(piece) >= _BATCH:
                await run_in_thread(extractor.feed, piece)
                continue
            batch += piece
            if len(batch) >= _BATCH:
                await run_in_thread(extractor.feed, bytes(batch))
                batch.clear()
        await run_in_thread(extractor.feed, bytes(batch))


class ChosenMembers:
    """Reads the whole stream, and gives only the members that `wanted` says (by path), each after its directories.

    The root is always given; `taken` counts the others. A hard link whose first name is not wanted is left out and
    said.
    """

    def __init__(self, wanted: Callable[[str], bool], *, say: Callable[[str], None]) -> None:
        self._reader = TarReader()
        self._wanted = wanted
        self._say = say
        self._above: list[Member] = []  # directories from the root to where the stream is
        self._given = 0  # how many of them were given
        self._giving = False
        self.taken = 0

    def feed(self, data: bytes) -> Iterator[Piece]:
        """Yield what can be told now."""
        for piece in self._reader.feed(data):
            member = piece.member
            if member is None:
                if self._giving:
                    yield piece
                continue
            self._leave(member)
            if member.kind is Kind.DIRECTORY:
                self._above.append(member)
                if member.path and not self._wanted(member.path):
                    continue
                self.taken += bool(member.path)
                yield from self._directories()
                continue
            self._giving = self._wanted(member.path) and not self._lacks_first_name(member)
            if self._giving:
                self.taken += 1
                yield from self._directories()
                yield piece

    def finish(self) -> None:
        """Say that the stream is over."""
        self._reader.finish()

    def _leave(self, member: Member) -> None:
        inside = {"", *ancestors(member.path)} if member.path else set()
        while self._above and self._above[-1].path not in inside:
            self._above.pop()
        self._given = min(self._given, len(self._above))

    def _directories(self) -> Iterator[Piece]:
        for member in self._above[self._given :]:
            yield Piece(member, b"", ends=True)
        self._given = len(self._above)

    def _lacks_first_name(self, member: Member) -> bool:
        if member.kind is not Kind.HARD_LINK or self._wanted(member.link):
            return False
        self._say(
            f"{encode_path(member.path)} is another name of {encode_path(member.link)} and was left out:"
            " choose that one, too."
        )
        return True
