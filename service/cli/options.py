"""What the commands share: options that are understood before and after a command's name, and JSON output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from service.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(slots=True)
class Shared:
    """What was said before or after the command's name."""

    config: Path | None = None
    socket: Path | None = None
    quiet: bool = False
    debug: bool = False
    json: bool = False

    @property
    def interactive(self) -> bool:
        """Tell whether somebody is there to answer a question."""
        return not self.json and sys.stdin.isatty() and sys.stderr.isatty()

    def require_somebody(self, instead: str = "Give --yes to go ahead without asking.") -> None:
        """Raise ConfigError when nobody is there to answer a question; `instead` is what to do then."""
        if not self.interactive:
            raise ConfigError("nobody is there to be asked", hint=instead)


def _note(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def note(ctx: click.Context, _: click.Parameter, value: Any) -> Any:
        if value:
            setattr(ctx.ensure_object(Shared), name, value)
        return value

    return note


def shared_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add the options that are understood before and after a command's name."""
    for option in (
        click.option("--debug", is_flag=True, callback=_note("debug"), expose_value=False, help="Print tracebacks."),
        click.option("-q", "--quiet", is_flag=True, callback=_note("quiet"), expose_value=False, help="No progress."),
        click.option(
            "-c",
            "--config",
            metavar="FILE",
            type=click.Path(path_type=Path),
            callback=_note("config"),
            expose_value=False,
            help="Configuration; else $DEVICEON_BACKUP_CONFIG, else /etc/deviceon-backup/config.yaml.",
        ),
        click.option(
            "--socket",
            metavar="PATH",
            envvar="DEVICEON_BACKUP_SOCKET",
            type=click.Path(path_type=Path),
            callback=_note("socket"),
            expose_value=False,
            help="A running service's socket; else the one that the configuration names.",
        ),
    ):
        command = option(command)
    return command


target_option = click.option(
    "--target", metavar="URL", help="Of which target, when several are configured; the first when left out."
)


json_option = click.option(
    "--json", is_flag=True, callback=_note("json"), expose_value=False, help="Print JSON on stdout."
)


def emit(value: Any) -> None:
    """Print a value as JSON; times are ISO 8601."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=True, default=_plain_value))


def _plain_value(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)
