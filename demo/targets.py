"""Where the demo keeps its archives: a directory, a real SMB server's share, a real S3 server's bucket, or a URL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = ("file", "smb", "s3")


@contextlib.contextmanager
def running_target(kind: str, directory: Path) -> Iterator[dict[str, Any]]:
    """Give `target` of a configuration; the server behind it runs until the block is left.

    `kind` is one of KINDS, or the URL of a target that is there already. Secrets go to files in `directory`.
    """
    if kind == "file":
        archives = directory / "archives"
        archives.mkdir()
        yield {"url": archives.as_uri()}
    elif kind == "smb":
        from demo.smb_server import SambaServer  # noqa: PLC0415 - others do not need it

        with SambaServer() as samba:
            yield {"url": samba.url, "storage_options": _in_files(samba.storage_options, directory)}
    elif kind == "s3":
        from demo.s3_server import CephServer  # noqa: PLC0415 - others do not need it

        with CephServer() as ceph:
            ceph.create_bucket("backups")
            settings = ceph.target_settings("backups", "deviceon")
            yield settings | {"storage_options": _in_files(settings["storage_options"], directory)}
    else:
        yield {"url": kind}


def _in_files(options: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Write secrets as a configuration has them: each in a file of its own."""
    kept = {}
    for key, value in options.items():
        if key in ("key", "secret", "password"):
            file = directory / f"target-{key}"
            file.touch(0o600)
            file.write_text(str(value))
            kept[key] = {"file": str(file)}
        else:
            kept[key] = value
    return kept
