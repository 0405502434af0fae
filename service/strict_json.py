"""One strict reading of JSON, for archives and for the socket: what is written can be read in one way only.

Python's own reader keeps the last of two members of one name, takes NaN, lone surrogates and numbers that become
infinite, guesses UTF-16, and leaves deep nesting to the interpreter's stack. Readers in other languages decide
otherwise, so all of that is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, Final, NoReturn

MAX_DEPTH: Final = 32
"""Objects and arrays are nested at most this deep."""

SURROGATE: Final = re.compile("[\ud800-\udfff]")
"""In Python's text a character beyond U+FFFF is one character, so each surrogate is a lone one."""


def bounded_int(digits: str) -> int:
    """Return an integer of at most 20 characters. Raises ValueError."""
    if len(digits) > 20:
        raise ValueError("a number is too large")
    return int(digits)


def strict_loads(data: bytes, *, parse_int: Callable[[str], int] = bounded_int) -> Any:
    """Return the value of one JSON text in UTF-8. Raises ValueError, and nothing else, for all that is refused."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=parse_int,
            parse_float=_finite_float,
        )
        _check_value(value, MAX_DEPTH)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object has the same member twice")
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _check_value(value: Any, depth: int) -> None:
    if isinstance(value, str):
        if SURROGATE.search(value):
            raise ValueError("text is not Unicode")
    elif isinstance(value, dict | list):
        if depth == 0:
            raise ValueError("nested too deeply")
        for part in value if isinstance(value, list) else [*value.keys(), *value.values()]:
            _check_value(part, depth - 1)
