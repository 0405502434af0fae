"""Where archives are kept: targets named by fsspec URLs. Knows nothing of backups.

`open_target(url, storage_options)` gives the backend; its contract and errors are in `storage_backends.base`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage_backends.base import (
    AccessDenied,
    Announce,
    InvalidKey,
    InvalidUrl,
    ObjectChanged,
    ObjectExists,
    ObjectInfo,
    ObjectNotFound,
    Promise,
    StorageBackend,
    StorageError,
    TargetFull,
    TargetUnavailable,
    check_key,
)
from storage_backends.options import check_numbers, check_options

__all__ = [
    "AccessDenied",
    "Announce",
    "InvalidKey",
    "InvalidUrl",
    "ObjectChanged",
    "ObjectExists",
    "ObjectInfo",
    "ObjectNotFound",
    "Promise",
    "StorageBackend",
    "StorageError",
    "TargetFull",
    "TargetUnavailable",
    "check_key",
    "local_directory",
    "open_target",
]


def open_target(url: str, storage_options: Mapping[str, Any] | None = None) -> StorageBackend:
    """Return the backend for an fsspec URL. Reaches for nothing yet: an absent target shows at the first call.

    `file:///directory`, `local:///directory` and a plain absolute path are the same, and as in fsspec the path is
    taken as it is written (no percent-decoding). Options are fsspec's for the protocol; `file` knows `auto_mkdir`,
    `min_free` (bytes) and `timeout` (seconds). docs/CONFIGURATION.md has all options.
    Raises InvalidUrl.
    """
    protocol, path = _split(url)
    check_numbers(storage_options or {})
    if protocol in {"s3", "s3a"}:
        from storage_backends.s3 import open_s3  # noqa: PLC0415  each backend is imported when first needed

        return open_s3(path, dict(storage_options or {}))
    if protocol == "smb":
        from storage_backends.smb import open_smb  # noqa: PLC0415  takes a while to import

        return open_smb(url, storage_options or {})
    if protocol not in {"file", "local"}:
        from storage_backends.generic import open_generic  # noqa: PLC0415  imports the whole of fsspec

        return open_generic(url, storage_options or {})
    return _open_local(path, dict(storage_options or {}))


def local_directory(url: str) -> Path | None:
    """Return the directory of this machine that a target's URL names; None when it is elsewhere."""
    protocol, path = _split(url)
    return Path(path) if protocol in {"file", "local"} else None


def _split(url: str) -> tuple[str, str]:
    from fsspec.core import split_protocol  # noqa: PLC0415  takes a tenth of a second to import

    protocol, path = split_protocol(url)
    if protocol is None:
        return "file", url.removeprefix("file:").removeprefix("local:")
    return str(protocol).lower(), str(path)


def _open_local(path: str, options: dict[str, Any]) -> StorageBackend:
    from storage_backends.local import LocalBackend  # noqa: PLC0415  each backend is imported when first needed

    if not path.startswith("/") or "\0" in path:
        raise InvalidUrl(
            f"{path!r} is not an absolute path",
            hint="Write the whole path, with three slashes in a URL: file:///var/backups.",
        )
    kinds: dict[str, tuple[type, ...]] = {"auto_mkdir": (bool,), "min_free": (int,), "timeout": (int, float)}
    check_options("a local directory", options, kinds)
    return LocalBackend(Path(path), **options)
