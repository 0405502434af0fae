"""What is run: sections of rounds in which every command has its turn, in an order that rotates."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import load, memory_limit
from benchmarks.commands import (
    BACKUPS,
    OURS,
    RESTORES,
    SHAPE_BACKUPS,
    SHAPE_RESTORES,
    SLOW_RESTORES,
    STREAMING,
    TITLES,
    Way,
    rotated,
)
from benchmarks.data import SHAPES
from benchmarks.machine import Machine, Machines
from benchmarks.measure import Measured
from benchmarks.results import MIB, Results, Run
from benchmarks.running import archive_bytes, restore_archive, tidy, write_archive
from benchmarks.target_rounds import measure_targets
from benchmarks.tree_rounds import measure_trees

GROWTH = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Sizes of the section `growth`, as multiples of the size asked for; the first three in a short round."""
_WITH_PSQL_UP_TO = 1.0  # of these multiples: psql's way back is the slowest of all


@dataclass(slots=True)
class Bench:
    """One invocation: what it measures goes into `results`."""

    machines: Machines
    results: Results
    size: float
    rounds: int
    keep: bool
    growth: Sequence[float]
    path: Path
    """Where the results are kept: written after each command, so that nothing is lost with what comes later."""

    def numbers(self, section: str, most: int | None = None) -> range:
        """Return the numbers of the rounds to run; they go on after those that the section had before."""
        before = max((run.round for run in self.results.of(section)), default=0)
        return range(before + 1, before + 1 + min(self.rounds, most or self.rounds))

    @contextmanager
    def machine(self, shape: str, size: float) -> Iterator[Machine]:
        """Give the machine with a dataset; nothing is left on it of invocations before."""
        with self.machines.running(shape, size) as machine:
            tidy(machine)
            self.results.datasets[f"{shape}-{size:g}"] = machine.dataset
            yield machine

    def back_up(self, machine: Machine, way: Way, section: str, number: int) -> None:
        """Measure one backup; what it wrote stays until the next one of this way."""
        self._note(machine, way, section, "backup", number, write_archive(machine, way))

    def restore(self, machine: Machine, way: Way, section: str, number: int) -> None:
        """Measure one restore of what this way wrote last."""
        self._note(machine, way, section, "restore", number, restore_archive(machine, way))

    def _note(self, machine: Machine, way: Way, section: str, direction: str, number: int, measured: Measured) -> None:
        told = json.loads(machine.result.read_text()) if way is OURS else {}
        run = Run(
            section=section,
            way=way.name,
            direction=direction,
            shape=machine.dataset["shape"],
            size=machine.dataset["size"],
            round=number,
            wall=round(measured.wall, 3),
            client_cpu=round(measured.client_cpu, 3),
            server_cpu=round(measured.server_cpu, 3),
            peak_bytes=measured.peak_bytes,
            biggest_bytes=measured.biggest_bytes,
            archive_bytes=archive_bytes(machine, way),
            stages=told.get("stages", {}),
        )
        self.results.runs.append(run)
        self.results.save(self.path)
        command = TITLES[direction].get(way.name, way.name)
        print(
            f"{section} of {run.shape}, {run.size:g} GB, round {number}: {direction} with {command}: {run.wall:.2f} s, "
            f"CPU {run.client_cpu:.1f} + {run.server_cpu:.1f} s, peak {run.peak_bytes / MIB:.0f} MiB",
            flush=True,
        )


def backup(bench: Bench) -> None:
    """The device-management database, backed up in every way."""
    with bench.machine("devices", bench.size) as machine:
        for number in bench.numbers("backup"):
            for way in rotated(BACKUPS, number):
                bench.back_up(machine, way, "backup", number)


def restore(bench: Bench) -> None:
    """The device-management database, restored from what every way wrote."""
    with bench.machine("devices", bench.size) as machine:
        for number in bench.numbers("restore"):
            for way in rotated(RESTORES, number):
                bench.restore(machine, way, "restore", number)
            if number == 1:
                for way in SLOW_RESTORES:
                    bench.restore(machine, way, "restore", number)


def shapes(bench: Bench) -> None:
    """Other shapes of data, half as large, with the nearest peers."""
    numbers = bench.numbers("shapes", most=2)
    size = bench.size / 2
    for shape in [name for name in SHAPES if name != "devices"]:
        with bench.machine(shape, size) as machine:
            for number in numbers:
                for way in rotated(SHAPE_BACKUPS, number):
                    bench.back_up(machine, way, "shapes", number)
                for way in rotated(SHAPE_RESTORES, number):
                    bench.restore(machine, way, "shapes", number)
        if not bench.keep:
            bench.machines.remove(shape, size)


def growth(bench: Bench) -> None:
    """Ours and the streaming peer from a quarter of the size to four times as much, one round each."""
    for multiple in bench.growth:
        size = multiple * bench.size
        with bench.machine("devices", size) as machine:
            for way in (OURS, STREAMING):
                bench.back_up(machine, way, "growth", 1)
            for way in (OURS, STREAMING) if multiple <= _WITH_PSQL_UP_TO else (OURS,):
                bench.restore(machine, way, "growth", 1)
        if not bench.keep and size != bench.size:
            bench.machines.remove("devices", size)


def memory(bench: Bench) -> None:
    """Ours within a memory cgroup, which counts the page cache too."""
    with bench.machine("devices", bench.size) as machine:
        bench.results.sections["memory"]["limited"] = [
            memory_limit.limited(machine, direction) for direction in ("backup", "restore")
        ]


def latency(bench: Bench) -> None:
    """What a workload on the same server notices of a backup."""
    with bench.machine("devices", bench.size) as machine:
        bench.results.sections["load"]["measured"] = load.measure_load(machine, bench.rounds)


def trees(bench: Bench) -> None:
    """100,000 small files, beside GNU tar."""
    measure_trees(bench)


def targets(bench: Bench) -> None:
    """One file into a target of each kind and back, a quarter as large, beside other programs that store there."""
    measure_targets(bench)


SECTIONS: Mapping[str, Callable[[Bench], None]] = {
    "backup": backup,
    "restore": restore,
    "shapes": shapes,
    "growth": growth,
    "memory": memory,
    "load": latency,
    "trees": trees,
    "targets": targets,
}


def _version() -> str:
    """Return the commit that is measured, as git describes it; empty where there is no git."""
    told = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return told.stdout.strip()


def run_section(bench: Bench, name: str, *, append: bool) -> None:
    """Run one section; it replaces what the results had of it, or is added."""
    if not append:
        bench.results.forget(name)
    before = bench.results.sections.get(name, {})
    bench.results.sections[name] = before | {
        "size": bench.size,
        "rounds": bench.rounds + before.get("rounds", 0),
        "version": _version(),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%MZ"),
    }
    SECTIONS[name](bench)
