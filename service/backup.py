"""THE RECIPE of a backup: name it, seal it, take a consistent view of every source, pack, read back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from typing import Any

from service import sources
from service.archive.names import archive_name
from service.archive.parts import SUITE_NONE, Header, KeySlots
from service.blocking import run_in_thread
from service.config import Config
from service.exclusive import exclusive
from service.keys import identities, sealer, sign_archive
from service.ledger import Ledger, NoLedger
from service.pipeline.pack import Packed, pack
from service.progress import Progress
from service.recovery_choice import recovery_choice
from service.sealing.at_hand import KeyAtHand
from service.sealing.slots import Identity
from service.sealing.suite import SUITE, ArchiveKeys
from service.server_version import server_version
from service.state_directory import next_sequence
from service.targets import SOMEBODY_ELSE, Outcome, Owed, Targets, nothing_owed, opened_targets

Clock = Callable[[], datetime]

NOTICE = "Backup of a DeviceOn server. Restore it with deviceon-backup; docs/ARCHIVE_FORMAT.md describes this file."


def utc_now() -> datetime:
    """Return the time now, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class BackupResult:
    """A published archive that was read back and authenticated. Sizes in bytes, seconds of wall time."""

    name: str
    url: str
    size: int
    raw_bytes: int
    streams: int
    rows: int
    compression_level: int
    """The zstd level, which `auto` has chosen."""
    seconds: float
    stages: dict[str, float]
    warnings: list[str]
    excluded: list[dict[str, Any]]
    targets: list[Outcome]
    """What became of it in each target; at least one has it proven."""


async def backup(
    config: Config,
    *,
    progress: Progress,
    ledger: Ledger | None = None,
    clock: Clock = utc_now,
    owed: Owed = nothing_owed,
) -> BackupResult:
    """Back up every configured source into one archive of the configured target.

    When this returns, the archive is durable under its name and every byte of it was read back and authenticated.
    With several targets, this holds for at least one; `targets` of the result has the outcome of each. When it raises
    (ServiceError, StorageError, cancellation), no archive was added; only when the reading back could not be done at
    all (target or TPM gone, cancelled) the whole archive stays, the error says that it is unproven, and the ledger has
    it as `written`. `owed` is told, in any case, which targets have not got what another has.
    """
    started = clock()
    running_version = await server_version(config.server)
    async with (
        exclusive(config.state_dir, "a backup", config.sources),
        opened_targets(config, ledger or NoLedger(), owed=owed) as targets,
        AsyncExitStack() as views,
    ):
        await targets.sweep(started - SOMEBODY_ELSE)
        header, slots, keys, at_hand = await _seal(config, targets, running_version, progress, clock)
        progress.begin("snapshot", f"Taking a consistent view of {len(config.sources)} sources")
        snapshots = []
        for settings in config.sources:
            source = sources.source(settings, config)
            snapshots.append((source.name, source.type, await views.enter_async_context(source.snapshot())))
        progress.begin("dump", f"Writing {header.name} to {targets.url}", expected_raw=_size_last_time(targets))
        async with targets.writing(header.name, progress):
            packed = await pack(
                targets,
                header,
                slots,
                keys,
                snapshots,
                compression=config.compression,
                progress=progress,
                clock=clock,
                tool_version=version("deviceon-backup"),
                sign=partial(sign_archive, config, progress.warn) if keys else None,
            )
        await views.aclose()  # let the databases go before the archive is read back
        await targets.read_back(header.name, lambda: at_hand or identities(config), progress)
    seconds = (clock() - started).total_seconds()
    return _result(config.target.url, header.name, packed, targets.outcomes, seconds, progress.end(), progress.warnings)


def _size_last_time(targets: Targets) -> int:
    """Return the raw bytes of the newest archive, for telling how long this one will take; 0 when there is none."""
    return next((entry.raw_bytes for entry in reversed(targets.archives) if entry.raw_bytes), 0)


async def _seal(
    config: Config, targets: Targets, running_version: str, progress: Progress, clock: Clock
) -> tuple[Header, KeySlots | None, ArchiveKeys | None, list[Identity]]:
    """Choose the archive's name and keys. The key slots are proven to open before the first byte is written.

    Last is who reads the archive back when nobody can open it without a person; empty when this machine can.
    """
    created = await _free_minute(targets, progress, clock)
    archive_id = os.urandom(16)
    seal_for = await sealer(config)
    slots = commit = data_key = None
    at_hand: list[Identity] = []
    if seal_for is not None:
        progress.begin("seal", f"Sealing the archive's key to {seal_for.fingerprint}")
        data_key = os.urandom(32)
        slots = KeySlots(slots=[dict(slot) for slot in await seal_for.wrap(data_key, archive_id)])
        before = next((entry.sealing for entry in reversed(targets.archives) if entry.problem is None), None)
        if seal_for.kinds == "tpm" and before == "tpm+age" and not recovery_choice(config).decided:
            progress.warn(
                "The archive opens on this TPM only, and the one before it opens with a recovery key too: nobody has"
                " chosen to go on without one. Run `deviceon-backup provision`."
            )
        if seal_for.asks_for_pin:
            at_hand = [KeyAtHand(data_key, slots.slots)]
        commit = ArchiveKeys(data_key, archive_id=archive_id, header=None).commit.hex()
    header = Header(
        suite=SUITE if seal_for else SUITE_NONE,
        archive_id=archive_id.hex(),
        name=archive_name(created),
        created=created,
        seq=await run_in_thread(next_sequence, config.state_dir, targets.highest_number),
        product=config.server.product,
        server_version=running_version,
        max_raw=config.compression.chunk_bytes,
        commit=commit,
        sealing=seal_for.kinds if seal_for else "off",
        fingerprint=seal_for.fingerprint if seal_for else None,
        notice=NOTICE,
    )
    keys = ArchiveKeys(data_key, archive_id=archive_id, header=header.to_bytes()) if data_key else None
    return header, slots, keys, at_hand


async def _free_minute(targets: Targets, progress: Progress, clock: Clock) -> datetime:
    """Return the time now when its minute has no archive yet; wait for the next minute otherwise."""
    while True:
        now = clock()
        if not await targets.has(archive_name(now)):
            return now
        progress.say(f"{archive_name(now)} exists already; waiting for the next minute")
        next_minute = now.replace(second=0, microsecond=0) + timedelta(minutes=1)
        while (left := (next_minute - clock()).total_seconds()) > 0:  # noqa: ASYNC110 - a clock is no event
            await asyncio.sleep(min(left, 1.0))


def _result(
    url: str,
    name: str,
    packed: Packed,
    outcomes: list[Outcome],
    seconds: float,
    stages: dict[str, float],
    warnings: list[str],
) -> BackupResult:
    streams = packed.manifest.streams
    return BackupResult(
        name=name,
        url=url,
        size=packed.info.size,
        raw_bytes=sum(stream.bytes for stream in streams),
        streams=len(streams),
        rows=sum(int(stream.details.get("rows", 0)) for stream in streams),
        compression_level=packed.level,
        seconds=seconds,
        stages=stages,
        warnings=[*packed.manifest.warnings, *warnings],
        excluded=[dict(item) for item in packed.manifest.excluded],
        targets=outcomes,
    )
