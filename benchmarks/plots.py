"""Plots of what was measured, as SVG files that are the same for the same results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.commands import DATA_PHASE, OURS, TITLES
from benchmarks.results import MIB, Results, Run, middle

_OURS_COLOUR, _PEER_COLOUR, _SECOND = "#1f6feb", "#9aa4b2", "#d1732f"
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "deviceon-backup",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
}


def draw(results: Results, directory: Path) -> list[str]:
    """Write every plot there is something for into `directory`; return their names."""
    plots: dict[str, Callable[[Results], Figure | None]] = {
        "performance-backup-wall": lambda found: _bars(found, "backup"),
        "performance-restore-wall": lambda found: _bars(found, "restore"),
        "performance-growth-wall": _growth,
        "performance-growth-memory": _memory,
        "performance-load-latency": _latency,
    }
    names = []
    directory.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        for name, plot in plots.items():
            figure = plot(results)
            if figure is not None:
                figure.savefig(directory / f"{name}.svg", metadata={"Date": None}, facecolor="white")
                names.append(name)
    return names


def _figure(title: str, *, height: float = 3.6) -> tuple[Figure, Any]:
    figure = Figure(figsize=(8.4, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def _bars(results: Results, direction: str) -> Figure | None:
    runs = results.of(direction, direction=direction)
    whole = {run.way for run in runs} - {DATA_PHASE.name}
    medians = {way: middle(run for run in runs if run.way == way) or 0.0 for way in whole}
    if not medians:
        return None
    ways = sorted(medians, key=lambda way: medians[way], reverse=True)
    figure, axes = _figure(f"{direction.capitalize()} of {runs[0].size:g} GB: wall time", height=0.9 + 0.36 * len(ways))
    colours = [_OURS_COLOUR if way == OURS.name else _PEER_COLOUR for way in ways]
    bars = axes.barh([TITLES[direction].get(way, way) for way in ways], [medians[way] for way in ways], color=colours)
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.margins(x=0.08)
    axes.set_xlabel("seconds (median)")
    return figure


def _growth(results: Results) -> Figure | None:
    lines = [
        (OURS.name, "backup", _OURS_COLOUR, "-"),
        ("streaming", "backup", _PEER_COLOUR, "-"),
        (OURS.name, "restore", _OURS_COLOUR, "--"),
        ("streaming", "restore", _PEER_COLOUR, "--"),
    ]
    return _by_size(results, "Wall time by size of the database", "seconds", lines, lambda runs: middle(runs) or 0.0)


def _memory(results: Results) -> Figure | None:
    lines = [(OURS.name, "backup", _OURS_COLOUR, "-"), (OURS.name, "restore", _SECOND, "-")]
    return _by_size(
        results,
        "Peak memory of ours by size of the database",
        "MiB",
        lines,
        lambda runs: max(run.peak_bytes for run in runs) / MIB,
    )


def _by_size(
    results: Results,
    title: str,
    unit: str,
    lines: Sequence[tuple[str, str, str, str]],
    value: Callable[[Sequence[Run]], float],
) -> Figure | None:
    figure, axes = _figure(title)
    for way, direction, colour, style in lines:
        sizes = sorted({run.size for run in results.of("growth", way, direction)})
        if sizes:
            values = [value(results.of("growth", way, direction, size=size)) for size in sizes]
            axes.plot(sizes, values, style, color=colour, marker="o", label=f"{direction}: {TITLES[direction][way]}")
    if not axes.lines:
        return None
    axes.set_xlabel("size of the text dump, GB")
    axes.set_ylabel(unit)
    axes.margins(y=0.15)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, color="#e6e8eb")
    axes.legend(frameon=False)
    return figure


def _latency(results: Results) -> Figure | None:
    measured = results.sections.get("load", {}).get("measured", [])
    if not measured:
        return None
    figure, axes = _figure("pgbench beside a backup: latency of transactions", height=3.0)
    names = (("p50_ms", "median", _PEER_COLOUR), ("p95_ms", "95 %", _OURS_COLOUR), ("p99_ms", "99 %", _SECOND))
    for row, (name, label, colour) in enumerate(names):
        places = [place + (row - 1) * 0.26 for place in range(len(measured))]
        bars = axes.barh(places, [entry[name] for entry in measured], height=0.24, color=colour, label=label)
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.set_yticks(range(len(measured)), [entry["title"].replace("`", "") for entry in measured])
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_xlabel("milliseconds")
    axes.legend(frameon=False, loc="upper right")
    return figure
