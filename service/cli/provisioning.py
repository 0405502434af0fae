"""The command that sets up sealing with a person there: `provision`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from service.cli import render
from service.cli.connection import commander_of
from service.cli.failures import result_of
from service.cli.options import Shared, emit, json_option, shared_options
from service.cli.running import answering, run
from service.cli.unlocking import recovery_of, recovery_options
from service.errors import ConfigError, ServiceError
from service.terminal import plain, reporting

GENERATED = ("identity", "passphrase")
_UNKNOWN = frozenset({"CONNECTION_LOST", "NO_ANSWER", "INTERNAL_ERROR"})
"""Codes after which it is not known whether the service did what it was asked to."""


@click.command()
@click.option(
    "--recovery",
    "choices",
    metavar="CHOICE",
    multiple=True,
    help="none, identity or passphrase (generated here and shown once), or an age recipient; that may be repeated.",
)
@click.option("--new-tpm", is_flag=True, help="The TPM was replaced or cleared on purpose: trust the one that is here.")
@click.option("--show", "only_show", is_flag=True, help="Show how sealing is set up, and change nothing.")
@click.option(
    "--kit",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the recovery kit to this file: a page for printing when it ends in .html, else text.",
)
@click.option("--kit-secret", is_flag=True, help="Write the generated recovery key into the kit too.")
@click.option("--baseline/--no-baseline", default=True, help="Take the baseline afterwards, when there is none.")
@recovery_options
@shared_options
@json_option
@click.pass_obj
def provision(
    shared: Shared,
    /,
    choices: tuple[str, ...],
    new_tpm: bool,
    only_show: bool,
    kit: Path | None,
    kit_secret: bool,
    baseline: bool,
    **options: Any,
) -> None:
    """Set up sealing: trust this machine's TPM, choose who opens archives when it is gone, and prove that they do.

    With a recipient of your own, the recovery key stays where it is: decrypt a challenge there, or give the key with
    --recovery-key, which only opens the challenge and is kept nowhere.
    """
    if kit is not None and kit.exists():
        raise ConfigError(f"{kit} is there already", hint="Name another file, or remove it.")
    found = run(_provisioned(shared, choices, new_tpm, only_show, kit, kit_secret, baseline, options))
    if shared.json:
        emit(found)


async def _provisioned(
    shared: Shared,
    choices: tuple[str, ...],
    new_tpm: bool,
    only_show: bool,
    kit: Path | None,
    kit_secret: bool,
    baseline: bool,
    options: dict[str, Any],
) -> dict[str, Any]:
    async with commander_of(shared, complete=False) as commander:
        standing = await commander.call("provision.status")
        if not shared.json:
            _show_standing(standing)
        if only_show:
            return dict(standing)
        kind, recipients = _choice(shared, standing, choices)
        begun = await commander.call("provision.begin", recovery=kind, recipients=recipients, new_tpm=new_tpm)
        secret = begun["secret"] if kit_secret else None
        with answering():
            proof = _answers(shared, begun, options, stored=kit if kit_secret else None)
        with _noted_first(kit, secret):
            done = await _finished(shared, commander, begun, proof, retried=not any(options.values()))
        if kit is not None:
            _write_kit(kit, done["kit"], secret)
        if not shared.json:
            click.echo(done["text"])
            if recipients := done["kit"]["recipients"]:
                named = " ".join(f"--recipient {recipient}" for recipient in recipients)
                click.echo(f"To let it open the archives that are there already: deviceon-backup key add --all {named}")
        if baseline and not await _has_baseline(commander):
            with reporting(quiet=shared.quiet) as progress:
                result = result_of(await commander.job("baseline.take", {}, progress))
            done["baseline"] = result["name"]
            if not shared.json:
                click.echo(f"{plain(result['name'])} is the baseline, and held for ever")
        return {name: value for name, value in done.items() if name not in ("text", "html")}


async def _finished(
    shared: Shared, commander: Any, begun: dict[str, Any], answers: list[str], *, retried: bool
) -> dict[str, Any]:
    """Have the proof looked at; `retried`: a person who mistyped it is asked once more, for the same key."""
    while True:
        try:
            return dict(await commander.call("provision.finish", token=begun["token"], answers=answers))
        except ServiceError as error:
            if error.code != "SEAL_RECOVERY_NOT_PROVEN" or not (retried and shared.interactive):
                raise
            click.echo(f"That is not it: {plain(str(error))}. Ctrl-C gives up, and nothing is changed.", err=True)
        with answering():
            answers = [_asked(f"Once more, for {each['recipient'][:12]}...") for each in begun["challenges"]]


async def _has_baseline(commander: Any) -> bool:
    """Tell whether there is a baseline already, or no target to take one to."""
    settings = await commander.call("settings.get")
    if settings["settings"].get("target") is None:
        click.echo("No target is set yet; take the baseline when there is one: deviceon-backup baseline", err=True)
        return True
    return await commander.call("baseline.get") is not None


def _show_standing(standing: dict[str, Any]) -> None:
    pinned, seen, recovery = standing["tpm"], standing["seen"], standing["recovery"]
    rows = [("trusted TPM", pinned["fingerprint"] if pinned else "none yet")]
    if seen:
        rows += [("TPM here", seen["fingerprint"]), ("made by", f"{seen['manufacturer']}, firmware {seen['firmware']}")]
        rows += [("kind", seen["kind"])]
    if standing["problem"]:
        rows.append(("problem", standing["problem"]))
    rows += [("recovery", recipient) for recipient in recovery["recipients"]]
    if not recovery["recipients"]:
        rows.append(("recovery", "none" if recovery["decided"] else "not chosen yet"))
    render.table(rows)


def _choice(shared: Shared, standing: dict[str, Any], choices: tuple[str, ...]) -> tuple[str, list[str]]:
    """Return the kind of recovery that was chosen, with its recipients. Somebody has to say it: there is no default."""
    fixed = standing["recovery"]
    if not choices and fixed["fixed"]:
        return ("recipients" if fixed["recipients"] else "none"), list(fixed["recipients"])
    if not choices:
        if not shared.interactive:
            raise ConfigError(
                "nobody said who opens archives when this TPM is gone",
                hint="Give --recovery none, identity, passphrase or an age recipient (age1...).",
            )
        click.echo(_QUESTION, err=True)
        with answering():
            choices = (_chosen(),)
    if len(choices) == 1 and choices[0] in ("none", *GENERATED):
        return choices[0], []
    return "recipients", list(choices)


def _chosen() -> str:
    from service.recovery import is_recipient  # noqa: PLC0415

    while True:
        said = _asked("Choice")
        if said in ("none", *GENERATED) or is_recipient(said):
            return said
        why = "its checksum is wrong: it was mistyped or cut off" if said.startswith("age1") else "it is none of these"
        click.echo(f"{plain(said)}: {why}. Type identity, passphrase, none, or a recipient.", err=True)


def _asked(question: str) -> str:
    return str(click.prompt(question, err=True)).strip()


_QUESTION = """
Archives open on this TPM only, unless they are sealed for a recovery key too. Loss of the TPM (a dead board, a firmware
update that resets it) is then loss of all backups. Who opens them?
  identity     a key is generated and shown once; keep it in a safe, not on this machine
  passphrase   a passphrase is generated and shown once
  age1...      a recipient of your own: age-keygen, or a hardware key's plugin
  none         nobody"""


def _answers(shared: Shared, begun: dict[str, Any], options: dict[str, Any], *, stored: Path | None) -> list[str]:
    if not begun["challenges"]:
        return []
    if begun["secret"] is not None:
        return [_typed_back(shared, begun, stored)]
    key = recovery_of(shared, options)
    if key is not None:
        return [_opened(key, challenge["file"]) for challenge in begun["challenges"]]
    if not shared.interactive:
        raise ConfigError(
            "nobody is there to prove that the recovery key opens archives",
            hint="Give it with --recovery-key FILE (or - for stdin); it is not kept.",
        )
    answers = []
    for challenge in begun["challenges"]:
        click.echo(
            f"\nDecrypt this where the recovery key is (age -d -i key.txt), and type the word that it holds.\n"
            f"It is for {challenge['recipient']}:\n\n{challenge['file']}",
            err=True,
        )
        answers.append(_asked("Word"))
    return answers


def _typed_back(shared: Shared, begun: dict[str, Any], stored: Path | None) -> str:
    """Return the proof that a generated key was noted: typed back, or written to the file that was asked for."""
    if not shared.interactive:
        if stored is None:
            raise ConfigError(
                "nobody is there to note the recovery key",
                hint="Run this at a terminal, or have it written: --kit FILE --kit-secret.",
            )
        return str(begun["secret"])
    click.echo(
        f"\nThe recovery {begun['kind']}. It is shown this once, and kept nowhere:\n\n    {begun['secret']}\n", err=True
    )
    return _asked("Note it down, then type it")


def _opened(key: Any, file: str) -> str:
    from service.sealing.age import AgeIdentity  # noqa: PLC0415

    return AgeIdentity(key).opened(file).decode(errors="replace").strip()


@contextlib.contextmanager
def _noted_first(path: Path | None, secret: str | None) -> Iterator[None]:
    """Have a secret that is wanted in the kit on the disk before archives are sealed for it.

    It is removed again only when that was surely refused: nobody can tell the secret a second time.
    """
    if path is None or secret is None:
        yield
        return
    _write(path, f"{secret}\n", os.O_EXCL)
    try:
        yield
    except BaseException as error:
        if isinstance(error, ServiceError) and error.code not in _UNKNOWN:
            path.unlink(missing_ok=True)
        else:
            click.echo(
                f"The recovery key is in {path}: keep it until `provision --show` tells that archives are not sealed"
                " for it.",
                err=True,
            )
        raise


def _write_kit(path: Path, facts: dict[str, Any], secret: str | None) -> None:
    from datetime import datetime  # noqa: PLC0415

    from service.recovery_kit import Kit, page, text  # noqa: PLC0415

    kit = Kit(**facts | {"created": datetime.fromisoformat(facts["created"])})
    content = page(kit, secret) if path.suffix.lower() in (".html", ".htm") else text(kit, secret)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.unlink(missing_ok=True)  # what somebody has put there must not get the secret
    _write(unfinished, content, os.O_EXCL)
    unfinished.replace(path)
    click.echo(f"The recovery kit is in {path}{', with the recovery key' if secret else ''}", err=True)


def _write(path: Path, content: str, how: int) -> None:
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o600), "w") as file:  # noqa: PTH123
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", hint="Name another file.") from error
