"""Tries a target as a backup will use it: write, look, read back, refuse to overwrite, list, remove."""

from __future__ import annotations

import secrets
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

from service.config import SystemBackup, TargetSettings
from service.errors import ConfigError
from service.finding import Finding
from service.object_lock import lock_told
from storage_backends import open_target
from storage_backends.base import ObjectExists, ObjectNotFound, Promise, StorageBackend, StorageError, one_piece

PROBE_PREFIX = "deviceon-backup-probe-"
PROBE_BYTES = 4096
PROMISES = ("whole or not at all", "never replaced", "durable")
"""The findings that tell what no test of a moment can show."""
CLOCKS_APART = timedelta(minutes=2)
FORGOTTEN_AFTER = timedelta(hours=24)


async def try_target(settings: TargetSettings, system_backup: SystemBackup) -> list[Finding]:
    """Return what was found, in the order it was tried; the first red one ends it. Leaves nothing in the target.

    `system_backup` has the retention and schedule that archives there will be kept by.
    Never raises StorageError or ConfigError for what is wrong with the target: that is what is told.
    """
    findings: list[Finding] = []
    try:
        async with open_target(settings.url, settings.options()) as target:
            await _try(target, findings)
            lock = lock_told(settings.storage_options, system_backup.retention, system_backup.schedule)
            findings += [] if lock is None else [lock]
            findings += [Finding("caution", None, told) for told in target.cautions]
            findings += _promises(target.promise)
    except (StorageError, ConfigError) as error:
        remedy = error.hint or "Remove the cause, then test again."
        findings.append(Finding("target", False, str(error), remedy))
    return findings


def _promises(promise: Promise) -> list[Finding]:
    """Tell what no test of a moment can show."""
    told = (promise.whole_or_not_at_all, promise.no_overwrite, promise.durable)
    return [Finding(name, None, text) for name, text in zip(PROMISES, told, strict=True)]


async def _try(target: StorageBackend, findings: list[Finding]) -> None:
    key, content = f"{PROBE_PREFIX}{secrets.token_hex(8)}", secrets.token_bytes(PROBE_BYTES)
    await _remove_forgotten(target)
    await target.put(key, one_piece(content))
    try:
        findings.append(Finding("write", True, f"an object of {PROBE_BYTES} bytes was written to {target.url}"))
        probe = await target.stat(key)
        findings += _clock(probe.modified, datetime.now(UTC))
        _require(
            findings,
            "read back",
            probe.size == PROBE_BYTES
            and await _read(target, key) == content
            and await _read(target, key, offset=1000, length=10) == content[1000:1010],
            "what was written is read back, whole and in part",
            "the target gives back other bytes than were written",
        )
        _require(
            findings,
            "list",
            key in [info.key async for info in target.list_objects(PROBE_PREFIX)],
            "the new object is listed",
            "a new object is not listed, so archives would not be found",
        )
        _require(
            findings,
            "overwrite protection",
            await _refuses(target, key) and await _read(target, key) == content,
            "a second object of the same name is refused",
            "a second object of the same name replaces the first",
        )
    finally:
        await target.delete(key)
    _require(
        findings,
        "delete",
        await _is_gone(target, key),
        "the object was removed again",
        "a removed object is still there, so old archives would never go",
    )


def _clock(theirs: datetime, ours: datetime) -> list[Finding]:
    """Tell when the target's clock differs: what is left over is told from what is new by it; S3 refuses 15 minutes."""
    apart = theirs - ours
    if abs(apart) <= CLOCKS_APART:
        return []
    which = "ahead of" if apart > timedelta(0) else "behind"
    told = f"the target's clock is {abs(apart).total_seconds():.0f} s {which} this machine's"
    return [Finding("clock", None, told, "Have both machines keep time (NTP).")]


def _require(findings: list[Finding], name: str, good: bool, told: str, otherwise: str) -> None:
    if not good:
        raise StorageError(otherwise, hint="Do not keep archives in this target; choose another.")
    findings.append(Finding(name, True, told))


async def _read(target: StorageBackend, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
    async with aclosing(target.get(key, offset=offset, length=length)) as pieces:
        return b"".join([piece async for piece in pieces])


async def _refuses(target: StorageBackend, key: str) -> bool:
    try:
        await target.put(key, one_piece(b"another"))
    except ObjectExists:
        return True
    return False


async def _is_gone(target: StorageBackend, key: str) -> bool:
    try:
        await target.stat(key)
    except ObjectNotFound:
        return True
    return False


async def _remove_forgotten(target: StorageBackend) -> None:
    """Remove what a test that was killed has left."""
    before = datetime.now(UTC) - FORGOTTEN_AFTER
    for info in [info async for info in target.list_objects(PROBE_PREFIX)]:
        if info.modified < before:
            await target.delete(info.key)
