"""How many processors this process may use: those it is allowed on, but no more than its control groups have time for.

A container with a limit of two processors sees all of its machine's. Threads, connections and buffers go by this
number, so that memory stays within what was measured wherever it runs.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path

_CONTROL_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@functools.cache
def processors() -> int:
    """Return how many threads can work at once, 1 at least."""
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, quotas(_CONTROL_GROUPS, _OWN_GROUPS))]))


def quotas(root: Path, own: Path) -> Iterator[float]:
    """Give the limits in processors of this process's control groups and of all above them, of version 2 and 1.

    What cannot be read limits nothing: in a container, groups above its own are not to be seen.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts = [root, root / "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [root / controllers, root / "cpu"]
        else:
            continue
        group = Path(path.lstrip("/"))
        for mount in mounts:
            for directory in (mount / each for each in (group, *group.parents)):
                with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                    yield _quota(directory, version=2 if controllers == "" else 1)


def _quota(directory: Path, *, version: int) -> float:
    """Return the limit of one group. Raises OSError, ValueError when there is none."""
    if version == 2:
        most, period = (directory / "cpu.max").read_text().split()  # "max" is no number
    else:
        most = (directory / "cpu.cfs_quota_us").read_text()
        period = (directory / "cpu.cfs_period_us").read_text()
    if int(most) <= 0:  # version 1 says -1
        raise ValueError("no limit")
    return int(most) / int(period)
