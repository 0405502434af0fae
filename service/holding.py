"""Holds, and removal by hand: what a person says of single archives.

A hold is a small object beside the archive, so that everybody who works on the target knows of it, and it outlives this
service's memory.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime

from service.catalog import HOLD_SUFFIX, CatalogEntry, is_held, list_archives
from service.config import Config
from service.errors import JobRefused
from service.ledger import Ledger
from service.state_directory import only_job
from storage_backends import open_target
from storage_backends.base import ObjectNotFound, StorageBackend


async def hold(config: Config, name: str, *, reason: str, by: str, now: datetime, ledger: Ledger) -> None:
    """Hold an archive: nothing removes it before `release`. Raises StorageError."""
    content = json.dumps({"reason": reason, "by": by, "since": now.isoformat()}).encode()
    async with open_target(config.target.url, config.target.options()) as target:
        await _entry(target, name, ledger)
        await target.put(name + HOLD_SUFFIX, _once(content), overwrite=True)
        try:
            await target.stat(name)
        except ObjectNotFound:  # removed just before it was held: whoever asked must not believe it is safe
            await target.delete(name + HOLD_SUFFIX)
            raise


async def release(config: Config, name: str, *, ledger: Ledger) -> None:
    """End an archive's hold; one that is not held is fine. Raises StorageError."""
    async with open_target(config.target.url, config.target.options()) as target:
        await _entry(target, name, ledger)
        await target.delete(name + HOLD_SUFFIX)


async def delete(config: Config, name: str, *, even_the_last: bool, ledger: Ledger) -> CatalogEntry:
    """Remove an archive for good; return what it was. Raises JobRefused, StorageError.

    One that is held is refused, and so is the newest verified one unless `even_the_last`.
    """
    with only_job(config.state_dir, "a removal"):
        async with open_target(config.target.url, config.target.options()) as target:
            entry = await _entry(target, name, ledger)
            if not even_the_last and name == await _newest_verified(target, ledger):
                raise JobRefused(
                    f"{name} is the newest archive that was verified",
                    hint="Make a new backup first, or say that even the last one may go.",
                )
            if await is_held(target, name):  # asked last: looking through the target took time
                raise JobRefused(f"{name} is held", hint="End its hold first, if it may really go.")
            await ledger.deleting(target.url, name)
            try:
                await target.delete(name)
            finally:
                await ledger.settled(target.url, name)
            return entry


async def _newest_verified(target: StorageBackend, ledger: Ledger) -> str | None:
    verified = [entry.name for entry in await list_archives(target, ledger) if entry.evidence == "verified"]
    return verified[-1] if verified else None


async def _entry(target: StorageBackend, name: str, ledger: Ledger) -> CatalogEntry:
    for entry in await list_archives(target, ledger):
        if entry.name == name:
            return entry
    raise ObjectNotFound(f"there is no archive {name}", hint="`deviceon-backup list` shows the archives of the target.")


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
