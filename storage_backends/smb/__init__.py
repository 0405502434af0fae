"""SMB targets: `open_smb(url, options)`. The library is imported with this package, so import it when first needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storage_backends.smb.backend import SmbBackend
from storage_backends.smb.place import parse

__all__ = ["SmbBackend", "open_smb"]


def open_smb(url: str, options: Mapping[str, Any]) -> SmbBackend:
    """Return the backend for `smb://[user@]host[:port]/share/path`. Reaches for nothing yet. Raises InvalidUrl."""
    return SmbBackend(parse(url, options))
