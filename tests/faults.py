"""Numbered steps of a recipe, and one fault at one of them: an error, a cancellation, the death of a process.

A step is every change to the disk (`tests.kills`), every statement and connection of PostgreSQL, every program that is
started. They are counted from outside, so nothing in what is shipped knows of it. Steps of one piece of work are the
same ones in every run, but for a few where tasks take turns.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
import traceback
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import asyncpg

from service.sources import directories, exchange
from tests.kills import DISK_STEPS

Act = Callable[[str], None]
"""What is done at the chosen step; gets what kind of step it is: `disk`, `sql`, `connect`, `program`."""

_SQL = ("copy_to_table", "execute", "executemany", "fetch", "fetchrow", "fetchval")


def failing(kind: str) -> None:
    """Raise what such a step raises when it fails."""
    if kind == "disk":
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    if kind == "sql":
        raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
    raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


@dataclass(slots=True)
class Steps:
    """Counts steps; at number `at` (from 1) does `act`, before the step or, with `after`, when it is done."""

    at: int = 0
    act: Act = lambda kind: None
    after: bool = False
    hang: bool = False
    """A chosen step that is awaited never comes to its end."""
    taken: int = 0
    met: str = ""
    """What kind the chosen step was; empty while it was not reached."""
    marks: dict[str, int] = field(default_factory=dict)

    def mark(self, name: str) -> None:
        """Remember how many steps were taken when something began."""
        self.marks.setdefault(name, self.taken)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count for a block."""
        with contextmanager(self._patched)():
            yield

    def _patched(self) -> Iterator[None]:
        patches = [mock.patch.object(os, name, self._call(getattr(os, name), name)) for name in DISK_STEPS]
        patches += [
            mock.patch.object(exchange, "renameat2", self._call(exchange.renameat2)),
            mock.patch.object(directories, "sync_file_system", self._call(directories.sync_file_system)),
            mock.patch.object(asyncpg, "connect", self._awaited("connect", asyncpg.connect)),
            mock.patch.object(
                asyncio, "create_subprocess_exec", self._awaited("program", asyncio.create_subprocess_exec)
            ),
        ]
        connection = asyncpg.connection.Connection
        patches += [
            mock.patch.object(connection, name, self._awaited("sql", getattr(connection, name))) for name in _SQL
        ]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()

    def _begin(self, kind: str) -> bool:
        """Count a step; say whether it is the chosen one, and act now if that is to be before it."""
        self.taken += 1
        chosen = self.taken == self.at
        if chosen:
            self.met = kind
            if not self.after:
                self.act(kind)
        return chosen and self.after

    def _call(self, function: Callable[..., Any], name: str = "") -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not (len(args) > 1 and args[1] & os.O_CREAT):
                return function(*args, **kwargs)
            late = self._begin("disk")
            result = function(*args, **kwargs)
            if late:
                self.act("disk")
            return result

        return call

    def _awaited(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            late = self._begin(kind)
            if self.hang and self.taken == self.at:
                await asyncio.sleep(3600)
            result = await function(*args, **kwargs)
            if late:
                try:
                    self.act(kind)
                except Exception:
                    if kind == "connect":
                        result.terminate()
                    elif kind == "program":
                        result.kill()
                        await result.wait()
                    raise
            return result

        return call


@asynccontextmanager
async def cancelling(steps: Steps) -> AsyncIterator[None]:
    """Let the chosen step cancel the task that enters this, from whatever thread it runs in."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def cancel(_: str) -> None:
        loop.call_soon_threadsafe(task.cancel)

    steps.act = cancel
    yield


def killed(steps: Steps, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
    """Do the work in a forked child that is killed (SIGKILL) at the chosen step; False when it got to the end."""
    steps.act = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        try:
            with steps.counted():
                asyncio.run(work())
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {0, -signal.SIGKILL}, "the work failed instead of being killed; see its traceback above"
    return status != 0
