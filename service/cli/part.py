"""Options that choose a part of an archive."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

if TYPE_CHECKING:
    from service.selection import Selection

P = ParamSpec("P")
R = TypeVar("R")

_PART = (
    click.option("--source", "sources", metavar="NAME", multiple=True, help="Only this source; may be repeated."),
    click.option("--database", "databases", metavar="NAME", multiple=True, help="Only this database; may be repeated."),
    click.option(
        "--only",
        type=click.Choice(["config", "roles", "databases"]),
        help="Only directories, only PostgreSQL's roles, or only databases.",
    ),
)


def part_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add what chooses a part of an archive."""
    for option in reversed(_PART):
        command = option(command)
    return command


def part_of(options: dict[str, Any]) -> Selection:
    """Take the part out of a command's options."""
    from service.selection import Selection  # noqa: PLC0415 - models take time to import

    return Selection(sources=options.pop("sources"), databases=options.pop("databases"), only=options.pop("only"))
