"""How many bytes may be on their way at once."""

from __future__ import annotations

import asyncio


class Room:
    """Room for `size` bytes. One part larger than that finds room when nothing else is there."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._changed = asyncio.Condition()

    async def take(self, size: int) -> None:
        """Wait until there is room, and take it."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._taken or self._taken + size <= self._size)
            self._taken += size

    async def give_back(self, size: int) -> None:
        """Give room back."""
        async with self._changed:
            self._taken -= size
            self._changed.notify_all()
