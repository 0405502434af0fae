"""Reads a staged copy of a single file back, for drills."""

from __future__ import annotations

import hashlib
from pathlib import Path

from service.errors import StageFailed
from service.sources.base import Compared, StoredStream


def read_back(copy: Path, stream: StoredStream) -> Compared:
    """Compare a file with the stream that it was written from. Raises StageFailed when they differ, OSError."""
    with copy.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != stream.sha256:
            raise StageFailed(f"The restored copy {copy} reads back with another content than was archived.")
    return Compared({"sqlite_files": 1, "bytes": stream.bytes, "read_back_digests": 1})
