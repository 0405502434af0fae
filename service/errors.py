"""Every error this service raises on purpose. Typed here, worded for the person who reads it.

    ServiceError
    ├── ConfigError                 the configuration cannot be used
    ├── SourceError                 what is backed up could not be read (or the restored copy not written)
    │   └── SourceUnavailable       ... because it cannot be reached or refuses the credentials
    ├── ArchiveError                the archive cannot be used
    │   ├── CorruptArchive          bytes are not what they were
    │   ├── IncompleteArchive       the end is missing
    │   └── UnsupportedArchive      a newer format, or not one of ours
    ├── SealError                   the key cannot be had
    │   ├── NoMatchingIdentity      no key slot opens here; carries every slot's reason
    │   ├── NotAuthentic            the key is right, the bytes are not
    │   ├── TpmUnavailable          no TPM, or no permission, or it does not answer
    │   ├── WrongTpm                another machine's TPM
    │   ├── TpmCleared              the same chip, but its storage seed changed
    │   ├── TpmChanged              not the TPM that was pinned when this service was set up
    │   ├── PinRequired             it opens with the restore PIN only, and none was given
    │   ├── PinWrong                the restore PIN that was given is not the one
    │   ├── PinUnusable             the restore PIN of this machine cannot be used: it belongs to another TPM
    │   └── DamagedSlot             the right TPM refuses this key slot
    ├── RestoreError
    │   ├── RestoreRefused          obstacles found before anything was touched; carries them
    │   ├── StageFailed             the copy beside the live data could not be made or checked; live data as it was
    │   ├── SwapFailed              exchanging live and staged failed; says what state was reached
    │   ├── HookFailed              a program of the operator's around the exchange failed
    │   ├── Unhealthy               the restored server did not work
    │   └── ServerNotStarted        the old state is back, but the server could not be started again
    ├── StateError                  the service's own memory cannot be read or written
    └── JobRefused                  another job is running, or there is nothing to do
        ├── NotFound                what was asked for does not exist
        └── TooLate                 the job is past the point where it could be cancelled

Errors of targets are `storage_backends.StorageError`. `service.cli` maps both to exit codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class ServiceError(Exception):
    """Root. `code` is stable, `hint` says what to do next, `transient` whether a retry may help."""

    code: ClassVar[str] = "ERROR"
    transient: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(ServiceError):
    """The configuration cannot be used."""

    code = "CONFIG"


class SourceError(ServiceError):
    """Something that is backed up could not be read, or its restored copy could not be written."""

    code = "SOURCE"


class SourceUnavailable(SourceError):
    """The source cannot be reached, or refuses the credentials."""

    code = "SOURCE_UNAVAILABLE"
    transient = True


class ArchiveError(ServiceError):
    """The archive cannot be used."""

    code = "ARCHIVE"


class CorruptArchive(ArchiveError):
    """Bytes of the archive are not what they were when it was written."""

    code = "ARCHIVE_CORRUPT"


class IncompleteArchive(ArchiveError):
    """The archive's end is missing."""

    code = "ARCHIVE_INCOMPLETE"


class UnsupportedArchive(ArchiveError):
    """The file is of a newer format, or no archive of this service at all."""

    code = "ARCHIVE_UNSUPPORTED"


class SealError(ServiceError):
    """The key of an archive cannot be sealed or had."""

    code = "SEAL"


class NoMatchingIdentity(SealError):
    """No key slot of the archive opens here. `reasons` has one error for each slot and identity tried."""

    code = "SEAL_NO_IDENTITY"

    def __init__(self, message: str, *, reasons: Sequence[SealError] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reasons = tuple(reasons)


class NotAuthentic(SealError):
    """The key is right but the bytes are not those that were sealed under it."""

    code = "SEAL_NOT_AUTHENTIC"


class TpmUnavailable(SealError):
    """There is no TPM, no permission to use it, or it does not answer."""

    code = "TPM_UNAVAILABLE"
    transient = True


class WrongTpm(SealError):
    """The key slot was made by another machine's TPM."""

    code = "TPM_WRONG"


class TpmCleared(SealError):
    """The same TPM chip, but its storage seed has changed: what it sealed before is lost to it."""

    code = "TPM_CLEARED"


class TpmChanged(SealError):
    """This TPM is not the one that was pinned when the service was set up."""

    code = "TPM_CHANGED"


class PinRequired(SealError):
    """The key opens with the restore PIN only, and none was given."""

    code = "PIN_REQUIRED"


class PinWrong(SealError):
    """The restore PIN is wrong. The TPM has counted the try; `tries_left` until it locks, None when it does not say."""

    code = "PIN_WRONG"

    def __init__(self, message: str, *, tries_left: int | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.tries_left = tries_left


class PinUnusable(SealError):
    """The restore PIN that was set on this machine cannot be used: another TPM has it, or its file is damaged."""

    code = "PIN_UNUSABLE"


class DamagedSlot(SealError):
    """The TPM is the right one, but it refuses the key slot: the slot was altered."""

    code = "SEAL_SLOT_DAMAGED"


class RestoreError(ServiceError):
    """A restore did not happen."""

    code = "RESTORE"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One reason why a restore would not work. `code` is stable; `remedy` is what the operator does about it."""

    code: str
    message: str
    remedy: str


class RestoreRefused(RestoreError):
    """Obstacles were found before anything was touched."""

    code = "RESTORE_REFUSED"

    def __init__(self, obstacles: Sequence[Obstacle]) -> None:
        super().__init__("; ".join(obstacle.message for obstacle in obstacles))
        self.obstacles = tuple(obstacles)
        self.hint = " ".join(dict.fromkeys(obstacle.remedy for obstacle in obstacles))


class StageFailed(RestoreError):
    """The copy beside the live data could not be made or checked. Live data is as it was."""

    code = "RESTORE_STAGE_FAILED"


class SwapFailed(RestoreError):
    """Live and staged data could not be exchanged. The message says which state was reached."""

    code = "RESTORE_SWAP_FAILED"


class HookFailed(RestoreError):
    """A program that the configuration names could not be run, failed, or took too long."""

    code = "RESTORE_HOOK_FAILED"


class Unhealthy(RestoreError):
    """The server does not work as the configuration says that it should."""

    code = "RESTORE_UNHEALTHY"


class ServerNotStarted(RestoreError):
    """The state before the restore is back, but the server could not be started again."""

    code = "RESTORE_SERVER_NOT_STARTED"


class JobRefused(ServiceError):
    """Another job is running, or what was asked for does not exist."""

    code = "JOB_REFUSED"


class NotFound(JobRefused):
    """What was asked for does not exist."""

    code = "NOT_FOUND"


class TooLate(JobRefused):
    """The job is past the point where it could be cancelled."""

    code = "TOO_LATE"


class StateError(ServiceError):
    """What the service keeps for itself in its state directory (state.db and others) cannot be read or written."""

    code = "STATE"
