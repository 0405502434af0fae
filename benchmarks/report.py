"""The document, from its template and the results; and tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import Template

from rich.console import Console
from rich.table import Table as TerminalTable

from benchmarks import tables
from benchmarks.commands import BACKUPS, RESTORES, SLOW_RESTORES, TITLES, Way
from benchmarks.results import Results, goals
from benchmarks.target_commands import ARCHIVE, IN_FLIGHT, PART_MIB, WAYS

_TEMPLATE = Path(__file__).with_name("PERFORMANCE.md.template")


def print_overview(results: Results, sections: Sequence[str]) -> None:
    """Print the tables of these sections, then the goals."""
    console = Console(width=max(140, Console().width), highlight=False, markup=False)
    for section in sections:
        for table in tables.of_section(results, section):
            console.print(_for_terminal(table))
    console.print(_for_terminal(tables.of_goals(results)))


def _for_terminal(table: tables.Table) -> TerminalTable:
    shown = TerminalTable(title=table.title, title_justify="left")
    for position, name in enumerate(table.header):
        shown.add_column(name, justify="right" if position else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*(cell.replace("**", "") for cell in row))
    return shown


def write_document(results: Results, place: Path) -> None:
    """Write PERFORMANCE.md and its plots into `place`."""
    from benchmarks import plots  # noqa: PLC0415 - matplotlib takes a second, and is there for this only

    drawn = plots.draw(results, place / "images")
    (place / "PERFORMANCE.md").write_text(document(results, drawn))


def document(results: Results, plots: Sequence[str] = ()) -> str:
    """Return the document; `plots` are the names of the images that there are."""
    parts = {
        section: _section(results, section)
        for section in ("backup", "restore", "shapes", "growth", "memory", "load", "trees", "targets")
    }
    return Template(_TEMPLATE.read_text()).substitute(
        {name: _with_plots(text, name, plots) for name, text in parts.items()},
        verdict=_verdict(results),
        goals=markdown(tables.of_goals(results)),
        facts="\n".join(f"* {name}: {value}" for name, value in results.facts.items()),
        measured=_measured(results),
        backup_commands=_commands(BACKUPS, "back_up"),
        restore_commands=_commands((*RESTORES, *SLOW_RESTORES), "restore"),
        target_commands=_target_commands(),
        part_mib=PART_MIB,
        in_flight=IN_FLIGHT,
    )


def markdown(table: tables.Table) -> str:
    """Return a table of Markdown."""
    lines = [table.header, ["---", *["---:"] * (len(table.header) - 1)], *table.rows]
    # An escaped bar is a bar in code too, but only in tables.
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _section(results: Results, section: str) -> str:
    found = tables.of_section(results, section)
    if not found:
        return "**Not measured yet.**"
    return "\n\n".join(f"{table.title}:\n\n{markdown(table)}" for table in found)


def _with_plots(text: str, section: str, plots: Sequence[str]) -> str:
    images = [f"![{name.replace('-', ' ')}](images/{name}.svg)" for name in plots if name.split("-")[1] == section]
    return "\n\n".join([*images, text])


def _verdict(results: Results) -> str:
    found = goals(results)
    met, missed, open_ = (sum(goal.met is value for goal in found) for value in (True, False, None))
    return f"Of {len(found)} goals {met} are met, {missed} are not, {open_} were not measured."


def _measured(results: Results) -> str:
    return "\n".join(
        f"* {name}: {section['made']}, {section['size']:g} GB, rounds: {section['rounds']}"
        f"{f', at commit {version}' if (version := section.get('version')) else ''}"
        for name, section in results.sections.items()
    )


def _commands(ways: Sequence[Way], what: str) -> str:
    titles = TITLES["backup" if what == "back_up" else "restore"]
    told = [f"# {titles[way.name]}\n{getattr(way, what)}" for way in ways]
    return "```sh\n" + "\n".join(told) + "\n```"


def _target_commands() -> str:
    ways = dict.fromkeys([*(way for ways in WAYS.values() for way in ways), ARCHIVE])
    told = ["\n".join(filter(None, (f"# {way.title}", way.put, way.get))) for way in ways]
    return "```sh\n" + "\n".join(told) + "\n```"
