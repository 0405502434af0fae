"""The bytes of one request: pieces as they came, never joined, sent as often as needed."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import AsyncIterator, Callable, Sequence

SENT_AT_ONCE = 256 << 10


class PartBody:
    """A request body for botocore and aiohttp over pieces in memory.

    botocore reads and rewinds it when it signs a payload (plain http only); aiohttp iterates over it. Each iteration
    starts at the beginning, so that a retry sends the same bytes. `progress` is called whenever the socket took more.
    """

    def __init__(self, pieces: Sequence[bytes | bytearray | memoryview]) -> None:
        self._views = [memoryview(piece) for piece in pieces]
        self._size = sum(map(len, self._views))
        self._position = 0
        self.progress: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return self._size

    def md5(self) -> str:
        """Return what Content-MD5 has to be. Blocks for about 25 ms in 16 MiB."""
        digest = hashlib.md5(usedforsecurity=False)
        for view in self._views:
            digest.update(view)
        return base64.b64encode(digest.digest()).decode()

    def crc32(self, before: int = 0) -> int:
        """Return the CRC-32 of these bytes after those whose CRC-32 is `before`."""
        for view in self._views:
            before = zlib.crc32(view, before)
        return before

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        for view in self._views:
            for start in range(0, len(view), SENT_AT_ONCE):
                yield view[start : start + SENT_AT_ONCE]
                self.progress()

    def read(self, size: int = -1) -> bytes:
        """Return the next `size` bytes, all when negative."""
        wanted = self._size - self._position if size < 0 else size
        found, skipped = [], self._position
        for view in self._views:
            if wanted <= 0:
                break
            if skipped >= len(view):
                skipped -= len(view)
                continue
            taken = view[skipped : skipped + wanted]
            found.append(taken)
            wanted -= len(taken)
            skipped = 0
        taken_bytes = b"".join(found)
        self._position += len(taken_bytes)
        return taken_bytes

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move as a file does."""
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position


def encoded_crc32(value: int) -> str:
    """Return a CRC-32 as S3's headers have it."""
    return base64.b64encode(value.to_bytes(4, "big")).decode()
