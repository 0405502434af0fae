"""Commands that change what is live: restore, rollback, commit. Each shows what it will do and asks first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from service.cli import failures, render
from service.cli.connection import (
    ask_for_pin,
    config_for,
    config_for_settling,
    restoring_options,
    run_job_with,
    settling_options,
)
from service.cli.failures import Exit
from service.cli.options import Shared, emit, json_option, shared_options
from service.cli.part import part_of, part_options
from service.cli.running import run
from service.terminal import plain

if TYPE_CHECKING:
    from service.config import Config
    from service.restore_plan import RestorePlan
    from service.selection import Selection

SUCCESS = "Restore successfully"
"""The words that the product's manual promises at the end of a restore."""

ASKED = frozenset({"LIVE_CONNECTIONS"})
"""Obstacles that whoever answers the question with yes goes ahead in spite of: the plan above it shows them."""

yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


@click.command()
@click.argument("archive")
@click.option("--plan", "plan_only", is_flag=True, help="Show what would be done and what is in the way; do nothing.")
@click.option("--allow", metavar="CODE", multiple=True, help="Go ahead in spite of this obstacle; may be repeated.")
@click.option("--token", metavar="TOKEN", help="Only if the plan is still the one with this token (--plan --json).")
@part_options
@yes_option
@restoring_options
@shared_options
@json_option
@click.pass_context
def restore(
    ctx: click.Context,
    /,
    archive: str,
    plan_only: bool,
    allow: tuple[str, ...],
    token: str | None,
    yes: bool,
    **options: Any,
) -> None:
    """Restore an archive, or a part of it; the old state is kept until commit or rollback.

    Everything is restored beside the live data and checked, then exchanged at once. When anything fails, live data is
    as it was. What is not part of the restore stays as it is.
    """
    shared: Shared = ctx.obj
    select = part_of(options)
    config = with_version(shared, ask_for_pin(shared, config_for(shared, archive, options), archive))
    allowed = frozenset(allow)
    if plan_only:
        ctx.exit(_show_plan(config, archive, allowed, select, as_json=shared.json))
    if not yes:
        shared.require_somebody()
        allowed |= ASKED
        refused = _show_plan(config, archive, allowed, select, as_json=False)
        if refused:
            ctx.exit(refused)
        ask("Restore this archive over what is there now?")
    params = {"archive": archive, "allow": sorted(allowed), "token": token, **select.as_params()}
    result = run_job_with(config, shared, options, "restore.start", **params)
    if shared.json:
        emit(result | {"message": SUCCESS})
        return
    render.restore(result)
    click.echo(SUCCESS)


def with_version(shared: Shared, config: Config) -> Config:
    """Return `config` knowing the installed version, which an archive alone cannot tell; ask when somebody is there."""
    from service.config_for_archive import Given, require_version, version_is_known, with_given  # noqa: PLC0415

    if not version_is_known(config) and shared.interactive:
        said = click.prompt("Installed version of the server", err=True)
        return with_given(config, Given(server_version=said.strip()))
    require_version(config)
    return config


def _show_plan(config: Config, archive: str, allowed: frozenset[str], select: Selection, *, as_json: bool) -> Exit:
    from service.restore_plan import MAY_BE_ALLOWED  # noqa: PLC0415

    plan = run(_planned(config, archive, select))
    blocking = [obstacle for obstacle in plan.obstacles if obstacle.code not in allowed & MAY_BE_ALLOWED]
    code = failures.refusal_code(blocking) if blocking else Exit.OK
    if as_json:
        emit(render.planned(plan) | {"possible": not blocking})
    else:
        render.plan(plan, can_be_allowed=MAY_BE_ALLOWED)
        click.echo("A restore would be refused." if blocking else "Nothing is in the way.")
    return code


async def _planned(config: Config, archive: str, select: Selection) -> RestorePlan:
    from service.restore_plan import plan_restore  # noqa: PLC0415
    from service.state import History, opened_if_there  # noqa: PLC0415

    with opened_if_there(config.state_dir) as memory:
        history = None if memory is None else History(memory)
        return await plan_restore(config, archive, select=select, history=history)


@click.command()
@yes_option
@settling_options
@shared_options
@json_option
@click.pass_obj
def rollback(shared: Shared, /, yes: bool, **options: Any) -> None:
    """Return to the state before the last restore; what it restored is removed."""
    config = config_for_settling(shared, options)
    if not yes and _pending(config, "returns to its state before that; what was restored is removed"):
        shared.require_somebody()
        ask("Return to the state before the restore?")
    result = run_job_with(config, shared, options, "restore.rollback")
    if shared.json:
        emit(result)
    else:
        click.echo(f"The state before the restore of {plain(result['archive'])} is back")


@click.command()
@yes_option
@settling_options
@shared_options
@json_option
@click.pass_obj
def commit(shared: Shared, /, yes: bool, **options: Any) -> None:
    """Keep what was restored and remove the old state for good."""
    config = config_for_settling(shared, options)
    if not yes and _pending(config, "keeps what was restored; its old state is removed FOR GOOD"):
        shared.require_somebody()
        ask("Remove the old state?")
    result = run_job_with(config, shared, options, "restore.commit")
    if shared.json:
        emit(result)
    else:
        click.echo(f"The restore of {plain(result['archive'])} is kept; the state before it is removed")


def _pending(config: Config, what_happens: str) -> bool:
    """Show what waits and what would happen to each source; False when nothing waits, as the recipe will say."""
    from service.restore import pending  # noqa: PLC0415

    journal = pending(config)
    if journal is None:
        return False
    click.echo(f"Restore {journal.id} of {plain(journal.archive)}, begun {plain(journal.started)}", err=True)
    for participant in journal.participants:
        click.echo(f"  {plain(str(participant['name']))} {what_happens}", err=True)
    return True


def ask(question: str) -> None:
    """Have `yes` typed. Raises Interrupted when anything else is."""
    answer = click.prompt(f"{question} Type yes", default="", show_default=False, err=True)
    if answer.strip().lower() != "yes":
        raise failures.declined("yes")
