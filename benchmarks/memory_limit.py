"""Ours within a memory cgroup of 256 MiB: version 1 or 2, whatever the machine has. Needs root."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.commands import OURS
from benchmarks.machine import Machine
from benchmarks.measure import CommandFailed
from benchmarks.results import MIB
from benchmarks.running import archive_bytes, restore_archive, write_archive

LIMIT_BYTES = 256 * MIB
_ROOT = Path("/sys/fs/cgroup")
_NAME = "deviceon-backup-bench"


class NoCgroup(Exception):
    """No memory cgroup can be made here; the message says why."""


@contextlib.contextmanager
def memory_cgroup(limit: int) -> Iterator[tuple[Path, Callable[[], int]]]:
    """Give a cgroup with a limit of memory, and what tells the most that it ever used. Raises NoCgroup."""
    version_1 = (_ROOT / "memory").is_dir()
    directory = (_ROOT / "memory" if version_1 else _ROOT) / f"{_NAME}-{os.getpid()}"
    limits, most = (
        ("memory.limit_in_bytes", "memory.max_usage_in_bytes") if version_1 else ("memory.max", "memory.peak")
    )
    try:
        directory.mkdir()
    except OSError as exc:
        raise NoCgroup(f"a cgroup cannot be made ({exc.strerror}); it takes root") from exc
    try:
        try:
            (directory / limits).write_text(str(limit))
            with contextlib.suppress(OSError):  # without swap there is no such file, or nothing to limit
                swap = "memory.memsw.limit_in_bytes" if version_1 else "memory.swap.max"
                (directory / swap).write_text(str(limit if version_1 else 0))
        except OSError as exc:
            raise NoCgroup(f"the memory of a cgroup cannot be limited here ({exc.strerror})") from exc
        yield directory, lambda: int((directory / most).read_text()) if (directory / most).exists() else 0
    finally:
        _remove(directory)


def _remove(directory: Path) -> None:
    for _ in range(50):  # what was killed in it may not have left yet
        with contextlib.suppress(OSError):
            directory.rmdir()
            return
        time.sleep(0.1)


def limited(machine: Machine, direction: str) -> dict[str, Any]:
    """Back up or restore within the limit; return whether it was done, what it used, and that in words."""
    entry: dict[str, Any] = {"direction": direction, "limit_bytes": LIMIT_BYTES, "succeeded": False}
    entry |= _limited(machine, direction)
    print(f"memory, {direction} of {machine.dataset['size']:g} GB: {entry['note']}", flush=True)
    return entry


def _limited(machine: Machine, direction: str) -> dict[str, Any]:
    command = write_archive if direction == "backup" else restore_archive
    if direction == "restore" and not archive_bytes(machine, OURS):
        write_archive(machine, OURS)
    try:
        with memory_cgroup(LIMIT_BYTES) as (cgroup, most):
            try:
                measured = command(machine, OURS, cgroup=cgroup)
            except CommandFailed as exc:
                return {"most_bytes": most(), "note": f"FAILED within 256 MiB: {exc}"}
            used = most()
    except NoCgroup as exc:
        return {"run": False, "note": f"NOT RUN: {exc}"}
    return {
        "succeeded": True,
        "wall": round(measured.wall, 3),
        "most_bytes": used,
        "peak_bytes": measured.peak_bytes,
        "note": f"done within 256 MiB in {measured.wall:.1f} s; processes {measured.peak_bytes / MIB:.0f} MiB, "
        f"with page cache {used / MIB:.0f} MiB",
    }
