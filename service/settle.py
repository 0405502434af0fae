"""What a start does first: end or undo what a crash left, on this machine and in the target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from service import drill
from service.catalog import check_whole, verify
from service.config import Config
from service.errors import ArchiveError, DamagedSlot, NotAuthentic, PinRequired, ServiceError
from service.exclusive import exclusive
from service.ledger import PROVEN, Intent
from service.progress import Progress
from service.restore import recover
from service.state import Archives
from service.targets import SOMEBODY_ELSE
from storage_backends import open_target
from storage_backends.base import ObjectNotFound, StorageBackend, StorageError


@dataclass(slots=True)
class SettleResult:
    """What was found: restores that were ended, drills that were tidied up, uploads that were swept, archives that were
    read, by what came out.
    """

    restores: list[str] = field(default_factory=list)
    drills: list[str] = field(default_factory=list)
    swept: int = 0
    verified: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    unproven: list[str] = field(default_factory=list)
    """Archives that are whole, and that only somebody with the restore PIN can prove."""


async def settle(
    config: Config, *, archives: Archives, clock: Callable[[], datetime], progress: Progress
) -> SettleResult:
    """Settle interrupted restores, sweep the target, and read archives that were published but never proven.

    Nothing that could be an archive is removed. Raises JobRefused when another service works on the same servers,
    ServiceError, StorageError when something could not be settled yet; it can be called again.
    """
    progress.begin("settle", "Looking for what a crash has left")
    result = SettleResult(restores=await recover(config, progress=progress))
    problems: list[ServiceError | StorageError] = []
    for one in config.each():
        try:
            await _settle_target(one, archives, clock, result, progress)
        except (ServiceError, StorageError) as error:
            problems.append(error)
    try:
        result.drills = await drill.recover(config, progress=progress)
    except ServiceError as error:  # the server that drills have of their own may be away for long
        problems.append(error)
    if problems:
        raise problems[0]
    return result


async def _settle_target(
    config: Config, archives: Archives, clock: Callable[[], datetime], result: SettleResult, progress: Progress
) -> None:
    async with (
        exclusive(config.state_dir, "settling", config.sources),
        open_target(config.target.url, config.target.options()) as target,
    ):
        intents = [intent for intent in await archives.intents() if intent.target == target.url]
        # With both locks held, nobody of this installation is writing: what was begun is over. What others began in
        # the same place may not be.
        for intent in intents:
            for unfinished in intent.unfinished:
                result.swept += await target.discard(unfinished)
        result.swept += await target.sweep(clock() - SOMEBODY_ELSE)
        unproven = [intent for intent in intents if not await _settled_already(target, intent, archives)]
    for intent in unproven:
        await _prove(config, intent, archives, result, progress)


async def _settled_already(target: StorageBackend, intent: Intent, archives: Archives) -> bool:
    """Settle what needs no reading: removals, archives that did not come to be, those that were proven after all."""
    if intent.action == "write":
        try:
            info = await target.stat(intent.name)
        except ObjectNotFound:
            pass
        else:
            known = (await archives.known(target.url)).get(intent.name)
            if known is None or known.etag != info.etag or known.evidence not in PROVEN:
                await archives.found(target.url, intent.name, info.etag, "written")
                return False
    await archives.settled(intent.target, intent.name)
    return True


async def _look_at_closed(
    config: Config, intent: Intent, archives: Archives, result: SettleResult, progress: Progress
) -> None:
    """An archive that nobody can open here without a person stays `written`, unless its bytes are not what it lists."""
    try:
        seen = await check_whole(config, intent.name, progress=progress, ledger=archives)
    except ArchiveError as error:
        progress.say(f"{intent.name} cannot be used: {error}")
        result.damaged.append(intent.name)
        return
    progress.say(f"{seen.info.key} is whole; `deviceon-backup verify` with the restore PIN proves it")
    result.unproven.append(intent.name)


async def _prove(config: Config, intent: Intent, archives: Archives, result: SettleResult, progress: Progress) -> None:
    try:
        await verify(config, intent.name, progress=progress, ledger=archives)
        result.verified.append(intent.name)
    except (ArchiveError, NotAuthentic, DamagedSlot) as error:
        progress.say(f"{intent.name} cannot be used: {error}")
        result.damaged.append(intent.name)
    except PinRequired:
        await _look_at_closed(config, intent, archives, result, progress)
    await archives.settled(intent.target, intent.name)
