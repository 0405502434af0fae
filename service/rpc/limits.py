"""The numbers that bound what clients can take: connections, memory and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from service.rpc.codec import MAX_REQUEST


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one server. The defaults are the documented ones; tests take smaller ones."""

    connections: int = 32
    connections_per_peer: int = 8
    subscribers_per_peer: int = 4
    requests_in_flight: int = 4
    """Of one connection, until their answers have been read. Further ones are left unread."""
    line_bytes: int = MAX_REQUEST
    malformed_lines: int = 20
    """Of one connection; then it is closed."""
    unread_bytes_per_peer: int = 2 * 1024 * 1024
    """Of answers above 64 KiB that wait to be read, over all of a peer's connections."""
    partial_line_seconds: float = 30
    """From the first byte of a line to its newline."""
    idle_seconds: float = 300
    """Without a request and without a subscription."""
    unread_seconds: float = 30
    """That a line to the client may wait to be read."""
    handshake_seconds: float = 5
    stop_seconds: float = 5
    """That requests in flight have when the server stops; what they wait for is then cancelled."""

    @property
    def look_every(self) -> float:
        """Seconds between two looks for clients that are overdue."""
        return min(1.0, self.partial_line_seconds / 4, self.idle_seconds / 4, self.unread_seconds / 4)


DEFAULTS: Final = Limits()
