"""Who may connect when there are too many: those that say nothing make room for those that come.

So nobody keeps an admin out by opening connections, not even under the admin's own user id. A peer with too many gives
up one of its own; when all seats are taken, a peer that has more than the newcomer's does.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from service.rpc.codec import Code, RpcError
from service.rpc.limits import Limits
from service.rpc.peers import Peer


class Occupant(Protocol):
    """What the seats ask a connection."""

    @property
    def peer(self) -> Peer:
        """Return whose it is."""

    @property
    def occupied(self) -> bool:
        """Tell whether a request is being carried out, or events are subscribed to."""

    @property
    def spoke(self) -> bool:
        """Tell whether a whole request ever came."""

    @property
    def last_active(self) -> float:
        """Return when a request last came or was carried out; before the first, when it connected."""


T = TypeVar("T", bound=Occupant)


class Seats(list[T]):
    """The connections that are open, in the order they came."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self._limits = limits

    def take(self, newcomer: T) -> T | None:
        """Seat a newcomer; return the connection that lost its seat for it. Raises RpcError BUSY when none is idle."""
        mine = self.of(newcomer.peer)
        loser = None
        if len(mine) >= self._limits.connections_per_peer:
            loser = self._longest_idle(mine)
        elif len(self) >= self._limits.connections:
            others = [other for other in self if len(self.of(other.peer)) > len(mine)]
            loser = self._longest_idle(others) or self._longest_idle(mine)
        else:
            self.append(newcomer)
            return None
        if loser is None:
            raise RpcError(
                Code.BUSY, "there are too many connections", hint="Close some, or try again later.", transient=True
            )
        self.remove(loser)
        self.append(newcomer)
        return loser

    def leave(self, connection: T) -> None:
        """Give a seat back; one that was lost already is fine."""
        if connection in self:
            self.remove(connection)

    def of(self, peer: Peer) -> list[T]:
        """Return the connections of one peer."""
        return [each for each in self if each.peer.name == peer.name]

    @staticmethod
    def _longest_idle(connections: list[T]) -> T | None:
        idle = [each for each in connections if not each.occupied]
        return min(idle, key=lambda each: (each.spoke, each.last_active), default=None)
