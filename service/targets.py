"""The targets of one backup: opened together, written to at once, read back one by one; each with its own outcome.

A target that fails is left out from there on. As long as one is left, the backup goes on; when the last one fails, its
error is raised.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from service.blocking import to_the_end
from service.catalog import CatalogEntry, list_archives
from service.config import Config
from service.errors import ArchiveError, DamagedSlot, NotAuthentic, ServiceError
from service.failure import as_json
from service.ledger import Evidence, Ledger
from service.pipeline.unpack import ArchiveReader
from service.progress import Progress, TargetState
from service.sealing.slots import Identity
from service.state_directory import MOST_ARCHIVES
from storage_backends import open_target
from storage_backends.base import Announce, ObjectChanged, ObjectInfo, ObjectNotFound, StorageBackend, StorageError
from storage_backends.fan_out import FanOut

log = logging.getLogger(__name__)

SOMEBODY_ELSE = timedelta(hours=24)
"""Unfinished uploads that this service knows nothing of are left alone for so long."""

Owed = Callable[[str, Sequence[str]], Awaitable[None]]
"""Gets the name of an archive and the URLs of targets that have not got it, though another has."""


async def nothing_owed(_: str, __: Sequence[str]) -> None:
    """Forget it."""


@dataclass(slots=True)
class Outcome:
    """What became of an archive in one target; `error` as in a job, None when all went well."""

    url: str
    evidence: Evidence | None = None
    """None when the archive is not there."""
    error: dict[str, Any] | None = None


@dataclass(slots=True)
class Targets:
    """The targets that are still good, and the outcome of each."""

    ledger: Ledger
    owed: Owed = nothing_owed
    outcomes: list[Outcome] = field(default_factory=list)
    archives: list[CatalogEntry] = field(default_factory=list)
    """The archives of all targets, the oldest first."""
    good: list[tuple[StorageBackend, Outcome]] = field(default_factory=list)
    _begun: dict[str, list[str]] = field(default_factory=dict)
    _etags: dict[str, str] = field(default_factory=dict)
    _opened: dict[str, StorageBackend] = field(default_factory=dict)
    _progress: Progress = field(default_factory=Progress)

    @property
    def url(self) -> str:
        """Name the targets, for people."""
        return ", ".join(outcome.url for outcome in self.outcomes)

    def add(self, target: StorageBackend, outcome: Outcome) -> None:
        """Take in a target that could be listed."""
        self.good.append((target, outcome))
        self._opened[outcome.url] = target

    async def sweep(self, before: datetime) -> None:
        """Remove what writers that were killed before `before` left; a target where that fails is as good as before."""
        for target, _ in self.good:
            try:
                if swept := await target.sweep(before):
                    log.info("%d unfinished uploads were removed from %s", swept, target.url)
            except StorageError as error:
                log.warning("unfinished uploads cannot be looked for in %s: %s", target.url, error)

    async def has(self, name: str) -> bool:
        """Tell whether any target has an archive of this name."""
        found = False
        for target, outcome in list(self.good):
            try:
                await target.stat(name)
                found = True
            except ObjectNotFound:
                pass
            except StorageError as error:
                self._failed(target, outcome, error)
        return found

    @property
    def highest_number(self) -> int:
        """Return the highest number that an archive has; 0 when there is none."""
        return max((entry.seq for entry in self.archives if entry.seq and entry.seq < MOST_ARCHIVES), default=0)

    @contextlib.asynccontextmanager
    async def writing(self, name: str, progress: Progress) -> AsyncIterator[None]:
        """Tell the ledger what is about to be written; when the block fails, tell it where nothing came of it.

        From the moment when an archive is published, `progress` is past cancelling.
        """
        self._progress = progress
        for outcome in self.outcomes:
            self._tell(outcome, "writing")
        for target, _ in self.good:
            await self.ledger.writing(target.url, name)
        try:
            yield
        except BaseException:
            if not progress.past_cancelling:
                await to_the_end(self._nothing_written(name))
            raise

    async def _nothing_written(self, name: str) -> None:
        """Settle what was begun where the archive is surely not there; the next start looks at the rest."""
        for outcome in self.outcomes:
            target = self._opened.get(outcome.url)
            if target is None:
                continue
            with contextlib.suppress(ServiceError, StorageError):
                for unfinished in self._begun.get(target.url, ()):
                    await target.discard(unfinished)  # nothing is there, unless tidying up failed as well
                try:
                    await target.stat(name)
                except ObjectNotFound:
                    await self.ledger.settled(target.url, name)

    async def put(self, key: str, data: AsyncIterable[bytes | bytearray]) -> ObjectInfo:
        """Write an archive to every target. Raises StorageError when none has it."""
        good = list(self.good)
        if len(good) == 1:
            came: Sequence[ObjectInfo | StorageError] = [
                await good[0][0].put(key, data, announce=self._announce(good[0][0], key))
            ]
        else:
            fan_out = FanOut([target for target, _ in good])
            await fan_out.put(key, data, announce=lambda target: self._announce(target, key))
            came = fan_out.outcomes
        self._progress.past_cancelling = True
        written: list[ObjectInfo] = []
        for (target, outcome), info in zip(good, came, strict=True):
            if isinstance(info, StorageError):
                self._failed(target, outcome, info)
                continue
            if written and info.size != written[0].size:
                self._failed(target, outcome, _other_size(target, info, written[0].size))
                continue
            written.append(info)
            self._etags[target.url] = info.etag
            outcome.evidence = "written"
            self._tell(outcome, "written")
            try:
                await self.ledger.found(target.url, key, info.etag, "written")
            except ServiceError as error:  # the archive is there all the same; reading it back comes next
                log.error("cannot remember that %s is in %s: %s", key, target.url, error)
        await self._tell_owed(key)
        return written[0]

    def _announce(self, target: StorageBackend, name: str) -> Announce:
        async def announce(what: str) -> None:
            self._begun.setdefault(target.url, []).append(what)
            try:
                await self.ledger.unfinished(target.url, name, what)
            except ServiceError as error:  # it can still be swept, a day later
                log.error("cannot remember what is begun in %s: %s", target.url, error)

        return announce

    async def _tell_owed(self, name: str) -> None:
        """Tell at once which targets have not got what another has: from here on, nothing may make that forgotten."""
        if any(outcome.evidence in ("written", "verified") for outcome in self.outcomes):
            missing = [outcome.url for outcome in self.outcomes if outcome.evidence is None]
            try:
                await self.owed(name, missing)
            except ServiceError as error:
                log.error("cannot remember that %s is missing in %s: %s", name, ", ".join(missing), error)

    async def read_back(self, name: str, identities: Callable[[], list[Identity]], progress: Progress) -> None:
        """Open the archive in each target as a restore would, and authenticate every byte of it.

        One that does not pass is removed there: an archive that is listed must restore. Raises the last error when none
        passes; an archive that could not be read at all (target or TPM gone) stays, unproven.
        """
        for target, outcome in list(self.good):
            try:
                reader = await ArchiveReader.open(target, name, identities())
                _require_ours(reader, self._etags[target.url], target)
                self._tell(outcome, "reading back")
                progress.begin("read back", f"Reading {name} back", expected_raw=reader.footer.raw_bytes)
                await reader.verify(progress)
            except (ServiceError, StorageError) as error:
                if was_removed(error):
                    await self._remove(target, name, outcome)
                else:
                    error.add_note(
                        f"{name} was written whole but could not be read back; run `deviceon-backup verify {name}`."
                    )
                self._failed(target, outcome, error)
            else:
                outcome.evidence = "verified"
                self._tell(outcome, "verified")
                await self.ledger.found(target.url, name, reader.info.etag, "verified")
                await self.ledger.settled(target.url, name)

    async def _remove(self, target: StorageBackend, name: str, outcome: Outcome) -> None:
        """Remove an archive that did not pass; where the target does not let it go, it stays known as damaged."""
        try:
            await target.delete(name)
        except StorageError as error:
            log.error("%s is damaged and cannot be removed from %s: %s", name, target.url, error)
            outcome.evidence = "damaged"
            await self.ledger.found(target.url, name, self._etags[target.url], "damaged")
        else:
            outcome.evidence = None
            await self._tell_owed(name)
        await self.ledger.settled(target.url, name)

    def _tell(self, outcome: Outcome, state: TargetState) -> None:
        error = outcome.error
        self._progress.at(outcome.url, "failed" if error else state, str(error["message"]) if error else "")

    def _failed(self, target: StorageBackend, outcome: Outcome, error: ServiceError | StorageError) -> None:
        """Go on without a target. Raises its error when it was the last one."""
        outcome.error = as_json(error)
        log.warning("%s: %s", outcome.url, error)
        self._tell(outcome, "failed")
        self.good = [(each, other) for each, other in self.good if each is not target]
        if not self.good:
            raise error


def _require_ours(reader: ArchiveReader, etag: str, target: StorageBackend) -> None:
    """Raise ObjectChanged when what lies under the name is not what was written there."""
    if reader.info.etag != etag:
        raise ObjectChanged(
            f"{target.url} has another object under the name {reader.info.key} than the one that was written",
            hint="Let no other service write to this target; give each server a directory or prefix of its own.",
        )


def _other_size(target: StorageBackend, info: ObjectInfo, size: int) -> StorageError:
    return StorageError(
        f"{target.url} says that {info.key} has {info.size} bytes, another target that it has {size}",
        hint="Do not use this copy; check the target.",
    )


def was_removed(error: Exception) -> bool:
    """Tell whether an archive that was read back with this outcome was removed: it was read, and it is not good."""
    return isinstance(error, ArchiveError | NotAuthentic | DamagedSlot)


@contextlib.asynccontextmanager
async def opened_targets(config: Config, ledger: Ledger, *, owed: Owed = nothing_owed) -> AsyncIterator[Targets]:
    """Open all targets of a configuration and list their archives. Raises StorageError when none can be listed.

    `owed` is told which targets have not got an archive that is in another.
    """
    async with contextlib.AsyncExitStack() as stack:
        targets, errors = Targets(ledger, owed), list[ServiceError | StorageError]()
        for settings in config.targets:
            outcome = Outcome(settings.url)
            targets.outcomes.append(outcome)
            try:
                target = await stack.enter_async_context(open_target(settings.url, config.writing_options(settings)))
                found = await list_archives(target, ledger)
            except (ServiceError, StorageError) as error:
                outcome.error = as_json(error)
                log.warning("%s: %s", outcome.url, error)
                errors.append(error)
                continue
            targets.add(target, outcome)
            targets.archives += found
        if not targets.good:
            raise errors[0]
        targets.archives.sort(key=lambda entry: (entry.seq or 0, entry.name))
        yield targets
