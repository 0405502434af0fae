"""Commands on who opens archives: key list, key add, key remove, key rewrap, prepare-firmware-update."""

from __future__ import annotations

from typing import Any

import click

from service.cli import render
from service.cli.connection import call, commander_of, opening_of, opening_options
from service.cli.failures import result_of
from service.cli.options import Shared, emit, json_option, shared_options, target_option
from service.cli.running import run
from service.cli.unlocking import recovery_of, recovery_options
from service.errors import ConfigError
from service.terminal import plain, reporting

all_option = click.option("--all", "every", is_flag=True, help="All archives.")
allow_option = click.option("--allow", metavar="CODE", multiple=True, help="Go ahead in spite of this obstacle.")

AFTER = """\
The recovery key opens the newest archive of every target. Before you update the firmware:
  1. Keep the recovery key where it does not depend on this machine.
  2. Make a backup now: deviceon-backup backup
After the update:
  deviceon-backup doctor             does the TPM still seal and open?
  deviceon-backup verify ARCHIVE     does it still open archives of before?
If it says TPM_CLEARED or TPM_CHANGED, the update has reset the TPM. Nothing is lost:
  deviceon-backup provision --new-tpm
  deviceon-backup key rewrap --all --recovery-key FILE            shows what would be done
  deviceon-backup key rewrap --all --recovery-key FILE --apply    makes the archives open on the new TPM"""


@click.group()
def key() -> None:
    """Show and change who opens archives."""


@key.command("list")
@click.argument("archive", required=False)
@target_option
@shared_options
@json_option
@click.pass_obj
def key_list(shared: Shared, archive: str | None, target: str | None) -> None:
    """Show the key slots of an archive, or of all. What they say is not proven: opening proves it."""
    found = call(shared, "key.list", archive=archive, target=target)
    if shared.json:
        emit(found)
        return
    rows = [("ARCHIVE", "PLACE", "TYPE", "FOR")]
    for each in found["archives"]:
        for slot in each["slots"]:
            whom = slot["whom"] + (" (recovery passphrase)" if slot["passphrase"] else "")
            rows.append((each["archive"], slot["place"], slot["type"], whom))
        if each["problem"] or not each["slots"]:
            rows.append((each["archive"], "", "", each["problem"] or "not sealed"))
    render.table(rows)


@key.command("add")
@click.argument("archive", required=False)
@all_option
@click.option("--recipient", "recipients", metavar="AGE1...", multiple=True, help="An age recipient.")
@click.option("--tpm", is_flag=True, help="This machine's TPM.")
@allow_option
@target_option
@opening_options
@shared_options
@json_option
@click.pass_obj
def key_add(
    shared: Shared,
    /,
    archive: str | None,
    every: bool,
    recipients: tuple[str, ...],
    tpm: bool,
    allow: tuple[str, ...],
    target: str | None,
    **options: Any,
) -> None:
    """Let one more recovery key, or this machine's TPM, open an archive; nothing of the archive is rewritten.

    A TPM's slot can only be made on its own machine: run this there, with the recovery key.
    """
    if not recipients and not tpm:
        raise ConfigError("nobody was named", hint="Give --recipient AGE1... or --tpm.")
    params = {"recipients": list(recipients), "tpm": tpm, "allow": sorted(allow)}
    _show(shared, _changed(shared, options, archive, every, target, "key.add", **params))


@key.command("remove")
@click.argument("archive", required=False)
@all_option
@click.option(
    "--of", "others", metavar="WHOM", multiple=True, required=True, help="A recipient, or the fingerprint of a TPM."
)
@target_option
@shared_options
@json_option
@click.pass_obj
def key_remove(
    shared: Shared,
    archive: str | None,
    every: bool,
    others: tuple[str, ...],
    target: str | None,
) -> None:
    """Remove key slots that were added beside an archive. Those in the archive itself stay as long as it does."""
    _show(shared, _changed(shared, {}, archive, every, target, "key.remove", whom=list(others)))


@key.command("rewrap")
@all_option
@click.option("--apply", is_flag=True, help="Write the slots; without this, it is only tried.")
@allow_option
@target_option
@opening_options
@shared_options
@json_option
@click.pass_obj
def key_rewrap(
    shared: Shared, /, every: bool, apply: bool, allow: tuple[str, ...], target: str | None, **options: Any
) -> None:
    """After the TPM was replaced: let the new one open all archives, with the recovery key.

    It can be interrupted and repeated: what the TPM opens already is left alone.
    """
    params = {"recipients": [], "tpm": True, "allow": sorted(allow), "apply": apply}
    _show(shared, _changed(shared, options, None, every, target, "key.add", **params), applied=apply)


@click.command("prepare-firmware-update")
@target_option
@recovery_options
@shared_options
@json_option
@click.pass_obj
def prepare_firmware_update(shared: Shared, /, target: str | None, **options: Any) -> None:
    """Prove that the recovery key opens the newest archives, before the firmware or the TPM is touched."""
    if all(value is None for value in options.values()):
        options["recovery_key"] = "-"
    given = recovery_of(shared, options)
    assert given is not None
    found = call(shared, "key.prove", target=target, recovery=given.as_params())
    if shared.json:
        emit({"proven": found})
        return
    for each in found:
        signed = f", signed by {each['signer']}" if each["signer"] else ", not signed"
        click.echo(f"{plain(each['archive'])} in {plain(each['target'])} opens with the recovery key{signed}")
    click.echo(AFTER)


def _changed(
    shared: Shared,
    options: dict[str, Any],
    archive: str | None,
    every: bool,
    target: str | None,
    method: str,
    /,
    **params: Any,
) -> dict[str, Any]:
    if every == (archive is not None):
        raise ConfigError("say which archives", hint="Name one archive, or give --all.")
    opening = opening_of(shared, options)
    with reporting(quiet=shared.quiet) as progress:

        async def done() -> dict[str, Any]:
            async with commander_of(shared) as commander:
                given = {"archive": archive, "target": target, **params}
                return await commander.job(method, given, progress, opening)

        return result_of(run(done()))


def _show(shared: Shared, result: dict[str, Any], *, applied: bool = True) -> None:
    if shared.json:
        emit(result)
        return
    changes = result["changes"]
    if not changes:
        click.echo("there are no archives")
        return
    render.table([(each["archive"], each["outcome"], plain(each["target"])) for each in changes])
    if not applied:
        click.echo("Nothing was written; --apply does that.")
