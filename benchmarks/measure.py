"""Measure one command as a person types it: wall clock, CPU of the client and of the server, peak memory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.05
_SHARED_EVERY = 4  # samples; what processes share takes the kernel 2 ms for each 100 MiB to find out
LONGEST_SECONDS = 3600.0
_TICKS = os.sysconf("SC_CLK_TCK")
_LAST_WORDS = 2000  # bytes of a failed command's output


class CommandFailed(RuntimeError):
    """A measured command failed; the message ends with what it said."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds and bytes; the server's memory is not in `peak_bytes`."""

    wall: float
    client_cpu: float
    server_cpu: float
    peak_bytes: int
    biggest_bytes: int


def measure(
    script: str,
    environment: Mapping[str, str],
    *,
    log: Path,
    servers: Collection[int] = (),
    cgroup: Path | None = None,
    directory: Path | None = None,
) -> Measured:
    """Run `script` in a bash of its own, with `pipefail`; stdout and stderr go to `log`.

    `servers` are the main processes of what serves it, `cgroup` is the directory of a memory cgroup to run it in.
    Raises CommandFailed.
    """
    enter = f'echo $$ >"{cgroup}/cgroup.procs" && ' if cgroup else ""
    before = server_cpu(servers)
    with log.open("wb") as output:
        began = time.monotonic()
        process = subprocess.Popen(
            ["bash", "-c", f"set -o pipefail; {enter}{script}"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
            cwd=directory,
            start_new_session=True,
        )
        with _Sampler(process.pid) as sampler:
            # bash waits for all of a pipeline, so its usage has what every process of the command used.
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    time.sleep(0.2)  # until the servers have reaped what served the command
    if process.returncode:
        said = log.read_bytes()[-_LAST_WORDS:].decode(errors="replace").strip()
        raise CommandFailed(f"exit code {process.returncode} of: {script}\n{said}")
    return Measured(
        wall=wall,
        client_cpu=usage.ru_utime + usage.ru_stime,
        server_cpu=server_cpu(servers) - before,
        peak_bytes=sampler.peak,
        biggest_bytes=sampler.biggest,
    )


def server_cpu(servers: Collection[int]) -> float:
    """Return the CPU seconds that servers used since their start: of children that were reaped, live, and their own."""
    own = sum(sum(_cpu_fields(server)) for server in servers)
    return (own + sum(sum(_cpu_fields(child)[:2]) for server in servers for child in _children(server))) / _TICKS


def _cpu_fields(pid: int) -> list[int]:
    """Return utime, stime, cutime and cstime in ticks; zeros when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return [0, 0, 0, 0]
    return [int(word) for word in text.rpartition(")")[2].split()[11:15]]


def _children(pid: int) -> Iterator[int]:
    # A child is listed with the thread that forked it.
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                yield from map(int, (thread / "children").read_text().split())


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for child in _children(pid):
        yield from _tree(child)


class _Sampler:
    """Looks at the memory of a process tree until the block is left; ends a command that hangs.

    `peak` is the largest sum of the processes' proportional memory (a page that two share is half of each one's), but
    no less than `biggest`, which the kernel keeps itself: the most that one process ever had. A sum of what is resident
    in each would count a process twice while it forks. And ru_maxrss begins with the memory of whoever forked, which is
    this program.
    """

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self.biggest = 0
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        until = time.monotonic() + LONGEST_SECONDS
        samples = 0
        while not self._done.wait(SAMPLE_SECONDS):
            processes = list(_tree(self._pid))
            self.biggest = max([self.biggest, *(_kilobytes(pid, "status", "VmHWM") for pid in processes)])
            if samples % _SHARED_EVERY == 0:
                self.peak = max(self.peak, sum(_kilobytes(pid, "smaps_rollup", "Pss") for pid in processes))
            self.peak = max(self.peak, self.biggest)
            samples += 1
            if time.monotonic() > until:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._pid, signal.SIGKILL)


def _kilobytes(pid: int, file: str, name: str) -> int:
    """Return a size from a file of /proc, in bytes; 0 when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    sizes = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(sizes.get(name, "0 kB").split()[0]) * 1024
