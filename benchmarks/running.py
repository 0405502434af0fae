"""Back up and restore once in one way: from the same state each time, and tidied up after."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from benchmarks.commands import DEFAULT, OURS, Way
from benchmarks.machine import RESTORED, Machine
from benchmarks.measure import CommandFailed, Measured, measure


def archive_bytes(machine: Machine, way: Way) -> int:
    """Return the size of what a way wrote last; 0 when there is nothing."""
    if not way.archive:
        return 0
    return sum(path.stat().st_size for path in machine.archives(way.name).glob(way.archive) if path.is_file())


def tidy(machine: Machine) -> None:
    """Remove what an invocation that was cut short left of restores."""
    for way in (OURS, DEFAULT):
        machine.try_run(way.tidy, machine.environment(way.name))


def write_archive(machine: Machine, way: Way, *, cgroup: Path | None = None, **source: Any) -> Measured:
    """Back up into a directory that is empty before. `source` are settings of our PostgreSQL source."""
    archives = machine.archives(way.name)
    shutil.rmtree(archives, ignore_errors=True)
    machine.clear_staging()
    archives.mkdir(parents=True)
    environment = machine.environment(way.name, **source)
    if way.prepare:
        machine.run(way.prepare, environment)
    machine.settle()
    try:
        return _measured(machine, way.back_up, environment, cgroup)
    finally:
        machine.clear_staging()


def restore_archive(machine: Machine, way: Way, *, cgroup: Path | None = None) -> Measured:
    """Restore what this way wrote last (written now when there is nothing), compare roughly, remove what was made."""
    needed = DEFAULT if way.prepare_restore else way
    if not archive_bytes(machine, needed):
        write_archive(machine, needed)
    environment = machine.environment(needed.name)
    machine.clear_staging()
    if way.prepare_restore:
        machine.run(way.prepare_restore, environment)
    machine.settle()
    try:
        measured = _measured(machine, way.restore, environment, cgroup)
        if not way.prepare_restore:
            _compare(machine, machine.database if way is OURS else RESTORED)
    except CommandFailed:
        machine.try_run(way.tidy, environment)
        raise
    machine.run(way.tidy, environment)
    machine.clear_staging()
    return measured


def _compare(machine: Machine, database: str) -> None:
    restored = machine.relations(database)
    if restored != machine.dataset["relations"]:
        raise CommandFailed(f"{restored} of {machine.dataset['relations']} relations were restored")


def _measured(machine: Machine, script: str, environment: dict[str, str], cgroup: Path | None) -> Measured:
    log = machine.work / "command.log"
    return measure(script, environment, log=log, servers=[machine.server.pid], cgroup=cgroup)
