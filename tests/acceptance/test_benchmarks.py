"""A round of the benchmarks on next to nothing: commands, measuring and tidying up work. No timing is looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.commands import OURS, Way
from benchmarks.machine import Machines
from benchmarks.measure import CommandFailed
from benchmarks.results import Results
from benchmarks.sections import Bench
from benchmarks.target_commands import CP, DD, SMBCLIENT, TargetWay
from benchmarks.target_commands import OURS as OUR_TARGET
from benchmarks.target_rounds import measure_targets

# What `make bench` compares with needs packages that tests do not.
DUMP = Way(
    "dump",
    "pg_dump -Fc",
    'pg_dump -Fc -f "$OUT/dump" "$DB"',
    "dump",
    restore='createdb -T template0 "$RESTORED" && pg_restore -j2 --exit-on-error -d "$RESTORED" "$OUT/dump"',
)


def bench_of(workspace: Path, size: float) -> Bench:
    """One round, its results in `performance.json`."""
    machines, path = Machines(workspace / "data"), workspace / "performance.json"
    return Bench(machines=machines, results=Results(cores=2), size=size, rounds=1, keep=True, growth=(), path=path)


def test_a_round_measures_backup_and_restore_and_leaves_the_server_as_it_was(workspace: Path) -> None:
    bench = bench_of(workspace, 0.001)
    with bench.machine("devices", 0.001) as machine:
        for way in (OURS, DUMP):
            bench.back_up(machine, way, "backup", 1)
            bench.restore(machine, way, "restore", 1)
        assert (
            machine.run('psql -AXtc "SELECT count(*) FROM pg_database" postgres', machine.environment("none")) == "6\n"
        )
    found = Results.load(bench.path)
    assert [(run.way, run.direction) for run in found.runs] == [
        ("ours", "backup"),
        ("ours", "restore"),
        ("dump", "backup"),
        ("dump", "restore"),
    ]
    for run in found.runs:
        assert min(run.wall, run.client_cpu, run.peak_bytes, run.archive_bytes) > 0, run
    assert "read back" in found.of("backup", "ours")[0].stages
    assert found.datasets["devices-0.001"]["dump_bytes"] > 100_000
    with bench.machine("devices", 0.001) as again:
        assert again.database == machine.database, "what was made is used again"


def test_a_file_goes_into_a_real_target_of_each_kind_and_comes_back(workspace: Path) -> None:
    bench = bench_of(workspace, 0.04)
    ways = {"s3-https": [OUR_TARGET], "s3-http": [OUR_TARGET], "smb": [OUR_TARGET, SMBCLIENT]}
    measure_targets(bench, ways | {"local": [OUR_TARGET, DD, CP]})
    runs = Results.load(bench.path).of("targets")
    assert [(run.shape, run.way, run.direction, run.archive_bytes) for run in runs] == [
        ("s3-https", "ours", "put", 10_000_000),
        ("s3-https", "ours", "get", 10_000_000),
        ("s3-https", "ours", "put", 80_000_000),
        ("s3-https", "archive", "put", 80_000_000),
        ("s3-http", "ours", "put", 10_000_000),
        ("s3-http", "ours", "get", 10_000_000),
        *(("smb", way, direction, 10_000_000) for way in ("ours", "smbclient") for direction in ("put", "get")),
        *(("local", way, direction, 10_000_000) for way in ("ours", "dd", "cp") for direction in ("put", "get")),
    ]
    for run in runs:
        assert run.wall > 0
        assert ("publish" in run.stages) == (run.way in {"ours", "archive"} and run.direction == "put"), run
        assert (run.server_cpu > 0) == (run.shape != "local"), run
    assert list((workspace / "data").iterdir()) == [], "nothing is left"


def test_bytes_that_come_back_changed_end_a_round(workspace: Path) -> None:
    careless = TargetWay("careless", "cp, and a byte too many", CP.put, f'{CP.get} && echo >>"$BACK"')
    with pytest.raises(CommandFailed, match="differs from what was stored"):
        measure_targets(bench_of(workspace, 0.0001), {"local": [careless]})
