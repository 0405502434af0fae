"""How far a job is: plain counters that the recipes move and that a terminal, a socket or a test looks at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

TargetState = Literal["writing", "written", "reading back", "verified", "failed"]


@dataclass(slots=True)
class Progress:
    """Counters of one job. `raw` is bytes of sources, `stored` bytes of the archive; `expected_raw` 0 when unknown."""

    stage: str = ""
    raw: int = 0
    stored: int = 0
    expected_raw: int = 0
    started: float = field(default_factory=time.monotonic)
    on_step: Callable[[str], None] = field(default=lambda _: None)
    """Called with one plain sentence at each step."""
    warnings: list[str] = field(default_factory=list)
    """What did not go as it should and does not stop the job."""
    steps: int = 0
    """How many steps there were."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds that each stage and part of a stage took that has ended; those of one name are added up."""
    past_cancelling: bool = False
    """What the job is for is done, or cannot be stopped any more without harm."""
    quiet: int = 0
    """How many parts are running in which no byte is expected to move here."""
    targets: dict[str, tuple[TargetState, str]] = field(default_factory=dict)
    """How far the archive is in each target, by URL; with why it failed there."""
    _running: bool = field(default=False, repr=False)

    def say(self, sentence: str) -> None:
        """Tell of a step in one plain sentence."""
        self.steps += 1
        self.on_step(sentence)

    def warn(self, sentence: str) -> None:
        """Tell of something that did not go as it should and does not stop the job."""
        self.warnings.append(sentence)
        self.say(f"Warning: {sentence}")

    def begin(self, stage: str, sentence: str, *, expected_raw: int = 0) -> None:
        """End the stage before and start one: counters go back to zero."""
        self.end()
        self.stage, self.raw, self.stored, self.expected_raw = stage, 0, 0, expected_raw
        self.started = time.monotonic()
        self._running = True
        self.say(sentence)

    def at(self, url: str, state: TargetState, why: str = "") -> None:
        """Tell how far the archive is in one target."""
        self.targets[url] = (state, why)

    def end(self) -> dict[str, float]:
        """End the last stage; return the seconds that each took."""
        if self._running:
            self._took(self.stage, self.started)
            self._running = False
        return dict(self.stages)

    @contextmanager
    def part(self, name: str, *, quiet: bool = False) -> Iterator[None]:
        """Time a part of the running stage under a name of its own; counters go on, and the stage is timed too.

        `quiet`: the work is done elsewhere and moves no bytes here, so a standstill means nothing.
        """
        started = time.monotonic()
        self.quiet += quiet
        try:
            yield
        finally:
            self.quiet -= quiet
            self._took(name, started)

    def _took(self, name: str, started: float) -> None:
        self.stages[name] = round(self.stages.get(name, 0.0) + time.monotonic() - started, 3)

    @property
    def rate(self) -> float:
        """Raw bytes per second since the stage began."""
        elapsed = time.monotonic() - self.started
        return self.raw / elapsed if elapsed > 0 else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds until `expected_raw` is reached at the present rate; None when that cannot be told.

        In a stage's first second it cannot: connections are being made, and the rate says nothing yet.
        """
        early = time.monotonic() - self.started < 1
        if early or not self.expected_raw or not self.rate or self.raw >= self.expected_raw:
            return None
        return (self.expected_raw - self.raw) / self.rate
