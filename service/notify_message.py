"""What people are told of a job, in plain words, and which jobs they are told of. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from service.config_monitoring import NotifyOn
from service.job import Job, JobKind
from service.secret import redact
from service.terminal import duration, size

LONGEST_BODY = 3000
"""Characters; chat services cut or refuse what is longer."""

Severity = Literal["failure", "warning", "success"]

_SEVERITY: dict[NotifyOn, Severity] = {
    "failure": "failure",
    "missed": "failure",
    "expiry": "warning",
    "partial": "warning",
    "warning": "warning",
    "recovery": "success",
    "success": "success",
}

_KINDS: dict[JobKind, str] = {
    "backup": "backup",
    "baseline": "baseline backup",
    "keys": "change of key slots",
    "restore": "restore",
    "reset": "reset to default",
    "tables": "restore of tables beside",
    "rollback": "return to the state before a restore",
    "commit": "confirmation of a restore",
    "verify": "verification of an archive",
    "copy": "copy of an archive to another target",
    "drill": "drill of an archive",
    "prune": "removal of old archives",
    "delete": "removal of an archive",
    "selftest": "self-test of the keys",
    "settle": "tidying up after a crash",
}

_ENDS: dict[NotifyOn, str] = {
    "failure": "failed",
    "partial": "was done in part",
    "warning": "succeeded with warnings",
    "recovery": "works again",
    "success": "succeeded",
}


@dataclass(frozen=True, slots=True)
class Message:
    """One notification, free of secrets that are known."""

    title: str
    body: str
    severity: Severity


def events(job: Job, previous: Job | None) -> list[NotifyOn]:
    """Return what an ended job is, the most telling first; nothing for one that was cancelled by somebody.

    `previous` is the job of the same kind that ended before it and was not cancelled.
    """
    match job.state:
        case "failed" | "interrupted":
            return ["failure"]
        case "partial":
            return ["partial"]
        case "succeeded":
            found: list[NotifyOn] = ["success"]
            if (job.result or {}).get("warnings"):
                found.insert(0, "warning")
            if previous is not None and previous.state in {"failed", "interrupted", "partial"}:
                found.insert(0, "recovery")
            return found
        case _:
            return []


def job_message(
    job: Job, previous: Job | None, *, on: Collection[NotifyOn], server: str, next_run: datetime | None = None
) -> Message | None:
    """Return what to say of an ended job; None when it is nothing of `on`."""
    event = next((each for each in events(job, previous) if each in on), None)
    if event is None:
        return None
    what = _KINDS[job.kind]
    lines = [f"The {what} {_ENDS[event]}.", "", f"Server: {server}", f"Asked for by: {_asked_by(job)}"]
    if job.started and job.ended and job.seconds is not None:
        lines.append(f"Ran: {_time(job.started)} to {_time(job.ended)}, {duration(job.seconds)}")
    lines += _result_lines(job)
    lines += _error_lines(job)
    return _message(f"{server}: {what} {_ENDS[event]}", lines, event, next_run)


def missed_message(
    kind: JobKind,
    scheduled_for: datetime,
    reason: str,
    *,
    on: Collection[NotifyOn],
    server: str,
    next_run: datetime | None = None,
) -> Message | None:
    """Return what to say of a scheduled job that did not take place; None when that is not in `on`."""
    if "missed" not in on:
        return None
    lines = [f"A scheduled {kind} did not take place.", "", f"Server: {server}", f"Due: {_time(scheduled_for)}"]
    return _message(f"{server}: {kind} missed", [*lines, f"Reason: {reason}"], "missed", next_run)


def expiry_message(archive: str, expires: datetime, *, on: Collection[NotifyOn], server: str) -> Message | None:
    """Return what to say of an old state that will be removed by itself; None when that is not in `on`."""
    if "expiry" not in on:
        return None
    lines = [
        f"The state before the restore of {archive} will be removed at {_time(expires)}, if the server works then.",
        "",
        f"Server: {server}",
        "What to do: nothing, if all is well. `deviceon-backup rollback` returns to that state as long as it is there.",
    ]
    return _message(f"{server}: the state before a restore will be removed", lines, "expiry", None)


def failure_reason(job: Job) -> str:
    """Return in one or two lines why a job is no success, without secrets that are known."""
    error = job.error or {}
    said = [str(error.get("message") or f"the {_KINDS[job.kind]} ended as {job.state}"), str(error.get("hint") or "")]
    return _plain(redact("\n".join(part for part in said if part)))[:LONGEST_BODY]


def _message(title: str, lines: list[str], event: NotifyOn, next_run: datetime | None) -> Message:
    if next_run:
        lines.append(f"Next backup: {_time(next_run)}")
    return Message(
        title=_plain(redact(title)).replace("\n", " ")[:200],
        body=_plain(redact("\n".join(lines)))[:LONGEST_BODY],
        severity=_SEVERITY[event],
    )


def _asked_by(job: Job) -> str:
    due = f", due {_time(job.scheduled_for)}" if job.scheduled_for else ""
    asked = {"catch-up": "schedule, made up for", "start": "start of the service"}.get(job.origin, job.origin)
    return f"{asked}{due}"


def _result_lines(job: Job) -> list[str]:
    result = job.result or {}
    lines = []
    if name := result.get("name"):
        sizes = [
            f"{size(result[key])} {words}"
            for key, words in (("size", "stored"), ("raw_bytes", "of data"))
            if isinstance(result.get(key), int)
        ]
        lines.append(f"Archive: {name}" + (f" ({', '.join(sizes)})" if sizes else ""))
    return lines + [f"Warning: {warning}" for warning in result.get("warnings") or ()]


def _error_lines(job: Job) -> list[str]:
    error = job.error or {}
    lines = []
    if message := error.get("message"):
        code = f" ({error['code']})" if error.get("code") else ""
        lines.append(f"Error: {message}{code}")
    elif job.state == "interrupted":
        lines.append("Error: the service ended before the job did")
    if hint := error.get("hint"):
        lines.append(f"What to do: {hint}")
    return lines


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _plain(text: str) -> str:
    """Names in archives and answers of servers are not allowed to bring control characters into a mail."""
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)
