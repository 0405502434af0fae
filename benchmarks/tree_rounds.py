"""The section of configuration trees: rounds of ours and GNU tar over the same files."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import Measured, measure
from benchmarks.results import MIB, Run, middle, ratio
from benchmarks.trees import (
    Installation,
    backup_command,
    make_tree,
    restore_command,
    tar_backup_command,
    tar_restore_command,
)
from demo.software_tpm import SoftwareTpm

if TYPE_CHECKING:
    from benchmarks.sections import Bench

FILES = 100_000
TITLES = {
    ("backup", "ours"): "deviceon-backup, sealed and read back",
    ("backup", "tar"): "tar | zstd -1",
    ("restore", "ours"): "deviceon-backup",
    ("restore", "tar"): "zstd -d | tar -x",
}


def measure_trees(bench: Bench) -> None:
    """Back up and restore a tree of small files, in turns; a short round takes fewer files."""
    files = max(1_000, round(FILES * min(1.0, bench.size)))
    directory = bench.machines.directory / "trees"
    shutil.rmtree(directory, ignore_errors=True)
    make_tree(directory / "tree", files)
    with SoftwareTpm(directory / "tpm") as tpm:
        ours = Installation(directory / "ours", directory / "tree", tpm.tcti)
        for number in bench.numbers("trees"):
            for way in ("ours", "tar") if number % 2 else ("tar", "ours"):
                _round(bench, directory, ours, way, number, files)
    shutil.rmtree(directory)
    bench.results.sections["trees"]["tables"] = [_table(bench, direction, files) for direction in ("backup", "restore")]


def _round(bench: Bench, directory: Path, ours: Installation, way: str, number: int, files: int) -> None:
    # Each restore goes to a place of its own, and nothing is deleted meanwhile: ext4 does not use the inodes of what
    # was just deleted, and looking for others takes it a minute.
    into = directory / f"restored-{number}-{way}"
    into.mkdir()
    archive = directory / "tree.tar.zst"
    if way == "ours":
        ours.renew()
        _note(bench, way, "backup", number, files, _measured(directory, backup_command(ours.config)), ours.archives)
        made = ours.archive()
        back = Installation(into, into / "tree", ours.tcti)
        back.renew()
        # the TPM was pinned by the backup; the state of a machine that lost its tree is there still
        shutil.copytree(ours.directory / "state", into / "state")
        command = restore_command(back.config, made)
        _note(bench, way, "restore", number, files, _measured(directory, command), ours.archives)
        return
    _note(bench, way, "backup", number, files, _measured(directory, tar_backup_command(ours.tree, archive)), archive)
    _note(bench, way, "restore", number, files, _measured(directory, tar_restore_command(archive, into)), archive)


def _measured(directory: Path, command: Sequence[str]) -> Measured:
    os.sync()
    time.sleep(0.5)
    return measure(shlex.join(command), os.environ, log=directory / "log")


def _note(bench: Bench, way: str, direction: str, number: int, files: int, told: Measured, archive: Path) -> None:
    paths = [archive] if archive.is_file() else list(archive.iterdir())
    run = Run(
        section="trees",
        way=way,
        direction=direction,
        shape="trees",
        size=files / FILES,
        round=number,
        wall=round(told.wall, 3),
        client_cpu=round(told.client_cpu, 3),
        server_cpu=0.0,
        peak_bytes=told.peak_bytes,
        biggest_bytes=told.biggest_bytes,
        archive_bytes=sum(path.stat().st_size for path in paths),
    )
    bench.results.runs.append(run)
    bench.results.save(bench.path)
    print(f"trees of {files:,} files, round {number}: {direction}, {way}: {run.wall:.2f} s", flush=True)


def _table(bench: Bench, direction: str, files: int) -> dict[str, object]:
    rows = []
    base = middle(bench.results.of("trees", "ours", direction))
    for way in ("ours", "tar"):
        runs = bench.results.of("trees", way, direction)
        wall, cpu = middle(runs), middle(runs, lambda run: run.client_cpu)
        cells = [wall, ratio(wall, base), cpu, max(run.peak_bytes for run in runs) / MIB]
        rows.append([TITLES[direction, way], *(f"{cell or 0:,.2f}" for cell in cells)])
    return {
        "title": f"{direction.capitalize()} of {files:,} small files",
        "header": ["Command", "wall s", "times ours", "CPU s", "peak MiB"],
        "rows": rows,
    }
