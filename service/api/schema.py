"""The published description of the socket: methods and events, with JSON Schemas. docs/socket-schema.json holds it."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

from pydantic import TypeAdapter

from service.api.methods import FAMILIES
from service.api.registry import methods_of
from service.job import Job, JobState

_JOB_EVENTS: dict[JobState, str] = {
    "queued": "A job was queued.",
    "running": "A job has begun.",
    "verifying": "The archive is published and is being read back.",
    "succeeded": "A job has done all that was asked.",
    "partial": "The archive is there, but something after it did not happen; `error` says what.",
    "failed": "A job has failed; `error` says why. What it began is undone.",
    "cancelled": "A job was cancelled. What it began is undone.",
    "interrupted": "The service ended before the job did.",
}

_TEXT: dict[str, Any] = {"type": "string"}
_TIME: dict[str, Any] = {"type": "string", "format": "date-time"}


def _object(**members: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": members, "required": list(members)}


_OTHER_EVENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "progress": (
        "How far a job is. Has no `seq`, is not remembered and never replayed; `job_id` says which job.",
        {
            "type": "object",
            "properties": {
                "stage": _TEXT,
                "raw_bytes": {"type": "integer"},
                "stored_bytes": {"type": "integer"},
                "expected_raw_bytes": {"type": ["integer", "null"]},
                "rate": {"type": "integer", "description": "Bytes a second."},
                "eta_seconds": {"type": ["number", "null"]},
                "targets": {
                    "type": "array",
                    "description": "How far the archive is in each target.",
                    "items": _object(
                        url=_TEXT,
                        state={"enum": ["writing", "written", "reading back", "verified", "failed"]},
                        why={"type": "string", "description": "Why it failed there."},
                    ),
                },
                "message": {"type": "string", "description": "One sentence, at each step."},
            },
        },
    ),
    "service.started": (
        "The service has started; the jobs that were interrupted.",
        _object(interrupted={"type": "array", "items": _TEXT}),
    ),
    "state.damaged": ("The service's memory was damaged; history is lost, the file was kept.", _object(file=_TEXT)),
    "settings.changed": ("System Backup settings were changed.", _object(changed={"type": "array", "items": _TEXT})),
    "settings.rejected": (
        "Some of the stored settings make no sense any more and are not in force; the file holds all as they were.",
        _object(file=_TEXT),
    ),
    "restore.expires": (
        "The state before a restore is going to be removed by itself at a time (restore.keep_old).",
        _object(restore_id=_TEXT, archive=_TEXT, expires=_TIME),
    ),
    "schedule.missed": (
        "A job that was due by a schedule did not begin in time; `kind` is backup, drill or selftest.",
        _object(kind=_TEXT, due=_TIME, made_up={"type": "boolean"}),
    ),
    "schedule.skipped": (
        "A job that was due by a schedule was left out, since another of its kind was at work.",
        _object(kind=_TEXT, due=_TIME, job_id=_TEXT),
    ),
    "clock.jumped": (
        "The clock was set, or the machine was off; pruning by age waits for a day.",
        _object(**{"from": {"type": ["string", "null"]}, "to": _TIME}),
    ),
    "provisioned": (
        "Sealing was set up: the TPM that is trusted, and whom archives are sealed for beside it.",
        _object(tpm=_TEXT, recipients={"type": "array", "items": _TEXT}),
    ),
    "archive.held": ("An archive was put on hold.", _object(archive=_TEXT, reason=_TEXT)),
    "pin.changed": (
        "The restore PIN was set, changed or removed; `what` says which.",
        _object(what={"enum": ["set", "changed", "removed"]}),
    ),
    "archive.released": ("An archive's hold was ended.", _object(archive=_TEXT)),
}


# Carried out by the transport (`service.rpc`), for they belong to a connection.
_BY_THE_TRANSPORT: dict[str, dict[str, Any]] = {
    "events.subscribe": {
        "description": "Have events sent on this connection, as notifications of the method `event`; with `since`,"
        " first those after that number. `gap` in the answer says that some of them are lost, or that the number is"
        " of another life of the memory: read the state anew.",
        "role": "read",
        "params": {
            "type": "object",
            "properties": {"since": {"type": ["integer", "null"], "minimum": 0}},
            "additionalProperties": False,
        },
        "result": _object(boot_id=_TEXT, seq={"type": "integer"}, gap={"type": "boolean"}),
    },
    "events.unsubscribe": {
        "description": "Have no more events sent on this connection.",
        "role": "read",
        "params": {"type": "object", "properties": {}, "additionalProperties": False},
        "result": {},
    },
}


@cache
def schema() -> dict[str, Any]:
    """Return the description of the socket, made once since that takes much memory and time: change nothing in it."""
    job = TypeAdapter(Job).json_schema(mode="serialization")
    events = {f"job.{state}": {"description": _JOB_EVENTS[state], "data": job} for state in get_args(JobState)}
    events |= {name: {"description": text, "data": data} for name, (text, data) in _OTHER_EVENTS.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "deviceon-backup socket",
        "methods": dict(
            sorted(
                (_BY_THE_TRANSPORT | {name: found.schema() for name, found in methods_of(*FAMILIES).items()}).items()
            )
        ),
        "event": _object(
            seq={"type": ["integer", "null"]},
            boot_id=_TEXT,
            time=_TIME,
            type=_TEXT,
            job_id={"type": ["string", "null"]},
            data={"type": "object"},
        ),
        "events": dict(sorted(events.items())),
    }


def markdown() -> str:
    """Return the tables of methods and events; docs/SOCKET.md holds them."""
    told = schema()
    lines = ["| Method | Role | Parameters | What it does |", "|---|---|---|---|"]
    for name, found in told["methods"].items():
        required = found["params"].get("required", [])
        members = [f"`{key}`" + ("" if key in required else "?") for key in found["params"].get("properties", {})]
        text = " ".join(found["description"].split())
        lines.append(f"| `{name}` | {found['role']} | {', '.join(members)} | {text} |")
    lines += ["", "| Event | Meaning | `data` |", "|---|---|---|"]
    for name, found in told["events"].items():
        data = "the job" if name.startswith("job.") else ", ".join(f"`{key}`" for key in found["data"]["properties"])
        lines.append(f"| `{name}` | {found['description']} | {data} |")
    return "\n".join(lines)
