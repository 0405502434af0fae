"""A failure as clients and logs see it: all that helps, nothing that is internal, and no secret."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import (
    ConfigError,
    JobRefused,
    NotFound,
    Obstacle,
    RestoreRefused,
    ServiceError,
    SourceUnavailable,
    StateError,
)
from service.failure import as_json, expected
from service.secret import remember
from storage_backends.base import ObjectNotFound, StorageError, TargetUnavailable

SECRET = "correct-horse-battery"

EXPECTED: list[ServiceError | StorageError] = [
    ConfigError("m"),
    NotFound("m"),
    StateError("m"),
    TargetUnavailable("m"),
    ObjectNotFound("m"),
]


@pytest.mark.parametrize("error", EXPECTED)
def test_what_was_raised_on_purpose_is_found_also_deep_in_groups(error: ServiceError | StorageError) -> None:
    assert expected(error) is error
    inner = ExceptionGroup("inner", [ValueError(), error])
    assert expected(BaseExceptionGroup("outer", [KeyboardInterrupt(), inner])) is error


@pytest.mark.parametrize("error", [ValueError("m"), KeyboardInterrupt(), ExceptionGroup("g", [OSError("m")])])
def test_nothing_else_is_taken_for_expected(error: BaseException) -> None:
    assert expected(error) is None


@pytest.mark.parametrize(
    ("error", "code", "transient"),
    [
        (SourceUnavailable("what", hint="do"), "SOURCE_UNAVAILABLE", True),
        (JobRefused("what", hint="do"), "JOB_REFUSED", False),
        (TargetUnavailable("what", hint="do"), "TARGET_UNAVAILABLE", True),
        (ExceptionGroup("g", [ObjectNotFound("what", hint="do")]), "TARGET_NOT_FOUND", False),
    ],
)
def test_an_expected_failure_has_its_code_its_words_and_whether_to_retry(
    error: Exception, code: str, transient: bool
) -> None:
    assert as_json(error) == {"code": code, "message": "what", "hint": "do", "transient": transient}


@pytest.mark.parametrize("error", [ZeroDivisionError("/etc/passwd"), ExceptionGroup("/etc/passwd", [KeyError("x")])])
def test_an_unexpected_failure_shows_its_kind_and_nothing_of_its_text(error: Exception) -> None:
    told = as_json(error)
    assert (told["code"], told["transient"]) == ("UNEXPECTED", False)
    assert "passwd" not in str(told)
    assert type(error).__name__ in told["message"]


def test_notes_and_obstacles_are_told() -> None:
    error = RestoreRefused([Obstacle("SPACE", "no room", "Make room."), Obstacle("LOCALE", "none", "Install it.")])
    error.add_note("a note")
    told = as_json(error)
    assert told["notes"] == ["a note"]
    assert told["obstacles"] == [
        {"code": "SPACE", "message": "no room", "remedy": "Make room."},
        {"code": "LOCALE", "message": "none", "remedy": "Install it."},
    ]
    assert told["hint"] == "Make room. Install it."


def test_no_secret_is_told_wherever_it_stands() -> None:
    remember(SECRET)
    with_secret: Any = RestoreRefused([Obstacle("X", f"at {SECRET}", f"with {SECRET}")])
    with_secret.add_note(f"note {SECRET}")
    for error in (with_secret, ConfigError(SECRET, hint=SECRET), TargetUnavailable(f"s3://{SECRET}@host")):
        assert SECRET not in str(as_json(error))
