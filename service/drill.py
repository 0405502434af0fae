"""THE DRILL: a restore for practice. Choose, open, refuse early, stage in scratch places, compare, drop, report.

Nothing live is touched: databases are built under names of their own, trees and files below a scratch directory, and
all of it is dropped at the end, however that comes. A journal of its own (`<state_dir>/drills/unfinished`) says what
was made, so that what a crash leaves is dropped at the next start. `service.drill_report` says what a report is.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from service import drill_report, headroom, sources
from service.backup import utc_now
from service.blocking import run_in_thread, to_the_end
from service.catalog import locate, verify
from service.config import Config, ConfigFile
from service.config_restore import RestoreSettings
from service.drill_choice import choose
from service.drill_seen import Seen
from service.errors import ArchiveError, DamagedSlot, NotAuthentic, RestoreRefused, ServiceError, SourceError
from service.exclusive import servers_locked
from service.journal import Journal, journals
from service.keys import identities, signer
from service.ledger import PROVEN, Ledger
from service.pipeline.unpack import ArchiveReader
from service.progress import Progress
from service.restore_plan import plan_for
from service.server_version import server_version
from service.sources.base import Restorer, Room, StoredSource
from service.sources.work_area import remove_area
from service.state_directory import only_job

UNFINISHED = "drills/unfinished"
ONLY_FOR_THE_EXCHANGE = frozenset(
    {"PREPARED_TRANSACTIONS", "LOGICAL_REPLICATION", "LIVE_CONNECTIONS", "SERVER_VERSION", "HOOK_NOT_EXECUTABLE"}
)
"""Obstacles of a restore that concern what is exchanged, which a drill does not: they are told in its report."""


class NotTidied(ServiceError):
    """A drill could not drop what it had made; that is done later."""

    code = "DRILL_NOT_TIDIED"
    transient = True


class NotReported(ServiceError):
    """The report of a drill could not be written."""

    code = "DRILL_NOT_REPORTED"
    transient = True


@dataclass(frozen=True, slots=True)
class DrillResult:
    """A drill that passed. `report` and `page` are paths; `seconds` is wall time, `stages` says how much each took."""

    id: str
    archive: str
    target: str
    evidence: str
    seconds: float
    stages: dict[str, float]
    counts: dict[str, int]
    warnings: list[str]
    report: str
    page: str
    signed: bool


async def drill(
    config: Config,
    archive: str | None = None,
    *,
    target: str | None = None,
    progress: Progress,
    ledger: Ledger,
    clock: Callable[[], datetime] = utc_now,
) -> DrillResult:
    """Restore an archive for practice (see `choose` for the default) and remember that it is `restorable`.

    However it ends, nothing of the copies is left and a report is written, but for a drill that was cancelled or never
    began. Raises JobRefused, NotFound; RestoreRefused when something stands in the way; what a restore raises;
    NotTidied when the copies could not be dropped: the next start or drill does that; NotReported.
    """
    with only_job(config.state_dir, "a drill"):
        await _recover(config, progress)
        one, name = await choose(config, archive, target, ledger)
        seen = Seen.begin(one, name, clock())
        try:
            await _rehearse(one, name, seen, ledger, progress)
        except Exception as error:
            try:
                paths = await _reported(one, seen.report(clock(), progress, error), progress)
                error.add_note(f"report: {paths[0]}")
            except NotReported as problem:
                error.add_note(str(problem))
            raise
        report = seen.report(clock(), progress, None)
        paths = await _reported(one, report, progress)
    return DrillResult(
        id=seen.id,
        archive=name,
        target=one.target.url,
        evidence="restorable",
        seconds=report["seconds"],
        stages=report["stages"],
        counts=report["counts"],
        warnings=seen.warnings,
        report=str(paths[0]),
        page=str(paths[1]),
        signed=report["signature"] is not None,
    )


async def _rehearse(config: Config, archive: str, seen: Seen, ledger: Ledger, progress: Progress) -> None:
    """Prove the archive if nobody has, then restore it for practice; tell the ledger what was found."""
    async with locate(config, archive) as (target, name):
        info = await target.stat(name)
        known = (await ledger.known(target.url)).get(name)
        if known is None or known.etag != info.etag or known.evidence not in PROVEN:
            await verify(config, archive, progress=progress, ledger=ledger)
        try:
            progress.begin("open", f"Opening {archive} with this machine's key")
            reader = await ArchiveReader.open(target, name, identities(config))
            seen.opened(reader)
            await _practise(config, archive, reader, seen, progress)
        except (ArchiveError, NotAuthentic, DamagedSlot):
            seen.evidence = "damaged"
            await ledger.found(target.url, name, info.etag, "damaged")
            raise
        seen.evidence = "restorable"
        await ledger.found(target.url, name, reader.info.etag, "restorable")


async def _practise(config: Config, archive: str, reader: ArchiveReader, seen: Seen, progress: Progress) -> None:
    journal = Journal.begin(config.state_dir, archive=archive, started=seen.started.isoformat(), folder=UNFINISHED)
    elsewhere = _elsewhere(config, reader, journal.id)
    progress.begin("plan", f"Checking what restoring {archive} for practice would take")
    rooms = await _refuse_early(elsewhere, archive, reader, seen)
    async with servers_locked(elsewhere.sources, "a drill"):
        try:
            work = _stage_and_compare(elsewhere, reader, journal, seen, progress)
            await headroom.while_there_is_room(work, rooms, share=config.drill.min_free_share)
        except BaseException as error:
            seen.failed_while = progress.stage
            try:
                await to_the_end(_dropped(journal, progress))
            except NotTidied as left:
                error.add_note(str(left))
            raise
        await to_the_end(_dropped(journal, progress))


def _elsewhere(config: Config, reader: ArchiveReader, identifier: str) -> Config:
    """Return the configuration with sources that are restored beside everything, not over anything."""
    scratch = (config.drill.directory or config.state_dir / "drills" / "scratch") / identifier
    practice = [sources.for_practice(config, stored, scratch) for stored in reader.sources()]
    return config.model_copy(update={"sources": practice, "restore": RestoreSettings()})  # and no hooks


async def _refuse_early(config: Config, archive: str, reader: ArchiveReader, seen: Seen) -> list[Room]:
    """Raise RestoreRefused when something stands in the way; return what of this machine has to be watched."""
    seen.installed = await server_version(config.server)
    plan = await plan_for(config, reader, archive)
    told = [*plan.notes, *(each for each in plan.obstacles if each.code in ONLY_FOR_THE_EXCHANGE)]
    seen.notes += [each.message for each in told if each.code != "LIVE_CONNECTIONS"]  # it is live, after all
    found = [each for each in plan.obstacles if each.code not in ONLY_FOR_THE_EXCHANGE]
    rooms: list[Room] = []
    if not found:
        rooms = [await _restorer(config, stored).room(stored) for stored in reader.sources()]
        settings = config.drill
        found += headroom.obstacles(rooms, share=settings.min_free_share, connections=settings.connections)
    if blocking := [each for each in found if each.code not in config.drill.allow]:
        raise RestoreRefused(blocking)
    seen.notes += [f"gone ahead in spite of: {each.message}" for each in found]
    return rooms


def _restorer(config: Config, stored: StoredSource) -> Restorer:
    return sources.restorer(sources.settings_for(config, stored), [])


async def _stage_and_compare(
    config: Config, reader: ArchiveReader, journal: Journal, seen: Seen, progress: Progress
) -> None:
    stored_sources = sorted(reader.sources(), key=lambda stored: sources.SWAP_ORDER.index(stored.type))
    progress.begin("stage", "Restoring for practice", expected_raw=_bytes(stored_sources))
    for stored in stored_sources:
        settings = sources.settings_for(config, stored)
        seen.restored_into[stored.name] = sources.place_in_words(settings)
        record = journal.add(stored.name, settings.model_dump(mode="json"), [])
        record["id"] = secrets.token_hex(4)  # several servers' databases may be restored into one
        await _saved(journal)
        await run_in_thread(sources.make_place, settings)
        await _restorer(config, stored).stage(stored, reader, record, lambda: _saved(journal), progress)
        seen.digests += len(stored.streams)
    progress.begin("compare", "Everything is restored; comparing it with the archive", expected_raw=0)
    records = {participant["name"]: participant["record"] for participant in journal.participants}
    for stored in stored_sources:
        seen.add(await _restorer(config, stored).compare(stored, reader, records[stored.name], progress))


def _bytes(stored_sources: Sequence[StoredSource]) -> int:
    return sum(stream.bytes for stored in stored_sources for stream in stored.streams)


async def _saved(journal: Journal) -> None:
    """Remember what is about to be made, and nothing of what is live: no way back may ever touch that."""
    for participant in journal.participants:
        record = participant["record"]
        for entry in record.get("databases", ()):
            entry["live_oid"] = None
        for name in {"globals_before", "globals_wanted"} & record.keys():
            record[name] = None  # no password verifiers on the disk for a drill
    await journal.save()


async def _dropped(journal: Journal, progress: Progress) -> None:
    """Drop all that a drill has made, the last first. Raises NotTidied; can be tried again at any time."""
    progress.begin("drop", "Dropping what was restored for practice")
    try:
        for participant in reversed(journal.participants):
            settings = sources.settings_from_json(participant["settings"])
            await sources.restorer(settings, []).undo(participant["record"])
            if place := sources.scratch_of(settings):
                await run_in_thread(remove_area, place)
                with suppress(OSError):  # another source's copy may be beside it
                    await run_in_thread(place.parent.rmdir)
        await journal.remove()
    except (ServiceError, OSError) as error:
        raise _not_tidied(journal, error) from error


def _not_tidied(journal: Journal, error: Exception) -> NotTidied:
    return NotTidied(
        f"what the drill of {journal.archive} has made could not be dropped: {error}",
        hint="Remove that cause. The next start of the service or the next drill drops it. If the server that it was"
        f" made in is gone for good, delete {journal.path}.",
    )


async def _reported(config: Config, report: drill_report.Report, progress: Progress) -> tuple[Path, Path]:
    """Sign and write a report. One that cannot be signed is written all the same, and says so. Raises NotReported."""
    progress.begin("report", "Writing the report")
    try:
        key = await signer(config)
        if key is not None:
            value = await key.sign(drill_report.PURPOSE, drill_report.message_of(report))
            report["signature"] = drill_report.signature_member(key.public_key, value)
    except (ServiceError, OSError) as error:
        report["notes"].append(f"not signed: {error}")
    try:
        return await run_in_thread(drill_report.save, config.state_dir, report)
    except OSError as error:
        raise NotReported(
            f"the drill {report['result']}, but its report cannot be written: {error.strerror or error}",
            hint=f"Make room below {config.state_dir}, then drill again.",
        ) from error


async def _recover(config: ConfigFile, progress: Progress) -> list[str]:
    settled = []
    for journal in journals(config.state_dir, folder=UNFINISHED):
        progress.say(f"The drill of {journal.archive} was interrupted; dropping what it has made")
        servers = [sources.settings_from_json(participant["settings"]) for participant in journal.participants]
        try:
            async with servers_locked(servers, "tidying up after a drill"):
                await to_the_end(_dropped(journal, progress))
        except SourceError as error:
            raise _not_tidied(journal, error) from error
        settled.append(journal.archive)
    return settled


async def tidy_before_restore(config: ConfigFile, progress: Progress) -> None:
    """Drop what interrupted drills have left, so that nobody takes their roles for real ones; held up by nothing.

    The caller holds the lock of the only job.
    """
    try:
        await _recover(config, progress)
    except ServiceError as error:
        progress.say(f"Left for later: {error}")


async def recover(config: ConfigFile, *, progress: Progress) -> list[str]:
    """Drop what interrupted drills have left. Returns the archives concerned. Raises JobRefused, NotTidied."""
    if not journals(config.state_dir, folder=UNFINISHED):
        return []
    with only_job(config.state_dir, "tidying up after a drill"):
        return await _recover(config, progress)


def unfinished(config: ConfigFile) -> bool:
    """Tell whether something of a drill is still to be dropped."""
    return bool(journals(config.state_dir, folder=UNFINISHED))
