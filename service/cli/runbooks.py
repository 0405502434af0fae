"""`explain`: the run-book of an alert or an error code, as docs/RUNBOOKS.md has it."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

import click

from service.cli.options import Shared, emit, json_option, shared_options
from service.errors import NotFound

PARTS = ("Means", "How bad", "Look", "Do", "Over when")
_SECTION = re.compile(r"^### (\w+)\n(.*?)(?=^#|\Z)", re.M | re.S)
_PART = re.compile(r"^- \*\*(.+?):\*\* (.+)$", re.M)


@cache
def sections() -> dict[str, dict[str, str]]:
    """Return the parts of each section, by the name of the alert or the code."""
    text = files("service.cli").joinpath("runbooks.md").read_text(encoding="utf-8")
    return {name: dict(_PART.findall(body)) for name, body in _SECTION.findall(text)}


@click.command()
@click.argument("name", required=False)
@shared_options
@json_option
@click.pass_obj
def explain(shared: Shared, name: str | None) -> None:
    """Print what an alert or an error code means, how bad it is, and what to do; without NAME, all names."""
    if name is None:
        return emit(sorted(sections())) if shared.json else click.echo("\n".join(sorted(sections())))
    found = next((each for each in sections() if each.lower() == name.lower()), None)
    if found is None:
        raise NotFound(
            f"there is no run-book for {name!r}",
            hint="`deviceon-backup explain` lists all names: those of alerts, and the codes of errors.",
        )
    parts = sections()[found]
    if shared.json:
        return emit({"name": found} | {part.lower().replace(" ", "_"): parts[part] for part in PARTS})
    click.echo(found)
    for part in PARTS:
        click.echo(f"  {part + ':':<10} {parts[part]}")
    return None
