"""Which archive a drill is of, when nobody says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from service.catalog import CatalogEntry, list_archives
from service.config import Config
from service.errors import NotFound
from service.ledger import PROVEN, Ledger
from storage_backends import open_target
from storage_backends.base import StorageError

_NEVER = datetime.min.replace(tzinfo=UTC)


async def choose(config: Config, archive: str | None, target: str | None, ledger: Ledger) -> tuple[Config, str]:
    """Return the configuration with one target alone, and the archive to drill.

    One that is named is taken, from the first target unless another is named. Else it is the one of `pick`, among the
    targets that can be listed. Raises NotFound when no archive was verified, StorageError when no target can be listed,
    ConfigError.
    """
    if archive is not None:
        return config.at(target), archive
    listings: dict[str, list[CatalogEntry]] = {}
    problems: list[StorageError] = []
    for one in [config.at(target)] if target is not None else config.each():
        try:
            async with open_target(one.target.url, one.target.options()) as opened:
                listings[one.target.url] = await list_archives(opened, ledger)
        except StorageError as error:
            problems.append(error)
    if not listings:
        raise problems[0]
    picked = pick(listings, sealing=config.sealing.mode != "off")
    if picked is None:
        raise NotFound(
            "there is no verified archive to restore for practice",
            hint="Make a backup first, or `deviceon-backup verify` an archive.",
        )
    return config.at(picked[0]), picked[1]


def pick(listings: Mapping[str, Sequence[CatalogEntry]], *, sealing: bool) -> tuple[str, str] | None:
    """Return the target and name of the archive to drill; None when none was verified. Listings are oldest first.

    Targets take turns: the one whose last proof is the oldest. Of its archives the newest verified one that no drill
    has restored yet; when all were restored, the newest, once more.
    """
    candidates = {url: [each for each in entries if _counts(each, sealing)] for url, entries in listings.items()}
    for url in sorted((url for url, found in candidates.items() if found), key=lambda url: _proved(candidates[url])):
        fresh = [entry for entry in candidates[url] if entry.evidence != "restorable"]
        return url, (fresh or candidates[url])[-1].name
    return None


def _counts(entry: CatalogEntry, sealing: bool) -> bool:
    return entry.evidence in PROVEN and entry.problem is None and (entry.sealing != "off" or not sealing)


def _proved(entries: Sequence[CatalogEntry]) -> datetime:
    return max((entry.evidence_since or _NEVER for entry in entries if entry.evidence == "restorable"), default=_NEVER)
