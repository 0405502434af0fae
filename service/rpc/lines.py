"""The bytes of one connection: whole lines in, bytes out, bounded both ways.

Reading is pulled: while nobody asks for a line the socket is not read, so a client that sends faster than it is served
fills the kernel's buffer and waits. asyncio's streams would read up to 256 KiB at once, whatever their limit says.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

CLOSE_SECONDS: Final = 1.0
"""How long a last line may take to leave before the connection is dropped."""


class LineTooLong(Exception):
    """No newline within the limit."""


class Lines(asyncio.BufferedProtocol):
    """Lines of at most `limit` bytes with their newline. With `half_open` a client may end its side and still read."""

    def __init__(self, limit: int, *, half_open: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._half_open = half_open
        self._limit = limit
        self._buffer = bytearray()
        self._filled = 0
        self._news: asyncio.Future[None] | None = None
        self._end_of_input = False
        self._ended = False
        self._transport: asyncio.Transport | None = None
        self._sending = asyncio.Lock()
        self._sent = asyncio.Event()
        self._sent.set()
        self._lost = asyncio.Event()
        self.partial_since: float | None = None
        """When the line that is waited for began; None while nothing of it is there, or nobody waits."""
        self.unread_since: float | None = None
        """Since when the client does not take what was sent; None when it took all."""

    async def line(self) -> bytes | None:
        """Return the next line with its newline; None when no more come. Raises LineTooLong. One caller at a time."""
        searched = 0
        try:
            while not self._ended:
                end = self._buffer.find(b"\n", searched, self._filled)
                if end >= 0:
                    return self._take(end + 1)
                if self._filled == len(self._buffer):
                    raise LineTooLong
                if self._end_of_input:
                    return None
                searched = self._filled
                if self._filled and self.partial_since is None:
                    self.partial_since = self._loop.time()
                await self._more()
            return None
        finally:
            self.partial_since = None

    async def send(self, line: bytes) -> None:
        """Send a line and wait until the client, or the kernel, took all of it. Dropped when the client has gone."""
        async with self._sending:
            if self._transport is None or self._transport.is_closing():
                return
            self._transport.write(line)
            await self._sent.wait()

    def end_input(self) -> None:
        """Take no more lines; what is being answered still goes out."""
        self._end_of_input = True
        self._filled = 0
        self._wake()

    def end(self, last: bytes | None = None) -> None:
        """Take no more lines, and close after a last one; drop the connection if the client does not read."""
        self._ended = True
        self._wake()
        if self._transport is None:
            return
        if self.unread_since is not None:
            self._transport.abort()
        if self._transport.is_closing():
            return
        if last is not None:
            self._transport.write(last)
        self._transport.close()

    async def close(self) -> None:
        """Close; return when the socket is closed. Waits only a moment for a client that does not read."""
        self.end()
        if self._transport is None:
            return
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._lost.wait()
        except TimeoutError:
            pass
        finally:
            self._transport.abort()  # does nothing when it is closed
        await self._lost.wait()

    def _take(self, end: int) -> bytes:
        line = bytes(self._buffer[:end])
        rest = self._filled - end
        self._buffer[:rest] = self._buffer[end : self._filled]
        self._filled = rest
        return line

    async def _more(self) -> None:
        transport = cast(asyncio.Transport, self._transport)
        self._news = self._loop.create_future()
        transport.resume_reading()
        try:
            await self._news
        finally:
            self._news = None
            self._pause()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _pause(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._buffer = bytearray(self._limit)
        # So that `unread_since` knows of all that waits. With a high mark of 0, TLS transports would pause on nothing.
        self._transport.set_write_buffer_limits(high=1, low=0)
        self._pause()
        if self._ended:
            self._transport.close()

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        self._pause()
        self._wake()

    def eof_received(self) -> bool:
        self._end_of_input = True
        self._wake()
        return self._half_open

    def pause_writing(self) -> None:
        self._sent.clear()
        self.unread_since = self._loop.time()

    def resume_writing(self) -> None:
        self.unread_since = None
        self._sent.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._wake()
        self.resume_writing()
        self._lost.set()
