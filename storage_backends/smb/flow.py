"""Several writes or reads of one opened file on their way at once. Blocking; used by one thread at a time.

The server answers each request for itself, and works on one while the next is sent. What is on its way is bounded by
`WINDOW_BYTES`, and by the credits that the server has granted ([MS-SMB2] 3.2.4.1.5): one for each 64 KiB of a request,
given back with its answer. `drop` before the file is closed: what nobody took would stay with the connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from smbprotocol.exceptions import EndOfFile

REQUEST_BYTES = 1 << 20  # larger ones are slower
WINDOW_BYTES = 4 << 20
_CREDIT_BYTES = 64 << 10
_WANTED_CREDITS = 2 * WINDOW_BYTES // _CREDIT_BYTES  # also while those of a window are on their way


@dataclass(slots=True)
class _Sent:
    """One request. `data` is what it writes, or what its answer has read when that was taken before its turn."""

    offset: int
    length: int
    receive: Callable[[], Any] = field(repr=False)
    data: bytes | memoryview | None = field(default=None, repr=False)


class _Flow:
    """What both directions share: the requests that are on their way, in the order in which they were sent."""

    def __init__(self, fd: Any) -> None:
        """`fd` is the library's open file."""
        self._fd = fd
        self._sent: deque[_Sent] = deque()
        self._on_their_way = 0

    def drop(self) -> None:
        """Take the answers that are left, whatever they are."""
        while self._sent:
            with suppress(Exception):
                self._sent.popleft().receive()
        self._on_their_way = 0

    def _affordable(self, length: int, largest: int) -> int:
        """Return how many of `length` bytes can be sent now; 0 when an answer has to come before."""
        if self._on_their_way and self._on_their_way + min(length, REQUEST_BYTES) > WINDOW_BYTES:
            return 0
        size = min(length, largest, REQUEST_BYTES)
        credit = self._credits() * _CREDIT_BYTES
        if credit < size and self._sent:
            return 0
        return min(size, max(credit, _CREDIT_BYTES))  # without any, the library says so

    def _credits(self) -> int:
        window = self._fd.connection.sequence_window
        return int(window["high"] - window["low"])

    def _send(self, message: Any, receive: Callable[[Any], Any], offset: int, length: int) -> _Sent:
        tree = self._fd.tree_connect
        cost = -(-length // _CREDIT_BYTES)
        granted = self._credits() + -(-self._on_their_way // _CREDIT_BYTES)
        request = self._fd.connection.send(
            message,
            sid=tree.session.session_id,
            tid=tree.tree_connect_id,
            credit_request=cost + max(0, _WANTED_CREDITS - granted),
        )
        self._on_their_way += length
        return _Sent(offset, length, lambda: receive(request))


class Writer(_Flow):
    """Appends to a file. What `write` was given is stored when `settle` has returned."""

    def __init__(self, fd: Any) -> None:
        super().__init__(fd)
        self._end = 0

    def write(self, piece: memoryview) -> None:
        """Send `piece`, which is not changed any more. What the server says to what was sent before, is raised here."""
        self._push(self._end, piece)
        self._end += len(piece)

    def settle(self) -> None:
        """Wait until everything that was sent is answered."""
        while self._sent:
            self._take()

    def _push(self, offset: int, data: memoryview) -> None:
        while data:
            size = self._affordable(len(data), self._fd.connection.max_write_size)
            if not size:
                self._take()
                continue
            message, receive = self._fd.write(bytes(data[:size]), offset, send=False)
            sent = self._send(message, receive, offset, size)
            sent.data = data[:size]
            self._sent.append(sent)
            offset, data = offset + size, data[size:]

    def _take(self) -> None:
        """Take the next answer; what the server did not take of that request is sent again."""
        sent = self._sent.popleft()
        self._on_their_way -= sent.length
        assert isinstance(sent.data, memoryview)
        written = sent.receive()
        if not written:
            raise OSError("the server takes no more bytes and does not say why")
        if written < sent.length:
            self._push(sent.offset + written, sent.data[written:])


class Reader(_Flow):
    """Reads a range of a file, from `offset` up to `end`, ahead of who asks for it."""

    def __init__(self, fd: Any, offset: int, end: int) -> None:
        super().__init__(fd)
        self._next = offset
        self._end = end

    def read(self) -> bytes:
        """Return the next bytes, at most `REQUEST_BYTES` of them; none at the end of the range or of the file."""
        while self._next < self._end:
            size = self._affordable(self._end - self._next, self._fd.connection.max_read_size)
            if not size:
                break
            self._sent.append(self._ask(self._next, size))
            self._next += size
        if not self._sent:
            return b""
        sent = self._sent.popleft()
        data = self._taken(sent)
        missing = sent.length - len(data)
        if missing and data:
            # All else is taken first, for its credits.
            for other in self._sent:
                other.data = self._taken(other)
            self._sent.appendleft(self._ask(sent.offset + len(data), missing))
        return data

    def _ask(self, offset: int, length: int) -> _Sent:
        message, receive = self._fd.read(offset, length, send=False)
        return self._send(message, receive, offset, length)

    def _taken(self, sent: _Sent) -> bytes:
        if isinstance(sent.data, bytes):
            return sent.data
        self._on_their_way -= sent.length
        try:
            return bytes(sent.receive())
        except EndOfFile:
            return b""
