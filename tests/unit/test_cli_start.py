"""Starting the command line: quickly, by each of its names, and without a network, a TPM or a database."""

from __future__ import annotations

import io
import os
import re
import resource
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from service.cli import write_all_of_it
from service.cli.app import command_line

ROOT = Path(__file__).parents[2]
SCRIPT = Path(sysconfig.get_path("scripts")) / "deviceon-backup"

HEAVY = ("asyncio", "asyncpg", "cryptography", "pydantic", "rich", "tpm2_pytss", "uvloop", "yaml", "service.config")


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "name", [(SCRIPT,), (sys.executable, "-m", "service"), (sys.executable, "-m", "service.cli")], ids=str
)
def test_help_is_shown_under_each_name_of_the_program(name: tuple[str | Path, ...]) -> None:
    result = run(*name, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("Usage: deviceon-backup ")
    assert result.stderr == ""


def test_an_option_and_a_command_tell_the_version() -> None:
    assert run(SCRIPT, "--version").stdout == run(SCRIPT, "version").stdout != ""


def test_help_has_every_command_once_with_its_whole_sentence() -> None:
    text = run(SCRIPT, "--help").stdout.partition("Set up:")[2]
    listed = re.findall(r"^  ([a-z][a-z-]+)  ", text, re.MULTILINE)
    assert sorted(listed) == sorted(command_line.commands)
    assert "..." not in text
    first = ["config", "doctor", "provision", "backup", "drill", "serve"]
    assert [name for name in listed if name in first] == first


def test_help_takes_less_than_300_ms_of_processor_time() -> None:
    """Processor time, since the tests share the machine; on an idle one it is the time that passes."""
    run(SCRIPT, "--help")  # compiles what is not compiled yet

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(SCRIPT, "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(once() for _ in range(5)) < 0.3


@pytest.mark.parametrize("command", [["--help"], ["restore", "--help"], ["config", "--help"], ["no-such-command"]])
def test_nothing_heavy_is_imported_before_a_command_runs(command: list[str]) -> None:
    code = f"""
import sys, service.cli
sys.argv[1:] = {command!r}
try:
    service.cli.main()
except SystemExit:
    pass
print("IMPORTED", sorted(set(sys.modules) & set({HEAVY!r})))
"""
    assert "IMPORTED []" in run(sys.executable, "-c", code).stdout


def test_a_reader_that_leaves_early_is_no_failure_with_a_traceback() -> None:
    result = run("sh", "-c", f"'{SCRIPT}' config reference | head -1; true")
    assert result.stdout == "### Top of the file\n"
    assert "Traceback" not in result.stderr


class _CutShort(io.RawIOBase):
    """A stream that takes ten bytes at a time, as a pipe may."""

    def __init__(self) -> None:
        self.taken = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.taken += bytes(data[:10])
        return min(len(data), 10)


def test_what_is_printed_arrives_whole_though_python_does_not_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    for mended in (False, True):
        raw = _CutShort()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, write_through=True))  # type: ignore[type-var]
        if mended:
            write_all_of_it()
        print("x" * 1000, flush=True)
        assert (raw.taken == b"x" * 1000 + b"\n") is mended


def test_stdout_is_left_alone_where_python_buffers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    buffered = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", buffered)
    write_all_of_it()
    assert sys.stdout is buffered
