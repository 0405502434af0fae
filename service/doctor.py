"""Looks at everything a backup and a restore will need, before the day they are needed."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from service import hooks
from service.catalog import list_archives
from service.config import Config
from service.config_sources import PostgresqlSettings, SqliteSettings, TreeSettings
from service.doctor_tpm import tpm_findings
from service.errors import ServiceError
from service.finding import Finding
from service.journal import journals
from service.server_version import server_version
from service.target_test import PROMISES, try_target
from service.terminal import size
from storage_backends import open_target
from storage_backends.base import StorageError

LITTLE_SPACE_BYTES = 1_000_000_000

Check = Callable[[Config], Awaitable[list[Finding]]]


async def examine(config: Config) -> list[Finding]:
    """Return what was found, in the order to read it. Never raises ServiceError, StorageError.

    Nothing is changed, but that a small object is written to the target, read back and removed again, and that the
    TPM seals and opens a random key.
    """
    findings = []
    for name, check in _CHECKS:
        try:
            findings += await check(config)
        except (ServiceError, StorageError) as error:
            findings.append(Finding(name, False, str(error), error.hint or "Remove the cause, then run doctor again."))
    return findings


async def _server(config: Config) -> list[Finding]:
    return [Finding("server", True, f"{config.server.product} {await server_version(config.server)}")]


async def _state(config: Config) -> list[Finding]:
    directory = config.state_dir
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    remedy = "Run as the user that owns it, or set state_dir to a directory that this service may write."
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return [Finding("state directory", False, f"{existing} cannot be written by this user", remedy)]
    if existing != directory:
        return [Finding("state directory", True, f"{directory} does not exist yet; the first backup makes it")]
    findings = [Finding("state directory", True, f"{directory} can be written"), _space(directory, largest=0)]
    if not (directory / "restores").is_dir():
        return findings
    for journal in journals(directory):
        done = journal.state == "swapped"
        findings.append(
            Finding(
                "restore",
                None if done else False,
                f"the restore of {journal.archive} "
                + ("keeps the state before it" if done else f"was interrupted while {journal.state}"),
                "`deviceon-backup commit` removes that old state, `deviceon-backup rollback` returns to it."
                if done
                else "Run `deviceon-backup rollback`; it brings the state before the restore back.",
            )
        )
    return findings


async def _tpm(config: Config) -> list[Finding]:
    if config.sealing.mode == "off":
        return [
            Finding(
                "TPM",
                None,
                "sealing is off: archives are neither encrypted nor protected from changes",
                "Set sealing.mode to tpm, unless the archives are protected otherwise.",
            )
        ]
    return await tpm_findings(config)


async def _sources(config: Config) -> list[Finding]:
    findings: list[Finding] = []
    if not config.sources:
        return [Finding("sources", False, "nothing would be backed up", "Add a source to the configuration.")]
    for settings in config.sources:
        if isinstance(settings, PostgresqlSettings):
            from service.sources.postgresql.diagnose import diagnose  # noqa: PLC0415 - a heavy driver

            findings += await diagnose(settings)
        elif isinstance(settings, TreeSettings):
            findings.append(await asyncio.to_thread(_tree, settings))
        else:
            findings.append(await asyncio.to_thread(_sqlite, settings))
    return findings


def _tree(settings: TreeSettings) -> Finding:
    name, path = f"source {settings.name}", settings.path
    try:
        count = sum(1 for _ in path.iterdir())
    except OSError as error:
        return Finding(name, False, f"the directory {path} cannot be read: {error.strerror}", _PATH_REMEDY)
    if not os.access(path.parent, os.W_OK):
        return Finding(
            name, None, f"{path} can be read, but {path.parent} not be written", "A restore needs that: run it as root."
        )
    return Finding(name, True, f"{path} ({count} entries at its top)")


def _sqlite(settings: SqliteSettings) -> Finding:
    name, path = f"source {settings.name}", settings.path
    try:
        with path.open("rb"):
            pass
        # Opened for reading only: a check must not make a database where none is.
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            (tables,) = database.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()
    except OSError as error:
        return Finding(name, False, f"the database {path} cannot be read: {error.strerror}", _PATH_REMEDY)
    except sqlite3.Error as error:
        return Finding(name, False, f"{path} cannot be read as an SQLite database: {error}", _PATH_REMEDY)
    return Finding(name, True, f"{path} ({tables} tables)")


_PATH_REMEDY = "Correct the path in the configuration, or run as a user that may read it."


async def _target(config: Config) -> list[Finding]:
    """Try every target; one that is bad does not keep the others from being tried."""
    findings = []
    for one in config.each():
        try:
            findings += await _one_target(one)
        except (ServiceError, StorageError) as error:
            findings.append(
                Finding("target", False, str(error), error.hint or "Remove the cause, then run doctor again.")
            )
    return findings


async def _one_target(config: Config) -> list[Finding]:
    async with open_target(config.target.url, config.target.options()) as target:
        archives = await list_archives(target)
    tried = await try_target(config.target, config)
    if problems := [finding for finding in tried if finding.ok is False]:
        return problems
    told = f"{config.target.url} can be written and read, and keeps what is there; archives: {len(archives)}"
    findings = [Finding("target", True, told)]
    findings += [finding for finding in tried if finding.name in ("caution", "object lock", "clock")]
    promises = [f"{finding.name}? {finding.message}" for finding in tried if finding.name in PROMISES]
    findings.append(Finding("target guarantees", None, " ".join(promises)))
    findings += [
        Finding(f"archive {entry.name}", False, entry.problem, "Keep it apart or delete it; it cannot be restored.")
        for entry in archives
        if entry.problem
    ]
    if config.target.url.startswith("file://"):
        findings.append(_space(Path(config.target.url.removeprefix("file://")), largest=_largest(archives)))
    return findings


def _largest(archives: list[Any]) -> int:
    return max((entry.size for entry in archives), default=0)


def _space(directory: Path, *, largest: int) -> Finding:
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    told = f"{size(free)} free in {directory}"
    if free < largest:
        return Finding("free space", False, f"{told}, less than the largest archive has", "Make room there.")
    return Finding("free space", None if free < LITTLE_SPACE_BYTES else True, told)


async def _hooks(config: Config) -> list[Finding]:
    """Look whether the programs around a restore could be run; a good one is not said to work."""
    if not hooks.commands(config.restore.hooks):
        return []
    wrong = hooks.obstacles(config.restore.hooks)
    if not wrong:
        named = ", ".join(hooks.commands(config.restore.hooks))
        return [Finding("restore hooks", True, f"these could be run: {named}")]
    return [Finding("restore hooks", False, each.message, each.remedy) for each in wrong]


_CHECKS: tuple[tuple[str, Check], ...] = (
    ("server", _server),
    ("state directory", _state),
    ("TPM", _tpm),
    ("sources", _sources),
    ("target", _target),
    ("restore hooks", _hooks),
)
