"""Commands on the configuration and the machine: config, doctor, version."""

from __future__ import annotations

import click

from service.cli import render
from service.cli.failures import Exit
from service.cli.options import Shared, emit, json_option, shared_options
from service.cli.running import run


@click.group()
def config() -> None:
    """Check and show the configuration."""


@config.command()
@shared_options
def schema() -> None:
    """Print the JSON Schema of the configuration file."""
    from service.config import json_schema  # noqa: PLC0415

    emit(json_schema())


@config.command()
@shared_options
def reference() -> None:
    """Print every key of the configuration file with its meaning, as Markdown."""
    from service.config_reference import markdown  # noqa: PLC0415

    click.echo(markdown())


@config.command()
@shared_options
@json_option
@click.pass_obj
def check(shared: Shared) -> None:
    """Check the configuration file; nothing is connected to (doctor does that)."""
    from service.config import find, read  # noqa: PLC0415

    found = read(shared.config)
    if shared.json:
        emit({"file": str(find(shared.config)), "good": True, "sources": [source.name for source in found.sources]})
    else:
        names = ", ".join(source.name for source in found.sources)
        where = found.target.url if found.target else "the target of the settings (`deviceon-backup settings`)"
        click.echo(f"{find(shared.config)} is good: {names} to {where}")


@config.command()
@shared_options
@json_option
@click.pass_obj
def show(shared: Shared) -> None:
    """Print the configuration with all defaults. It holds no secrets: those are in files or the environment."""
    from service.config import read  # noqa: PLC0415

    values = read(shared.config).model_dump(mode="json", exclude_none=True)
    if shared.json:
        emit(values)
    else:
        import yaml  # noqa: PLC0415

        click.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), nl=False)


@click.command()
@shared_options
@json_option
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Try the TPM, the sources and the target, and say what has to be put right."""
    from service.config import find  # noqa: PLC0415
    from service.doctor import examine  # noqa: PLC0415
    from service.errors import ConfigError  # noqa: PLC0415
    from service.finding import Finding  # noqa: PLC0415
    from service.settings import load  # noqa: PLC0415

    shared: Shared = ctx.obj
    try:
        config = load(shared.config)
    except ConfigError as error:
        findings = [Finding("configuration", False, str(error), error.hint)]
    else:
        findings = [Finding("configuration", True, str(find(shared.config))), *run(examine(config))]
    good = all(finding.ok is not False for finding in findings)
    if shared.json:
        emit({"good": good, "findings": findings})
    else:
        render.findings(findings)
    ctx.exit(Exit.OK if good else Exit.FAILED)


@click.command()
@shared_options
@json_option
@click.pass_obj
def version(shared: Shared) -> None:
    """Print the version of this program."""
    import platform  # noqa: PLC0415
    from importlib import metadata  # noqa: PLC0415

    number = metadata.version("deviceon-backup")
    if shared.json:
        emit({"version": number, "python": platform.python_version(), "archive_format": 1})
    else:
        click.echo(f"deviceon-backup {number}")
