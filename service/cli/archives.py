"""Commands on archives: backup, list, inspect, verify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from service.cli import render
from service.cli.connection import config_for, reading_options
from service.cli.options import Shared, emit, json_option, shared_options
from service.cli.running import run
from service.terminal import plain, reporting

if TYPE_CHECKING:
    from service.catalog import CatalogEntry
    from service.config import Config

# Recipes are imported when a command runs: they load drivers and cryptography.


@click.command()
@shared_options
@json_option
@click.pass_obj
def backup(shared: Shared) -> None:
    """Back up every configured source into one new archive, and read it back."""
    from service.backup import backup as recipe  # noqa: PLC0415
    from service.config import load  # noqa: PLC0415

    config = load(shared.config)
    with reporting(quiet=shared.quiet) as progress:
        result = run(recipe(config, progress=progress))
    emit(result) if shared.json else render.backup(result)


@click.command("list")
@shared_options
@json_option
@click.pass_obj
def list_archives(shared: Shared) -> None:
    """List the archives in the configured target, the oldest first."""
    from service.config import load  # noqa: PLC0415

    config = load(shared.config)
    entries = run(_listed(config))
    if shared.json:
        emit({"target": config.target.url, "archives": entries})
    else:
        render.archives(entries, config.target.url)


async def _listed(config: Config) -> list[CatalogEntry]:
    from service.catalog import list_archives as recipe  # noqa: PLC0415
    from storage_backends import open_target  # noqa: PLC0415

    async with open_target(config.target.url, config.target.options()) as target:
        return await recipe(target)


@click.command()
@click.argument("archive")
@reading_options
@shared_options
@json_option
@click.pass_obj
def inspect(shared: Shared, /, archive: str, **options: Any) -> None:
    """Show what is in an archive; without its key, what it says of itself."""
    found = run(_inspected(config_for(shared, archive, options), archive))
    emit(found) if shared.json else render.inspection(found)


async def _inspected(config: Config, archive: str) -> dict[str, Any]:
    from service.catalog import locate, opened  # noqa: PLC0415
    from service.errors import SealError  # noqa: PLC0415
    from service.pipeline.unpack import peek  # noqa: PLC0415

    try:
        async with opened(config, archive) as reader:
            return render.described(reader.info, reader.header, reader.footer, manifest=reader.manifest)
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
    from service.catalog import verify as recipe  # noqa: PLC0415

    config = config_for(shared, archive, options)
    with reporting(quiet=shared.quiet) as progress:
        reader = run(recipe(config, archive, progress=progress))
    if shared.json:
        emit(
            {
                "archive": archive,
                "good": True,
                "authenticated": reader.header.sealed,
                "size": reader.info.size,
                "raw_bytes": reader.footer.raw_bytes,
                "streams": len(reader.manifest.streams),
            }
        )
    else:
        how = (
            "authentic"
            if reader.header.sealed
            else "undamaged (not sealed, so an alteration on purpose would not show)"
        )
        click.echo(f"{plain(archive)} is complete and {how}")
