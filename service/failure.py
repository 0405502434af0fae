"""A failure as a value: what logs, events, job results and `--json` say of it."""

from __future__ import annotations

from typing import Any

from service.errors import RestoreRefused, ServiceError
from service.secret import redact
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
        return {
            "code": "UNEXPECTED",
            "message": f"unexpected {type(error).__name__}",
            "hint": "The log has the details; report it with them.",
            "transient": False,
        }
    told: dict[str, Any] = {
        "code": known.code,
        "message": redact(str(known)),
        "hint": redact(known.hint),
        "transient": known.transient,
    }
    if notes := [redact(note) for note in getattr(known, "__notes__", ())]:
        told["notes"] = notes
    if isinstance(known, RestoreRefused):
        told["obstacles"] = [
            {"code": each.code, "message": redact(each.message), "remedy": redact(each.remedy)}
            for each in known.obstacles
        ]
    return told
