"""Telling the server's version: from the configuration, a file, or a command that may misbehave."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from service import server_version as module
from service.config import ServerSettings
from service.errors import ConfigError
from service.server_version import server_version


async def test_each_of_the_three_ways_tells_the_version(tmp_path: Path) -> None:
    file = tmp_path / "VERSION"
    file.write_bytes(b"\xef\xbb\xbf\n  5.3.12 \r\nbuild 7\n")
    assert await server_version(ServerSettings(version=" 5.3.12 ")) == "5.3.12"
    assert await server_version(ServerSettings(version_file=file)) == "5.3.12"
    assert await server_version(ServerSettings(version_command=["cat", str(file)])) == "5.3.12"


@pytest.mark.parametrize("content", [b"", b"\n \n", b"5.3\x1b[2J", b"x" * 65, b"\xff\xfe\x00"])
async def test_what_is_no_version_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "VERSION"
    file.write_bytes(content)
    if content == b"\xff\xfe\x00":
        file.write_bytes(b"5\x00")
    for settings in (ServerSettings(version_file=file), ServerSettings(version_command=["cat", str(file)])):
        with pytest.raises(ConfigError, match="no version"):
            await server_version(settings)


async def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        await server_version(ServerSettings(version_file=tmp_path / "none"))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["/no/such/program"], "cannot run"),
        (["sh", "-c", "echo 5.3; exit 3"], "exit status 3"),
        (["sh", "-c", "kill -9 $$"], "exit status -9"),
    ],
)
async def test_a_command_that_fails_is_an_error(command: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        await server_version(ServerSettings(version_command=command))


async def test_a_command_is_run_without_a_shell() -> None:
    assert await server_version(ServerSettings(version_command=["echo", "$HOME; ls"])) == "$HOME; ls"


async def test_endless_output_is_not_kept() -> None:
    command = ["sh", "-c", "echo 5.3.12; head -c 5000000 /dev/zero"]
    assert await server_version(ServerSettings(version_command=command)) == "5.3.12"


async def test_a_command_that_hangs_is_ended_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMMAND_TIMEOUT", 0.5)
    pid_file = tmp_path / "pid"
    command = ["sh", "-c", f"sleep 60 & echo $! > {pid_file}; wait"]
    began = time.monotonic()
    with pytest.raises(ConfigError, match="within"):
        await server_version(ServerSettings(version_command=command))
    assert time.monotonic() - began < 10
    await gone(int(pid_file.read_text()))


async def test_cancelling_ends_the_command(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    task = asyncio.create_task(
        server_version(ServerSettings(version_command=["sh", "-c", f"echo $$ > {pid_file}; sleep 60"]))
    )
    while not (pid_file.exists() and pid_file.read_text()):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(int(pid_file.read_text()))


async def gone(pid: int) -> None:
    """Wait until a process is no more; a zombie that init has not reaped yet counts as gone."""
    async with asyncio.timeout(5):
        while _alive(pid):
            await asyncio.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
