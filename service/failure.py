"""A failure as a value: what logs, events, job results and `--json` say of it."""

from __future__ import annotations

from typing import Any

from service.errors import RestoreRefused, ServiceError
from storage_backends.base import StorageError


def expected(error: BaseException) -> ServiceError | StorageError | None:
    """Return the error that was raised on purpose, also out of an exception group; None for an unexpected one."""
    if isinstance(error, ServiceError | StorageError):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((found for inner in error.exceptions if (found := expected(inner))), None)
    return None


def as_json(error: BaseException) -> dict[str, Any]:
    """Return a failure for programs: stable code, message, hint, and whether a retry may help."""
    known = expected(error)
    if known is None:
        return {"code": "UNEXPECTED", "message": type(error).__name__, "hint": "", "transient": False}
    told: dict[str, Any] = {
        "code": known.code,
        "message": str(known),
        "hint": known.hint,
        "transient": known.transient,
    }
    if notes := list(getattr(known, "__notes__", ())):
        told["notes"] = notes
    if isinstance(known, RestoreRefused):
        told["obstacles"] = [
            {"code": each.code, "message": each.message, "remedy": each.remedy} for each in known.obstacles
        ]
    return told
