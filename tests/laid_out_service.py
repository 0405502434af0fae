"""A service whose answers a test lays out, to see what the command line makes of each that there may be.

It speaks the socket's protocol, and holds what is asked and what is answered to docs/socket-schema.json: neither a
command nor a test can drift away from the real service.
"""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
from click.testing import CliRunner, Result

from service.cli.app import command_line
from service.cli.commander import JOBS

START = "2026-11-29T02:00:00Z"
ID = "0123456789abcdef"
INFO: dict[str, Any] = {
    "version": "1",
    "boot_id": "b",
    "started": START,
    "now": START,
    "host": "h",
    "product": "DeviceOn",
    "targets": [],
    "state_dir": "/s",
    "sealing": "off",
    "not_ready": None,
    "active": None,
    "waiting": 0,
    "next_run": None,
    "last_backup": None,
    "last_success": None,
    "next_drill": None,
    "last_drill": None,
    "clock_doubted_since": None,
    "restore": None,
    "recovery": None,
}


@cache
def _schemas() -> Any:
    return json.loads((Path(__file__).parents[1] / "docs/socket-schema.json").read_text())["methods"]


@cache
def _validator(method: str, part: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(_schemas()[method][part])


def a_job(**changes: Any) -> dict[str, Any]:
    """Return a job of the socket that has succeeded, but for `changes`."""
    job = {"id": ID, "kind": "backup", "origin": "socket", "state": "succeeded", "created": START, "params": {}}
    return job | dict.fromkeys(("scheduled_for", "started", "ended", "result", "error", "progress")) | changes


@dataclass
class LaidOut:
    """`answers` by method: a result, an exception's words (`Refusal`), or several, one for each call in turn.

    A job is answered with what it has ended as.
    """

    path: Path
    answers: dict[str, Any] = field(default_factory=lambda: {"system.info": INFO})
    asked: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    """What comes before a job's end, as `an_event` makes it."""

    def run(self, *arguments: str, typed: str = "") -> Result:
        """Run a command against it."""
        alone = dict.fromkeys(("DEVICEON_BACKUP_CONFIG", "DEVICEON_BACKUP_SOCKET"))
        command = [*arguments, "--socket", str(self.path), "--config", str(self.path.with_name("none.yaml"))]
        return CliRunner().invoke(command_line, command, input=typed, env=alone)

    def good(self, *arguments: str, typed: str = "", **answers: Any) -> str:
        """Run a command that succeeds, with `answers` (`job_get` is job.get) laid out; return its stdout."""
        self.answers |= {name.replace("_", ".", 1): answer for name, answer in answers.items()}
        result = self.run(*arguments, typed=typed)
        assert result.exit_code == 0, result.output
        return result.stdout

    def answer(self, method: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the answer, and the events that follow it."""
        self.asked.append((method, params))
        if method == "events.subscribe":
            return [{"result": {"seq": 0, "boot_id": "b", "gap": False}}]
        if method == "events.unsubscribe":
            return [{"result": {"done": True}}]
        _validator(method, "params").validate(params)
        found = self.answers[method]
        if isinstance(found, Turns):
            found = found.pop(0)
        if isinstance(found, Refusal):
            return [{"error": {"message": found.message, "data": {"code": found.code, "hint": ""}}}]
        if method not in JOBS:
            _validator(method, "result").validate(found)
            return [{"result": found}]
        end = [] if found is GONE else [an_event("job.ended", found)]
        return [{"result": a_job(state="queued")}, *self.events, *end]


def an_event(kind: str, data: dict[str, Any], *, job_id: str = ID) -> dict[str, Any]:
    """Return an event about a job."""
    params = {"seq": 1, "boot_id": "b", "time": START, "type": kind, "job_id": job_id, "data": data}
    return {"method": "event", "params": params}


def ended(result: dict[str, Any]) -> dict[str, Any]:
    """Return a job that has ended with a result."""
    return a_job(ended=START, result=result)


class Turns(list[Any]):
    """Answers, one for each call in turn."""


GONE = object()
"""In place of a job: the service goes away while it is at work."""


@dataclass(frozen=True)
class Refusal:
    """An error as an answer."""

    code: str
    message: str


@contextmanager
def laid_out_service(path: Path) -> Iterator[LaidOut]:
    """Listen on a socket at `path`."""
    service = LaidOut(path)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                request = json.loads(line)
                try:
                    told = service.answer(request["method"], request["params"])
                except Exception as error:  # it is told to whoever reads the command's output
                    told = [{"error": {"message": f"not laid out: {error!r}", "data": {}}}]
                told[0]["id"] = request["id"]
                self.wfile.write(b"".join(json.dumps(each).encode() + b"\n" for each in told))
                if request["method"] == "system.info" and GONE in service.answers.values() and len(service.asked) > 1:
                    return

    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()
