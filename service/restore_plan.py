"""What a restore would do and what stands in its way, told before anything is touched."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from service import hooks, sources
from service.catalog import locate, opened, origin_proven, place_of
from service.config import Config
from service.errors import ConfigError, Obstacle, SealError
from service.pipeline.unpack import ArchiveReader, peek
from service.selection import EVERYTHING, Selection, cautions
from service.server_version import server_version
from service.sources.base import PlanItem, Restorer, StoredSource
from storage_backends import local_directory

MAY_BE_ALLOWED = frozenset({"ARCHIVE_NOT_SEALED", "EXTENSION_VERSION", "LOCALE_MISSING", "ORIGIN_NOT_PROVEN"})
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


def require_allowable(allow: frozenset[str]) -> None:
    """Raise ConfigError when a code is among them that nobody may override."""
    if refused := sorted(allow - MAY_BE_ALLOWED):
        raise ConfigError(
            f"{', '.join(refused)} cannot be overridden",
            hint=f"Only these can: {', '.join(sorted(MAY_BE_ALLOWED))}. Remove the obstacle instead.",
        )


async def plan_restore(config: Config, archive: str, *, select: Selection = EVERYTHING) -> RestorePlan:
    """Tell what a restore of what is selected would replace and every obstacle in its way. Touches nothing."""
    try:
        async with opened(config, archive) as reader:
            return await plan_for(config, reader, archive, select=select)
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
    preserve = preserved(config, reader, archive)
    for stored in wanted:
        try:
            restorer = sources.restorer(sources.settings_for(config, stored), preserve)
        except ConfigError as error:
            plan.obstacles.append(Obstacle("SOURCE_NOT_CONFIGURED", str(error), error.hint))
            continue
        plan.obstacles.extend(_unknown_kinds(stored, restorer))
        items, obstacles = await restorer.plan(stored)
        plan.items.extend(items)
        plan.obstacles.extend(obstacles)
    return plan


def _origin_not_proven(reader: ArchiveReader) -> Obstacle:
    signed = f"it is signed by {reader.signer}, which nobody trusts here" if reader.signer else "it is not signed"
    return Obstacle(
        "ORIGIN_NOT_PROVEN",
        f"a recovery key opens the archive, but that does not prove who made it; {signed}",
        "Name the signer of the recovery kit (--signer, or sealing.trusted_signers) when it is the one above; allow"
        " ORIGIN_NOT_PROVEN if you know where this archive comes from.",
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
