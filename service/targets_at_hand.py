"""Targets that stay open between two requests of a client: to open one anew costs a session, and logging in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from storage_backends import StorageBackend, StorageError, open_target

log = logging.getLogger(__name__)

IDLE_SECONDS = 20.0


@dataclass(eq=False, slots=True)
class _Opened:
    """One target, with what it was opened with and how many use it now."""

    options: Mapping[str, Any]
    target: StorageBackend
    users: int = 0
    closing: asyncio.TimerHandle | None = None


class TargetsAtHand:
    """Opens targets for a while: one that nobody uses for `idle_seconds` is closed. Of one event loop."""

    def __init__(self, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._idle_seconds = idle_seconds
        self._opened: dict[str, _Opened] = {}
        self._closing = set[asyncio.Task[None]]()

    @contextlib.asynccontextmanager
    async def opened(self, url: str, options: Mapping[str, Any]) -> AsyncIterator[StorageBackend]:
        """Give a target for a block. One that was opened with other options is not the same. Raises InvalidUrl."""
        one = self._opened.get(url)
        if one is None or one.options != options:
            opened = _Opened(options, open_target(url, options))
            if one is not None:
                self._let_go(url, one)
            one = self._opened[url] = opened
        if one.closing is not None:
            one.closing.cancel()
            one.closing = None
        one.users += 1
        try:
            yield one.target
        finally:
            one.users -= 1
            if one.users == 0 and self._opened.get(url) is one:
                one.closing = asyncio.get_running_loop().call_later(self._idle_seconds, self._let_go, url, one)
            elif one.users == 0:
                self._close(one)

    async def aclose(self) -> None:
        """Close all of them; nothing may be in use any more."""
        for url, one in list(self._opened.items()):
            self._let_go(url, one)
        await asyncio.gather(*self._closing)

    def _let_go(self, url: str, one: _Opened) -> None:
        if self._opened.get(url) is one:
            del self._opened[url]
        if one.closing is not None:
            one.closing.cancel()
        if one.users == 0:  # else whoever uses it last closes it
            self._close(one)

    def _close(self, one: _Opened) -> None:
        task = asyncio.get_running_loop().create_task(_closed(one.target))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _closed(target: StorageBackend) -> None:
    try:
        await target.aclose()
    except (StorageError, OSError) as error:
        log.warning("%s could not be closed in good order: %s", target.url, error)
