"""A process that stores one object when told to, for tests that kill it or make its system calls fail.

It is forked from a server that has everything imported, so that one run costs milliseconds.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Self

from storage_backends import StorageError, local_file
from storage_backends.local import LocalBackend

MIB = 1 << 20
PATIENCE = 60.0


@dataclass(frozen=True)
class Task:
    """What the writer stores, and where; `uid` when it gives up being root first."""

    directory: Path
    key: str = "object"
    mib: int = 3
    unnamed: bool = True
    overwrite: bool = False
    uid: int | None = None


@cache
def content(key: str, mib: int) -> bytes:
    """Return what the writer stores: no two blocks are alike."""
    return b"".join(f"{key} {number:9d}".encode().ljust(4096, b".") for number in range(mib * MIB // 4096))


async def _store(task: Task, whole: bytes) -> str:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(whole), MIB // 2):
            yield whole[start : start + MIB // 2]

    async with LocalBackend(task.directory, unnamed=task.unnamed) as target:
        try:
            await target.put(task.key, pieces(), overwrite=task.overwrite)
        except StorageError as exc:
            return f"refused {exc.code}"
        return "stored"


async def _store_and_say(task: Task, whole: bytes, pipe: Connection) -> None:
    pipe.send(await _store(task, whole))
    os._exit(0)  # the loop's own closing would be hit by faults meant for the writing thread


def _run(task: Task, pipe: Connection) -> None:
    local_file.WINDOW_BYTES = MIB  # so that the write-behind is part of a small object's path too
    whole = content(task.key, task.mib)
    with tempfile.TemporaryDirectory(
        dir=task.directory.parent
    ) as elsewhere:  # everything is imported and warm before anybody traces
        asyncio.run(_store(Task(Path(elsewhere), unnamed=task.unnamed, overwrite=task.overwrite), whole[:MIB]))
    if task.uid is not None:
        os.setgroups([])
        os.setresgid(task.uid, task.uid, task.uid)
        os.setresuid(task.uid, task.uid, task.uid)
    pipe.send("ready")
    pipe.recv()
    asyncio.run(_store_and_say(task, whole, pipe))


@cache
def start_server() -> None:
    """Start the server that processes are forked from; it has imported what they need."""
    forkserver.set_forkserver_preload(["__main__", __name__, "storage_backends.smb", "tests.integration.smb_writer"])
    before = os.environ.get("PYTHONPATH")
    # The server passes over what it cannot import, and it does not get our sys.path: every run would import afresh.
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class Writer:
    """The process; `with Writer(task) as writer` waits until it is ready."""

    def __init__(self, task: Task) -> None:
        start_server()
        context = get_context("forkserver")
        self._pipe, far_end = context.Pipe()
        self._process: BaseProcess = context.Process(target=_run, args=(task, far_end))
        self._process.start()
        far_end.close()

    def __enter__(self) -> Self:
        self._receive()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.is_alive() and kind is not None:
            self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process.pid is not None
        return self._process.pid

    def finish(self) -> str:
        """Let it store, and return what it says: `stored`, `refused CODE`, or `killed` when it says nothing."""
        self._pipe.send("go")
        try:
            said = self._receive()
        except (EOFError, ConnectionResetError):
            self._process.join(PATIENCE)
            assert self._process.exitcode == -9, f"the writer ended with {self._process.exitcode}"
            return "killed"
        self._process.join(PATIENCE)
        return said

    def _receive(self) -> str:
        assert self._pipe.poll(PATIENCE), "the writer does not answer"
        return str(self._pipe.recv())
