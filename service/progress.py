"""How far a job is: plain counters that the recipes move and that a terminal, a socket or a test looks at."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Progress:
    """Counters of one job. `raw` is bytes of sources, `stored` bytes of the archive; `expected_raw` 0 when unknown."""

    stage: str = ""
    raw: int = 0
    stored: int = 0
    expected_raw: int = 0
    started: float = field(default_factory=time.monotonic)
    say: Callable[[str], None] = field(default=lambda _: None)
    """Called with one plain sentence at each step."""

    def begin(self, stage: str, sentence: str, *, expected_raw: int = 0) -> None:
        """Start a stage: counters go back to zero."""
        self.stage, self.raw, self.stored, self.expected_raw = stage, 0, 0, expected_raw
        self.started = time.monotonic()
        self.say(sentence)

    @property
    def rate(self) -> float:
        """Raw bytes per second since the stage began."""
        elapsed = time.monotonic() - self.started
        return self.raw / elapsed if elapsed > 0 else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds until `expected_raw` is reached at the present rate; None when that cannot be told."""
        if not self.expected_raw or not self.rate or self.raw >= self.expected_raw:
            return None
        return (self.expected_raw - self.raw) / self.rate
