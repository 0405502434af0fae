"""Files for one person's eyes, made of names that an archive tells: safe names, nothing replaced, mode 0600."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

from service.blocking import run_in_thread

_LONGEST = 200  # bytes; a name has 255, and endings come behind
_ODD = r'[\x00-\x1f\x7f/\\:*?"<>|%]|^\.|[. ]\Z|[\ud800-\udfff]'
_UNSAFE, _UNSAFE_PART = re.compile(_ODD), re.compile(_ODD + r"|\.")


def safe_name(*parts: str) -> str:
    """Return a name for these parts that every file system takes, another one for other parts.

    Parts are joined by dots; what is odd becomes %XX of its UTF-8 bytes, and so do dots within one of several parts.
    """

    def encoded(found: re.Match[str]) -> str:
        return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass"))

    odd = _UNSAFE if len(parts) == 1 else _UNSAFE_PART
    name = ".".join(odd.sub(encoded, part) for part in parts) or "%"
    if len(name.encode()) <= _LONGEST:
        return name
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return name.encode()[: _LONGEST - 18].decode(errors="ignore") + f"%~{digest}"


def make_directory(path: Path) -> Path:
    """Make a directory that nobody else may enter, unless it is there."""
    path.mkdir(mode=0o700, exist_ok=True)
    return path


async def write(path: Path, pieces: AsyncIterator[bytes]) -> int:
    """Write a new file; return its size. Raises FileExistsError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    size = 0
    with os.fdopen(fd, "wb", buffering=0) as file:
        async for piece in pieces:
            size += len(piece)
            await run_in_thread(_write_all, file.fileno(), piece)
    return size


def write_text(path: Path, text: str) -> None:
    """Write a new small file. Raises FileExistsError."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
