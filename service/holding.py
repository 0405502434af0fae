"""Holds, and removal by hand: what a person says of single archives.

A hold is a small object beside the archive, so that everybody who works on the target knows of it, and it outlives this
service's memory.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime

from service.catalog import HOLD_SUFFIX, CatalogEntry, is_held, list_archives
from service.config import Config
from service.errors import JobRefused
from service.ledger import PROVEN, Ledger
from service.pipeline.sidecar import remove_sidecar
from service.state_directory import changing_archives, only_job
from storage_backends import open_target
from storage_backends.base import ObjectNotFound, StorageBackend, StorageError, one_piece

_LONGEST = 1 << 16


@dataclass(frozen=True, slots=True)
class Hold:
    """What a hold says: why, by whom, since when; all of it empty when somebody else has written it."""

    reason: str = ""
    by: str = ""
    since: datetime | None = None


async def read_hold(target: StorageBackend, name: str) -> Hold | None:
    """Return the hold of an archive in one target; None when it is not held there."""
    content = bytearray()
    try:
        async with aclosing(target.get(name + HOLD_SUFFIX, length=_LONGEST)) as pieces:
            async for piece in pieces:
                content += piece
    except ObjectNotFound:
        return None
    try:
        said = json.loads(content)
        return Hold(str(said["reason"]), str(said["by"]), datetime.fromisoformat(said["since"]))
    except (ValueError, KeyError, TypeError):
        return Hold()


async def hold(config: Config, name: str, *, reason: str, by: str, now: datetime, ledger: Ledger) -> list[str]:
    """Hold an archive in every target that has it: nothing removes it before `release`. Returns those targets' URLs.

    Raises ObjectNotFound when none has it, StorageError when one cannot be reached: it is held in the others then.
    """
    content = json.dumps({"reason": reason, "by": by, "since": now.isoformat()}).encode()

    async def put(target: StorageBackend) -> None:
        await target.put(name + HOLD_SUFFIX, one_piece(content), overwrite=True)
        try:
            await target.stat(name)
        except ObjectNotFound:  # another machine removed it just then: whoever asked must not believe it is safe
            await target.delete(name + HOLD_SUFFIX)
            raise

    return await _everywhere(config, name, ledger, put)


async def release(config: Config, name: str, *, ledger: Ledger) -> list[str]:
    """End an archive's hold in every target that has it; returns and raises as `hold`."""

    async def remove(target: StorageBackend) -> None:
        await target.delete(name + HOLD_SUFFIX)

    return await _everywhere(config, name, ledger, remove)


async def _everywhere(
    config: Config, name: str, ledger: Ledger, do: Callable[[StorageBackend], Awaitable[None]]
) -> list[str]:
    done: list[str] = []
    problems: list[StorageError] = []
    for one in config.each():
        try:
            async with (
                open_target(one.target.url, one.target.options()) as target,
                changing_archives(config.state_dir),
            ):
                await _entry(target, name, ledger)
                await do(target)
                done.append(target.url)
        except StorageError as error:
            problems.append(error)
    serious = [error for error in problems if not isinstance(error, ObjectNotFound)]
    if serious or not done:
        raise (serious or problems)[0]
    return done


async def delete(config: Config, name: str, *, even_the_last: bool, ledger: Ledger) -> CatalogEntry:
    """Remove an archive for good; return what it was. Raises JobRefused, StorageError.

    One that is held is refused, and so are the newest verified one and the last restorable one unless `even_the_last`.
    """
    with only_job(config.state_dir, "a removal"):
        async with open_target(config.target.url, config.target.options()) as target:
            entry = await _entry(target, name, ledger)
            if not even_the_last and (why := last_good(await list_archives(target, ledger), name)):
                raise JobRefused(
                    f"{name} is {why}",
                    hint="Make a new backup first, or say that even the last one may go (--even-the-last).",
                )
            async with changing_archives(config.state_dir):
                if await is_held(target, name):
                    raise JobRefused(
                        f"{name} is held",
                        hint="End its hold first (`deviceon-backup release`), if it may really go; the baseline's ends "
                        "with `deviceon-backup baseline --replace`.",
                    )
                await ledger.deleting(target.url, name)
                try:
                    await target.delete(name)
                finally:
                    await ledger.settled(target.url, name)
                await remove_sidecar(target, name)
            return entry


def last_good(found: Sequence[CatalogEntry], name: str) -> str:
    """Say in which way an archive is the last good one of a target's, the oldest first; empty when it is not.

    It may be the newest that was verified (when none was, for the memory was lost, the newest usable one), or the only
    one that a drill has restored.
    """
    archives = [entry for entry in found if entry.problem is None]
    proven = [entry.name for entry in archives if entry.evidence in PROVEN]
    if (proven or [entry.name for entry in archives])[-1:] == [name]:
        return "the newest archive that is known to be good"
    if [entry.name for entry in archives if entry.evidence == "restorable"] == [name]:
        return "the only archive that a drill has restored"
    return ""


async def _entry(target: StorageBackend, name: str, ledger: Ledger) -> CatalogEntry:
    for entry in await list_archives(target, ledger):
        if entry.name == name:
            return entry
    raise ObjectNotFound(f"there is no archive {name}", hint="`deviceon-backup list` shows the archives of the target.")
