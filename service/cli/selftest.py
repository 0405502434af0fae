"""The command `selftest`."""

from __future__ import annotations

from pathlib import Path

import click

from service.cli.connection import run_job
from service.cli.options import Shared, emit, json_option, shared_options
from service.opening import Opening
from service.terminal import plain


@click.command()
@click.option(
    "--pin-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The restore PIN; without it, all is tested but the last step.",
)
@shared_options
@json_option
@click.pass_obj
def selftest(shared: Shared, pin_file: Path | None) -> None:
    """Open the key of each target's newest archive as a restore would; the service does so every day.

    Nothing is restored. It tells when the TPM that archives were sealed to no longer opens them.
    """
    from service.secret import read_secret  # noqa: PLC0415

    pin = read_secret("restore PIN", file=pin_file, remembered=False)
    result = run_job(shared, "selftest.start", opening=Opening(pin=pin))
    if shared.json:
        emit(result)
        return
    for each in result["tested"]:
        told = "its key opens" if each["opened"] else each["note"]
        click.echo(f"{plain(each['archive'])} in {plain(each['target'])}: {plain(told)}")
    if not result["tested"]:
        click.echo("there are no archives yet: nothing to test")
