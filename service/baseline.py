"""The baseline: one archive of the server as it was set up, held for ever, which `reset-to-default` returns to.

It is an archive like any other. What makes it the baseline is its hold, an object beside it, so that this outlives the
service's memory. Where several are held so, the one with the highest number is the baseline.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from service.backup import BackupResult
from service.catalog import HOLD_SUFFIX, CatalogEntry, archive_at, list_archives
from service.config import Config
from service.errors import ConfigError, JobRefused, NotFound, ServiceError
from service.holding import Hold, hold, read_hold, release
from service.ledger import Ledger
from service.progress import Progress
from storage_backends import open_target
from storage_backends.base import StorageBackend, StorageError

BASELINE = "baseline"
"""The reason of the hold that makes an archive the baseline."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """The baseline of this server. Sizes in bytes."""

    archive: str
    created: datetime | None
    server_version: str | None
    size: int
    raw_bytes: int | None
    fingerprint: str | None
    evidence: str
    since: datetime | None
    """When it became the baseline."""
    targets: list[str]
    """The targets that hold it, those where it is known to be damaged last."""
    superseded: list[str] = field(default_factory=list)
    """Older archives that are still held as a baseline; the next one that replaces it releases them."""


async def find_baseline(config: Config, ledger: Ledger) -> Baseline | None:
    """Return the baseline; None when there is none. Raises StorageError when it may be in a target out of reach."""
    found, problems = await look_for_baseline(config, ledger)
    if found is None and problems:
        raise problems[0]
    return found


async def look_for_baseline(config: Config, ledger: Ledger) -> tuple[Baseline | None, list[StorageError]]:
    """Return the baseline as far as targets can be reached, and why others cannot: there may be a newer one."""
    copies: dict[str, list[_Copy]] = {}
    problems: list[StorageError] = []
    for one in config.each():
        try:
            async with open_target(one.target.url, one.target.options()) as target:
                held = await _held_as_baseline(target)
                for entry in await list_archives(target, ledger, only=held) if held else ():
                    copies.setdefault(entry.name, []).append(_Copy(target.url, entry, held[entry.name].since))
        except StorageError as error:
            problems.append(error)
    if not copies:
        return None, problems
    newest = max(copies, key=lambda name: (max(copy.entry.seq or 0 for copy in copies[name]), name))
    found = sorted(copies[newest], key=lambda copy: copy.damaged)
    entry = found[0].entry
    baseline = Baseline(
        archive=newest,
        created=entry.created,
        server_version=entry.server_version,
        size=entry.size,
        raw_bytes=entry.raw_bytes,
        fingerprint=entry.fingerprint,
        evidence=entry.evidence,
        since=found[0].since,
        targets=[copy.target for copy in found],
        superseded=sorted(copies.keys() - {newest}),
    )
    return baseline, problems


@dataclass(frozen=True, slots=True)
class _Copy:
    """A held archive in one target."""

    target: str
    entry: CatalogEntry
    since: datetime | None

    @property
    def damaged(self) -> bool:
        return self.entry.problem is not None or self.entry.evidence == "damaged"


async def _held_as_baseline(target: StorageBackend) -> dict[str, Hold]:
    names = [
        info.key.removesuffix(HOLD_SUFFIX)
        async for info in target.list_objects("Backup_")
        if info.key.endswith(HOLD_SUFFIX)
    ]
    holds = {name: await read_hold(target, name) for name in names}
    return {name: found for name, found in holds.items() if found is not None and found.reason == BASELINE}


async def require_baseline(config: Config, ledger: Ledger) -> tuple[Baseline, list[str]]:
    """Return the baseline, and sentences on why it may not be the newest. Raises NotFound, StorageError."""
    baseline, problems = await look_for_baseline(config, ledger)
    if baseline is not None:
        return baseline, [f"A newer baseline may be in a target that cannot be looked at: {each}" for each in problems]
    if problems:
        raise problems[0]
    raise NotFound(
        "there is no baseline of this server",
        hint="`deviceon-backup baseline` takes one. Take it while the server is as it was set up.",
    )


async def require_none(config: Config, ledger: Ledger, *, replace: bool) -> Baseline | None:
    """Return the baseline that a new one is to replace. Raises JobRefused when there is one that nobody let go."""
    before = await find_baseline(config, ledger)
    if before is not None and not replace:
        raise JobRefused(
            f"{before.archive} is the baseline already",
            hint="`deviceon-backup baseline --replace` takes a new one of the server as it is now. `reset-to-default`"
            " then returns to that.",
        )
    return before


async def make_baseline(
    config: Config, made: BackupResult, before: Baseline | None, *, now: datetime, ledger: Ledger, progress: Progress
) -> list[ServiceError | StorageError]:
    """Hold a proven archive as the baseline and let the one before go; return what went wrong on the way.

    The one before stays held beside the new one until the new one is proven and held in every target.
    """
    progress.begin("hold", f"Holding {made.name} as the baseline")
    problems: list[ServiceError | StorageError] = []
    try:
        await hold(config, made.name, reason=BASELINE, by="baseline", now=now, ledger=ledger)
    except StorageError as error:
        problems.append(error)
    if before is None or problems or any(each.error is not None for each in made.targets):
        return problems
    for name in [before.archive, *before.superseded]:
        try:
            await release(config, name, ledger=ledger)
            progress.say(f"{name} is not held as the baseline any more")
        except StorageError as error:
            problems.append(error)
    return problems


def refuse_reason(reason: str) -> None:
    """Raise ConfigError when a person's reason for a hold would make the archive the baseline."""
    if reason == BASELINE:
        raise ConfigError(
            f"the reason {BASELINE!r} is what makes an archive the baseline",
            hint="Say another one, or take a baseline: `deviceon-backup baseline --replace`.",
        )


async def refuse_baseline(config: Config, name: str, ledger: Ledger) -> None:
    """Raise JobRefused when an archive is the baseline: its hold is not for a person to change."""
    baseline = await find_baseline(config, ledger)
    if baseline is not None and baseline.archive == name:
        raise JobRefused(
            f"{name} is the baseline of this server and stays held",
            hint="`deviceon-backup baseline --replace` takes a new one and releases this one.",
        )


def named(config: Config, baseline: Baseline) -> str:
    """Return the baseline as recipes take an archive: in the first target that holds it, and whole, as far as known."""
    first = baseline.targets[0].rstrip("/")
    url = next(one.target.url for one in config.each() if one.target.url.rstrip("/") == first)
    return archive_at(config, baseline.archive, None if url == config.target.url else url)
