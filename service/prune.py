"""Retention carried out: which archives of a target would go, and their removal, each looked at once more before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from service.catalog import CatalogEntry, is_held, list_archives
from service.config import Config
from service.errors import ServiceError
from service.failure import as_json
from service.ledger import PROVEN, Ledger
from service.pipeline.sidecar import remove_sidecar
from service.progress import Progress
from service.retention import Candidate, Verdict, decide
from service.state_directory import changing_archives, only_job
from service.terminal import counted
from storage_backends import open_target
from storage_backends.base import AccessDenied, ObjectNotFound, StorageBackend, StorageError


@dataclass(slots=True)
class PruneResult:
    """What retention says of each archive, the oldest first, and what was removed.

    `kept_by_target` are archives that were to go and that the target does not let go (a locked version, no right).
    """

    target: str
    verdicts: list[Verdict]
    removed: list[str] = field(default_factory=list)
    kept_by_target: dict[str, str] = field(default_factory=dict)
    freed_bytes: int = 0
    problem: dict[str, Any] | None = None
    """What ended the removing early, as a job's error; null when it was carried out to its end."""


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
    """Remove the archives that no rule keeps. Raises JobRefused, StorageError before anything is.

    What went wrong afterwards is in the result's `problem`, beside what was removed until then.
    """
    with only_job(config.state_dir, "a pruning"):
        async with open_target(config.target.url, config.target.options()) as target:
            archives = await list_archives(target, ledger)
            result = PruneResult(target.url, _verdicts(config, archives, clock(), clock_suspect))
            going = {verdict.name for verdict in result.verdicts if not verdict.keep}
            if going:
                progress.past_cancelling = True  # what is removed cannot be undone
                progress.begin("prune", f"Removing {counted(len(going), 'archive')} that no rule keeps")
            try:
                for entry in archives:
                    if entry.name in going:
                        await _remove(config, target, entry, ledger, result, progress)
            except (ServiceError, StorageError) as error:
                result.problem = as_json(error)
            return result


def _verdicts(config: Config, archives: Sequence[CatalogEntry], now: datetime, clock_suspect: bool) -> list[Verdict]:
    if config.retention is None:
        return [Verdict(entry.name, keep=True, reasons=["there is no retention policy"]) for entry in archives]
    candidates = [
        Candidate(
            name=entry.name,
            seq=entry.seq,
            created=entry.created,
            verified=entry.evidence in PROVEN and (entry.sealing != "off" or config.sealing.mode == "off"),
            restorable=entry.evidence == "restorable",
            held=entry.held,
            usable=entry.problem is None and entry.evidence != "damaged",
        )
        for entry in archives
    ]
    timezone = config.schedule.timezone if config.schedule else "UTC"
    return decide(candidates, config.retention, now=now, timezone=timezone, clock_suspect=clock_suspect)


async def _remove(
    config: Config,
    target: StorageBackend,
    entry: CatalogEntry,
    ledger: Ledger,
    result: PruneResult,
    progress: Progress,
) -> None:
    """Remove one archive, unless it is another one by now, or was put on hold."""
    async with changing_archives(config.state_dir):
        try:
            unchanged = (await target.stat(entry.name)).etag == entry.etag
        except ObjectNotFound:
            return
        if not unchanged or await is_held(target, entry.name):
            return
        progress.say(f"Removing {entry.name}")
        await ledger.deleting(target.url, entry.name)
        try:
            await target.delete(entry.name)
        except AccessDenied as error:
            result.kept_by_target[entry.name] = str(error)
            return
        finally:
            await ledger.settled(target.url, entry.name)
        await remove_sidecar(target, entry.name)
    result.removed.append(entry.name)
    result.freed_bytes += entry.size
