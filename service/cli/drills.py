"""Restores for practice: `drill`, and what is done with its reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from service.cli import render
from service.cli.connection import call, configuration, opening_of, opening_options, run_job
from service.cli.failures import Exit
from service.cli.options import Shared, emit, json_option, shared_options, target_option
from service.errors import ConfigError
from service.terminal import duration, plain

_COUNTED = {
    "databases": "databases",
    "tables": "tables",
    "rows": "rows",
    "files": "files",
    "sqlite_files": "SQLite files",
    "stream_digests": "digests",
}
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("archive", required=False)
@click.option("--list", "show_list", is_flag=True, help="List what drills have found, the newest first; do nothing.")
@click.option("--report", "show_report", metavar="ID", help="Print the report of a drill; do nothing.")
@click.option(
    "--check", metavar="REPORT.json", type=_FILE, help="Check the signature of a report, offline; do nothing else."
)
@click.option(
    "--key",
    metavar="FILE",
    type=_FILE,
    help="With --check: the public key that is trusted (PEM or DER); else this machine's own and `trusted_signers`.",
)
@click.option("--public-key", is_flag=True, help="Print the public key that this machine's reports are signed with.")
@target_option
@opening_options
@shared_options
@json_option
@click.pass_context
def drill(
    ctx: click.Context,
    /,
    archive: str | None,
    show_list: bool,
    show_report: str | None,
    check: Path | None,
    key: Path | None,
    public_key: bool,
    target: str | None,
    **options: Any,
) -> None:
    """Restore an archive for practice: beside the live data, compared, dropped again, with a report.

    Without ARCHIVE: the newest verified one that no drill has restored yet.
    """
    shared: Shared = ctx.obj
    if key is not None and check is None:
        raise ConfigError("--key goes with --check", hint="Name the report: --check REPORT.json --key FILE.")
    if check is not None:
        ctx.exit(_check(shared, check, key))
    if public_key:
        _show_public_key(shared)
    elif show_report is not None:
        emit(call(shared, "drill.report", id=show_report))
    elif show_list:
        _show_list(shared)
    else:
        _drill(shared, archive, target, options)


def _drill(shared: Shared, archive: str | None, target: str | None, options: dict[str, Any]) -> None:
    if archive is not None and "/" in archive:
        raise ConfigError(
            "a drill is of an archive in a target: its evidence is remembered there",
            hint="Give its name, and --target for another target than the first.",
        )
    result = run_job(shared, "drill.start", opening=opening_of(shared, options), archive=archive, target=target)
    if shared.json:
        emit(result)
        return
    counts = result["counts"]
    told = [f"{counts[name]} {words}" for name, words in _COUNTED.items() if counts.get(name)]
    for warning in result["warnings"]:
        click.echo(f"warning: {plain(warning)}")
    click.echo(f"compared {', '.join(told)} in {duration(result['seconds'])}")
    click.echo(f"report: {plain(result['page'])}{'' if result['signed'] else ' (not signed)'}")
    click.echo(f"{plain(result['archive'])} is restorable")


def _show_list(shared: Shared) -> None:
    found = call(shared, "drill.list", limit=500)
    if shared.json:
        emit(found)
        return
    if not found["drills"]:
        click.echo("no drill has been made yet")
        return
    rows = [("DRILL", "STARTED", "RESULT", "ARCHIVE", "TARGET", "")]
    for each in found["drills"]:
        why = each["failure"]["message"] if each["failure"] else ""
        started = render.at_utc(each["started"])
        rows.append((each["id"], started, each["result"], each["archive"], each["target"], why))
    render.table(rows)


def _check(shared: Shared, report: Path, key: Path | None) -> Exit:
    from service.drill_report import LARGEST, as_public_key, check  # noqa: PLC0415

    with report.open("rb") as file:
        content = file.read(LARGEST)
    if key is not None:
        found = check(content, as_public_key(key.read_bytes()))
    else:
        found = check(content, trusted=_trusted(shared))
    archive = found.report.get("archive", {})
    if shared.json:
        emit({"authentic": True, "vouched": found.vouched, "fingerprint": found.fingerprint, "report": found.report})
    else:
        click.echo(
            f"drill {plain(str(found.report.get('id')))} of {plain(str(archive.get('name')))}: "
            f"{plain(str(found.report.get('result')))}"
        )
        click.echo(f"unaltered since it was signed by {found.fingerprint}")
        if not found.vouched:
            click.echo("nobody vouches for that key here: give --key with the one that you trust")
    return Exit.OK if found.vouched else Exit.SEALING


def _trusted(shared: Shared) -> frozenset[str]:
    """Return the fingerprints of the signers that this machine trusts: itself, and those of its configuration."""
    from service.keys import trusted_signers  # noqa: PLC0415

    try:
        config = configuration(shared, complete=False)
    except ConfigError:
        return frozenset()  # on an auditor's machine there is no configuration
    return frozenset() if config is None else trusted_signers(config)


def _show_public_key(shared: Shared) -> None:
    from service.drill_report import as_pem  # noqa: PLC0415
    from service.errors import NotFound  # noqa: PLC0415
    from service.keys import own_public_key  # noqa: PLC0415

    config = configuration(shared, complete=False)
    key = None if config is None else own_public_key(config.state_dir)
    if key is None:
        raise NotFound("this machine has no signing key yet", hint="It is made in the TPM with the first signature.")
    text = as_pem(key)
    emit({"public_key": text}) if shared.json else click.echo(text, nl=False)
