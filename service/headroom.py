"""Room that has to stay: whether a copy fits beside what is live, and a watch while it is made."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from service.blocking import to_the_end
from service.errors import Obstacle, StageFailed
from service.sources.base import Room

T = TypeVar("T")

LOOK_SECONDS = 0.5
CONNECTIONS_TIMES = 3
"""A drill begins when so many times its connections are free: those of live clients come and go meanwhile."""


class NoRoomLeft(StageFailed):
    """A file system came too near to its end while a copy was being made."""

    code = "NO_ROOM_LEFT"
    transient = True


@dataclass(frozen=True, slots=True)
class Space:
    """What copies need on one file system, and what is free there, in bytes; `directory` is one on it."""

    directory: str
    needed: int
    free: int


@dataclass(slots=True)
class _FileSystem:
    """One file system: a directory on it, and what a copy needs there."""

    directory: Path
    needed: int = 0

    def short(self, share: float) -> str:
        """Say what is wrong when less than `share` of it would stay free; empty when nothing is."""
        usage = os.statvfs(self.directory)
        free, least = usage.f_bavail * usage.f_frsize, round(usage.f_blocks * usage.f_frsize * share)
        if free - self.needed >= least:
            return ""
        need = f"the copy needs about {self.needed / 1e9:.2f} GB, and " if self.needed else ""
        return (
            f"{self.directory}: {need}{least / 1e9:.2f} GB ({share:.0%}) have to stay free, "
            f"{free / 1e9:.2f} GB are free now"
        )


def spaces(rooms: Sequence[Room]) -> list[Space]:
    """Tell of each file system that copies are made on. Raises OSError."""
    told = []
    for place in _file_systems(rooms):
        usage = os.statvfs(place.directory)
        told.append(Space(str(place.directory), place.needed, usage.f_bavail * usage.f_frsize))
    return told


def obstacles(rooms: Sequence[Room], *, share: float, connections: int) -> list[Obstacle]:
    """Tell what keeps copies from being made without danger for what is live. Raises OSError.

    `share` of each file system has to stay free; the copies load rows over `connections`.
    """
    found = [
        Obstacle(
            "SPACE", short, "Make room there, or have drills restore elsewhere (`drill.postgresql`, `.directory`)."
        )
        for place in _file_systems(rooms)
        if (short := place.short(share))
    ]
    for room in rooms:
        if room.unseen:
            found.append(
                Obstacle(
                    "SPACE_UNKNOWN",
                    f"{room.unseen}, so nobody here sees whether its disk would fill up",
                    "Name another server in `drill.postgresql`, or take the risk with `drill.allow: [SPACE_UNKNOWN]`.",
                )
            )
        if room.free_connections is not None and room.free_connections < CONNECTIONS_TIMES * connections:
            found.append(
                Obstacle(
                    "CONNECTIONS",
                    f"the server takes {room.free_connections} more connections, and a drill wants "
                    f"{CONNECTIONS_TIMES * connections} to be free",
                    "Run the drill at a quieter time, or lower `drill.connections`.",
                )
            )
    return found


async def while_there_is_room(work: Coroutine[Any, Any, T], rooms: Sequence[Room], *, share: float) -> T:
    """Do something, and cancel it when less than `share` of a file system is left. Raises NoRoomLeft."""
    places = [_FileSystem(place.directory) for place in _file_systems(rooms)]
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=LOOK_SECONDS)
            short = next((told for place in places if (told := place.short(share))), "")
            if short and not task.done():
                raise NoRoomLeft(
                    f"given up, since room became scarce while the copy was made: {short}",
                    hint="The copy is dropped. Make room there, then drill again.",
                )
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await to_the_end(_ended(task))


async def _ended(task: asyncio.Future[Any]) -> None:
    """Wait until a task that was cancelled has undone what it was at, whatever that says."""
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


def _file_systems(rooms: Iterable[Room]) -> list[_FileSystem]:
    """Return each file system once, with what all copies need on it."""
    found: dict[int, _FileSystem] = {}
    for directory, needed in _by_directory(rooms).items():
        seen = _visible(directory)
        place = found.setdefault(seen.stat().st_dev, _FileSystem(seen))
        place.needed += needed
    return list(found.values())


def _by_directory(rooms: Iterable[Room]) -> Mapping[Path, int]:
    total: dict[Path, int] = defaultdict(int)
    for room in rooms:
        for directory, needed in room.needed.items():
            total[directory] += needed
    return total


def _visible(directory: Path) -> Path:
    """Return the directory, or the nearest above it that may be looked at: PostgreSQL's is closed to others."""
    for path in (directory, *directory.parents):
        try:
            path.stat()
        except (PermissionError, FileNotFoundError):
            continue
        return path
    return Path("/")
