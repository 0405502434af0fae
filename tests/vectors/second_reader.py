"""The second implementation of the format, loaded from its file: tools/System Recovery/open_archive.py."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from typing import Any

PATH = Path(__file__).parents[2] / "tools" / "System Recovery" / "open_archive.py"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("open_archive", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["open_archive"] = module
    spec.loader.exec_module(module)
    return module


open_archive = _load()


def read_second(data: bytes, data_key: bytes | None) -> dict[int, bytes]:
    """Read a whole archive; return the raw bytes of each stream."""
    archive = open_archive.Archive(io.BytesIO(data), data_key)
    if archive.manifest is None:
        raise open_archive.KeyProblem("no key")
    return {stream["id"]: b"".join(archive.stream(stream)) for stream in archive.manifest["streams"]}
