"""Tables of what was measured, for the terminal and the document. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.commands import OURS, TITLES
from benchmarks.results import MIB, Results, Run, Value, cpu_limit_share, data_phase, goals, middle, published, ratio
from benchmarks.target_commands import KINDS, LARGE_KIND, LARGE_WAYS, NOT_DURABLE, WAYS

NOT_MEASURED = "not measured"
_OF_STAGE = ("rows", "large objects", "indexes", "statistics")
"""What the stage `stage` of a restore consists of."""


@dataclass(frozen=True, slots=True)
class Table:
    """A header and rows of text. The first column is words, the others are numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def number(value: float | None, digits: int = 1) -> str:
    """Return a number for a cell; a dash for what was not measured."""
    return "–" if value is None else f"{value:,.{digits}f}"


def of_goals(results: Results) -> Table:
    """Return every goal beside what was measured."""
    rows = [(goal.what, goal.wanted, number(goal.value, 2), f"**{goal.verdict}**") for goal in goals(results)]
    return Table("Goals", ("Goal", "wanted", "measured", "verdict"), rows)


def comparison(results: Results, section: str, direction: str, shape: str = "devices") -> Table:
    """Return one row for each way: medians of all rounds."""
    runs = results.of(section, direction=direction, shape=shape)
    header = ["Command", "wall s", "range", "times ours", "MB/s", "client CPU s", "server CPU s", "peak MiB"]
    archive = direction == "backup"
    raw = _raw_bytes(results, runs)
    ours = middle(results.of(section, OURS.name, direction, shape=shape))
    rows = []
    for way in dict.fromkeys(run.way for run in runs):
        mine = [run for run in runs if run.way == way]
        rows.append(_row(TITLES[direction].get(way, way), mine, ours, raw, archive=archive))
        if way == OURS.name and archive:
            told = middle(mine, published)
            rows.append(
                [f"{OURS.title}, until published", number(told, 2), "", number(ratio(told, ours), 2), *[""] * 5]
            )
        if way == OURS.name and not archive and (told := middle(mine, data_phase)):
            rows.append(
                [f"{OURS.title}, data phase alone", number(told, 2), "", number(ratio(told, ours), 2), *[""] * 4]
            )
    return Table(
        f"{direction.capitalize()} of {_described(results, runs, shape)}",
        (*header, "archive MB") if archive else header,
        rows,
    )


def _row(title: str, runs: Sequence[Run], ours: float | None, raw: float, *, archive: bool) -> Sequence[str]:
    walls = [run.wall for run in runs]
    wall = middle(runs)
    cells = [
        title,
        number(wall, 2),
        f"{min(walls):.2f} to {max(walls):.2f}" if len(walls) > 1 else "one round",
        number(ratio(wall, ours), 2),
        number(ratio(raw / 1e6, wall), 0),
        number(middle(runs, lambda run: run.client_cpu)),
        number(middle(runs, lambda run: run.server_cpu)),
        number(max(run.peak_bytes for run in runs) / MIB, 0),
    ]
    return [*cells, number(middle(runs, lambda run: run.archive_bytes / 1e6))] if archive else cells


def transfers(results: Results) -> list[Table]:
    """Return a table for each kind of target, size and direction, with one row for each way: medians of all rounds."""
    ways = {kind: dict.fromkeys([*of, *(LARGE_WAYS if kind == LARGE_KIND else ())]) for kind, of in WAYS.items()}
    titles = {(kind, way.name): way.title for kind, of in ways.items() for way in of}
    header = ("Command", "wall s", "range", "times ours", "MB/s", "client CPU s", "server CPU s", "peak MiB")
    found = []
    for kind, size, direction in dict.fromkeys((run.shape, run.size, run.direction) for run in results.of("targets")):
        runs = results.of("targets", direction=direction, shape=kind, size=size)
        ours = middle(run for run in runs if run.way == OURS.name)
        raw = float(runs[0].archive_bytes)
        rows = []
        for way in dict.fromkeys(way.name for way in ways[kind] if any(run.way == way.name for run in runs)):
            mine = [run for run in runs if run.way == way]
            rows.append(_row(titles[kind, way], mine, ours, raw, archive=False))
            if way == OURS.name and direction == "put" and kind in NOT_DURABLE:
                told = middle(mine, lambda run: run.wall - run.stages.get("publish", 0.0))
                title = f"{titles[kind, way]}, until the last byte"
                rows.append([title, number(told, 2), "", number(ratio(told, ours), 2), *[""] * 4])
        found.append(Table(f"{direction.capitalize()} of {raw / 1e9:g} GB, {KINDS[kind]}", header, rows))
    return found


def _dataset(results: Results, runs: Sequence[Run]) -> dict[str, Any]:
    return results.datasets.get(f"{runs[0].shape}-{runs[0].size:g}", {}) if runs else {}


def _raw_bytes(results: Results, runs: Sequence[Run]) -> float:
    return float(_dataset(results, runs).get("dump_bytes", 0))


def _described(results: Results, runs: Sequence[Run], shape: str) -> str:
    dataset = _dataset(results, runs)
    if not dataset:
        return f"`{shape}`"
    return f"`{shape}`: {dataset['dump_bytes'] / 1e9:.2f} GB as text, {dataset['relations']:,} tables and indexes"


def stages(results: Results) -> Table:
    """Return where our time goes: the median seconds of each stage."""
    rows = []
    for direction in ("backup", "restore"):
        runs = results.of(direction, OURS.name, direction)
        for stage in dict.fromkeys(stage for run in runs for stage in run.stages):
            what = f"stage, of it {stage}" if stage in _OF_STAGE else stage
            rows.append((f"{direction}: {what}", number(middle(runs, _stage(stage)), 2)))
        if runs:
            share = cpu_limit_share(runs, results.cores)
            rows.append((f"{direction}: the whole command", number(middle(runs), 2)))
            rows.append((f"{direction}: wall time over (CPU seconds / {results.cores} cores)", number(share, 2)))
    return Table("Stages of ours", ("Stage", "seconds"), rows)


def _stage(name: str) -> Value:
    return lambda run: run.stages.get(name, 0.0)


def growth(results: Results) -> Table:
    """Return wall time and peak memory by size."""
    runs = results.of("growth")
    columns = [("ours", "backup"), ("streaming", "backup"), ("ours", "restore"), ("streaming", "restore")]
    header = ["GB", *(f"{direction}: {TITLES[direction][way]}, s" for way, direction in columns)]
    header += ["our backup: peak MiB", "our restore: peak MiB"]
    rows = []
    for size in sorted({run.size for run in runs}):
        raw = results.datasets.get(f"devices-{size:g}", {}).get("dump_bytes", size * 1e9)
        cells = [number(raw / 1e9, 2)]
        cells += [number(middle(results.of("growth", way, direction, size=size))) for way, direction in columns]
        for direction in ("backup", "restore"):
            peaks = [run.peak_bytes / MIB for run in results.of("growth", OURS.name, direction, size=size)]
            cells.append(number(max(peaks, default=None), 0))
        rows.append(cells)
    return Table("Growth with the size of the database", header, rows)


def limited(results: Results) -> Table:
    """Return what happened within a memory cgroup."""
    entries: list[dict[str, Any]] = results.sections.get("memory", {}).get("limited", [])
    return Table(
        "Within a memory cgroup of 256 MiB",
        ("Ours", "result", "processes, peak MiB", "with page cache, MiB"),
        [
            (
                entry["direction"],
                f"done in {entry['wall']:.1f} s" if entry["succeeded"] else f"**{entry['note']}**",
                number(entry["peak_bytes"] / MIB if "peak_bytes" in entry else None, 0),
                number(entry["most_bytes"] / MIB if entry.get("most_bytes") else None, 0),
            )
            for entry in entries
        ],
    )


def load(results: Results) -> Table:
    """Return what a workload noticed."""
    header = ("Beside pgbench", "takes s", "transactions/s", "median ms", "95 % ms", "99 % ms", "longest ms")
    names = ("p50_ms", "p95_ms", "p99_ms", "max_ms")
    return Table(
        "A workload on the same server",
        header,
        [
            (
                entry["title"],
                number(entry["seconds"]),
                number(entry["tps"], 0),
                *(number(entry[name], 2) for name in names),
            )
            for entry in results.sections.get("load", {}).get("measured", [])
        ],
    )


def of_section(results: Results, section: str) -> list[Table]:
    """Return the tables of one section; those without rows are left out."""
    shapes = dict.fromkeys(run.shape for run in results.of(section))
    told = {
        "backup": lambda: [comparison(results, "backup", "backup")],
        "restore": lambda: [comparison(results, "restore", "restore"), stages(results)],
        "growth": lambda: [growth(results)],
        "memory": lambda: [limited(results)],
        "load": lambda: [load(results)],
        "targets": lambda: transfers(results),
    }
    if section in told:
        found = told[section]()
    else:
        found = [comparison(results, section, way, shape) for shape in shapes for way in ("backup", "restore")]
        found += [Table(**table) for table in results.sections.get(section, {}).get("tables", [])]
    return [table for table in found if table.rows]
