"""Commands for what goes on in the long run: status, jobs, schedule, retention, holds, settings."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from service.cli import render
from service.cli.connection import configuration
from service.cli.failures import Exit, result_of
from service.cli.options import Shared, emit, json_option, shared_options, target_option
from service.cli.running import run
from service.errors import ConfigError
from service.finding import Finding
from service.terminal import duration, plain, reporting, size


def _call(shared: Shared, method: str, /, **params: Any) -> Any:
    from service.cli.commander import commanding  # noqa: PLC0415

    async def call() -> Any:
        async with commanding(configuration(shared, complete=False), shared.socket) as commander:
            return await commander.call(method, **params)

    return run(call())


def _job(shared: Shared, method: str, /, **params: Any) -> dict[str, Any]:
    from service.cli.commander import commanding  # noqa: PLC0415

    with reporting(quiet=shared.quiet) as progress:

        async def job() -> dict[str, Any]:
            async with commanding(configuration(shared), shared.socket) as commander:
                return await commander.job(method, params, progress)

        return result_of(run(job()))


def _local(text: str | None) -> str:
    """Return a time for people: UTC, to the second."""
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ") if text else "never"


@click.command()
@shared_options
@json_option
@click.pass_obj
def status(shared: Shared) -> None:
    """Show how the service and its backups stand."""
    info = _call(shared, "system.info")
    if shared.json:
        emit(info)
        return
    running = info["not_ready"] is None or info["not_ready"] != "starting"
    rows = [
        ("service", f"runs since {_local(info['started'])}" if running else "does not run"),
        ("next backup", _local(info["next_run"]) if running else "not while the service does not run"),
        ("last success", _outcome(info["last_success"])),
        ("last backup", _outcome(info["last_backup"])),
    ]
    if info["restore"]:
        waiting = info["restore"]
        rows.append(("restore", f"{waiting['archive']} of {_local(waiting['started'])} waits for commit or rollback"))
    if info["active"]:
        rows.append(("running", f"{info['active']['kind']} {info['active']['id']}"))
    if info["waiting"]:
        rows.append(("waiting", f"{info['waiting']} jobs"))
    if info["clock_doubted_since"]:
        rows.append(("clock", f"jumped; pruning by age waits, since {_local(info['clock_doubted_since'])}"))
    render.table(rows)


def _outcome(job: dict[str, Any] | None) -> str:
    if job is None:
        return "never"
    told = f"{_local(job['ended'] or job['created'])} {job['state']}"
    if job["error"]:
        return f"{told}: {job['error']['message']}"
    return f"{told}: {(job['result'] or {}).get('name', '')}".rstrip(": ")


@click.group()
def job() -> None:
    """List, show and cancel jobs."""


@job.command("list")
@click.option("-n", "--limit", type=click.IntRange(1, 500), default=20, show_default=True, help="How many at most.")
@shared_options
@json_option
@click.pass_obj
def job_list(shared: Shared, limit: int) -> None:
    """List jobs, the newest first."""
    found = _call(shared, "job.list", limit=limit)
    if shared.json:
        emit(found)
        return
    if not found["jobs"]:
        click.echo("no jobs yet")
        return
    rows = [("JOB", "KIND", "ASKED BY", "CREATED", "STATE", "")]
    for each in found["jobs"]:
        said = (each["error"] or {}).get("message") or (each["result"] or {}).get("name") or ""
        rows.append((each["id"], each["kind"], each["origin"], _local(each["created"]), each["state"], said))
    render.table(rows)


@job.command("show")
@click.argument("job_id")
@shared_options
@json_option
@click.pass_obj
def job_show(shared: Shared, job_id: str) -> None:
    """Show one job: how far it is, or how it ended."""
    found = _call(shared, "job.get", id=job_id)
    if shared.json:
        emit(found)
        return
    rows = [(name, _local(found[name])) for name in ("created", "scheduled_for", "started", "ended") if found[name]]
    rows = [
        ("job", found["id"]),
        ("kind", found["kind"]),
        ("asked by", found["origin"]),
        ("state", found["state"]),
        *rows,
    ]
    if progress := found["progress"]:
        told = f"{progress['stage']}: {size(progress['raw_bytes'])}, {size(progress['rate'])}/s"
        left = f", {duration(progress['eta_seconds'])} to go" if progress["eta_seconds"] else ""
        rows.append(("progress", told + left))
    if found["error"]:
        rows += [("error", found["error"]["message"]), ("what to do", found["error"]["hint"])]
    for name, value in (found["result"] or {}).items():
        if isinstance(value, str | int | float):
            rows.append((name, str(value)))
    render.table([row for row in rows if row[1]])


@job.command("cancel")
@click.argument("job_id")
@shared_options
@json_option
@click.pass_obj
def job_cancel(shared: Shared, job_id: str) -> None:
    """Cancel a job; what it began is undone."""
    found = _call(shared, "job.cancel", id=job_id)
    emit(found) if shared.json else click.echo(f"{found['kind']} {found['id']} is being cancelled")


@click.command()
@click.option("-n", "--count", type=click.IntRange(1, 100), default=10, show_default=True, help="How many.")
@shared_options
@json_option
@click.pass_obj
def schedule(shared: Shared, count: int) -> None:
    """Show when the next backups start by themselves."""
    found = _call(shared, "schedule.preview", count=count)
    if shared.json:
        emit({"runs": found})
        return
    click.echo("\n".join(map(_local, found)) if found else "no schedule is in force: backups run only when asked for")


@click.command()
@click.option("--apply", is_flag=True, help="Remove what no rule keeps; without this, nothing is removed.")
@target_option
@shared_options
@json_option
@click.pass_obj
def prune(shared: Shared, apply: bool, target: str | None) -> None:
    """Show which archives retention keeps and removes, and why; with --apply, remove them, in every target."""
    if apply:
        found = _job(shared, "retention.apply", target=target)["targets"]
    else:
        found = _call(shared, "retention.preview", target=target)["targets"]
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
    found = _call(shared, "archive.hold", archive=archive, reason=reason, target=target)
    emit(found) if shared.json else click.echo(f"{plain(archive)} is held")


@click.command()
@click.argument("archive")
@target_option
@shared_options
@json_option
@click.pass_obj
def release(shared: Shared, archive: str, target: str | None) -> None:
    """End an archive's hold."""
    found = _call(shared, "archive.release", archive=archive, target=target)
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
            raise click.Abort
    found = _job(shared, "archive.delete", archive=archive, even_the_last=even_the_last, target=target)
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
    found = _job(shared, "archive.copy", archive=archive, target=to, source=source)
    if shared.json:
        emit(found)
        return
    how = f"copied from {plain(found['source'])}" if found["copied"] else "was there already"
    click.echo(f"{plain(archive)} in {plain(found['target'])}: {how}; read back and checked")


@click.group()
def settings() -> None:
    """Show and change the System Backup settings."""


@settings.command("show")
@shared_options
@json_option
@click.pass_obj
def settings_show(shared: Shared) -> None:
    """Show the settings in force, and which of them the configuration file fixes."""
    _show_settings(_call(shared, "settings.get"), as_json=shared.json)


def _show_settings(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        emit(found)
        return
    import yaml  # noqa: PLC0415

    click.echo(yaml.safe_dump(found["settings"], sort_keys=False, allow_unicode=True), nl=False)
    if found["fixed"]:
        click.echo(f"# fixed by the configuration file: {', '.join(found['fixed'])}")


@settings.command("set")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@shared_options
@json_option
@click.pass_obj
def settings_set(shared: Shared, file: Path) -> None:
    """Change settings: FILE (- is stdin) has those that change, as `settings show` prints them.

    A new target is tried before it is accepted. A secret is written as {secret: "..."}; the service keeps it in a file.
    """
    from service import strict_yaml  # noqa: PLC0415

    text = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    document, _ = strict_yaml.parse(text, name=str(file))
    if not isinstance(document, dict):
        raise ConfigError(f"{file} has no settings", hint="`deviceon-backup settings show` prints some to start from.")
    _show_settings(_call(shared, "settings.update", **document), as_json=shared.json)


@click.command("test-target")
@shared_options
@json_option
@click.pass_context
def test_target(ctx: click.Context) -> None:
    """Write a small object to the target, read it back, try to overwrite it, list and remove it."""
    shared: Shared = ctx.obj
    findings = [Finding(**found) for found in _call(shared, "target.test")]
    good = all(finding.ok is not False for finding in findings)
    if shared.json:
        emit({"good": good, "findings": findings})
    else:
        render.findings(findings)
    ctx.exit(Exit.OK if good else Exit.TARGET)
