"""How much an experiment tries: small in `make test`, more where `make scoreboard TIER=nightly` asks for it."""

from __future__ import annotations

import os

SEED = int(os.environ.get("DEVICEON_BACKUP_SEED", "20261128"))
"""The seed of all dice that are thrown; printed with the counts."""


def size(name: str, small: int) -> int:
    """Return DEVICEON_BACKUP_<name>, and `small` when it is not set."""
    return int(os.environ.get(f"DEVICEON_BACKUP_{name}", small))


def examples(small: int) -> int:
    """Return how many examples Hypothesis makes up: some times as many when DEVICEON_BACKUP_EXAMPLES_TIMES says so."""
    return small * size("EXAMPLES_TIMES", 1)
