"""The baseline of the server, and the way back to it: `baseline`, `reset-to-default`."""

from __future__ import annotations

import socket
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from service.cli import failures, render
from service.cli.connection import ask_for_pin, call, config_for, reading_options, run_job, run_job_with
from service.cli.failures import Exit, declined
from service.cli.options import Shared, emit, json_option, shared_options
from service.cli.restoring import ASKED, yes_option
from service.cli.running import run
from service.terminal import plain, size

if TYPE_CHECKING:
    from service.config import Config

RESET = "Reset successfully"
"""The last words of a reset."""


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


@click.command("reset-to-default")
@click.option("--plan", "plan_only", is_flag=True, help="Show what would be done and what is in the way; do nothing.")
@click.option(
    "--remove-new-databases", is_flag=True, help="Take away databases made since the baseline; `rollback` returns them."
)
@click.option("--allow", metavar="CODE", multiple=True, help="Go ahead in spite of this obstacle; may be repeated.")
@yes_option
@reading_options
@shared_options
@json_option
@click.pass_context
def reset_to_default(
    ctx: click.Context,
    /,
    plan_only: bool,
    remove_new_databases: bool,
    allow: tuple[str, ...],
    yes: bool,
    **options: Any,
) -> None:
    """Return the server to its baseline; keep the installation's own settings.

    The baseline is restored beside what is there and exchanged at once, like any archive; the state before is kept
    until commit or rollback. What `reset.keep` names, and this service's own configuration, state and archives, stay.
    """
    shared: Shared = ctx.obj
    config = _opened(shared, options)
    allowed = frozenset(allow)
    if plan_only:
        ctx.exit(_show_plan(config, remove_new_databases, allowed, as_json=shared.json)[0])
    token = None
    if not yes:
        shared.require_somebody()
        allowed |= ASKED
        refused, token = _show_plan(config, remove_new_databases, allowed, as_json=False)
        if refused:
            ctx.exit(refused)
        _ask_for_the_name()
    params = {"remove_new_databases": remove_new_databases, "allow": sorted(allowed), "token": token}
    result = run_job_with(config, shared, options, "reset.start", **params)
    if shared.json:
        emit(result | {"message": RESET})
        return
    render.restore(result)
    click.echo(RESET)


def _opened(shared: Shared, options: dict[str, Any]) -> Config:
    """Return the configuration with all that it takes to open the baseline. Raises NotFound when there is none."""
    from service.baseline import named, require_baseline  # noqa: PLC0415
    from service.ledger import NoLedger  # noqa: PLC0415

    config = config_for(shared, "", options)
    return ask_for_pin(shared, config, named(config, run(require_baseline(config, NoLedger()))[0]))


def _show_plan(config: Config, remove_new: bool, allowed: frozenset[str], *, as_json: bool) -> tuple[Exit, str | None]:
    """Show what a reset would do; return the exit code and the token of that plan."""
    from service.ledger import NoLedger  # noqa: PLC0415
    from service.reset import plan_reset  # noqa: PLC0415
    from service.restore_plan import MAY_BE_ALLOWED  # noqa: PLC0415

    found = run(plan_reset(config, remove_new=remove_new, ledger=NoLedger()))
    blocking = [obstacle for obstacle in found.plan.obstacles if obstacle.code not in allowed & MAY_BE_ALLOWED]
    code = failures.refusal_code(blocking) if blocking else Exit.OK
    if as_json:
        emit(asdict(found) | {"possible": not blocking})
        return code, found.plan.token or None
    render.plan(found.plan, can_be_allowed=MAY_BE_ALLOWED)
    click.echo("A reset would be refused." if blocking else "Nothing is in the way.")
    return code, found.plan.token or None


def _ask_for_the_name() -> None:
    """Have the name of this machine typed: a reset on the wrong one is what this guards against."""
    name = socket.gethostname()
    click.echo("All that was changed since the baseline goes from this server. `rollback` brings it back.", err=True)
    said = click.prompt(f"Type the name of this server, {plain(name)}", default="", show_default=False, err=True)
    if said.strip() != name:
        raise declined("the server's name")
