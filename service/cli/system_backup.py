"""Commands on the System Backup settings and the target."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from service.cli import render
from service.cli.connection import call
from service.cli.failures import Exit
from service.cli.options import Shared, emit, json_option, shared_options
from service.errors import ConfigError
from service.finding import Finding


@click.group()
def settings() -> None:
    """Show and change the System Backup settings."""


@settings.command("show")
@shared_options
@json_option
@click.pass_obj
def settings_show(shared: Shared) -> None:
    """Show the settings in force, and which of them the configuration file fixes."""
    _show_settings(call(shared, "settings.get"), as_json=shared.json)


def _show_settings(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        emit(found)
        return
    import yaml  # noqa: PLC0415

    click.echo(yaml.safe_dump(found["settings"], sort_keys=False, allow_unicode=True), nl=False)
    if found["fixed"]:
        click.echo(f"# fixed by the configuration file: {', '.join(found['fixed'])}")


@settings.command("set")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@shared_options
@json_option
@click.pass_obj
def settings_set(shared: Shared, file: Path) -> None:
    """Change settings: FILE (- is stdin) has those that change, as `settings show` prints them.

    A new target is tried before it is accepted. A secret is written as {secret: "..."}; the service keeps it in a file.
    """
    from service import strict_yaml  # noqa: PLC0415

    text = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    document, _ = strict_yaml.parse(text, name=str(file))
    if not isinstance(document, dict):
        raise ConfigError(f"{file} has no settings", hint="`deviceon-backup settings show` prints some to start from.")
    _show_settings(call(shared, "settings.update", **document), as_json=shared.json)


@click.command("test-target")
@shared_options
@json_option
@click.pass_context
def test_target(ctx: click.Context) -> None:
    """Write a small object to the target, read it back, try to overwrite it, list and remove it."""
    shared: Shared = ctx.obj
    findings = [Finding(**found) for found in call(shared, "target.test")]
    good = all(finding.ok is not False for finding in findings)
    if shared.json:
        emit({"good": good, "findings": findings})
    else:
        render.findings(findings)
    ctx.exit(Exit.OK if good else Exit.TARGET)
