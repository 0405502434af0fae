"""What was measured, as plain values: medians, ratios, goals. Pure; docs/performance.json is a `Results`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self

MIB = 1 << 20
OURS = "ours"
TARGET_PEERS = (("s3-https", "aws"), ("s3-https", "rclone"), ("smb", "smbclient"), ("smb", "rclone"), ("local", "dd"))


@dataclass(frozen=True, slots=True)
class Run:
    """One command, measured. Times in seconds, sizes in bytes, `size` in GB of plain-text dump as asked for."""

    section: str
    way: str
    direction: str
    shape: str
    size: float
    round: int
    wall: float
    client_cpu: float
    server_cpu: float
    peak_bytes: int
    """The largest sum of the memory of all processes of the command; what they share is counted once."""
    biggest_bytes: int
    """The largest resident memory that one of its processes ever had."""
    archive_bytes: int
    stages: dict[str, float] = field(default_factory=dict)
    """Ours only: seconds of each stage, as the command's `--json` tells."""


Value = Callable[[Run], float]


def wall(run: Run) -> float:
    """Return the wall seconds of the whole command."""
    return run.wall


def published(run: Run) -> float:
    """Return the wall seconds until the archive was published, which is when a peer is done."""
    return run.wall - run.stages.get("read back", 0.0)


@dataclass(slots=True)
class Results:
    """All that is known, of as many invocations as it took: a section that is run again replaces what it had."""

    cores: int = 1
    facts: dict[str, str] = field(default_factory=dict)
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By section: `size`, `rounds`, `made` (UTC), and whatever else it has to tell."""
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what was measured before; nothing when there is no such file."""
        if not path.exists():
            return cls()
        values = json.loads(path.read_text())
        return cls(**values | {"runs": [Run(**run) for run in values["runs"]]})

    def save(self, path: Path) -> None:
        """Write everything, one run a line."""
        runs = ",\n".join(f"  {json.dumps(asdict(run))}" for run in self.runs)
        other = {"cores": self.cores, "facts": self.facts, "sections": self.sections, "datasets": self.datasets}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{json.dumps(other, indent=1)[:-2]},\n "runs": [\n{runs}\n ]\n}}\n')

    def forget(self, section: str) -> None:
        """Drop what a section measured before."""
        self.runs = [run for run in self.runs if run.section != section]
        self.sections.pop(section, None)

    def of(self, section: str, way: str | None = None, direction: str | None = None, **more: object) -> list[Run]:
        """Return the runs that fit, in the order in which they were made."""
        return [
            run
            for run in self.runs
            if run.section == section
            and way in (None, run.way)
            and direction in (None, run.direction)
            and all(getattr(run, name) == value for name, value in more.items())
        ]


def middle(runs: Iterable[Run], value: Value = wall) -> float | None:
    """Return the median; None of nothing."""
    values = [value(run) for run in runs]
    return median(values) if values else None


def ratio(above: float | None, below: float | None) -> float | None:
    """Return `above / below`; None when one of them was not measured."""
    return above / below if above is not None and below else None


def cpu_limit_share(runs: Iterable[Run], cores: int) -> float | None:
    """Return wall time over the time that all CPU seconds, the server's too, take when every core is busy."""
    return middle(runs, lambda run: run.wall / ((run.client_cpu + run.server_cpu) / cores))


def _peak_mib(runs: Iterable[Run]) -> float | None:
    peaks = [run.peak_bytes / MIB for run in runs]
    return max(peaks) if peaks else None


def _peak_of_all(results: Results, direction: str) -> float | None:
    return _peak_mib(run for run in results.runs if run.way == OURS and run.direction == direction)


def data_phase(run: Run) -> float:
    """Return the wall seconds that rows and large objects took; 0 when that is not known."""
    return run.stages.get("rows", 0.0) + run.stages.get("large objects", 0.0)


def ratios(results: Results) -> dict[str, float | None]:
    """Return what the run's last line tells. Of `..._vs_...`, above 1 means that ours is faster."""

    def faster(section: str, peer: str) -> float | None:
        return ratio(middle(results.of(section, peer, section)), middle(results.of(section, OURS, section)))

    def size(run: Run) -> float:
        return run.archive_bytes

    backups = results.of("backup", OURS)
    streaming = middle(results.of("backup", "streaming", "backup"))
    told = {
        "backup_vs_streaming": faster("backup", "streaming"),
        "backup_vs_restic": faster("backup", "restic"),
        "backup_vs_borg": faster("backup", "borg"),
        "backup_vs_default": faster("backup", "default"),
        "published_vs_streaming": ratio(streaming, middle(backups, published)),
        "restore_vs_streaming": faster("restore", "streaming"),
        "restore_vs_pg_restore": faster("restore", "default"),
        "cpu_limit_share": cpu_limit_share(backups, results.cores),
        "peak_mib": _peak_mib(run for run in results.runs if run.way == OURS and run.section != "targets"),
        "size_ratio": ratio(middle(backups, size), middle(results.of("backup", "streaming"), size)),
    }
    for kind, peer in TARGET_PEERS:
        for direction in ("put", "get"):
            told[f"{kind.replace('-', '_')}_{direction}_vs_{peer}"] = transfer_ratio(results, kind, direction, peer)
    return {name: None if value is None else round(value, 3) for name, value in told.items()}


def transfer_ratio(results: Results, kind: str, direction: str, peer: str) -> float | None:
    """Return how many times faster ours puts or gets the same file as a peer."""
    peers = results.of("targets", peer, direction, shape=kind)
    ours = results.of("targets", OURS, direction, shape=kind)
    return ratio(middle(peers), middle(run for run in ours if run.size == peers[0].size)) if peers else None


@dataclass(frozen=True, slots=True)
class Goal:
    """What a number has to be. `value` None: not measured."""

    what: str
    value: float | None
    limit: float
    at_least: bool

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def verdict(self) -> str:
        return {True: "met", False: "NOT met", None: "not measured"}[self.met]

    @property
    def wanted(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.limit:g}"


def goals(results: Results) -> list[Goal]:
    """Return every goal with what was measured."""
    told = ratios(results)
    restores = results.of("restore", OURS)
    backups = results.of("backup", OURS)

    def until_published(peer: str) -> float | None:
        return ratio(middle(results.of("backup", peer, "backup")), middle(backups, published))

    def analyzed(peer: str) -> float | None:
        return ratio(middle(results.of("restore", f"{peer}-analyzed")), middle(restores))

    def tree(direction: str) -> float | None:
        return ratio(middle(results.of("trees", "tar", direction)), middle(results.of("trees", OURS, direction)))

    rows = [phase for run in restores if (phase := data_phase(run))]
    data = ratio(middle(results.of("restore", "data-phase")), median(rows) if rows else None)
    small = [middle(results.of("shapes", way, "backup", shape="small_tables")) for way in ("default", OURS)]
    limited = [entry for entry in results.sections.get("memory", {}).get("limited", []) if entry.get("run", True)]
    archive = _peak_mib(results.of("targets", "archive"))
    under_limit = float(all(entry["succeeded"] for entry in limited)) if limited else None
    return [
        Goal("backup, times faster than `pg_dump -Fp | zstd -1 | age`", told["backup_vs_streaming"], 2.0, True),
        Goal("backup, times faster than `pg_dump -Fp | restic`", told["backup_vs_restic"], 3.5, True),
        Goal("backup, times faster than `pg_dump -Fp | borg`", told["backup_vs_borg"], 3.5, True),
        Goal("backup, times faster than `pg_dump -Fc | age`", told["backup_vs_default"], 5.5, True),
        Goal("the same until published: streaming", until_published("streaming"), 2.0, True),
        Goal("the same until published: restic", until_published("restic"), 3.5, True),
        Goal("the same until published: borg", until_published("borg"), 3.5, True),
        Goal("the same until published: default", until_published("default"), 5.5, True),
        Goal("backup, wall time over (CPU seconds / cores)", told["cpu_limit_share"], 1.15, False),
        Goal("archive's size over `pg_dump -Fp | zstd -1 | age`", told["size_ratio"], 1.03, False),
        Goal("5,000 small tables, times faster than `pg_dump -Fc | age`", ratio(small[0], small[1]), 1.0, True),
        Goal("restore, times faster than `age -d | zstd -d | psql`", told["restore_vs_streaming"], 1.8, True),
        Goal("restore, times faster than `age -d`, `pg_restore -j2`", told["restore_vs_pg_restore"], 1.3, True),
        Goal("the same with statistics: `psql`, `vacuumdb --analyze-only`", analyzed("streaming"), 1.8, True),
        Goal("the same with statistics: `pg_restore`, `vacuumdb --analyze-only`", analyzed("default"), 1.3, True),
        Goal("restore's data phase, times faster than `pg_restore -j2`'s", data, 1.8, True),
        Goal("restore, wall time over (CPU seconds / cores)", cpu_limit_share(restores, results.cores), 1.15, False),
        Goal("100,000 small files, backup, times faster than `tar | zstd -1`", tree("backup"), 1.0, True),
        Goal("100,000 small files, restore, times faster than `zstd -d | tar -x`", tree("restore"), 1.0, True),
        Goal("peak memory of all our backups, MiB", _peak_of_all(results, "backup"), 160, False),
        Goal("peak memory of all our restores, MiB", _peak_of_all(results, "restore"), 160, False),
        Goal("backup's peak memory, largest size over smallest", growth_of_peak(results, "backup"), 1.15, False),
        Goal("restore's peak memory, largest size over smallest", growth_of_peak(results, "restore"), 1.15, False),
        Goal("both succeed within a 256 MiB memory cgroup (1 is yes)", under_limit, 1, True),
        Goal("peak memory of all our puts into targets, MiB", _peak_of_all(results, "put"), 256, False),
        Goal("peak memory of all our gets from targets, MiB", _peak_of_all(results, "get"), 256, False),
        Goal("peak memory of the largest archive into S3, MiB", archive, 256, False),
    ]


def growth_of_peak(results: Results, direction: str) -> float | None:
    """Return ours' peak memory at the largest size over that at the smallest; None with less than two sizes."""
    runs = results.of("growth", OURS, direction)
    sizes = sorted({run.size for run in runs})
    if len(sizes) < 2:
        return None
    return ratio(*(_peak_mib(run for run in runs if run.size == size) for size in (sizes[-1], sizes[0])))
