"""Which version of the server is installed: written in the configuration, in a file, or told by a command."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from pathlib import Path

import aiofiles

from service.config import ServerSettings
from service.errors import ConfigError
from service.secret import safe_environment

COMMAND_TIMEOUT = 10.0
"""Seconds."""
MAX_OUTPUT_BYTES = 64 * 1024
MAX_VERSION_LENGTH = 64


async def server_version(settings: ServerSettings) -> str:
    """Return the installed version of the server, one line of text. Raises ConfigError when it cannot be told."""
    if settings.version is not None:
        return _checked(settings.version, "server.version")
    if settings.version_file is not None:
        return _checked(await _read(settings.version_file), str(settings.version_file))
    assert settings.version_command is not None  # the model has exactly one of the three
    return _checked(await _ask(settings.version_command), shlex.join(settings.version_command))


def _checked(text: str, origin: str) -> str:
    version = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if not version or len(version) > MAX_VERSION_LENGTH or not version.isprintable():
        raise ConfigError(
            f"{origin} does not tell the server's version: its first line is no version",
            hint="Correct server.version, server.version_file or server.version_command in the configuration.",
        )
    return version


async def _read(file: Path) -> str:
    try:
        async with aiofiles.open(file, "rb") as handle:
            return (await handle.read(MAX_OUTPUT_BYTES)).decode("utf-8-sig", "replace")
    except OSError as exc:
        raise ConfigError(
            f"cannot read the server's version from {file}: {exc.strerror}",
            hint="Correct server.version_file in the configuration. Is the server installed on this machine?",
        ) from exc


async def _ask(command: list[str]) -> str:
    """Run `command` and return its output. It is gone when this returns, with all that it started."""
    told = shlex.join(command)
    hint = "Run it by hand to see what is wrong; it is server.version_command in the configuration."
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=safe_environment(),
            start_new_session=True,
        )
    except OSError as exc:
        raise ConfigError(f"cannot run {told}: {exc.strerror}", hint=hint) from exc
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT):
            output = await _output(process)
            status = await process.wait()
    except TimeoutError as exc:
        raise ConfigError(
            f"{told} did not tell the server's version within {COMMAND_TIMEOUT:g} seconds", hint=hint
        ) from exc
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    if status != 0:
        raise ConfigError(f"{told} failed with exit status {status}", hint=hint)
    return output.decode("utf-8-sig", "replace")


async def _output(process: asyncio.subprocess.Process) -> bytes:
    """Read to the end of the output, keeping its beginning: a program must not be blocked by a full pipe."""
    assert process.stdout is not None
    kept = b""
    while piece := await process.stdout.read(MAX_OUTPUT_BYTES):
        kept += piece[: MAX_OUTPUT_BYTES - len(kept)]
    return kept
