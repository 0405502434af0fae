"""What one job says while it runs: its steps, its warnings, what is logged on its behalf; bounded, without secrets."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from typing import Any, Literal

from service.progress import Progress
from service.secret import redact

Level = Literal["info", "warning", "error"]

LONGEST = 1000
"""Characters of a line that are kept."""
WAITING = 500
"""Lines that wait to be remembered at most; of more, the oldest are lost, which shows in their numbers."""


@dataclass(slots=True)
class JobLog:
    """Lines of one job, numbered from 1. Threads of the job may add lines."""

    clock: Callable[[], datetime]
    progress: Progress
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))
    _waiting: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=WAITING))

    def step(self, sentence: str) -> None:
        """Take in a sentence that the progress has told."""
        warned = bool(self.progress.warnings) and sentence == f"Warning: {self.progress.warnings[-1]}"
        self.add("warning" if warned else "info", self.progress.warnings[-1] if warned else sentence)

    def add(self, level: Level, text: str) -> None:
        """Add a line."""
        text = redact(text)
        self._waiting.append(
            {
                "number": next(self._numbers),
                "time": self.clock().isoformat(),
                "level": level,
                "stage": self.progress.stage,
                "text": text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…",
            }
        )

    def take(self) -> list[dict[str, Any]]:
        """Return the lines that were not taken yet, in order."""
        taken = []
        while self._waiting:
            taken.append(self._waiting.popleft())
        return taken
