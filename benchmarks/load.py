"""What a workload on the same server notices of a backup: pgbench at a fixed rate, its latencies read from its log.

With a fixed rate, latency is counted from when a transaction was due, so that a stall is seen by all that waited.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.commands import OURS, STREAMING, Way
from benchmarks.machine import Machine
from benchmarks.running import write_archive

RATE = 200  # transactions a second: about a tenth of what two cores do
CLIENTS = 4
DATABASE = "pgbench"
QUIET_SECONDS = 15.0
_SETTLE_SECONDS = 2.0

Window = tuple[float, float]
LOADS: tuple[tuple[str, Way | None, dict[str, Any]], ...] = (
    ("no backup", None, {}),
    ("deviceon-backup", OURS, {}),
    ("deviceon-backup, `connections: 1`", OURS, {"connections": 1}),
    ("deviceon-backup, `connections: 1`, `delay: 0.02`", OURS, {"connections": 1, "delay": 0.02}),
    (STREAMING.title, STREAMING, {}),
)
"""Title, way and settings of our PostgreSQL source."""


def measure_load(machine: Machine, rounds: int) -> list[dict[str, Any]]:
    """Return one row for each of LOADS, of `rounds` windows each."""
    _initialise(machine)
    windows: dict[str, list[Window]] = {title: [] for title, *_ in LOADS}
    logs = machine.work / "pgbench"
    logs.mkdir()
    with _pgbench(machine, logs):
        time.sleep(_SETTLE_SECONDS)
        for number in range(1, rounds + 1):
            for title, way, source in LOADS:
                if way is None:
                    machine.settle()  # as before every backup: a checkpoint makes the next writes dearer
                    began = time.time()
                    time.sleep(QUIET_SECONDS)
                    windows[title].append((began, time.time()))
                else:
                    measured = write_archive(machine, way, **source)
                    ended = time.time() - 0.2  # what `measure` waits after the command
                    windows[title].append((ended - measured.wall, ended))
                first, last = windows[title][-1]
                print(f"load, round {number}: pgbench and {title}: {last - first:.1f} s", flush=True)
        time.sleep(_SETTLE_SECONDS)  # pgbench writes its log in blocks
    done = [line for path in logs.iterdir() for line in path.read_text().splitlines()]
    transactions = list(parse_log(done))
    return [{"title": title} | summary(transactions, windows[title]) for title, *_ in LOADS]


def parse_log(lines: Iterable[str]) -> Iterator[tuple[float, float]]:
    """Yield the end (seconds since 1970) and the latency (milliseconds) of each transaction that pgbench logged."""
    for line in lines:
        words = line.split()
        if len(words) >= 6 and words[2].isdigit():  # the last line may be cut off; others say "skipped"
            yield int(words[4]) + int(words[5]) / 1e6, int(words[2]) / 1e3


def summary(transactions: Iterable[tuple[float, float]], windows: Iterable[Window]) -> dict[str, float]:
    """Return seconds, transactions a second, and latencies in milliseconds, of what ended within the windows."""
    windows = list(windows)
    latencies = sorted(
        latency for ended, latency in transactions if any(first <= ended <= last for first, last in windows)
    )
    seconds = sum(last - first for first, last in windows)
    told = {"seconds": round(seconds / max(1, len(windows)), 2), "transactions": float(len(latencies))}
    told["tps"] = round(len(latencies) / seconds, 1) if seconds else 0.0
    for name, share in (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99), ("max_ms", 1.0)):
        told[name] = round(latencies[min(len(latencies) - 1, int(share * len(latencies)))], 3) if latencies else 0.0
    return told


def _initialise(machine: Machine) -> None:
    scale = max(1, min(30, round(30 * machine.dataset["size"])))
    if not asyncio.run(machine.server.fetch("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE)):
        asyncio.run(machine.server.execute(f"CREATE DATABASE {DATABASE}"))
    machine.server.run("pgbench", ["-i", "-q", "-s", str(scale), DATABASE])


@contextmanager
def _pgbench(machine: Machine, logs: Path) -> Iterator[None]:
    command = ["pgbench", "-n", "-c", str(CLIENTS), "-j", "1", "-R", str(RATE), "-T", "86400", "-l"]
    process = subprocess.Popen(
        [*command, f"--log-prefix={logs / 'log'}", DATABASE],
        env=machine.environment("none"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
        if process.poll() is not None:
            raise RuntimeError("pgbench ended before it was told to")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
