"""Killing a process at every step that changes the disk: kill -9 of a real, forked process, counted."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

from service.sources import directories, exchange

DISK_STEPS = (
    *("chmod", "chown", "fchmod", "fchown", "fsync", "ftruncate", "link", "mkdir", "open", "pwrite", "removexattr"),
    *("rename", "replace", "rmdir", "setxattr", "symlink", "unlink", "utime", "write", "writev"),
)


def killed_at(step: int, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
    """Do the work in a child that dies before its `step`-th change to the disk. False when it got to the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        try:
            _die_before(step)
            asyncio.run(work())
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {0, -signal.SIGKILL}, "the work failed instead of being killed; see its traceback above"
    return status != 0


def _die_before(step: int) -> None:
    taken = 0

    def counted(function: Callable[..., Any], *, changes: Callable[..., bool] = lambda *_: True) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal taken
            if changes(*args):
                taken += 1
                if taken == step:
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in DISK_STEPS:
        creates = (lambda _path, flags=0, *_: bool(flags & os.O_CREAT)) if name == "open" else (lambda *_: True)
        setattr(os, name, counted(getattr(os, name), changes=creates))
    exchange.renameat2 = counted(exchange.renameat2)
    directories.sync_file_system = counted(directories.sync_file_system)
