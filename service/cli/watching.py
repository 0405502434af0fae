"""Commands that show what goes on: status, jobs, schedule."""

from __future__ import annotations

from typing import Any

import click

from service.cli import render
from service.cli.connection import call
from service.cli.options import Shared, emit, json_option, shared_options
from service.terminal import duration, plain, size


@click.command()
@shared_options
@json_option
@click.pass_obj
def status(shared: Shared) -> None:
    """Show how the service and its backups stand."""
    info = call(shared, "system.info")
    if shared.json:
        emit(info)
        return
    running = info["not_ready"] is None or info["not_ready"] != "starting"
    rows = [
        ("service", f"runs since {render.at_utc(info['started'])}" if running else "does not run"),
        (
            "next backup",
            render.at_utc(info["next_run"], none="never") if running else "not while the service does not run",
        ),
        ("last success", _outcome(info["last_success"])),
        ("last backup", _outcome(info["last_backup"])),
        ("last drill", _outcome(info["last_drill"])),
    ]
    if info["next_drill"] and running:
        rows.append(("next drill", render.at_utc(info["next_drill"])))
    if info["restore"]:
        waiting = info["restore"]
        told = f"{waiting['archive']} of {render.at_utc(waiting['started'])} waits for commit or rollback"
        if waiting["expires"]:
            told += f"; commits itself at {render.at_utc(waiting['expires'])}, if the server works then"
        rows.append(("restore", told))
    if info["recovery"] and info["recovery"]["warning"]:
        rows.append(("WARNING", info["recovery"]["warning"]))
    if info["active"]:
        rows.append(("running", f"{info['active']['kind']} {info['active']['id']}"))
    if info["waiting"]:
        rows.append(("waiting", f"{info['waiting']} jobs"))
    if info["clock_doubted_since"]:
        rows.append(("clock", f"jumped; pruning by age waits, since {render.at_utc(info['clock_doubted_since'])}"))
    render.table(rows)


def _outcome(job: dict[str, Any] | None) -> str:
    if job is None:
        return "never"
    told = f"{render.at_utc(job['ended'] or job['created'])} {job['state']}"
    if job["error"]:
        return f"{told}: {job['error']['message']}"
    result = job["result"] or {}
    return f"{told}: {result.get('name') or result.get('archive', '')}".rstrip(": ")


@click.group()
def job() -> None:
    """List, show and cancel jobs; read what they said."""


@job.command("list")
@click.option("-n", "--limit", type=click.IntRange(1, 500), default=20, show_default=True, help="How many at most.")
@shared_options
@json_option
@click.pass_obj
def job_list(shared: Shared, limit: int) -> None:
    """List jobs, the newest first."""
    found = call(shared, "job.list", limit=limit)
    if shared.json:
        emit(found)
        return
    if not found["jobs"]:
        click.echo("no jobs yet")
        return
    rows = [("JOB", "KIND", "ASKED BY", "CREATED", "STATE", "")]
    for each in found["jobs"]:
        said = (each["error"] or {}).get("message") or (each["result"] or {}).get("name") or ""
        rows.append((each["id"], each["kind"], each["origin"], render.at_utc(each["created"]), each["state"], said))
    render.table(rows)


@job.command("show")
@click.argument("job_id")
@shared_options
@json_option
@click.pass_obj
def job_show(shared: Shared, job_id: str) -> None:
    """Show one job: how far it is, or how it ended."""
    found = call(shared, "job.get", id=job_id)
    if shared.json:
        emit(found)
        return
    rows = [
        (name, render.at_utc(found[name])) for name in ("created", "scheduled_for", "started", "ended") if found[name]
    ]
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


@job.command("log")
@click.argument("job_id")
@shared_options
@json_option
@click.pass_obj
def job_log(shared: Shared, job_id: str) -> None:
    """Show what a job said: its steps, its warnings, what each target answered."""
    lines: list[dict[str, Any]] = []
    while True:
        found = call(shared, "job.log", id=job_id, after=lines[-1]["number"] if lines else 0)
        lines += found["lines"]
        if not found["more"] or not found["lines"]:
            break
    if shared.json:
        emit({"lines": lines, "omitted": found["omitted"]})
        return
    before = 0
    for line in lines:
        if line["number"] > before + 1:
            click.echo(f"({line['number'] - before - 1} lines were not kept)")
        before = line["number"]
        told = line["text"] if line["level"] == "info" else f"{line['level'].upper()}: {line['text']}"
        click.echo(f"{render.at_utc(line['time'])}  {plain(told)}")
    if not lines:
        click.echo("nothing is remembered of what this job said")


@job.command("cancel")
@click.argument("job_id")
@shared_options
@json_option
@click.pass_obj
def job_cancel(shared: Shared, job_id: str) -> None:
    """Cancel a job; what it began is undone."""
    found = call(shared, "job.cancel", id=job_id)
    emit(found) if shared.json else click.echo(f"{found['kind']} {found['id']} is being cancelled")


@click.command()
@click.option("-n", "--count", type=click.IntRange(1, 100), default=10, show_default=True, help="How many.")
@shared_options
@json_option
@click.pass_obj
def schedule(shared: Shared, count: int) -> None:
    """Show when the next backups start by themselves."""
    found = call(shared, "schedule.preview", count=count)
    if shared.json:
        emit({"runs": found})
        return
    click.echo(
        "\n".join(map(render.at_utc, found)) if found else "no schedule is in force: backups run only when asked for"
    )
