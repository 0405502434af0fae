"""What a restore would do and what stands in its way, told before anything is touched."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from service import hooks, sources
from service.at_baseline import not_at_baseline
from service.blocking import run_in_thread
from service.catalog import locate, opened, origin_proven, place_of
from service.config import Config
from service.errors import ConfigError, JobRefused, Obstacle, SealError, SourceError
from service.headroom import Space, spaces
from service.journal import journals
from service.pipeline.unpack import ArchiveReader, peek
from service.restore_estimate import Estimate, estimate
from service.selection import EVERYTHING, Selection, cautions
from service.server_version import server_version
from service.sources.base import PlanItem, Restorer, Room, StoredSource
from service.state import History
from service.state_directory import only_job
from service.terminal import size
from storage_backends import local_directory

MAY_BE_ALLOWED = frozenset(
    {"ARCHIVE_NOT_SEALED", "EXTENSION_VERSION", "LIVE_CONNECTIONS", "LOCALE_MISSING", "ORIGIN_NOT_PROVEN"}
)
"""Obstacles that `--allow CODE` overrides: the restore then tries, and its own checks still protect what is live.

Not SPACE: PostgreSQL stops altogether when its disk is full, the live databases with it.
"""


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What a restore would do, and what stands in its way. Sizes in bytes."""

    archive: str
    created: datetime
    product: str
    server_version: str
    sealing: str
    size: int
    raw_bytes: int
    items: list[PlanItem] = field(default_factory=list)
    obstacles: list[Obstacle] = field(default_factory=list)
    excluded: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[Obstacle] = field(default_factory=list)
    """What is worth knowing and stands in nobody's way; with codes and remedies like obstacles."""
    space: list[Space] = field(default_factory=list)
    """What the copies need on each file system, and what is free there."""
    estimate: Estimate | None = None
    """How long it will take; null when nothing like it was done here."""
    can_be_allowed: list[str] = field(default_factory=list)
    """Codes of the obstacles that may be gone ahead in spite of."""
    token: str = ""
    """Stands for what was found: a restore that is given it goes ahead only if the same is found again."""


def require_allowable(allow: frozenset[str]) -> None:
    """Raise ConfigError when a code is among them that nobody may override."""
    if refused := sorted(allow - MAY_BE_ALLOWED):
        raise ConfigError(
            f"{', '.join(refused)} cannot be overridden",
            hint=f"Only these can: {', '.join(sorted(MAY_BE_ALLOWED))}. Remove the obstacle instead.",
        )


async def plan_restore(
    config: Config, archive: str, *, select: Selection = EVERYTHING, history: History | None = None
) -> RestorePlan:
    """Tell what a restore of what is selected would replace and every obstacle in its way. Touches nothing.

    `history` is what the time that it will take is learned from.
    """
    try:
        async with opened(config, archive) as reader:
            plan = await plan_for(config, reader, archive, select=select)
            _busy(config, plan)
            reached = all(obstacle.code != "SERVER_UNREACHABLE" for obstacle in plan.obstacles)
            if reached and (note := await not_at_baseline(config)):
                plan.notes.append(note)
            if history is None:
                return plan
            done = {
                kind: await history.jobs(limit=20, kinds=[kind], states=["succeeded"]) for kind in ("restore", "backup")
            }
            raw = sum(stream.bytes for stored in select.of(reader.sources()) for stream in stored.streams)
            return replace(plan, estimate=estimate(raw, done["restore"], done["backup"]))
    except SealError as error:
        async with locate(config, archive) as (target, name):
            seen = await peek(target, name)
        header = seen.header
        return RestorePlan(
            archive=archive,
            created=header.created,
            product=header.product,
            server_version=header.server_version,
            sealing=header.sealing,
            size=seen.info.size,
            raw_bytes=seen.footer.raw_bytes,
            obstacles=[Obstacle(error.code, str(error), error.hint)],
        )


async def plan_for(
    config: Config, reader: ArchiveReader, archive: str, *, select: Selection = EVERYTHING
) -> RestorePlan:
    """Tell what restoring the archive that `reader` has open would do. Touches nothing. Raises NotInArchive."""
    header = reader.header
    wanted = select.of(reader.sources())
    plan = RestorePlan(
        archive=archive,
        created=header.created,
        product=header.product,
        server_version=header.server_version,
        sealing=header.sealing,
        size=reader.info.size,
        raw_bytes=reader.footer.raw_bytes,
        excluded=[dict(item) for item in reader.manifest.excluded],
        warnings=[
            *reader.manifest.warnings,
            *cautions(reader.sources(), wanted, header.created.strftime("%Y-%m-%d %H:%MZ")),
        ],
    )
    installed = await server_version(config.server)
    if installed != header.server_version:
        plan.obstacles.append(
            Obstacle(
                "SERVER_VERSION",
                f"the archive is of {header.product} {header.server_version}, installed is {installed}",
                f"Install {header.product} {header.server_version}, then restore.",
            )
        )
    if config.sealing.mode != "off" and not header.sealed:
        plan.obstacles.append(
            Obstacle(
                "ARCHIVE_NOT_SEALED",
                "the archive is not sealed although this service seals: whoever can write the target may have made it",
                "Restore a sealed archive; allow ARCHIVE_NOT_SEALED if you know where this one comes from.",
            )
        )
    plan.obstacles.extend(hooks.obstacles(config.restore.hooks))
    if header.sealed and not origin_proven(config, reader):
        plan.obstacles.append(_origin_not_proven(reader))
    stops = config.restore.hooks.stop is not None
    preserve = preserved(config, reader, archive)
    rooms: list[Room] = []
    for stored in wanted:
        try:
            settings = sources.settings_for(config, stored)
            _require_meant(stored, settings.name, wanted, reader.sources())
            restorer = sources.restorer(settings, preserve)
        except ConfigError as error:
            plan.obstacles.append(Obstacle("SOURCE_NOT_CONFIGURED", str(error), error.hint))
            continue
        plan.obstacles.extend(_unknown_kinds(stored, restorer))
        items, obstacles, notes = await restorer.plan(stored, reader)
        plan.items.extend(items)
        for found in obstacles:  # a server that is stopped before the exchange has no connections then
            (plan.notes if stops and found.code == "LIVE_CONNECTIONS" else plan.obstacles).append(found)
        plan.notes.extend(notes)
        with contextlib.suppress(SourceError, OSError):  # what cannot be asked is an obstacle already
            rooms.append(await restorer.room(stored))
    await run_in_thread(_tell_space, plan, rooms)
    allowed = sorted({obstacle.code for obstacle in plan.obstacles} & MAY_BE_ALLOWED)
    return replace(plan, can_be_allowed=allowed, token=_token(config, reader, plan))


def _tell_space(plan: RestorePlan, rooms: list[Room]) -> None:
    """Compare what all copies need together with what is free: PostgreSQL stops altogether on a full disk."""
    plan.space.extend(spaces(rooms))
    told = any(obstacle.code == "NO_SPACE" for obstacle in plan.obstacles)
    for place in plan.space:
        if place.needed > place.free and not told:
            plan.obstacles.append(
                Obstacle(
                    "SPACE",
                    f"the copies need about {size(place.needed)} at {place.directory} beside the live data,"
                    f" {size(place.free)} are free",
                    "Free or add space there.",
                )
            )
    for room in rooms:
        if room.unseen:
            plan.notes.append(
                Obstacle(
                    "SPACE_UNSEEN",
                    f"{room.unseen}, so nobody here sees whether its disk would fill up",
                    "Look there whether the databases fit beside the live ones.",
                )
            )


_MOMENTARY = frozenset({"LIVE_CONNECTIONS", "SERVER_LOCKED", "CONNECTIONS_FULL"})
"""Codes that come and go by themselves: no part of a plan's token, and looked at anew by every restore."""


def _token(config: Config, reader: ArchiveReader, plan: RestorePlan) -> str:
    """Return what stands for the plan: the archive, what becomes of what, what is in the way, the hooks."""
    found = [
        reader.info.key,
        reader.info.etag,
        sorted((item.what, item.action) for item in plan.items),
        sorted({obstacle.code for obstacle in plan.obstacles} - _MOMENTARY),
        config.restore.model_dump(mode="json"),
    ]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:32]


def plan_changed() -> Obstacle:
    """Return the obstacle that a plan's token does not fit what is found now."""
    return Obstacle(
        "PLAN_CHANGED",
        "what a restore would find is not what the plan told: the archive, the databases, roles or files have changed",
        "Ask for the plan again, look at it, and start the restore with its token.",
    )


def _busy(config: Config, plan: RestorePlan) -> None:
    """Add what of this installation would keep a restore from beginning just now."""
    for waiting in journals(config.state_dir)[:1]:
        if waiting.state == "swapped":
            plan.obstacles.append(
                Obstacle(
                    "RESTORE_PENDING",
                    f"the restore of {waiting.archive} still keeps the state before it",
                    "`deviceon-backup commit` removes that old state, `deviceon-backup rollback` returns to it.",
                )
            )
        else:
            plan.notes.append(
                Obstacle(
                    "RESTORE_INTERRUPTED",
                    f"the restore of {waiting.archive} was interrupted while {waiting.state}",
                    "Nothing has to be done: the restore settles that first.",
                )
            )
    try:
        with only_job(config.state_dir, "a plan"):
            pass
    except JobRefused as refused:
        plan.notes.append(
            Obstacle("JOB_RUNNING", str(refused), "A service does one after the other; else wait for it.")
        )


def _origin_not_proven(reader: ArchiveReader) -> Obstacle:
    signed = f"it is signed by {reader.signer}, which nobody trusts here" if reader.signer else "it is not signed"
    opener = (
        "the TPM opens the archive, but sealing.require_signature is set"
        if reader.opened_by_tpm
        else ("a recovery key opens the archive, but that does not prove who made it")
    )
    return Obstacle(
        "ORIGIN_NOT_PROVEN",
        f"{opener}; {signed}",
        "Name the signer of the recovery kit (--signer, or sealing.trusted_signers) when it is the one above; allow"
        " ORIGIN_NOT_PROVEN if you know where this archive comes from.",
    )


def _require_meant(
    stored: StoredSource, name: str, wanted: Sequence[StoredSource], every: Sequence[StoredSource]
) -> None:
    """Raise ConfigError when databases would go to a server (`name`) that is, or may be, another of the archive's.

    The only server of a configuration may have another name than in the archive, but stands for one server alone.
    """
    if stored.type != "postgresql" or stored.name == name:
        return
    servers = [each for each in every if each.type == "postgresql"]
    taken = any(each.name == name for each in servers)
    if taken or len([each for each in wanted if each.type == "postgresql"]) > 1:
        raise ConfigError(
            f"the archive has the PostgreSQL servers {', '.join(repr(each.name) for each in servers)}, and the"
            f" configuration does not say which one {stored.name!r} is",
            hint="Add it to `sources` under that name with the connection settings of the server to restore into, or"
            " restore the others alone (--source).",
        )


def _unknown_kinds(stored: StoredSource, restorer: Restorer) -> list[Obstacle]:
    unknown = sorted({stream.kind for stream in stored.streams} - restorer.kinds)
    if not unknown:
        return []
    return [
        Obstacle(
            "STREAM_KIND_UNKNOWN",
            f"source {stored.name} has streams that this version cannot restore: {', '.join(unknown)}",
            "Restore with the version of deviceon-backup that wrote the archive, or a newer one.",
        )
    ]


def preserved(config: Config, reader: ArchiveReader, archive: str) -> list[Path]:
    """Return the paths that no tree of this restore may replace."""
    sqlite = [Path(source.facts["path"]) for source in reader.sources() if source.type == "sqlite"]
    url, name = place_of(config, archive)
    directory = local_directory(url)
    return sources.not_in_a_tree(config, sqlite=sqlite, archive=directory / name if directory else None)
