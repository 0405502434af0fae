"""The service's log on stderr: one record is one line, in JSON or as text, and no secret that was read is in it.

    {"time": "2026-01-31T02:00:00.123Z", "level": "info", "logger": "service.backup", "message": "...",
     "job": "...", "fields": {...}, "error": {"type": ..., "message": ..., "code": ..., "hint": ...},
     "traceback": "..."}

Nothing else of a record gets out. `job` is there while `current_job` is set: asyncio copies it to the tasks that a job
starts and `asyncio.to_thread` to its thread; `loop.run_in_executor` does NOT, unless it is given
`contextvars.copy_context().run`. An error that was raised on purpose says all by its message, so its traceback is
there at level debug only; that of an unexpected one always is. Libraries are heard from level warning on.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, cast

from service.errors import ServiceError
from service.secret import redact
from storage_backends.base import StorageError

LogFormat = Literal["json", "text"]
LogLevel = Literal["debug", "info", "warning", "error"]

OURS = ("service", "storage_backends")

current_job: ContextVar[str | None] = ContextVar("current_job", default=None)
"""Id of the job that the running code belongs to; whoever runs a job sets it."""

job_listener: ContextVar[Callable[[Literal["warning", "error"], str], None] | None] = ContextVar(
    "job_listener", default=None
)
"""Is told what is logged from level warning on while a job runs; whoever runs a job sets it. Any thread may call it."""


def configure(form: LogFormat, level: LogLevel) -> None:
    """Log to stderr from now on, and nowhere else; also Python's warnings, and exceptions that nobody caught."""
    number = logging.getLevelNamesMapping()[level.upper()]
    handler = LastingHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    for other in list(root.handlers):
        root.removeHandler(other)
    root.addHandler(handler)
    root.addHandler(JobHandler(logging.WARNING))
    root.setLevel(max(number, logging.WARNING))
    for name in OURS:
        logging.getLogger(name).setLevel(number)
    logging.captureWarnings(capture=True)
    # By itself, Python would print these with their messages as they are.
    sys.excepthook = lambda *error: root.critical("uncaught exception", exc_info=cast(Any, error))
    threading.excepthook = lambda told: root.critical("uncaught exception in a thread", exc_info=cast(Any, told[:3]))


class LastingHandler(logging.StreamHandler[TextIO]):
    """A handler whose stream may break: a log that nobody reads must not stop a backup, least of all its undoing."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Drop the record; logging itself would print it as it is, secrets included."""


class JobHandler(logging.Handler):
    """Passes on what is logged on behalf of a job to whoever keeps that job's log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Tell message and error in one line."""
        listener = job_listener.get()
        if listener is not None:
            content = _content(record)
            error = content.get("error")
            told = f"{content['message']}: {error['message']}" if error else content["message"]
            listener("error" if record.levelno >= logging.ERROR else "warning", told)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Drop the record, as `LastingHandler` does."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII, so that no byte in it can end the line or be no text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        return json.dumps(_content(record))


class TextFormatter(logging.Formatter):
    """Time, level, logger, job, message, fields and error, for people; what cannot be printed is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        content = _content(record)
        said = [content["time"], content["level"].upper().ljust(7), content["logger"]]
        if "job" in content:
            said.append(f"[{content['job']}]")
        said.append(content["message"])
        said += [f"{key}={value}" for key, value in content.get("fields", {}).items()]
        if "error" in content:
            said.append("| {type}: {message}".format_map(content["error"]))
            said += [f"({hint})" for hint in [content["error"].get("hint")] if hint]
        if "traceback" in content:
            said.append(f"| {content['traceback']}")
        return _escaped(" ".join(said))


def _escaped(text: str) -> str:
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii") for char in text
    )


def _content(record: logging.LogRecord) -> dict[str, Any]:
    """Return what is said of a record. Redacted before it is encoded, so that a secret cannot break the form."""
    moment = datetime.fromtimestamp(record.created, UTC)
    content: dict[str, Any] = {
        "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": redact(_message(record)),
    }
    if job := current_job.get():
        content["job"] = redact(job)
    fields = getattr(record, "fields", None)
    if isinstance(fields, Mapping) and fields:
        content["fields"] = {redact(str(key)): _scalar(value) for key, value in fields.items()}
    if record.exc_info and (error := record.exc_info[1]):
        content["error"] = _error(error)
        if not isinstance(error, ServiceError | StorageError) or logging.getLogger(OURS[0]).level <= logging.DEBUG:
            content["traceback"] = redact("".join(traceback.format_exception(error)))
    return content


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # whatever an argument's __str__ may raise
        return f"{record.msg} (its arguments do not fit)"


def _scalar(value: object) -> str | int | float | bool | None:
    match value:
        case str():
            return redact(value)
        case bool() | int() | None:
            return value
        case float():
            return value if abs(value) < float("inf") else str(value)  # JSON has no NaN and no infinity
        case _:
            return f"<{type(value).__name__}>"


def _error(error: BaseException) -> dict[str, str]:
    said = [str(error), *getattr(error, "__notes__", ())]
    told = {"type": type(error).__name__, "message": redact("\n".join(said))}
    if isinstance(error, ServiceError | StorageError):
        told |= {"code": error.code, "hint": redact(error.hint)}
    return told
