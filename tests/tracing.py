"""strace on a running server: to see its system calls, slow them down, or make them fail."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def attached(command: list[str], pid: int) -> Iterator[None]:
    """Run `command`, an strace that watches the process `pid` and all that it starts, for as long as the block runs."""
    tracer = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 30
        while f"TracerPid:\t{tracer.pid}" not in Path(f"/proc/{pid}/status").read_text():
            assert tracer.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield
    finally:
        tracer.terminate()
        tracer.wait()
