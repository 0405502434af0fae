"""Retention carried out: which archives of a target would go, and their removal, each looked at once more before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from service.catalog import CatalogEntry, is_held, list_archives
from service.config import Config
from service.ledger import Ledger
from service.progress import Progress
from service.retention import Candidate, Verdict, decide
from service.state_directory import only_job
from storage_backends import open_target
from storage_backends.base import AccessDenied, ObjectNotFound, StorageBackend


@dataclass(frozen=True, slots=True)
class PruneResult:
    """What retention says of each archive, the oldest first, and what was removed.

    `kept_by_target` are archives that were to go and that the target does not let go (a locked version, no right).
    """

    target: str
    verdicts: list[Verdict]
    removed: list[str] = field(default_factory=list)
    kept_by_target: dict[str, str] = field(default_factory=dict)
    freed_bytes: int = 0


async def preview(config: Config, *, ledger: Ledger, now: datetime, clock_suspect: bool = False) -> PruneResult:
    """Tell which archives would be removed, and why. Removes nothing; everything is kept when there is no policy."""
    async with open_target(config.target.url, config.target.options()) as target:
        archives = await list_archives(target, ledger)
        return PruneResult(target.url, _verdicts(config, archives, now, clock_suspect))


async def prune(
    config: Config,
    *,
    ledger: Ledger,
    clock: Callable[[], datetime],
    progress: Progress,
    clock_suspect: bool = False,
) -> PruneResult:
    """Remove the archives that no rule keeps. Raises JobRefused, StorageError; what was removed until then is gone."""
    with only_job(config.state_dir, "a pruning"):
        async with open_target(config.target.url, config.target.options()) as target:
            archives = await list_archives(target, ledger)
            result = PruneResult(target.url, _verdicts(config, archives, clock(), clock_suspect))
            going = {verdict.name for verdict in result.verdicts if not verdict.keep}
            if not going:
                return result
            progress.begin("prune", f"Removing {len(going)} archives that no rule keeps")
            freed = 0
            for entry in archives:
                if entry.name in going and await _remove(target, entry, ledger, result, progress):
                    freed += entry.size
            return PruneResult(result.target, result.verdicts, result.removed, result.kept_by_target, freed)


def _verdicts(config: Config, archives: Sequence[CatalogEntry], now: datetime, clock_suspect: bool) -> list[Verdict]:
    if config.retention is None:
        return [Verdict(entry.name, keep=True, reasons=["there is no retention policy"]) for entry in archives]
    candidates = [
        Candidate(
            name=entry.name,
            seq=entry.seq,
            created=entry.created,
            verified=entry.evidence == "verified",
            held=entry.held,
            usable=entry.problem is None and entry.evidence != "damaged",
        )
        for entry in archives
    ]
    timezone = config.schedule.timezone if config.schedule else "UTC"
    return decide(candidates, config.retention, now=now, timezone=timezone, clock_suspect=clock_suspect)


async def _remove(
    target: StorageBackend, entry: CatalogEntry, ledger: Ledger, result: PruneResult, progress: Progress
) -> bool:
    """Remove one archive, unless it is another one by now, or was put on hold."""
    try:
        unchanged = (await target.stat(entry.name)).etag == entry.etag
    except ObjectNotFound:
        return False
    if not unchanged or await is_held(target, entry.name):
        return False
    progress.say(f"Removing {entry.name}")
    await ledger.deleting(target.url, entry.name)
    try:
        await target.delete(entry.name)
    except AccessDenied as error:
        result.kept_by_target[entry.name] = str(error)
        return False
    finally:
        await ledger.settled(target.url, entry.name)
    result.removed.append(entry.name)
    return True
