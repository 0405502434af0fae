"""Checking of `storage_options`: a mistyped one is an error, since it would otherwise be a wish that nobody hears."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from storage_backends.base import InvalidUrl

MOST_SECONDS = 86_400
_CALLED = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def check_options(what: str, options: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> None:
    """Raise InvalidUrl for an option that `kinds` does not name or of another type; no value is repeated.

    Numbers must not be negative, and `timeout` must be more than 0 and a day at most.
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
    if not 0 < options.get("timeout", 1) <= MOST_SECONDS:
        raise InvalidUrl(f"storage_options: timeout must be more than 0 seconds, and {MOST_SECONDS} at most")


def check_numbers(options: Mapping[str, Any], path: str = "") -> None:
    """Raise InvalidUrl for a number that is none (NaN) or endless, and for a time-out below 0, however deep it is.

    A library would take some of them for "no time-out", and fail with others at some later call.
    """
    for name, value in options.items():
        here = f"{path}{name}"
        if isinstance(value, Mapping):
            check_numbers(value, f"{here}.")
        elif isinstance(value, int | float):
            if not math.isfinite(value):
                raise InvalidUrl(f"storage_options: {here} must be a finite number")
            if "timeout" in str(name).lower() and value < 0:
                raise InvalidUrl(f"storage_options: {here} must not be negative")
