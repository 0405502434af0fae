"""Targets in S3. `open_s3` gives the backend; `backend` tells what it promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storage_backends.s3.backend import S3Backend
from storage_backends.s3.options import parse_options

__all__ = ["S3Backend", "open_s3"]


def open_s3(path: str, options: Mapping[str, Any]) -> S3Backend:
    """Return the backend for `BUCKET[/PREFIX]`. Reaches for nothing yet. Raises InvalidUrl."""
    return S3Backend(parse_options(path, options))
