"""One backup or restore at a time: on this machine by a lock file, and for one PostgreSQL server by a lock in it.

The second is what keeps two replicas of this service apart that do not share a state directory.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from service import sources
from service.config_sources import SourceSettings
from service.state_directory import only_job


@contextlib.asynccontextmanager
async def exclusive(state_dir: Path, what: str, settings: Iterable[SourceSettings]) -> AsyncIterator[None]:
    """Hold both locks for a block. Raises JobRefused when one is taken, SourceUnavailable when a server is away."""
    with only_job(state_dir, what):
        async with servers_locked(settings, what):
            yield


@contextlib.asynccontextmanager
async def servers_locked(
    settings: Iterable[SourceSettings], what: str, *, recovering: bool = False
) -> AsyncIterator[None]:
    """Hold the lock of every PostgreSQL server among `settings`. Raises JobRefused, SourceUnavailable.

    `recovering`: a restore of these servers was interrupted or waits, and is being settled.
    """
    async with contextlib.AsyncExitStack() as locks:
        for lock in sources.locks(settings, what, recovering=recovering):
            await locks.enter_async_context(lock)
        yield
