"""`recover`: a restore for the worst day. It asks, checks all that is needed, says what to do, and restores."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import click

from service.archive.names import parse_archive_name
from service.cli import failures, render
from service.cli.connection import ask_for_pin, config_for, restoring_options, run_job_with
from service.cli.mending import CLOSED, Mending
from service.cli.options import Shared, emit, json_option, shared_options
from service.cli.restoring import SUCCESS, ask, with_version, yes_option
from service.cli.running import run
from service.errors import ConfigError, JobRefused, Obstacle, RestoreRefused, ServiceError
from service.finding import Finding
from service.terminal import plain, size
from storage_backends.base import AccessDenied, ObjectNotFound, StorageError

if TYPE_CHECKING:
    from service.config import Config
    from service.restore_plan import RestorePlan

EXPLANATION = """\
System Recovery

  1. The archive is looked at, and everything that a restore needs is checked. Nothing is changed by that.
  2. Databases and configuration are restored beside what is there now, every byte authenticated and compared.
  3. When all of it is good, they are exchanged. Until then nothing that is live is changed.
  4. The state of before is kept until `deviceon-backup commit`; `deviceon-backup rollback` returns to it.

It is safe to stop with Ctrl-C at any time, and to run this again.
"""

# What an obstacle's code begins with, and what that is about, in the order in which it is told.
_ABOUT: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("archive's key", ("TPM", "SEAL", "PIN", "ARCHIVE_NOT_SEALED", "ORIGIN")),
    ("server version", ("SERVER_VERSION",)),
    (
        "PostgreSQL",
        (
            "SERVER_",
            "POSTGRESQL",
            "EXTENSION",
            "LOCALE",
            "TABLESPACE",
            "PREPARED",
            "LOGICAL",
            "ENCODING",
            "LIVE",
            "CONNECTIONS",
        ),
    ),
    ("directories", ("TREE", "OWNERS", "ATTRIBUTES", "MOUNTED")),
    ("free space", ("SPACE", "NO_SPACE")),
    ("everything else", ("",)),
)


@click.command()
@click.argument("archive", required=False)
@click.option("--archive", "named", metavar="ARCHIVE", help="The same as the argument.")
@click.option("--allow", metavar="CODE", multiple=True, help="Go ahead in spite of this obstacle; may be repeated.")
@yes_option
@restoring_options
@shared_options
@json_option
@click.pass_context
def recover(
    ctx: click.Context,
    /,
    archive: str | None,
    named: str | None,
    allow: tuple[str, ...],
    yes: bool,
    **options: Any,
) -> None:
    """Restore on the worst day: asks for the archive, checks everything, says what to do, restores.

    It needs an archive, its key (this machine's TPM) and a PostgreSQL server of the archive's major version. What
    `tools/System Recovery` runs.
    """
    shared: Shared = ctx.obj
    allowed = {*allow, "LIVE_CONNECTIONS"}  # told, and wanted: nobody recovers a server that is well
    if not shared.quiet:
        click.echo(EXPLANATION, err=True)
    chosen = _chosen(shared, named or archive)
    config = config_for(shared, chosen, options)
    _require_settled(config)
    _show_archive(config, chosen)
    config = with_version(shared, ask_for_pin(shared, config, chosen))
    options["server_version"] = options["server_version"] or config.server.version
    config, plan = _ready(shared, config, chosen, allowed, options, asking=not yes and shared.interactive)
    render.items(plan.items, err=True)
    if not yes and shared.interactive:
        ask("Restore this archive over what is there now?")
    result = run_job_with(config, shared, options, "restore.start", archive=chosen, allow=sorted(allowed))
    if shared.json:
        emit(result | {"message": SUCCESS})
        return
    render.restore(result)
    _show_what_next(shared, options)
    click.echo(SUCCESS)


def _chosen(shared: Shared, given: str | None) -> str:
    """Return the archive's path or URL. What is wrong is told and asked again while somebody answers."""
    if given is not None:
        return _found(given, shared)
    problem: ServiceError | StorageError = ConfigError(
        "no path was given", hint="Type the path of the archive, then Enter; or give --archive PATH."
    )
    while True:
        try:
            said = click.prompt("Path of the archive", default="", show_default=False, err=True)
        except click.Abort:
            if shared.interactive:
                raise
            raise problem from None
        try:
            return _found(said, shared)
        except (ServiceError, StorageError) as error:
            problem = error
            failures.show(error, debug=False)


def _found(said: str, shared: Shared) -> str:
    """Return the archive that somebody means by what was typed or pasted. Raises ConfigError, StorageError."""
    text = _unquoted(said)
    if not text:
        raise ConfigError("no path was given", hint="Type the path of the archive, then Enter.")
    if "://" in text and not text.lower().startswith("file://"):
        return text
    path = _path(text)
    if path.is_dir():
        return _one_of(path, shared)
    path = path.resolve()  # a target knows files, not links to them
    if not path.exists():
        raise ObjectNotFound(f"there is no file {path}", hint="Check the path; is the disk or share mounted?")
    if not path.is_file():
        raise ObjectNotFound(f"{path} is not a file", hint="Give the path of one Backup_YYYYMMDD_HHMMZ.zip.")
    if not os.access(path, os.R_OK):
        raise AccessDenied(f"{path} cannot be read by this user", hint="Run this as root.")
    if parse_archive_name(path.name) is None:
        raise ConfigError(
            f"{path.name} is not the name of an archive",
            hint="Archives are named Backup_YYYYMMDD_HHMMZ.zip. If this is one that was renamed, give it its own name "
            "back: `unzip -p FILE header.json` tells it.",
        )
    return str(path)


def _unquoted(said: str) -> str:
    """Return a path as terminals and file managers paste it: blanks around it, quotes."""
    text = said.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    return text


def _path(text: str) -> Path:
    candidates = [text]
    if text.lower().startswith("file://"):
        rest = text[len("file://") :]
        candidates = [rest, unquote(rest)]
    elif "\\" in text and os.sep == "/":
        with contextlib.suppress(ValueError):
            candidates += shlex.split(text)[:1]  # blanks as a terminal escapes them
    paths = [Path(candidate).expanduser().absolute() for candidate in candidates]
    return next((path for path in paths if path.exists()), paths[0])


def _one_of(directory: Path, shared: Shared) -> str:
    """Have one of a directory's archives chosen."""
    try:
        names = sorted((path.name for path in directory.iterdir() if parse_archive_name(path.name)), reverse=True)
    except OSError as error:
        raise AccessDenied(f"{directory} cannot be read: {error.strerror}", hint="Run this as root.") from error
    if not names:
        raise ObjectNotFound(
            f"{directory} is a directory without any archive", hint="Is the disk or share mounted there?"
        )
    if not shared.interactive:
        raise ObjectNotFound(
            f"{directory} is a directory, not a file", hint=f"Its newest archive is {directory / names[0]}."
        )
    click.echo(f"Archives in {plain(str(directory))}, the newest first:", err=True)
    for number, name in enumerate(names[:20], start=1):
        click.echo(f"  {number:2}  {name}  {size((directory / name).stat().st_size)}", err=True)
    number = click.prompt("Which one? Its number", type=click.IntRange(1, len(names[:20])), err=True)
    return str(directory / names[number - 1])


def _require_settled(config: Config) -> None:
    from service.restore import pending  # noqa: PLC0415

    journal = pending(config)
    if journal is not None and journal.state == "swapped":
        raise JobRefused(
            f"the restore of {journal.archive}, begun {journal.started}, still keeps the state before it",
            hint="`deviceon-backup commit` removes that old state, `deviceon-backup rollback` returns to it; then run "
            "this again.",
        )


def _show_archive(config: Config, archive: str) -> None:
    """Print what the archive says of itself; its key is not needed for that."""
    from service.catalog import locate  # noqa: PLC0415
    from service.pipeline.unpack import peek  # noqa: PLC0415

    async def peeked() -> Any:
        async with locate(config, archive) as (target, name):
            return await peek(target, name)

    seen = run(peeked())
    header = seen.header
    sealed = (header.fingerprint or "a key that is not this service's") if header.sealed else "nobody: not sealed"
    sealed += " and a recovery key" if "age" in header.sealing else ""
    click.echo("The archive says of itself (authenticated when it is opened):", err=True)
    for name, told in (
        ("archive", archive),
        ("server", f"{header.product} {header.server_version}"),
        ("created", header.created.strftime("%Y-%m-%d %H:%M UTC")),
        ("size", f"{size(seen.info.size)}, {size(seen.footer.raw_bytes)} when unpacked"),
        ("sealed to", sealed),
    ):
        click.echo(f"  {name:11}{plain(told)}", err=True)
    click.echo("", err=True)


def _ready(
    shared: Shared, config: Config, archive: str, allowed: set[str], options: dict[str, Any], *, asking: bool
) -> tuple[Config, RestorePlan]:
    """Look at all that a restore needs until nothing is in the way. Raises RestoreRefused when nobody mends it."""
    from service.restore_plan import MAY_BE_ALLOWED, plan_restore  # noqa: PLC0415

    mending = Mending(shared, archive, options, allowed)
    while True:
        click.echo("Checking what a restore needs:", err=True)
        blocking: list[Obstacle] = []
        try:
            plan = run(plan_restore(config, archive))
            blocking = [obstacle for obstacle in plan.obstacles if obstacle.code not in allowed & MAY_BE_ALLOWED]
            told = findings(config, plan, allowed)
            render.findings((each for each in told if asking or each.ok is not False), err=True)
            if not blocking:
                return config, plan
            if not asking:
                raise RestoreRefused(blocking)
        except (ServiceError, StorageError) as error:
            if not asking:
                raise
            failures.show(error, debug=shared.debug)
        config = mending.mend(config, blocking)


def findings(config: Config, plan: RestorePlan, allowed: Collection[str]) -> list[Finding]:
    """Return one line for each thing that a restore needs, or one for each obstacle in it."""
    left = list(plan.obstacles)
    closed = any(obstacle.code.startswith(CLOSED) for obstacle in left)
    good: dict[str, Callable[[], str]] = {
        "archive's key": lambda: "the archive is not sealed" if plan.sealing == "off" else "the archive can be opened",
        "server version": lambda: f"{plan.product} {plan.server_version} is installed, as in the archive",
        "PostgreSQL": lambda: "it answers, and is of the archive's major version",
        "directories": lambda: "they can be replaced",
        "free space": lambda: "there is enough, where it can be told",
    }
    told = []
    for name, beginnings in _ABOUT:
        mine = [obstacle for obstacle in left if obstacle.code.startswith(beginnings)]
        left = [obstacle for obstacle in left if obstacle not in mine]
        for obstacle in mine:
            fine = None if obstacle.code in allowed else False
            told.append(Finding(name, fine, f"{obstacle.message} [{obstacle.code}]", obstacle.remedy))
        if not mine and name in good:
            if closed:
                told.append(Finding(name, None, "not looked at: the archive has to be opened first"))
            else:
                told.append(Finding(name, True, good[name]()))
    if closed:
        told += _postgresql(config)
    return told


def _postgresql(config: Config) -> list[Finding]:
    """Look at the servers without the archive, so that one run tells all that is missing."""
    from service.config_sources import PostgresqlSettings  # noqa: PLC0415
    from service.sources.postgresql.diagnose import diagnose  # noqa: PLC0415

    servers = [source for source in config.sources if isinstance(source, PostgresqlSettings)]
    return [finding for server in servers for finding in run(diagnose(server))[:2]]  # that it answers, and its client


def _show_what_next(shared: Shared, options: dict[str, Any]) -> None:
    """Print the commands that end the restore, as they are to be typed here."""
    from service.config_for_archive import configured  # noqa: PLC0415 - models take time to import

    if os.environ.get("PGPASSWORD") and not configured(shared.config, os.environ):
        click.echo("with the same password in PGPASSWORD, which is kept nowhere:")
    more = f" --state-dir {shlex.quote(str(options['state_dir']))}" if options["state_dir"] else ""
    click.echo(f"  keep it:    deviceon-backup commit{more}")
    click.echo(f"  take back:  deviceon-backup rollback{more}")
