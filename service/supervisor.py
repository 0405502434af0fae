"""Telling systemd how the service stands: that it takes commands, that it lives, that it stops (sd_notify(3)).

Without systemd, nothing is told and nothing is different.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import MutableMapping
from typing import Final, Self

MARGIN: Final = 15.0
"""Seconds beside the time that a job gets to undo what it began, until everything else has ended too."""

log = logging.getLogger(__name__)


class Supervisor:
    """`address` is where systemd listens, if it does; `watchdog` the seconds after which silence counts as death."""

    def __init__(self, address: str | None = None, *, watchdog: float | None = None) -> None:
        self._address = address
        self._watchdog = watchdog

    @classmethod
    def taken_from(cls, environment: MutableMapping[str, str]) -> Self:
        """Return the supervisor that these variables name, and take them out: they are not for children."""
        address = environment.pop("NOTIFY_SOCKET", None)
        microseconds = environment.pop("WATCHDOG_USEC", None)
        mine = environment.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return cls(address, watchdog=int(microseconds) / 1e6 if microseconds and mine else None)

    def ready(self) -> None:
        """Say that commands are taken."""
        self._tell("READY=1")

    def stopping(self, seconds: float) -> None:
        """Say that the end has begun, and may take so long."""
        self._tell(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={round((seconds + MARGIN) * 1e6)}")

    async def keep_alive(self) -> None:
        """Say again and again that the event loop turns, when somebody counts on it; until cancelled."""
        while self._watchdog is not None:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self._watchdog / 3)

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as connection:
                connection.setblocking(False)
                connection.sendto(state.encode(), address)
        except OSError as error:
            log.warning("systemd could not be told %s: %s", state.partition("\n")[0], error)
