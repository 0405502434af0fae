"""Commands on archives: backup, list, inspect, verify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from service.cli import render
from service.cli.connection import ask_for_pin, commander_of, config_for, given, reading_options, run_job
from service.cli.options import Shared, emit, json_option, shared_options, target_option
from service.cli.running import run
from service.terminal import plain, reporting

if TYPE_CHECKING:
    from service.config import Config
    from service.progress import Progress

# Recipes are imported when a command runs: they load drivers and cryptography.


@click.command()
@shared_options
@json_option
@click.pass_obj
def backup(shared: Shared) -> None:
    """Back up every configured source into one new archive, and read it back.

    What retention does not keep is removed afterwards.
    """
    result = run_job(shared, "backup.start")
    emit(result) if shared.json else render.backup(result)


@click.command("list")
@target_option
@shared_options
@json_option
@click.pass_obj
def list_archives(shared: Shared, target: str | None) -> None:
    """List the archives in the configured target, the oldest first."""
    found = run(_listed(shared, target))
    emit(found) if shared.json else render.archives(found["archives"], found["target"])


async def _listed(shared: Shared, target: str | None) -> dict[str, Any]:
    async with commander_of(shared) as commander:
        archives: list[Any] = []
        while True:
            before = {"before": archives[-1]["name"]} if archives else {}
            page = await commander.call("archive.list", limit=500, target=target, **before)
            archives += page["archives"]
            if not page["more"]:
                return {"target": page["target"], "archives": archives[::-1]}


@click.command()
@click.argument("archive")
@reading_options
@shared_options
@json_option
@click.pass_obj
def inspect(shared: Shared, /, archive: str, **options: Any) -> None:
    """Show what is in an archive; without its key, what it says of itself."""
    config = ask_for_pin(shared, config_for(shared, archive, options), archive)
    found = run(_inspected(config, archive))
    emit(found) if shared.json else render.inspection(found)


async def _inspected(config: Config, archive: str) -> dict[str, Any]:
    from service.catalog import locate, opened, origin_proven  # noqa: PLC0415
    from service.errors import SealError  # noqa: PLC0415
    from service.pipeline.unpack import peek  # noqa: PLC0415

    try:
        async with opened(config, archive) as reader:
            told = render.described(reader.info, reader.header, reader.footer, manifest=reader.manifest)
            return told | {"signer": reader.signer, "origin_proven": origin_proven(config, reader)}
    except SealError as error:
        async with locate(config, archive) as (target, name):
            seen = await peek(target, name)
        return render.described(seen.info, seen.header, seen.footer, closed=str(error))


@click.command()
@click.argument("archive")
@reading_options
@shared_options
@json_option
@click.pass_obj
def verify(shared: Shared, /, archive: str, **options: Any) -> None:
    """Read every byte of an archive and authenticate it."""
    config = ask_for_pin(shared, config_for(shared, archive, options), archive)
    if "/" in archive or given(options):
        with reporting(quiet=shared.quiet) as progress:
            found = run(_verified(config, archive, progress))
    else:
        found = run_job(shared, "archive.verify", archive=archive, opening=config.opening)
    if shared.json:
        emit(found)
    else:
        click.echo(f"{plain(archive)} is complete and {_how(found)}")


def _how(found: dict[str, Any]) -> str:
    if found["closed"]:
        return f"undamaged, but it was not opened, so an alteration on purpose would not show: {plain(found['closed'])}"
    if not found["authenticated"]:
        return "undamaged (not sealed, so an alteration on purpose would not show)"
    if found["origin_proven"]:
        return "authentic"
    return "authentic for this recovery key (it does not prove who made the archive)"


async def _verified(config: Config, archive: str, progress: Progress) -> dict[str, Any]:
    from service.verification import verified  # noqa: PLC0415

    return await verified(config, archive, archive, progress=progress)
