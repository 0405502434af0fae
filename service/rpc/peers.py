"""Who is on the other end, and what they may do.

The kernel says which user connected to a UNIX socket, and a certificate which name is behind a TLS connection. Process
numbers are not looked at: they are used again, and are 0 across containers.
"""

from __future__ import annotations

import pwd
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from service.config_types import Person
from service.errors import ConfigError

Role = Literal["read", "admin"]
"""`read` may look and listen; `admin` may also command."""

_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid: struct ucred of unix(7); ids are unsigned


@dataclass(frozen=True, slots=True)
class Peer:
    """A client, by user or certificate. All connections of one name share one allowance."""

    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class AllowedUsers:
    """Who may use the UNIX socket, by user id. A user in both is an admin."""

    admin: frozenset[int] = field(default_factory=frozenset)
    read: frozenset[int] = field(default_factory=frozenset)

    def peer(self, uid: int) -> Peer | None:
        """Return the peer with this user id; None when it is not listed."""
        role = _role(uid, self.admin, self.read)
        return None if role is None else Peer(f"uid {uid}", role)


@dataclass(frozen=True, slots=True)
class AllowedNames:
    """Who may use the TLS socket, by a name in the certificate's SubjectAltName.

    An entry with `://` is a URI, one with `@` an e-mail address, any other a DNS name. Each is compared whole: a
    wildcard in a certificate stands for itself only.
    """

    admin: frozenset[str] = field(default_factory=frozenset)
    read: frozenset[str] = field(default_factory=frozenset)

    def peer(self, certificate: Mapping[str, Any] | None) -> Peer | None:
        """Return the peer of a certificate as `ssl` gives it (already checked); None when no name is listed."""
        names = [
            _comparable(value)
            for kind, value in (certificate or {}).get("subjectAltName", ())
            if kind == _kind(value)  # so that a URI that reads like a DNS name is not taken for one
        ]
        found = [
            Peer(f"certificate {name}", role)
            for name in names
            if (role := _role(name, _all(self.admin), _all(self.read))) is not None
        ]
        return min(found, key=lambda peer: peer.role, default=None)  # "admin" < "read"


def user_of(connection: socket.socket) -> int:
    """Return the user id of the process that connected to a UNIX socket, as it was then."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(credentials)
    return int(uid)


def uid_of(who: Person, *, named_in: str) -> int:
    """Return a user's number. Raises ConfigError, which tells where he is `named_in`, when there is no such user."""
    if isinstance(who, int):
        return who
    try:
        return pwd.getpwnam(who).pw_uid
    except KeyError:
        raise ConfigError(
            f"{named_in} names the user {who!r}, whom this machine does not have",
            hint="Correct the name, or give the user's number.",
        ) from None


def _role(who: object, admin: frozenset[Any], read: frozenset[Any]) -> Role | None:
    if who in admin:
        return "admin"
    return "read" if who in read else None


def _kind(value: str) -> str:
    if "://" in value:
        return "URI"
    return "email" if "@" in value else "DNS"


def _comparable(value: str) -> str:
    return value.lower() if _kind(value) == "DNS" else value


def _all(names: Iterable[str]) -> frozenset[str]:
    return frozenset(map(_comparable, names))
