"""Where archives are kept: targets named by fsspec URLs. Knows nothing of backups.

`open_target(url, storage_options)` gives the backend; its contract and errors are in `storage_backends.base`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage_backends.base import (
    AccessDenied,
    InvalidKey,
    InvalidUrl,
    ObjectChanged,
    ObjectExists,
    ObjectInfo,
    ObjectNotFound,
    StorageBackend,
    StorageError,
    TargetFull,
    TargetUnavailable,
    check_key,
)

__all__ = [
    "AccessDenied",
    "InvalidKey",
    "InvalidUrl",
    "ObjectChanged",
    "ObjectExists",
    "ObjectInfo",
    "ObjectNotFound",
    "StorageBackend",
    "StorageError",
    "TargetFull",
    "TargetUnavailable",
    "check_key",
    "local_directory",
    "open_target",
]

_SUPPORTED = (
    "Supported now: a directory of this machine, as file:///var/backups or /var/backups; "
    "S3 and what speaks its protocol, as s3://bucket/prefix."
)


def open_target(url: str, storage_options: Mapping[str, Any] | None = None) -> StorageBackend:
    """Return the backend for an fsspec URL. Reaches for nothing yet: an absent target shows at the first call.

    `file:///directory`, `local:///directory` and a plain absolute path are the same, and as in fsspec the path is
    taken as it is written (no percent-decoding). Options are fsspec's for the protocol; `file` knows `auto_mkdir`.
    `s3://bucket/prefix` is an S3 target; its options are told in docs/CONFIGURATION.md.
    Raises InvalidUrl.
    """
    protocol, path = _split(url)
    if protocol in {"s3", "s3a"}:
        from storage_backends.s3 import open_s3  # noqa: PLC0415  each backend is imported when first needed

        return open_s3(path, dict(storage_options or {}))
    if protocol not in {"file", "local"}:
        # The URL may hold a password: only its protocol is repeated.
        raise InvalidUrl(f"targets of the protocol {protocol!r} are not supported", hint=_SUPPORTED)
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
    auto_mkdir = options.pop("auto_mkdir", False)
    if not isinstance(auto_mkdir, bool):
        raise InvalidUrl("storage_options: auto_mkdir must be true or false")
    if options:
        names = ", ".join(sorted(map(str, options)))
        raise InvalidUrl(f"storage_options: a local directory has no option {names}", hint="It knows auto_mkdir only.")
    return LocalBackend(Path(path), auto_mkdir=auto_mkdir)
