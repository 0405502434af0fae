"""The targets of one backup: opened together, written to at once, read back one by one; each with its own outcome.

A target that fails is left out from there on. As long as one is left, the backup goes on; when the last one fails, its
error is raised.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.catalog import CatalogEntry, list_archives
from service.config import Config
from service.errors import ArchiveError, DamagedSlot, NotAuthentic, ServiceError
from service.failure import as_json
from service.ledger import Evidence, Ledger
from service.pipeline.unpack import ArchiveReader
from service.progress import Progress
from service.sealing.slots import Identity
from storage_backends import open_target
from storage_backends.base import ObjectInfo, ObjectNotFound, StorageBackend, StorageError
from storage_backends.fan_out import FanOut


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
    outcomes: list[Outcome] = field(default_factory=list)
    archives: list[CatalogEntry] = field(default_factory=list)
    """The archives of all targets, the oldest first."""
    good: list[tuple[StorageBackend, Outcome]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Name the targets, for people."""
        return ", ".join(outcome.url for outcome in self.outcomes)

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

    async def writing(self, name: str) -> None:
        """Tell the ledger that an archive is about to be written to each target."""
        for target, _ in self.good:
            await self.ledger.writing(target.url, name)

    async def put(self, key: str, data: AsyncIterable[bytes | bytearray]) -> ObjectInfo:
        """Write an archive to every target. Raises StorageError when none has it."""
        good = list(self.good)
        if len(good) == 1:
            came: Sequence[ObjectInfo | StorageError] = [await good[0][0].put(key, data)]
        else:
            fan_out = FanOut([target for target, _ in good])
            await fan_out.put(key, data)
            came = fan_out.outcomes
        written = []
        for (target, outcome), info in zip(good, came, strict=True):
            if isinstance(info, StorageError):
                self._failed(target, outcome, info)
                continue
            written.append(info)
            outcome.evidence = "written"
            await self.ledger.found(target.url, key, info.etag, "written")
        return written[0]

    async def read_back(self, name: str, identities: Callable[[], list[Identity]], progress: Progress) -> None:
        """Open the archive in each target as a restore would, and authenticate every byte of it.

        One that does not pass is removed there: an archive that is listed must restore. Raises the last error when none
        passes; an archive that could not be read at all (target or TPM gone) stays, unproven.
        """
        for target, outcome in list(self.good):
            try:
                reader = await ArchiveReader.open(target, name, identities())
                progress.begin("read back", f"Reading {name} back", expected_raw=reader.footer.raw_bytes)
                await reader.verify(progress)
            except (ServiceError, StorageError) as error:
                if was_removed(error):
                    outcome.evidence = None
                    await target.delete(name)
                    await self.ledger.settled(target.url, name)
                else:
                    error.add_note(
                        f"{name} was written whole but could not be read back; run `deviceon-backup verify {name}`."
                    )
                self._failed(target, outcome, error)
            else:
                outcome.evidence = "verified"
                await self.ledger.found(target.url, name, reader.info.etag, "verified")
                await self.ledger.settled(target.url, name)

    def _failed(self, target: StorageBackend, outcome: Outcome, error: ServiceError | StorageError) -> None:
        """Go on without a target. Raises its error when it was the last one."""
        outcome.error = as_json(error)
        self.good = [(each, other) for each, other in self.good if each is not target]
        if not self.good:
            raise error


def was_removed(error: Exception) -> bool:
    """Tell whether an archive that was read back with this outcome was removed: it was read, and it is not good."""
    return isinstance(error, ArchiveError | NotAuthentic | DamagedSlot)


@contextlib.asynccontextmanager
async def opened_targets(config: Config, ledger: Ledger) -> AsyncIterator[Targets]:
    """Open all targets of a configuration and list their archives. Raises StorageError when none can be listed."""
    async with contextlib.AsyncExitStack() as stack:
        targets, errors = Targets(ledger), list[ServiceError | StorageError]()
        for settings in config.targets:
            outcome = Outcome(settings.url)
            targets.outcomes.append(outcome)
            try:
                target = await stack.enter_async_context(open_target(settings.url, settings.options()))
                found = await list_archives(target, ledger)
            except (ServiceError, StorageError) as error:
                outcome.error = as_json(error)
                errors.append(error)
                continue
            targets.good.append((target, outcome))
            targets.archives += found
        if not targets.good:
            raise errors[0]
        targets.archives.sort(key=lambda entry: (entry.seq or 0, entry.name))
        yield targets
