"""Which connections are the reverse proxy's, and what it says of whom it stands for. Nobody else is believed."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Iterator
from typing import Final

from aiohttp import web

from service.portal.sessions import User
from service.portal.settings import HeaderSettings, ProxySettings
from service.rpc.peers import uid_of, user_of

LONGEST_NAME: Final = 200
SEPARATORS: Final = re.compile(r"[,;]")


class Proxy:
    """The reverse proxy in front; with no settings there is none."""

    def __init__(self, settings: ProxySettings | None) -> None:
        """Look up the users. Raises ConfigError when there is no such user."""
        self._networks = [ipaddress.ip_network(each) for each in settings.peers] if settings else []
        self._uids = (
            frozenset(uid_of(each, named_in="proxy.users") for each in settings.users) if settings else frozenset()
        )

    def has_sent(self, request: web.BaseRequest) -> bool:
        """Tell whether a request came over a connection of the proxy's."""
        connection = _socket(request)
        if connection is None:
            return False
        try:
            if connection.family == socket.AF_UNIX:
                return bool(self._uids) and user_of(connection) in self._uids
            address = _address(str(connection.getpeername()[0]))
        except OSError:  # whoever it was is gone by now
            return False
        return address is not None and any(address in network for network in self._networks)

    def client(self, request: web.BaseRequest) -> str:
        """Return the address that a request comes from, for counting and for the log.

        It is the last in X-Forwarded-For that is not the proxy's own, so that what a client has put before does not
        count.
        """
        direct = request.remote or "socket"
        if not self.has_sent(request):
            return direct
        for told in reversed(list(_words(request, "X-Forwarded-For"))):
            address = _address(told)
            if address is None:
                break
            if not any(address in network for network in self._networks):
                return str(address)
        return direct

    def user(self, request: web.BaseRequest, settings: HeaderSettings) -> tuple[str, User | None] | None:
        """Return the name that the proxy tells and who that is (None: has no role); None when it tells nobody."""
        if not self.has_sent(request):
            return None
        names = request.headers.getall(settings.user_header, [])
        name = names[0].strip() if len(names) == 1 else ""  # of two, one may be the client's own
        if not name or len(name) > LONGEST_NAME or not name.isprintable():
            return None
        roles = _words(request, settings.roles_header) if settings.roles_header else ()
        role = settings.role(name, roles)
        return name, None if role is None else User(name, role)


def _words(request: web.BaseRequest, header: str) -> Iterator[str]:
    for value in request.headers.getall(header, []):
        yield from (word.strip() for word in SEPARATORS.split(value) if word.strip())


def _socket(request: web.BaseRequest) -> socket.socket | None:
    transport = request.transport
    found: socket.socket | None = None if transport is None else transport.get_extra_info("socket")
    return found


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(text.strip("[]"))
        return getattr(address, "ipv4_mapped", None) or address
    return None
