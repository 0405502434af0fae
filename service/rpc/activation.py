"""A socket that systemd has made, and on which it listened before the service began (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Final

from service.errors import ConfigError

FIRST: Final = 3
"""The descriptor of the first socket that is handed over."""


def handed_over(environment: MutableMapping[str, str]) -> socket.socket | None:
    """Return the socket that these variables tell of, and take them out; None when there is none for this process.

    The caller closes it. Raises ConfigError when it is not exactly one UNIX socket that listens.
    """
    count, process = environment.pop("LISTEN_FDS", ""), environment.pop("LISTEN_PID", "")
    environment.pop("LISTEN_FDNAMES", None)
    if not count or process != str(os.getpid()):
        return None
    hint = "Have deviceon-backup.socket name one path: ListenStream=/run/deviceon-backup/service.sock."
    if count != "1":
        raise ConfigError(f"systemd hands over {count} sockets, one is expected", hint=hint)
    os.set_inheritable(FIRST, False)
    given = socket.socket(fileno=FIRST)
    listens = given.family == socket.AF_UNIX and given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if not listens or given.type != socket.SOCK_STREAM:
        given.close()
        raise ConfigError("the socket that systemd hands over is no UNIX stream socket that listens", hint=hint)
    return given
