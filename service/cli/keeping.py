"""Commands on which archives there are: retention, holds, copies, removal."""

from __future__ import annotations

from typing import Any

import click

from service.cli import render
from service.cli.connection import call, run_job
from service.cli.failures import declined
from service.cli.options import Shared, emit, json_option, shared_options, target_option
from service.terminal import plain, size


@click.command()
@click.option("--apply", is_flag=True, help="Remove what no rule keeps; without this, nothing is removed.")
@target_option
@shared_options
@json_option
@click.pass_obj
def prune(shared: Shared, apply: bool, target: str | None) -> None:
    """Show which archives retention keeps and removes, and why; with --apply, remove them, in every target."""
    if apply:
        found = run_job(shared, "retention.apply", target=target)["targets"]
    else:
        found = call(shared, "retention.preview", target=target)["targets"]
    if shared.json:
        emit({"targets": found})
        return
    if not found:
        click.echo("there is no retention policy: nothing is removed")
    for each in found:
        _show_verdicts(each, applied=apply)


def _show_verdicts(found: dict[str, Any], *, applied: bool) -> None:
    click.echo(f"{found['target']}:" if found["verdicts"] else f"no archives in {found['target']}")
    render.table(
        [
            ("keep" if verdict["keep"] else "remove", verdict["name"], "; ".join(verdict["reasons"]))
            for verdict in found["verdicts"]
        ]
    )
    for name, why in found["kept_by_target"].items():
        click.echo(f"the target keeps {plain(name)}: {plain(why)}")
    going = [verdict["name"] for verdict in found["verdicts"] if not verdict["keep"]]
    if applied:
        click.echo(f"removed {len(found['removed'])} archives, {size(found['freed_bytes'])}")
    elif going:
        click.echo(f"nothing was removed; `deviceon-backup prune --apply` removes {len(going)}")


@click.command()
@click.argument("archive")
@click.option("--reason", default="", help="Why, for others.")
@target_option
@shared_options
@json_option
@click.pass_obj
def hold(shared: Shared, archive: str, reason: str, target: str | None) -> None:
    """Hold an archive: neither retention nor delete removes it before it is released."""
    found = call(shared, "archive.hold", archive=archive, reason=reason, target=target)
    emit(found) if shared.json else click.echo(f"{plain(archive)} is held")


@click.command()
@click.argument("archive")
@target_option
@shared_options
@json_option
@click.pass_obj
def release(shared: Shared, archive: str, target: str | None) -> None:
    """End an archive's hold."""
    found = call(shared, "archive.release", archive=archive, target=target)
    emit(found) if shared.json else click.echo(f"{plain(archive)} is not held any more")


@click.command()
@click.argument("archive")
@click.option("--even-the-last", is_flag=True, help="Remove it even though it is the newest that was verified.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@target_option
@shared_options
@json_option
@click.pass_obj
def delete(shared: Shared, archive: str, even_the_last: bool, yes: bool, target: str | None) -> None:
    """Remove an archive for good."""
    if not yes:
        shared.require_somebody()
        said = click.prompt(f"Remove it for good? Type {archive}", default="", show_default=False, err=True)
        if said.strip() != archive:
            raise declined("the archive's name")
    found = run_job(shared, "archive.delete", archive=archive, even_the_last=even_the_last, target=target)
    emit(found) if shared.json else click.echo(f"{plain(archive)} is removed")


@click.command()
@click.argument("archive")
@click.option("--to", metavar="URL", required=True, help="The configured target that is to have it.")
@click.option("--from", "source", metavar="URL", help="The target to copy from; any that has it when left out.")
@shared_options
@json_option
@click.pass_obj
def copy(shared: Shared, archive: str, to: str, source: str | None) -> None:
    """Copy an archive to another configured target, sealed as it is, and read the copy back."""
    found = run_job(shared, "archive.copy", archive=archive, target=to, source=source)
    if shared.json:
        emit(found)
        return
    how = f"copied from {plain(found['source'])}" if found["copied"] else "was there already"
    click.echo(f"{plain(archive)} in {plain(found['target'])}: {how}; read back and checked")
