"""The baseline of the server, and the way back to it: `baseline`, `reset-to-default`."""

from __future__ import annotations

from typing import Any

import click

from service.cli import render
from service.cli.connection import call, run_job
from service.cli.options import Shared, emit, json_option, shared_options
from service.terminal import plain, size


@click.group(invoke_without_command=True)
@click.option("--replace", is_flag=True, help="Take a new one in place of the one there is.")
@shared_options
@json_option
@click.pass_context
def baseline(ctx: click.Context, replace: bool) -> None:
    """Take the baseline: a backup of the server as it was set up, held for ever.

    `reset-to-default` returns to it. The one before is released when the new one is proven.
    """
    if ctx.invoked_subcommand is not None:
        return
    shared: Shared = ctx.obj
    result = run_job(shared, "baseline.take", replace=replace)
    if shared.json:
        emit(result)
        return
    render.backup(result)
    click.echo(f"{plain(result['name'])} is the baseline now, and held for ever")


@baseline.command("show")
@shared_options
@json_option
@click.pass_obj
def baseline_show(shared: Shared) -> None:
    """Show which archive is the baseline."""
    found = call(shared, "baseline.get")
    if shared.json:
        emit(found)
        return
    if found is None:
        click.echo("there is no baseline; `deviceon-backup baseline` takes one")
        return
    render.table([row for row in _rows(found) if row[1]])


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("baseline", found["archive"]),
        ("created", found["created"] or ""),
        ("since", found["since"] or ""),
        ("server", found["server_version"] or ""),
        ("size", f"{size(found['size'])} for {size(found['raw_bytes'] or 0)}"),
        ("sealed to", found["fingerprint"] or ""),
        ("evidence", found["evidence"]),
        ("held in", ", ".join(found["targets"])),
        ("also held, older", ", ".join(found["superseded"])),
    ]
