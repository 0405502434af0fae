"""Programs of the operator's that are run around the exchange: argv lists without a shell, bounded in time.

What a hook says goes to a file without a name, not to a pipe: a start hook may leave a server running that inherits
it, and a pipe that nobody reads any more would stop or kill that server. So a hook that leaves something running in
the background should send its output elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shlex
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from service.blocking import to_the_end
from service.config_restore import HookSettings, RestoreHooks
from service.errors import HookFailed, Obstacle
from service.health import Check, wait_until_healthy
from service.progress import Progress
from service.secret import redact, safe_environment

log = logging.getLogger(__name__)

TAIL_BYTES = 4096
TAIL_LINES = 20
GRACE_SECONDS = 5.0
"""Between SIGTERM and SIGKILL for a hook that took too long."""

Purpose = Literal["restore", "rollback", "commit"]


async def run_hook(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    timeout: float,  # noqa: ASYNC109 - what it started has to be ended too
    progress: Progress,
    pass_fds: Sequence[int] = (),
) -> str:
    """Run a program to its end and return the last lines that it said, secrets taken out.

    It gets `env` and a few harmless variables (`safe_environment`). Raises HookFailed, with those lines in the
    message, when it cannot be run, exits with anything but 0 or takes longer than `timeout` seconds; what it started
    is then ended with it, also when this is cancelled.
    """
    told = shlex.join(argv)
    with _output() as output, progress.part(f"hook {os.path.basename(argv[0])}", quiet=True):  # noqa: PTH119
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=safe_environment() | dict(env),
                start_new_session=True,
                pass_fds=pass_fds,
            )
        except OSError as error:
            raise HookFailed(
                f"cannot run {told}: {error.strerror}", hint="Correct restore.hooks in the configuration."
            ) from error
        try:
            async with asyncio.timeout(timeout):
                status = await process.wait()
        except TimeoutError:
            await to_the_end(_end(process))
            raise HookFailed(
                f"{told} did not end within {timeout:g} seconds{_said(output)}",
                hint="Run it by hand to see what it waits for, or give it a longer timeout in restore.hooks.",
            ) from None
        except BaseException:
            await to_the_end(_end(process))
            raise
        tail = _tail(output)
    log.info("%s ended with exit status %d%s", told, status, f": {tail}" if tail else "")
    if status != 0:
        raise HookFailed(
            f"{told} failed with exit status {status}{': ' if tail else ''}{_last_line(tail)}",
            hint="Run it by hand to see what is wrong; it is in restore.hooks of the configuration.",
        )
    return tail


def _output() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()
    except OSError:  # no place to write to: a read-only container without /tmp
        return os.fdopen(os.memfd_create("hook", os.MFD_CLOEXEC), "w+b")


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a program and all of its session, first kindly."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        await asyncio.wait({asyncio.ensure_future(process.wait())}, timeout=GRACE_SECONDS)


def _tail(output: IO[bytes]) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - TAIL_BYTES))
    lines = output.read(TAIL_BYTES).decode(errors="replace").splitlines()
    if size > TAIL_BYTES:
        lines = lines[1:]  # half a line, and maybe half of a secret
    return redact("\n".join(line.rstrip() for line in lines[-TAIL_LINES:] if line.strip()))


def _said(output: IO[bytes]) -> str:
    tail = _tail(output)
    return f"; it said: {_last_line(tail)}" if tail else ""


def _last_line(tail: str) -> str:
    return " | ".join(tail.splitlines()[-3:])


@dataclass(frozen=True, slots=True)
class ServerHooks:
    """The hooks of one restore, rollback or recovery. One that is not configured does nothing."""

    settings: RestoreHooks
    archive: str
    restore_id: str
    state_dir: Path

    @property
    def configured(self) -> bool:
        """Whether there is any."""
        return self.settings != RestoreHooks()

    async def stop(self, purpose: Purpose, progress: Progress) -> None:
        """Stop the server's applications. Raises HookFailed."""
        async with self._no_stop_at_work(progress) as held:
            await self._run("stop", self.settings.stop, purpose, "Stopping the server", progress, pass_fds=held)

    async def start(self, purpose: Purpose, progress: Progress) -> None:
        """Start the server's applications. Raises HookFailed."""
        async with self._no_stop_at_work(progress):
            pass
        await self._run("start", self.settings.start, purpose, "Starting the server", progress)

    @contextlib.asynccontextmanager
    async def _no_stop_at_work(self, progress: Progress) -> AsyncIterator[tuple[int, ...]]:
        """Hold, for a block, the lock that a stop hook holds as long as it lives; wait no longer than it may take.

        A stop hook outlives this process when that is killed; a start hook that overtook it would be in vain.
        """
        wait = self.settings.stop.timeout if self.settings.stop is not None else 0.0
        try:
            lock = os.open(self.state_dir / "stop-hook.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:  # a full disk must not keep the server from being started
            log.warning("the lock of stop hooks cannot be had: %s", error)
            yield ()
            return
        try:
            deadline = asyncio.get_running_loop().time() + wait
            while not _locked(lock):
                if asyncio.get_running_loop().time() >= deadline:
                    progress.say("An earlier stop hook still runs; it is not waited for any longer")
                    break
                await asyncio.sleep(0.05)
            yield (lock,)
        finally:
            os.close(lock)

    async def reissue_secrets(self, hardware: str, progress: Progress) -> None:
        """Have the server given its passwords anew; `hardware` is told to the program. Raises HookFailed."""
        hook = self.settings.reissue_secrets
        more = {"DEVICEON_BACKUP_HARDWARE": hardware}
        await self._run("reissue_secrets", hook, "restore", "Giving the server its passwords anew", progress, more)

    async def health(self, purpose: Purpose, progress: Progress) -> None:
        """Wait until the server works. Raises Unhealthy."""
        health = self.settings.health
        if health is None:
            return
        progress.say("Waiting until the server works")
        check: Check | None = None
        if health.command is not None:
            argv, env = health.command, self._env("health", purpose)

            async def check() -> None:
                await run_hook(argv, env=env, timeout=health.timeout, progress=progress)

        await wait_until_healthy(health, check, progress)
        progress.say("The server works")

    async def _run(
        self,
        name: str,
        hook: HookSettings | None,
        purpose: Purpose,
        sentence: str,
        progress: Progress,
        more: Mapping[str, str] | None = None,
        *,
        pass_fds: Sequence[int] = (),
    ) -> None:
        if hook is None:
            return
        progress.say(f"{sentence}: {shlex.join(hook.command)}")
        env = self._env(name, purpose) | dict(more or {})
        tail = await run_hook(hook.command, env=env, timeout=hook.timeout, progress=progress, pass_fds=pass_fds)
        for line in tail.splitlines()[-3:]:
            progress.say(f"  {line}")

    def _env(self, name: str, purpose: Purpose) -> dict[str, str]:
        return {
            "DEVICEON_BACKUP_HOOK": name,
            "DEVICEON_BACKUP_PURPOSE": purpose,
            "DEVICEON_BACKUP_ARCHIVE": self.archive,
            "DEVICEON_BACKUP_RESTORE_ID": self.restore_id,
        }


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def commands(settings: RestoreHooks) -> dict[str, list[str]]:
    """Return the programs that are configured, by the hook's name."""
    found = {
        "stop": settings.stop.command if settings.stop else None,
        "start": settings.start.command if settings.start else None,
        "reissue_secrets": settings.reissue_secrets.command if settings.reissue_secrets else None,
        "health": settings.health.command if settings.health else None,
    }
    return {name: command for name, command in found.items() if command is not None}


def obstacles(settings: RestoreHooks) -> list[Obstacle]:
    """Say which hooks could not be run."""
    path = safe_environment()["PATH"]
    return [
        Obstacle(
            "HOOK_NOT_EXECUTABLE",
            f"the {name} hook {command[0]} is not there, or this service may not execute it",
            f"Correct restore.hooks.{name} in the configuration, or make the program executable.",
        )
        for name, command in commands(settings).items()
        if shutil.which(command[0], path=path) is None
    ]
