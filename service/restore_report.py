"""What a person has to know and do after a restore: a report beside the restore's journal, as JSON and to read.

It outlives the restore: `<state_dir>/restores/<id>-report.json` and `.txt`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from service.config import Config
from service.config_restore import RestoreHooks
from service.journal import Journal
from service.pipeline.unpack import ArchiveReader
from service.restore_plan import RestorePlan
from service.selection import databases_of
from service.sources import mongodb
from service.sources.base import PlanItem, StoredSource
from service.sources.directories import decode_path
from service.state_directory import prepare, replace_file

Hardware = Literal["same", "other", "unknown"]
"""Whether the archive was made on this hardware: its TPM opened it, something else did, or it is not sealed."""

MOST_LOOKED_AT = 100_000
"""So many of MongoDB's files are looked at; there are two for each collection and index."""


@dataclass(frozen=True, slots=True)
class Attention:
    """One thing that somebody has to know or do. `code` is stable; `remedy` is empty when nothing is to be done."""

    code: str
    message: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A restore that was exchanged into place. Times are UTC."""

    restore_id: str
    archive: str
    server: str
    snapshot: datetime
    """The moment that the restored data is of."""
    restored: datetime
    hardware: Hardware
    items: list[PlanItem]
    attention: list[Attention]
    """Never empty: the old state that is kept is in it at least."""
    mongodb_written: datetime | None = None
    """When a file of MongoDB below the restored directories was written last; null when none was seen."""
    seconds_apart: float = 0.0
    """By how much what MongoDB has may be newer than what was restored; until now, when no file of it was seen."""


def hardware_of(reader: ArchiveReader) -> Hardware:
    """Tell whether this hardware is the archive's: only the TPM that sealed it opens it without a recovery key."""
    if not reader.header.sealed or reader.opened_by is None:
        return "unknown"
    return "same" if reader.opened_by.proves_origin else "other"


def reported(
    config: Config,
    plan: RestorePlan,
    reader: ArchiveReader,
    wanted: Sequence[StoredSource],
    journal: Journal,
    said: Iterable[str],
) -> Report:
    """Return the report on a restore that was exchanged just now."""
    now = datetime.fromisoformat(journal.swapped)
    trees = [
        (Path(participant["settings"]["path"]), stored)
        for participant in journal.participants
        for stored in wanted
        if stored.type == "tree" and stored.name == participant["name"]
    ]
    written, hardware = mongodb_written(trees), hardware_of(reader)
    return Report(
        restore_id=journal.id,
        archive=plan.archive,
        server=f"{plan.product} {plan.server_version}",
        snapshot=plan.created,
        restored=now,
        hardware=hardware,
        items=plan.items,
        attention=attention(
            wanted=wanted,
            snapshot=plan.created,
            written=written,
            now=now,
            hardware=hardware,
            hooks=config.restore.hooks,
            excluded=plan.excluded,
            archived_warnings=plan.warnings,
            said=said,
        ),
        mongodb_written=written,
        seconds_apart=max(((written or now) - plan.created).total_seconds(), 0.0),
    )


def write(state_dir: Path, report: Report) -> Path:
    """Write both forms of a report; return the path of the one to read. Raises OSError, StateError."""
    directory = prepare(prepare(state_dir) / "restores")
    content = json.dumps(asdict(report), indent=2, default=_plain)
    replace_file(directory / f"{report.restore_id}-report.json", content.encode())
    readable = directory / f"{report.restore_id}-report.txt"
    replace_file(readable, text(report).encode())
    return readable


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def text(report: Report) -> str:
    """Return the report for people."""
    lines = [
        "Restore report",
        "",
        f"archive    {report.archive}",
        f"of         {report.server}, as it was at {_time(report.snapshot)}",
        f"restored   {_time(report.restored)} (restore {report.restore_id})",
        "",
        "What needs attention",
        "",
    ]
    for number, each in enumerate(report.attention, start=1):
        lines.append(f"{number}. [{each.code}] {each.message}")
        if each.remedy:
            lines.append(f"   What to do: {each.remedy}")
    lines += ["", "What was restored, and what stayed", ""]
    lines += [f"  {item.action:8}{item.what}" + (f" ({item.note})" if item.note else "") for item in report.items]
    return "\n".join([*lines, ""])


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def attention(
    *,
    wanted: Sequence[StoredSource],
    snapshot: datetime,
    written: datetime | None,
    now: datetime,
    hardware: Hardware,
    hooks: RestoreHooks,
    excluded: Sequence[Mapping[str, Any]],
    archived_warnings: Iterable[str],
    said: Iterable[str],
) -> list[Attention]:
    """Return what somebody has to know or do, the most pressing first."""
    found = [*_secrets(hardware, hooks)]
    servers = [source for source in wanted if source.type == "postgresql"]
    if databases_of(servers):
        found.append(_apart(snapshot, written, now))
    found += [
        Attention(
            "PASSWORDS_NOT_RESTORED",
            f"the archive of {source.name} has no passwords of roles: roles that were made have none",
            "Set them: ALTER ROLE ... PASSWORD. Back up as a superuser, and the next archive has them.",
        )
        for source in servers
        if not source.facts["server"]["superuser"]
    ]
    found += [Attention("RESTORE_WARNING", sentence) for sentence in dict.fromkeys(said)]
    found += [Attention("ARCHIVE_WARNING", sentence) for sentence in dict.fromkeys(archived_warnings)]
    found += _left_out(excluded)
    found.append(
        Attention(
            "OLD_STATE_KEPT",
            "the state before the restore is kept, and takes its space",
            "Look whether the server works. Then `deviceon-backup commit` removes it, or `deviceon-backup rollback`"
            " returns to it.",
        )
    )
    return found


def _secrets(hardware: Hardware, hooks: RestoreHooks) -> Iterator[Attention]:
    if hardware == "same":
        return
    where = "on other hardware than the archive's" if hardware == "other" else "from an archive that names no TPM"
    if hooks.reissue_secrets is not None:
        yield Attention("SECRETS_REISSUED", f"restored {where}: the hook `reissue_secrets` was run, and succeeded")
        return
    yield Attention(
        "SECRETS_TO_REISSUE",
        f"restored {where}: passwords that the server has encrypted with its TPM cannot be read here"
        + ("" if hardware == "other" else ", if this is another machine"),
        "If the server's TPM switch is on, give it its database passwords anew; restore.hooks.reissue_secrets does that"
        " by itself.",
    )


def _apart(snapshot: datetime, written: datetime | None, now: datetime) -> Attention:
    """Say how far sensor data and restored databases are apart."""
    gap = (written or now) - snapshot
    if written is not None:
        when = f"{_span(gap)} later" if gap > timedelta() else f"{_span(-gap)} before that"
        seen = f"MongoDB's newest file below the restored directories was written {_time(written)}, {when}"
    else:
        seen = (
            f"no files of MongoDB are below the restored directories; what it has may be up to"
            f" {_span(max(gap, timedelta()))} newer, that is until now"
        )
    return Attention(
        "MONGODB_APART",
        f"the databases are as of {_time(snapshot)}; sensor data in MongoDB is not part of archives and stays: {seen}",
        "Sensor data of that time may be of devices that the restored databases do not know: let them connect again, or"
        " restore MongoDB to the same time by its own means.",
    )


def _span(gap: timedelta) -> str:
    minutes = round(gap.total_seconds() / 60)
    if minutes < 60:
        return f"{minutes} minutes"
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} hours" if days else f"{hours} hours {minutes} minutes"


def _left_out(excluded: Sequence[Mapping[str, Any]]) -> Iterator[Attention]:
    for reason in dict.fromkeys(str(each.get("reason", "")) for each in excluded):
        paths = [str(each.get("path", "?")) for each in excluded if str(each.get("reason", "")) == reason]
        more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
        yield Attention(
            "NOT_IN_ARCHIVE", f"not in the archive, so left as it is: {', '.join(paths[:5])}{more} ({reason})"
        )


def mongodb_written(trees: Iterable[tuple[Path, StoredSource]]) -> datetime | None:
    """Return when a file of MongoDB's that the archive left out was written last; None when there is none."""
    newest = 0.0
    left = MOST_LOOKED_AT
    for root, stored in trees:
        pending = [
            root / decode_path(each["path"])
            for each in stored.facts.get("excluded", ())
            if each["reason"] == mongodb.REASON
        ]
        while pending and left > 0:
            path = pending.pop()
            left -= 1
            try:
                status = os.lstat(path)
                if path.is_dir() and not path.is_symlink():
                    pending += path.iterdir()
                else:
                    newest = max(newest, status.st_mtime)
            except OSError:
                continue
    return datetime.fromtimestamp(newest, UTC) if newest else None
