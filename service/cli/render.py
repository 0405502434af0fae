"""Results in words, and the same as JSON values. What comes out of archives passes through `plain`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from service.cli.failures import show_obstacles
from service.terminal import duration, plain, size

if TYPE_CHECKING:
    from service.archive.parts import Footer, Header, Manifest
    from service.finding import Finding
    from service.restore_plan import RestorePlan
    from service.sources.base import PlanItem
    from storage_backends.base import ObjectInfo

_COLOURS = {True: "green", False: "red", None: "yellow"}


def backup(result: Mapping[str, Any]) -> None:
    """Print what was backed up."""
    _left_out(result["excluded"], result["warnings"])
    seconds, raw = result["seconds"], result["raw_bytes"]
    rate = f" ({size(raw / seconds)}/s)" if seconds > 0 else ""
    for outcome in result["targets"] if len(result["targets"]) > 1 else ():
        told = outcome["error"]["message"] if outcome["error"] else outcome["evidence"]
        click.echo(f"{plain(outcome['url'])}: {plain(told)}")
    for name in result["removed"]:
        click.echo(f"removed by retention: {plain(name)}")
    click.echo(
        f"{plain(result['name'])}: {size(raw)} in {result['streams']} streams, {result['rows']} rows, as"
        f" {size(result['size'])} in {duration(seconds)}{rate}; read back and checked"
    )


def archives(entries: Sequence[Mapping[str, Any]], url: str) -> None:
    """Print one line for each archive."""
    if not entries:
        click.echo(f"no archives in {url}")
        return
    rows = [("NAME", "CREATED", "SIZE", "CONTENT", "SERVER", "EVIDENCE", "SEALED TO")]
    for entry in entries:
        name, stored = entry["name"], size(entry["size"])
        evidence = entry["evidence"] + (", held" if entry["held"] else "")
        if entry["problem"]:
            rows.append((name, "", stored, "", "", evidence, f"cannot be used: {entry['problem']}"))
            continue
        sealed = entry["fingerprint"] or ("not sealed" if entry["sealing"] == "off" else entry["sealing"])
        created, content = at_utc(entry["created"]), size(entry["raw_bytes"] or 0)
        rows.append((name, created, stored, content, entry["server_version"] or "", evidence, sealed or ""))
    table(rows)


def described(
    info: ObjectInfo, header: Header, footer: Footer, *, manifest: Manifest | None = None, closed: str | None = None
) -> dict[str, Any]:
    """Return an archive's description as JSON values; `closed` says why its manifest could not be read."""
    return {
        "name": info.key,
        "size": info.size,
        "header": header.model_dump(mode="json", exclude_none=True),
        "footer": footer.model_dump(mode="json", exclude_none=True),
        "manifest": None if manifest is None else _without_passwords(manifest.model_dump(mode="json")),
        "closed": closed,
    }


def inspection(found: Mapping[str, Any]) -> None:
    """Print an archive's description."""
    header, footer, manifest = found["header"], found["footer"], found["manifest"]
    rows = [
        ("archive", found["name"]),
        ("server", f"{header['product']} {header['server_version']}"),
        ("created", f"{header['created']} (number {header['seq']})"),
        ("size", f"{size(found['size'])} for {size(footer['raw_bytes'])}"),
        ("sealed to", "nobody: not sealed" if header["sealing"] == "off" else header.get("fingerprint", "?")),
    ]
    if manifest is not None:
        rows.append(("written by", " ".join(manifest["tool"][part] for part in ("name", "version"))))
        if header["sealing"] != "off":
            rows.append(("signed by", found.get("signer") or "nobody"))
            proven = found.get("origin_proven")
            rows.append(("origin", "proven" if proven else "not proven: a recovery key does not tell who made it"))
    table(rows)
    if manifest is None:
        click.echo(f"its content cannot be read here: {plain(str(found['closed']))}")
        click.echo("what is shown are the archive's own claims, not authenticated")
        return
    for source in manifest["sources"]:
        streams = [stream for stream in manifest["streams"] if stream["source"] == source["name"]]
        rows_told = sum(int(stream["details"].get("rows", 0)) for stream in streams)
        told = [f"{size(sum(stream['bytes'] for stream in streams))} in {len(streams)} streams"]
        told += [f"{rows_told} rows"] if rows_told else []
        told += [str(source["facts"]["path"])] if "path" in source["facts"] else []
        click.echo(plain(f"source {source['name']} ({source['type']}): {', '.join(told)}"))
        counted = Counter(stream["labels"]["database"] for stream in streams if "database" in stream["labels"])
        for database, count in sorted(counted.items()):
            click.echo(plain(f"  database {database}: {count} streams"))
    _left_out(manifest["excluded"], manifest["warnings"])


def _without_passwords(value: Any) -> Any:
    """Hide the verifiers of roles' passwords, should a source tell any."""
    if isinstance(value, dict):
        return {
            key: "(hidden)" if "password" in key.lower() and isinstance(inner, str) else _without_passwords(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_without_passwords(inner) for inner in value]
    return value


def plan(found: RestorePlan, *, can_be_allowed: Collection[str]) -> None:
    """Print what a restore would do and what is in its way."""
    click.echo(
        f"{plain(found.archive)}: {plain(found.product)} {plain(found.server_version)}, {at_utc(found.created)},"
        f" {size(found.raw_bytes)}"
    )
    items(found.items)
    _left_out(found.excluded, found.warnings)
    for place in found.space:
        click.echo(f"needs {size(place.needed)} at {plain(place.directory)}, {size(place.free)} are free")
    if found.estimate is not None:
        expected = found.estimate
        click.echo(f"will take {duration(expected.low)} to {duration(expected.high)} (from {plain(expected.basis)})")
    if found.notes:
        click.echo("worth knowing:")
        show_obstacles(found.notes)
    if found.obstacles:
        click.echo("in the way:")
    show_obstacles(found.obstacles)
    allowed = sorted({obstacle.code for obstacle in found.obstacles} & set(can_be_allowed))
    if allowed:
        click.echo(f"can be overridden: {' '.join(f'--allow {code}' for code in allowed)}")


def planned(found: RestorePlan) -> dict[str, Any]:
    """Return a plan as JSON values."""
    return asdict(found)


def restore(result: Mapping[str, Any]) -> None:
    """Print what was restored, and what comes next."""
    for item in result["items"]:
        _item(item["action"], item["what"], item["note"])
    for each in result.get("attention", ()):
        click.echo(f"note: {plain(each['message'])} [{plain(each['code'])}]")
        if each["remedy"]:
            click.echo(f"      what to do: {plain(each['remedy'])}")
    click.echo(f"restored in {duration(result['seconds'])}; the state before is kept beside")
    click.echo("next: look whether all is well, then `deviceon-backup commit`, or `deviceon-backup rollback`")


def findings(found: Iterable[Finding], *, err: bool = False) -> None:
    """Print one line for each finding, with its remedy below."""
    for finding in found:
        word = click.style(f"{finding.word:4}", fg=_COLOURS[finding.ok])
        click.echo(f"{word}  {plain(finding.name)}: {_lines(finding.message)}", err=err)
        if finding.remedy:
            click.echo(f"      what to do: {plain(finding.remedy)}", err=err)


def _lines(text: str) -> str:
    return "\n      ".join(plain(line) for line in text.splitlines())


def items(found: Iterable[PlanItem], *, err: bool = False) -> None:
    """Print what a restore would replace, create and keep."""
    for item in found:
        _item(item.action, item.what, item.note, err=err)


def _item(action: str, what: str, note: str, *, err: bool = False) -> None:
    told = f" ({plain(note)})" if note else ""
    click.echo(f"  {plain(action):8}{plain(what)}{told}", err=err)


def _left_out(excluded: Iterable[Mapping[str, Any]], warnings: Iterable[str]) -> None:
    for item in excluded:
        click.echo(f"left out: {plain(str(item.get('path', '?')))}: {plain(str(item.get('reason', '?')))}")
    for warning in warnings:
        click.echo(f"warning: {plain(warning)}")


def at_utc(value: datetime | str | None, *, none: str = "") -> str:
    """Return a time (or its ISO 8601 text) for people: UTC, to the second; `none` when there is none."""
    time = datetime.fromisoformat(value) if isinstance(value, str) else value
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ") if time else none


def table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns."""
    if not rows:
        return
    widths = [max(len(plain(row[column])) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (f"{plain(cell):{width}}" for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
