"""Who has logged in: sessions in memory, under ids that nobody can guess. A restart ends them all."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from service.rpc.peers import Role

MOST_SESSIONS: Final = 1000
MOST_OF_A_USER: Final = 200
"""Whoever logs in again and again ends sessions of his own, not an administrator's."""


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may come in, and what he may do."""

    name: str
    role: Role


@dataclass(slots=True, eq=False)
class Session:
    """One login. Times are of the monotonic clock that `Sessions` is given."""

    id: str
    user: User
    began: float
    seen: float


class Sessions:
    """The sessions that last. `idle` and `absolute` are seconds."""

    def __init__(self, *, idle: float, absolute: float) -> None:
        self._idle, self._absolute = idle, absolute
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def begin(self, user: User, *, now: float) -> Session:
        """Begin one, always under a new id, so that an id that was known before the login is worth nothing."""
        his = [each.id for each in self._sessions.values() if each.user == user]
        if len(his) >= MOST_OF_A_USER:
            del self._sessions[his[0]]
        session = Session(secrets.token_urlsafe(32), user, now, now)
        self._sessions[session.id] = session
        if len(self._sessions) > MOST_SESSIONS:
            self._sessions.popitem(last=False)  # the one that was used the longest ago
        return session

    def find(self, session_id: str, *, now: float, used: bool) -> Session | None:
        """Return the session if it lasts; `used`: by its user, which makes it last longer."""
        session = self._sessions.get(session_id)
        if session is None:
            return None
        if now - session.began >= self._absolute or now - session.seen >= self._idle:
            del self._sessions[session_id]
            return None
        if used:
            session.seen = now
            self._sessions.move_to_end(session_id)
        return session

    def end(self, session_id: str) -> None:
        """End one; none is fine."""
        self._sessions.pop(session_id, None)
