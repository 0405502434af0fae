"""Checking of `storage_options`: a mistyped one is an error, since it would otherwise be a wish that nobody hears."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storage_backends.base import InvalidUrl

_CALLED = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def check_options(what: str, options: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> None:
    """Raise InvalidUrl for an option that `kinds` does not name or of another type; no value is repeated.

    Numbers must not be negative, and `timeout` must be more than 0.
    """
    if unknown := sorted(str(name) for name in options if name not in kinds):
        raise InvalidUrl(
            f"storage_options: {what} has no option {', '.join(unknown)}", hint=f"It knows {', '.join(kinds)}."
        )
    for name, value in options.items():
        if not isinstance(value, kinds[name]) or (isinstance(value, bool) and bool not in kinds[name]):
            raise InvalidUrl(f"storage_options: {name} must be {_CALLED[kinds[name][-1]]}")
        if isinstance(value, int | float) and value < 0:
            raise InvalidUrl(f"storage_options: {name} must not be negative")
    if options.get("timeout", 1) == 0:
        raise InvalidUrl("storage_options: timeout must be more than 0 seconds")
