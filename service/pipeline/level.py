"""Compressing at a fixed zstd level, or at the one that measuring finds best for this data."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Literal

from service.archive.chunk import compress

Level = int | Literal["auto"]
"""A zstd level, or `auto`."""

CANDIDATES: Final = (1, 3, 6)
"""What `auto` chooses from. Often a higher level makes device data no smaller, only slower; JSON and text can gain."""
TRIALS: Final = 6
"""So many chunks are compressed at each candidate level before `auto` decides."""
TRIAL_BYTES: Final = 1 << 20
"""Smaller chunks tell too little, unless all are smaller."""
WORTH_IT: Final = 0.97
"""A higher level has to gain this much."""
LINE_RATE: Final = 100e6
"""Bytes a second of a target that is neither slow nor fast: a share or object store behind one gigabit a second."""


class Compressor:
    """Compresses the chunks of one archive. Safe in many threads.

    With `auto`, that level is chosen at which compressing a chunk and sending it at LINE_RATE takes the least time
    together. Processor time is measured, so that what else the machine does has no say.
    """

    def __init__(
        self, level: Level, *, chunk_bytes: int = TRIAL_BYTES, clock: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock = clock
        self._trial_bytes = min(TRIAL_BYTES, chunk_bytes)
        self._chosen = None if level == "auto" else level
        self._cost = dict.fromkeys(CANDIDATES, 0.0)
        self._trials = 0
        self._lock = threading.Lock()

    @property
    def level(self) -> int:
        """The level that is used; the lowest one while `auto` has not decided."""
        return CANDIDATES[0] if self._chosen is None else self._chosen

    def compress(self, raw: bytes | bytearray | memoryview) -> bytes:
        """Return `raw` as one zstd frame; see `service.archive.chunk.compress`."""
        if self._chosen is not None or len(raw) < self._trial_bytes:
            return compress(raw, level=self.level)
        frames: dict[int, bytes] = {}
        cost: dict[int, float] = {}
        for level in CANDIDATES:
            began = self._clock()
            frames[level] = compress(raw, level=level)
            cost[level] = self._clock() - began + len(frames[level]) / LINE_RATE
        self._learn(cost)
        return frames[_best(cost)]

    def _learn(self, cost: dict[int, float]) -> None:
        with self._lock:
            for level, seconds in cost.items():
                self._cost[level] += seconds
            self._trials += 1
            if self._trials == TRIALS:
                self._chosen = _best(self._cost)


def _best(cost: dict[int, float]) -> int:
    """The cheapest level; the lowest one when that costs hardly more."""
    best = min(cost, key=lambda level: cost[level])
    return best if cost[best] < WORTH_IT * cost[CANDIDATES[0]] else CANDIDATES[0]
