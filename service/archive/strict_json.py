"""JSON as the format allows it: one way to read it (`service.strict_json`), and one way to write it."""

from __future__ import annotations

import json
from typing import Any

from service import strict_json
from service.errors import CorruptArchive


def strict_loads(data: bytes) -> Any:
    """Return the value of one JSON text. Raises CorruptArchive for all that the format does not allow in JSON."""
    try:
        return strict_json.strict_loads(data)
    except ValueError as exc:
        raise CorruptArchive(f"a JSON part of the archive cannot be read: {str(exc)[:200]}") from exc


def canonical_json(value: Any) -> bytes:
    """Return `value` as JSON in one fixed way: UTF-8, members sorted by name, no spaces, no needless escapes.

    Raises ValueError for what has no such form: NaN, Infinity, text that is not Unicode (lone surrogates).
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()
