"""Failures on the command line: one table of exit codes, plain words, no control characters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from service import errors
from service.cli.app import Commands, command_line
from service.cli.failures import TABLE, Exit, exit_code
from service.cli.options import emit, json_option, shared_options
from service.errors import NoMatchingIdentity, Obstacle, RestoreRefused, ServiceError
from service.sealing.tpm import faults
from storage_backends import base
from storage_backends.base import StorageError

ROOT = Path(__file__).parents[2]

EXPECTED = {
    "CONFIG": 2,
    "RESTORE": 1,
    "RESTORE_REFUSED": 3,
    "RESTORE_STAGE_FAILED": 1,
    "RESTORE_SWAP_FAILED": 1,
    "TARGET": 4,
    "TARGET_FULL": 4,
    "TARGET_NOT_FOUND": 4,
    "TARGET_UNAVAILABLE": 4,
    "SEAL": 5,
    "SEAL_NO_IDENTITY": 5,
    "SEAL_SLOT_DAMAGED": 5,
    "SEAL_NOT_AUTHENTIC": 6,
    "TPM_UNAVAILABLE": 5,
    "TPM_WRONG": 5,
    "TPM_CLEARED": 5,
    "TPM_TIMEOUT": 5,
    "ARCHIVE": 6,
    "ARCHIVE_CORRUPT": 6,
    "ARCHIVE_INCOMPLETE": 6,
    "ARCHIVE_UNSUPPORTED": 6,
    "SOURCE": 7,
    "SOURCE_UNAVAILABLE": 7,
    "JOB_REFUSED": 8,
    "ERROR": 1,
}


def every_error() -> Iterator[type[ServiceError | StorageError]]:
    for module in (errors, base, faults):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, ServiceError | StorageError):
                yield value


def failing(error: BaseException) -> click.Group:
    @click.group(cls=Commands)
    @shared_options
    def group() -> None: ...

    @group.command()
    @shared_options
    @json_option
    def fail() -> None:
        raise error

    return group


def run(error: BaseException, *options: str) -> Result:
    return CliRunner().invoke(failing(error), ["fail", *options])


@pytest.mark.parametrize(("code", "number"), EXPECTED.items())
def test_each_code_has_its_exit_code(code: str, number: int) -> None:
    assert exit_code(code) == number


def test_every_error_of_the_project_is_in_the_table() -> None:
    found = {error.code for error in every_error()}
    assert set(EXPECTED) <= found
    for code in found:
        assert any(code == name or code.startswith(f"{name}_") for name, _ in TABLE), code


def test_the_documentation_lists_every_exit_code() -> None:
    text = (ROOT / "docs/CLI.md").read_text()
    for code in Exit:
        assert f"\n| {code.value} |" in text
    for name, code in TABLE:
        line = next(line for line in text.splitlines() if line.startswith(f"| {code.value} |"))
        assert name in line or name == "ERROR", f"{name} belongs to {code.value}"


def test_the_documentation_lists_every_command() -> None:
    text = (ROOT / "docs/CLI.md").read_text()
    for name in command_line.commands:
        assert f"\ndeviceon-backup {name}" in text


WITH_A_MESSAGE = sorted(set(every_error()) - {RestoreRefused}, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", WITH_A_MESSAGE, ids=lambda kind: kind.code)
def test_an_error_is_worded_with_what_to_do_and_without_a_traceback(kind: type[ServiceError | StorageError]) -> None:
    result = run(kind("the message", hint="Do that."))
    assert result.exit_code == exit_code(kind.code)
    assert result.stderr == "error: the message\n  what to do: Do that.\n"
    assert result.stdout == ""


def test_a_refusal_lists_each_obstacle_with_its_remedy() -> None:
    refused = RestoreRefused([Obstacle("SERVER_VERSION", "it is 5.2", "Install 5.3."), Obstacle("SPACE", "full", "")])
    result = run(refused)
    assert result.exit_code == 3
    assert result.stderr == (
        "error: the restore is refused; nothing was touched\n"
        "  SERVER_VERSION: it is 5.2\n    what to do: Install 5.3.\n  SPACE: full\n"
    )


def test_a_refusal_for_want_of_the_key_has_the_exit_code_of_the_key() -> None:
    assert run(RestoreRefused([Obstacle("TPM_WRONG", "another", "")])).exit_code == 5
    assert run(RestoreRefused([Obstacle("SOURCE_NOT_CONFIGURED", "none", "")])).exit_code == 3


def test_json_tells_the_code_on_stdout_and_the_words_on_stderr() -> None:
    result = run(base.TargetUnavailable("no answer", hint="Look."), "--json")
    assert json.loads(result.stdout) == {
        "error": {"code": "TARGET_UNAVAILABLE", "message": "no answer", "hint": "Look.", "transient": True}
    }
    assert result.stderr.startswith("error: no answer")
    refused = json.loads(run(RestoreRefused([Obstacle("SPACE", "full", "Make room.")]), "--json").stdout)
    assert refused["error"]["obstacles"] == [{"code": "SPACE", "message": "full", "remedy": "Make room."}]


def test_an_unexpected_error_shows_its_traceback_only_with_debug() -> None:
    result = run(ZeroDivisionError("by nought"))
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.stderr
    assert "--debug" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in run(ZeroDivisionError("by nought"), "--debug").stderr


def test_an_error_out_of_a_group_of_tasks_is_found() -> None:
    group = BaseExceptionGroup("tasks", [ValueError(), ExceptionGroup("inner", [errors.CorruptArchive("bad chunk")])])
    result = run(group)
    assert (result.exit_code, result.stderr) == (6, "error: bad chunk\n")


def test_notes_of_an_error_are_shown() -> None:
    error = NoMatchingIdentity("no slot opens", hint="Go there.")
    error.add_note("the archive was written whole")
    assert run(error).stderr == (
        "error: no slot opens\n  note: the archive was written whole\n  what to do: Go there.\n"
    )


def test_control_characters_of_a_message_do_not_reach_the_terminal() -> None:
    result = run(errors.SourceError("table \x1b]0;owned\x07\x9b31m and \u202etxt", hint="See \x1b[2J."))
    assert not set(result.stderr) & {"\x1b", "\x07", "\x9b", "\u202e"}
    assert "table \ufffd" in result.stderr


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interruption_exits_130(error: BaseException) -> None:
    result = run(error)
    assert (result.exit_code, result.stderr) == (130, "error: interrupted before anything was begun\n")


def test_wrong_usage_exits_2() -> None:
    for arguments in (["no-such-command"], ["restore"], ["list", "--no-such-option"]):
        assert CliRunner().invoke(command_line, arguments).exit_code == 2


def test_emitted_json_is_one_document_with_iso_times(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"at": datetime(2026, 11, 24, 2, 0, tzinfo=UTC), "path": Path("/x"), "o": Obstacle("A", "b", "c")})
    assert json.loads(capsys.readouterr().out) == {
        "at": "2026-11-24T02:00:00+00:00",
        "path": "/x",
        "o": {"code": "A", "message": "b", "remedy": "c"},
    }
