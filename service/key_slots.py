"""Key slots of archives that are there already: who opens them, one more added, one removed, all for another TPM.

What is added stands beside the archive (`service.pipeline.sidecar`); the archive itself is never rewritten. To add a
slot, the archive has to be opened: with a slot of this machine's TPM, or with a recovery key.

A slot of a TPM vouches for an archive from then on: whoever has that TPM takes what it opens for its own. So one is
added only where the origin is proven, or where a person says that it is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from service.catalog import CatalogEntry, list_archives, origin_proven
from service.config import Config
from service.errors import (
    ArchiveError,
    NotFound,
    Obstacle,
    PinRequired,
    PinWrong,
    RestoreRefused,
    SealError,
    ServiceError,
)
from service.failure import as_json
from service.keys import age_recipients, own_tpm, recovery_identities, this_tpm
from service.ledger import Ledger
from service.pipeline.sidecar import read_sidecar, write_sidecar
from service.pipeline.unpack import ArchiveReader, read_slots
from service.progress import Progress
from service.recovery_choice import recovery_choice
from service.sealing.slots import Identity, KeySlot, Recipient
from service.state_directory import changing_archives, only_job
from service.terminal import counted
from storage_backends import open_target
from storage_backends.base import StorageBackend, StorageError

Outcome = Literal["added", "would be added", "there already", "removed", "not there", "not sealed", "failed"]


@dataclass(frozen=True, slots=True)
class SlotView:
    """One key slot as it says of itself."""

    type: str
    whom: str
    """The recipient or the TPM's fingerprint; empty when it does not say."""
    place: Literal["archive", "beside"]
    passphrase: bool = False
    """Whether the recovery passphrase opens it."""


@dataclass(frozen=True, slots=True)
class ArchiveSlots:
    """The key slots of one archive. What they say is not proven: opening proves it."""

    target: str
    archive: str
    slots: list[SlotView]
    problem: str | None = None
    """Why the archive's slots, or those beside it, could not be read."""


@dataclass(frozen=True, slots=True)
class KeyChange:
    """What became of the slots of one archive; `error` as in a job."""

    target: str
    archive: str
    outcome: Outcome
    error: dict[str, Any] | None = None


@dataclass(slots=True)
class KeyChanges:
    """What was done to each archive, the newest first."""

    changes: list[KeyChange] = field(default_factory=list)

    @property
    def failed(self) -> list[KeyChange]:
        """Return those that failed."""
        return [change for change in self.changes if change.outcome == "failed"]


@dataclass(frozen=True, slots=True)
class Proof:
    """That a recovery key alone opens the newest archive of a target."""

    target: str
    archive: str
    signer: str | None


async def slots_of(config: Config, name: str | None, *, ledger: Ledger) -> list[ArchiveSlots]:
    """Return the key slots of an archive, or of all, in every target of `config`. Raises NotFound, StorageError."""
    found = []
    for one in config.each():
        async with open_target(one.target.url, one.target.options()) as target:
            for entry in await _chosen(target, name, ledger):
                found.append(await _slots(target, entry.name))
    return _some(found, name)


async def _slots(target: StorageBackend, name: str) -> ArchiveSlots:
    views: list[SlotView] = []
    try:
        _, own = await read_slots(target, name)
        views += [_view(slot, "archive") for slot in own]
        views += [_view(slot, "beside") for slot in await read_sidecar(target, name)]
    except (ArchiveError, StorageError) as error:
        return ArchiveSlots(target.url, name, views, str(error))
    return ArchiveSlots(target.url, name, views)


def _view(slot: KeySlot, place: Literal["archive", "beside"]) -> SlotView:
    return SlotView(str(slot.get("type")), _whom(slot), place, passphrase="identity" in slot)


def _whom(slot: KeySlot) -> str:
    whom = slot.get("recipient") or slot.get("fingerprint")
    return whom if isinstance(whom, str) else ""


async def add_slots(
    config: Config,
    name: str | None,
    *,
    recipients: Sequence[str] = (),
    tpm: bool = False,
    allow: frozenset[str] = frozenset(),
    apply: bool = True,
    ledger: Ledger,
    progress: Progress,
) -> KeyChanges:
    """Add slots for recipients, or for this machine's TPM, to an archive or to all, the newest first.

    Each is proven before the next one is begun: the slot is read back from the target, a TPM's is opened. Those that
    have the slot already are left alone, so that what was interrupted can be repeated. Without `apply` nothing is
    written. One archive that fails does not keep the others from it. Raises JobRefused, SealError, StorageError when
    nothing can be begun.
    """
    with only_job(config.state_dir, "a change of key slots"):
        whom: list[Recipient] = _recipients(config, recipients)
        if tpm:
            whom.append((await this_tpm(config))[0])
        adding = _Adding(config, own_tpm(config), whom, frozenset(recipients), tpm, allow, apply)
        result = KeyChanges()
        for one in config.each():
            async with open_target(one.target.url, one.target.options()) as target:
                archives = await _chosen(target, name, ledger)
                progress.begin("keys", f"{counted(len(archives), 'archive')} in {target.url}")
                for entry in archives:
                    change = await _changed(target, entry.name, adding.to)
                    result.changes.append(change)
                    said = f": {change.error['message']}" if change.error else ""
                    progress.say(f"{entry.name}: {change.outcome}{said}")
        _some(result.changes, name)
        return result


def _recipients(config: Config, recipients: Sequence[str]) -> list[Recipient]:
    """Return those who seal for recipients; for the recovery passphrase in force, so that it opens the slot alone."""
    if not recipients:
        return []
    choice = recovery_choice(config)
    by_phrase = dict.fromkeys(choice.recipients, choice.protected)
    return [each for whom in recipients for each in age_recipients([whom], protected=by_phrase.get(whom))]


@dataclass(frozen=True, slots=True)
class _Adding:
    config: Config
    own: Identity
    whom: list[Recipient]
    recipients: frozenset[str]
    tpm: bool
    allow: frozenset[str]
    apply: bool

    async def to(self, target: StorageBackend, name: str) -> Outcome:
        header, own = await read_slots(target, name)
        if not header.sealed:
            return "not sealed"
        if await self._there(target, name, own):
            return "there already"
        given = recovery_identities(self.config.opening.recovery)
        reader = await ArchiveReader.open(target, name, [self.own, *given])
        if self.tpm and "ORIGIN_NOT_PROVEN" not in self.allow and not origin_proven(self.config, reader):
            raise RestoreRefused([_NOT_PROVEN])
        if not self.apply:
            return "would be added"
        made = [dict(await reader.wrap_for(recipient)) for recipient in self.whom]
        async with changing_archives(self.config.state_dir):
            if (await target.stat(name)).etag != reader.info.etag:
                raise NotFound(f"{name} is another object than it was a moment ago", hint="Try again.")
            kept = [slot for slot in await _beside(target, name) if _key(slot) not in {_key(each) for each in made}]
            await write_sidecar(target, name, [*kept, *made])
            written = await read_sidecar(target, name)
        if any(slot not in written for slot in made):
            raise SealError(f"{target.url} did not keep the key slots beside {name}", hint="Try again.")
        if self.tpm and not await self._opens(target, name):
            raise SealError(f"{name} does not open with the slot that was added", hint="Report this: it is a fault.")
        return "added"

    async def _there(self, target: StorageBackend, name: str, own: Sequence[KeySlot]) -> bool:
        """Tell whether nothing is to be done: for a TPM that is tried; for a recipient the archive's own slots say so,
        since those beside it could be anybody's.
        """
        named = {_whom(slot) for slot in own if slot["type"] == "age"}
        return self.recipients <= named and (not self.tpm or await self._opens(target, name))

    async def _opens(self, target: StorageBackend, name: str) -> bool:
        try:
            await ArchiveReader.open(target, name, [self.own])
        except (PinRequired, PinWrong):  # this TPM has all that it takes but the PIN
            return True
        except SealError:
            return False
        return True


async def remove_slots(
    config: Config, name: str | None, *, whom: Sequence[str], ledger: Ledger, progress: Progress
) -> KeyChanges:
    """Remove slots for recipients or fingerprints that were added beside an archive, or beside all.

    Those in the archives themselves stay for as long as the archives do. Raises as `add_slots`.
    """

    async def removed(target: StorageBackend, archive: str) -> Outcome:
        async with changing_archives(config.state_dir):
            before = await _beside(target, archive)
            kept = [slot for slot in before if _whom(slot) not in whom]
            if len(kept) == len(before):
                return "not there"
            await write_sidecar(target, archive, kept)
            return "removed"

    with only_job(config.state_dir, "a change of key slots"):
        result = KeyChanges()
        for one in config.each():
            async with open_target(one.target.url, one.target.options()) as target:
                for entry in await _chosen(target, name, ledger):
                    result.changes.append(await _changed(target, entry.name, removed))
                    progress.say(f"{entry.name}: {result.changes[-1].outcome}")
        _some(result.changes, name)
        return result


async def prove_recovery(config: Config, *, ledger: Ledger) -> list[Proof]:
    """Open the newest sealed archive of every target with the recovery key alone, whatever the TPM could do.

    Raises NotFound when there is none, SealError when the key does not open it, ArchiveError, StorageError.
    """
    whom = recovery_identities(config.opening.recovery)
    if not whom:
        raise SealError("no recovery key was given", hint="Give it with --recovery-key or --recovery-passphrase-file.")
    proofs = []
    for one in config.each():
        async with open_target(one.target.url, one.target.options()) as target:
            sealed = [entry for entry in await _chosen(target, None, ledger) if entry.sealing != "off"]
            if not sealed:
                raise NotFound(f"{target.url} has no sealed archive", hint="Make a backup first.")
            reader = await ArchiveReader.open(target, sealed[0].name, whom)
            proofs.append(Proof(target.url, sealed[0].name, reader.signer))
    return proofs


async def _changed(target: StorageBackend, name: str, change: Any) -> KeyChange:
    try:
        return KeyChange(target.url, name, await change(target, name))
    except (ServiceError, StorageError) as error:
        return KeyChange(target.url, name, "failed", as_json(error))


async def _chosen(target: StorageBackend, name: str | None, ledger: Ledger) -> list[CatalogEntry]:
    """Return the archive of that name, or all that can be read, the newest first."""
    found = await list_archives(target, ledger)
    return [each for each in reversed(found) if (name is None and each.problem is None) or each.name == name]


def _some(found: list[Any], name: str | None) -> list[Any]:
    if name is not None and not found:
        raise NotFound(f"there is no archive {name}", hint="`deviceon-backup list` shows the archives of the target.")
    return found


async def _beside(target: StorageBackend, name: str) -> list[dict[str, Any]]:
    """Return the slots beside an archive; none when they cannot be read, for then they are of no use to anybody."""
    try:
        return await read_sidecar(target, name)
    except ArchiveError:
        return []


def _key(slot: KeySlot) -> tuple[str, str]:
    return str(slot.get("type")), _whom(slot)


_NOT_PROVEN = Obstacle(
    "ORIGIN_NOT_PROVEN",
    "a recovery key opens the archive, but that does not prove who made it; with a slot of this TPM it would count as"
    " made here",
    "Give the signer of the recovery kit in sealing.trusted_signers; allow ORIGIN_NOT_PROVEN if you know where this"
    " archive comes from.",
)
