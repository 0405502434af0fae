"""Commands on the restore PIN: `pin set`, `change`, `remove`, `status`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from service.cli.connection import call
from service.cli.options import Shared, emit, json_option, shared_options
from service.terminal import counted, plain

_PIN_FILE = click.option(
    "--pin-file", metavar="FILE", type=click.Path(path_type=Path), help="The PIN there is; else it is asked for."
)
_NEW_PIN_FILE = click.option(
    "--new-pin-file", metavar="FILE", type=click.Path(path_type=Path), help="The new PIN; else it is asked for."
)


@click.group()
def pin() -> None:
    """Let archives open with a PIN only. Backups go on without anybody; a restore asks for it."""


@pin.command("set")
@_NEW_PIN_FILE
@shared_options
@json_option
@click.pass_obj
def set_pin(shared: Shared, new_pin_file: Path | None) -> None:
    """Set a restore PIN (6 to 128 characters) for archives made from now on.

    Who forgets it cannot open them any more, but for a recovery key.
    """
    call(shared, "pin.set", new=_new(shared, new_pin_file))
    _done(
        shared, "Archives made from now on open with this PIN only. Keep it where it is found on the day of a restore."
    )


@pin.command()
@_PIN_FILE
@_NEW_PIN_FILE
@shared_options
@json_option
@click.pass_obj
def change(shared: Shared, pin_file: Path | None, new_pin_file: Path | None) -> None:
    """Change the restore PIN.

    On this machine older archives open with the new PIN too. Where its state directory is lost, each archive opens with
    the PIN that was set when it was made.
    """
    old = _given(shared, "restore PIN", "Restore PIN now", pin_file, "--pin-file")
    call(shared, "pin.change", pin=old, new=_new(shared, new_pin_file))
    _done(shared, "The PIN is changed.")


@pin.command()
@_PIN_FILE
@shared_options
@json_option
@click.pass_obj
def remove(shared: Shared, pin_file: Path | None) -> None:
    """Make archives without a PIN from now on. Those made with it still ask for it."""
    call(shared, "pin.remove", pin=_given(shared, "restore PIN", "Restore PIN", pin_file, "--pin-file"))
    _done(shared, "Archives made from now on open without a PIN. Keep the PIN as long as archives made with it.")


@pin.command()
@shared_options
@json_option
@click.pass_obj
def status(shared: Shared) -> None:
    """Show whether a restore PIN is set, and how many wrong tries the TPM still takes."""
    found: dict[str, Any] = call(shared, "pin.status")
    if shared.json:
        emit(found)
        return
    if found["problem"]:
        click.echo(f"the restore PIN cannot be used: {plain(found['problem'])}")
        click.echo(f"  what to do: {plain(found['hint'])}")
    elif not found["is_set"]:
        click.echo("no restore PIN is set: this machine's TPM opens archives without one")
    else:
        from service.sealing.tpm.faults import duration  # noqa: PLC0415

        click.echo(f"a restore PIN is set, since {plain(found['since'])[:10]}")
        if found["locked"]:
            click.echo(
                f"the TPM is locked after wrong tries; one is allowed again after {duration(found['wait_seconds'])}"
            )
        elif found["tries_left"] is not None:
            click.echo(
                f"the TPM takes {counted(found['tries_left'], 'more wrong try', 'more wrong tries')} before it locks"
            )


def _given(shared: Shared, what: str, question: str, file: Path | None, option: str, *, confirm: bool = False) -> str:
    from service.secret import read_secret  # noqa: PLC0415

    found = read_secret(what, file=file, remembered=False)
    if found is not None:
        return found
    shared.require_somebody(f"Give {option} FILE.")
    said: str = click.prompt(question, hide_input=True, confirmation_prompt=confirm, err=True)
    return said


def _new(shared: Shared, file: Path | None) -> str:
    from service.sealing.tpm.restore_pin import require_good_pin  # noqa: PLC0415

    new = _given(shared, "new restore PIN", "New restore PIN", file, "--new-pin-file", confirm=True)
    require_good_pin(new)
    return new


def _done(shared: Shared, told: str) -> None:
    if shared.json:
        emit({"done": True})
    else:
        click.echo(told)
