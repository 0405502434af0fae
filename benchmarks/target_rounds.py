"""The section of targets: rounds of ours and the peers, each with one file of random bytes into a target and back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.commands import rotated
from benchmarks.measure import CommandFailed, Measured, measure
from benchmarks.results import MIB, Run
from benchmarks.target_commands import KINDS, LARGE_KIND, LARGE_WAYS, WAYS, TargetWay
from benchmarks.target_places import Place, running_place

if TYPE_CHECKING:
    from benchmarks.sections import Bench

SHARE = 0.25  # of the size asked for
LARGE = 2.0  # the same, for memory


@dataclass(frozen=True, slots=True)
class _Copying:
    """One file and one target, and where what is measured goes."""

    bench: Bench
    directory: Path
    kind: str
    place: Place
    size: float
    """GB of the file."""

    @property
    def file(self) -> Path:
        return self.directory / f"file-{self.size:g}"

    def put(self, way: TargetWay, number: int) -> None:
        self._note(way, "put", number, self._measured(way, way.put))

    def get(self, way: TargetWay, number: int) -> None:
        back = self._back
        back.unlink(missing_ok=True)
        self._note(way, "get", number, self._measured(way, way.get))
        if subprocess.run(["cmp", self.file, back], check=False).returncode:
            raise CommandFailed(f"what came back differs from what was stored: {way.get}")
        back.unlink()

    @property
    def _back(self) -> Path:
        return self.directory / "back"

    @property
    def _result(self) -> Path:
        return self.directory / "result.json"

    def _measured(self, way: TargetWay, script: str) -> Measured:
        os.sync()
        time.sleep(0.5)
        environment = {
            **self.place.environment,
            "FILE": str(self.file),
            "KEY": way.name,
            "BACK": str(self._back),
            "RESULT": str(self._result),
        }
        return measure(script, environment, log=self.directory / "command.log", servers=self.place.servers)

    def _note(self, way: TargetWay, direction: str, number: int, measured: Measured) -> None:
        run = Run(
            section="targets",
            way=way.name,
            direction=direction,
            shape=self.kind,
            size=self.size,
            round=number,
            wall=round(measured.wall, 3),
            client_cpu=round(measured.client_cpu, 3),
            server_cpu=round(measured.server_cpu, 3),
            peak_bytes=measured.peak_bytes,
            biggest_bytes=measured.biggest_bytes,
            archive_bytes=self.file.stat().st_size,
            stages=json.loads(self._result.read_text()) if way in LARGE_WAYS and direction == "put" else {},
        )
        self.bench.results.runs.append(run)
        self.bench.results.save(self.bench.path)
        print(
            f"targets, {KINDS[self.kind]}, {self.size:g} GB, round {number}: {direction} with {way.title}: "
            f"{run.wall:.2f} s, CPU {run.client_cpu:.1f} + {run.server_cpu:.1f} s, peak {run.peak_bytes / MIB:.0f} MiB",
            flush=True,
        )


def measure_targets(bench: Bench, ways: Mapping[str, Sequence[TargetWay]] = WAYS) -> None:
    """Put and get in every way of each kind, in turns; then ours alone puts a file that is eight times as large.

    That file also becomes a whole archive: what a backup holds at most.
    """
    directory = bench.machines.directory / "targets"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    numbers = bench.numbers("targets")
    size, large = SHARE * bench.size, LARGE * bench.size
    for kind in ways:
        with running_place(kind, directory / kind, room=round(large * 1e9)) as place:
            copying = _copying(bench, directory, kind, place, size)
            for number in numbers:
                for way in rotated(ways[kind], number):
                    copying.put(way, number)
                    copying.get(way, number)
                    place.empty()
            if kind == LARGE_KIND:
                for way in LARGE_WAYS:
                    _copying(bench, directory, kind, place, large).put(way, numbers[0])
                    place.empty()
    shutil.rmtree(directory)


def _copying(bench: Bench, directory: Path, kind: str, place: Place, size: float) -> _Copying:
    copying = _Copying(bench, directory, kind, place, size)
    if not copying.file.exists():
        with copying.file.open("wb") as file:
            left = round(size * 1e9)
            while left:
                left -= file.write(os.urandom(min(MIB, left)))
    return copying
