"""JSON as the format allows it: one way to read it, strictly, and one way to write it.

Python's own reader keeps the last of two members of one name, takes NaN, lone surrogates and numbers that become
infinite, and leaves deep nesting to the interpreter's stack. Readers in other languages decide otherwise, so all of
that is refused.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, NoReturn

from service.errors import CorruptArchive

MAX_DEPTH: Final = 32
"""Objects and arrays are nested at most this deep."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def strict_loads(data: bytes) -> Any:
    """Return the value of one JSON text. Raises CorruptArchive for all that the format does not allow in JSON."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_bounded_int,
            parse_float=_finite_float,
        )
        _check_value(value, MAX_DEPTH)
    except (ValueError, RecursionError) as exc:
        reason = "nested too deeply" if isinstance(exc, RecursionError) else str(exc)[:200]
        raise CorruptArchive(f"a JSON part of the archive cannot be read: {reason}") from exc
    return value


def canonical_json(value: Any) -> bytes:
    """Return `value` as JSON in one fixed way: UTF-8, members sorted by name, no spaces, no needless escapes.

    Raises ValueError for what has no such form: NaN, Infinity, text that is not Unicode (lone surrogates).
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object has the same member twice")
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _bounded_int(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError("a number is too large")
    return int(digits)


def _finite_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _check_value(value: Any, depth: int) -> None:
    if isinstance(value, str):
        if _SURROGATE.search(value):
            raise ValueError("text is not Unicode")
    elif isinstance(value, dict | list):
        if depth == 0:
            raise ValueError("nested too deeply")
        for part in value if isinstance(value, list) else [*value.keys(), *value.values()]:
            _check_value(part, depth - 1)
