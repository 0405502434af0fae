"""The names of unfinished uploads: hidden, unmistakably ours, and random."""

from __future__ import annotations

import secrets

PREFIX = ".deviceon-backup-"
SUFFIX = ".part"


def temporary_name() -> str:
    """Return a new name."""
    return f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}"


def is_temporary(name: str) -> bool:
    """Say whether `name` is one that an unfinished upload of ours has."""
    return name.startswith(PREFIX) and name.endswith(SUFFIX) and "/" not in name and "\\" not in name
