"""Opens the key of each target's newest archive, as a restore would, so that a TPM that stopped doing it is noticed.

A backup proves its own key slots, but on the TPM of that moment: what was cleared, replaced, locked or broken since
shows here, and not on the day of a restore. With a restore PIN that nobody gave, all is done that can be done without.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from service.catalog import list_archives, opened
from service.config import Config
from service.errors import ArchiveError, PinRequired, ServiceError
from service.keys import try_without_pin
from service.ledger import Ledger
from service.pipeline.sidecar import read_sidecar
from service.pipeline.unpack import read_slots
from service.progress import Progress
from storage_backends import open_target
from storage_backends.base import StorageError


@dataclass(frozen=True, slots=True)
class Tested:
    """A target's newest archive. `opened`: its key was had, and header, directory and manifest are authentic."""

    target: str
    archive: str
    created: datetime | None
    opened: bool
    sealed: bool
    note: str = ""
    """What was left out, and why; empty when nothing was."""


@dataclass(slots=True)
class SelfTest:
    """What was tested, and what kept it from being."""

    tested: list[Tested] = field(default_factory=list)
    problems: list[ServiceError | StorageError] = field(default_factory=list)

    def worst(self) -> ServiceError | StorageError | None:
        """Return the problem to tell of: a key that does not open before a target that cannot be reached."""
        keys = [problem for problem in self.problems if isinstance(problem, ServiceError)]
        return next(iter([*keys, *self.problems]), None)


async def selftest(config: Config, *, ledger: Ledger, progress: Progress) -> SelfTest:
    """Test every target's newest archive; a target without archives has nothing to test. Raises nothing expected."""
    result = SelfTest()
    for one in config.each():
        try:
            tested = await _test(one, ledger, progress)
        except (ServiceError, StorageError) as error:
            error.add_note(f"in {one.target.url}")
            result.problems.append(error)
        else:
            result.tested += tested
    return result


async def _test(config: Config, ledger: Ledger, progress: Progress) -> list[Tested]:
    url = config.target.url
    async with open_target(url, config.target.options()) as target:
        archives = await list_archives(target, ledger)
    newest = next((entry for entry in reversed(archives) if entry.problem is None), None)
    if newest is None:
        return []
    progress.begin("selftest", f"Opening {newest.name} in {url}")
    try:
        async with opened(config, newest.name) as reader:
            sealed = reader.header.sealed
            note = "" if sealed else "it is not sealed: there is no key to open"
            return [Tested(url, newest.name, newest.created, opened=sealed, sealed=sealed, note=note)]
    except PinRequired as error:
        async with open_target(url, config.target.options()) as target:
            header, slots = await read_slots(target, newest.name)
            with suppress(ArchiveError, StorageError):  # what is beside the archive is of use, and not needed
                slots += await read_sidecar(target, newest.name)
        await try_without_pin(config, slots, bytes.fromhex(header.archive_id))
        note = f"all but the last step, which needs the PIN: {error}"
        return [Tested(url, newest.name, newest.created, opened=False, sealed=True, note=note)]
