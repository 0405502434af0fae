"""What a failure looks like to people and to scripts: words on stderr, and an exit code from one table."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from enum import IntEnum
from typing import Any

import click

from service.errors import Obstacle, RestoreRefused, ServiceError
from service.failure import expected
from service.terminal import plain
from storage_backends.base import StorageError


class Exit(IntEnum):
    """Exit codes; docs/CLI.md explains them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    TARGET = 4
    SEALING = 5
    ARCHIVE = 6
    SOURCE = 7
    BUSY = 8
    INTERRUPTED = 130


# The first entry whose name is the code, or the beginning of it up to a `_`, decides.
TABLE: tuple[tuple[str, Exit], ...] = (
    ("CONFIG", Exit.USAGE),
    ("RESTORE_REFUSED", Exit.REFUSED),
    ("RESTORE", Exit.FAILED),
    ("TARGET", Exit.TARGET),
    ("SEAL_NOT_AUTHENTIC", Exit.ARCHIVE),  # the key is right, so it is the archive that is not
    ("SEAL", Exit.SEALING),
    ("TPM", Exit.SEALING),
    ("PIN", Exit.SEALING),
    ("ARCHIVE", Exit.ARCHIVE),
    ("SOURCE", Exit.SOURCE),
    ("JOB_REFUSED", Exit.BUSY),
    ("TOO_LATE", Exit.BUSY),
    ("NOT_FOUND", Exit.BUSY),
    ("INVALID_PARAMS", Exit.USAGE),
    ("INTERRUPTED", Exit.INTERRUPTED),
    ("NO_ROOM_LEFT", Exit.FAILED),
    ("DRILL", Exit.FAILED),
    ("STATE", Exit.FAILED),
    ("ERROR", Exit.FAILED),
)


class Interrupted(ServiceError):
    """A signal ended the job; what it had begun was undone."""

    code = "INTERRUPTED"


def declined(wanted: str) -> Interrupted:
    """Return what to raise when somebody was asked, and typed something else than what was `wanted`."""
    return Interrupted(f"that was not {wanted}: nothing was begun", hint=f"Run it again and type {wanted} to go ahead.")


class JobEnded(ServiceError):
    """A job did not do what was asked. `told` is its error as the service tells it."""

    code: str  # type: ignore[misc]  # the job's own
    transient: bool  # type: ignore[misc]

    def __init__(self, told: dict[str, Any], *, result: dict[str, Any] | None = None) -> None:
        super().__init__(str(told["message"]), hint=str(told["hint"]))
        self.result = result
        self.code = str(told["code"])
        self.transient = bool(told["transient"])
        self.told = told
        for note in told.get("notes", ()):
            self.add_note(note)


def result_of(job: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a job that has ended. Raises JobEnded when it did not do all that was asked."""
    if job["state"] == "succeeded":
        return dict(job["result"])
    if job["error"] is not None:
        failure = JobEnded(job["error"], result=job["result"])
        if name := (job["result"] or {}).get("name"):
            failure.add_note(f"{name} was made and is proven")
        raise failure
    raise JobEnded(
        {
            "code": "INTERRUPTED",
            "message": f"the {job['kind']} was {job['state']}",
            "hint": "What it had begun is undone; run it again.",
            "transient": True,
        }
    )


def exit_code(code: str) -> Exit:
    """Return the exit code for the `code` of a ServiceError or StorageError."""
    return next((found for name, found in TABLE if code == name or code.startswith(f"{name}_")), Exit.FAILED)


def refusal_code(obstacles: Iterable[Obstacle]) -> Exit:
    """Return the exit code for obstacles: refused, unless it is the archive's key that cannot be had."""
    codes = [obstacle.code for obstacle in obstacles]
    if len(codes) == 1 and codes[0].startswith(("TPM", "SEAL", "PIN")):
        return exit_code(codes[0])
    return Exit.REFUSED


def show(error: BaseException, *, debug: bool) -> Exit:
    """Print a failure on stderr; return the exit code."""
    if debug:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    known = expected(error)
    if known is None:
        click.echo(f"error: unexpected {type(error).__name__}: {plain(str(error))}", err=True)
        if not debug:
            click.echo("  what to do: run it again with --debug and report what it prints", err=True)
        return Exit.FAILED
    obstacles = _obstacles(known)
    if obstacles is not None:
        click.echo("error: the restore is refused; nothing was touched", err=True)
        show_obstacles(obstacles, err=True)
        return refusal_code(obstacles)
    first, *more = [plain(line) for line in str(known).splitlines()] or [known.code]
    click.echo("\n".join([f"error: {first}", *more]), err=True)
    for note in getattr(known, "__notes__", ()):
        click.echo(f"  note: {plain(note)}", err=True)
    if known.hint:
        click.echo(f"  what to do: {plain(known.hint)}", err=True)
    return exit_code(known.code)


def _obstacles(error: ServiceError | StorageError) -> list[Obstacle] | None:
    """Return the obstacles of a refused restore, also when it was a job's; None for any other error."""
    if isinstance(error, RestoreRefused):
        return list(error.obstacles)
    if isinstance(error, JobEnded) and "obstacles" in error.told:
        return [Obstacle(**told) for told in error.told["obstacles"]]
    return None


def show_obstacles(obstacles: Iterable[Obstacle], *, err: bool = False) -> None:
    """Print each obstacle with its code and its remedy."""
    for obstacle in obstacles:
        click.echo(f"  {plain(obstacle.code)}: {plain(obstacle.message)}", err=err)
        if obstacle.remedy:
            click.echo(f"    what to do: {plain(obstacle.remedy)}", err=err)
