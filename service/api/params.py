"""What the methods take."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr

from service.api.registry import Params
from service.job import JobKind, JobState
from service.ledger import Evidence
from service.opening import NOTHING, Opening
from service.recovery import RecoveryKey, recovery_key
from service.selection import Kind

Key = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$")]
Name = Annotated[str, Field(pattern=r"^Backup_[0-9]{8}_[0-9]{4}Z\.zip$", max_length=30)]
Line = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00-\x1f\x7f]*$")]
MOST_READ = 512 * 1024
"""Bytes of one piece of an archive: in base64 it fits into a line of the service."""
Count = Annotated[int, Field(ge=1, le=500)]


Url = Annotated[str, Field(min_length=1, max_length=2000)]


class OfTarget(Params):
    """What is asked of one of the configured targets."""

    target: Url | None = None
    """The target's URL, as the configuration has it. When it is left out: the first target; for holds and retention,
    every target."""


class RecoverySecret(Params):
    """A recovery key; both members when a passphrase protects the identity."""

    identity: Annotated[SecretStr, Field(min_length=1, max_length=16_384)] | None = None
    """The content of an age identity file (`AGE-SECRET-KEY-1...`), or of one that a passphrase protects."""
    passphrase: Annotated[SecretStr, Field(min_length=1, max_length=500)] | None = None
    """The recovery passphrase."""

    def value(self) -> RecoveryKey:
        """Return the recovery key. Raises BadRecoveryKey."""
        identity, passphrase = self.identity, self.passphrase
        return recovery_key(
            None if identity is None else identity.get_secret_value(),
            passphrase=None if passphrase is None else passphrase.get_secret_value(),
        )


class Recovered(Params):
    """What opens an archive without its TPM. It is never stored, logged or told."""

    recovery: RecoverySecret | None = None
    """A recovery key, where the TPM does not open the archive."""


class Opened(Recovered):
    """What it takes to open an archive, beside this machine's TPM. It is never stored, logged or told."""

    pin: Annotated[SecretStr, Field(min_length=1, max_length=128)] | None = None
    """The restore PIN, when the archive was made with one."""


def opening(params: Params) -> Opening:
    """Return what was given to open an archive with. Raises BadRecoveryKey."""
    if not isinstance(params, Recovered):
        return NOTHING
    pin = params.pin if isinstance(params, Opened) else None
    return Opening(
        pin=None if pin is None else pin.get_secret_value(),
        recovery=None if params.recovery is None else params.recovery.value(),
    )


class Nothing(Params):
    """No parameters."""


class Mutation(Params):
    """Something that changes what is there. The same key again gets the same answer, and changes nothing."""

    idempotency_key: Key | None = None
    """A word of your own for this one request, kept for 24 hours; send it again when you do not know whether the
    request arrived."""


class BaselineTake(Mutation):
    """A new baseline."""

    replace: bool = False
    """Whether it may take the place of the one there is."""


class SettingsUpdate(Mutation):
    """Settings that change; what is left out stays. null takes a target, schedule or policy away."""

    enabled: bool | None = None
    """Whether scheduled backups run."""
    target: dict[str, Any] | None = None
    """Where archives are kept: url and storage_options, in which a secret is written as {"secret": "..."}."""
    schedule: dict[str, Any] | None = None
    """When backups run."""
    retention: dict[str, Any] | None = None
    """Which archives are kept."""


class TargetTest(Params):
    """The target to try; the one in force when left out."""

    target: dict[str, Any] | None = None
    """url and storage_options, in which a secret is written as {"secret": "..."}."""


class JobId(Params):
    """One job."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    """The job's id."""


class JobLogOf(JobId):
    """What of a job's log is wanted."""

    after: Annotated[int, Field(ge=0)] = 0
    """The number of the last line that is known; 0 for the beginning."""
    limit: Count = 500
    """How many lines at most."""


class HistoryDays(Params):
    """Which days to tell of."""

    kind: Literal["backup", "drill", "selftest"] = "backup"
    """What is looked at. A baseline counts as a backup."""
    count: Annotated[int, Field(ge=1, le=400)] = 90
    """How many days, up to today."""
    timezone: Annotated[str, Field(max_length=64)] | None = None
    """IANA time zone that tells where days begin; that of the schedule when left out."""


class JobList(Params):
    """A page of jobs, the newest first."""

    limit: Count = 50
    """How many at most."""
    before: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None
    """The id of the last job of the page before."""
    kinds: list[JobKind] | None = None
    """Only these kinds."""
    states: list[JobState] | None = None
    """Only these states."""
    idempotency_key: Key | None = None
    """Only the job that a request with this key got."""


class ArchiveList(OfTarget):
    """A page of archives, the newest first."""

    limit: Count = 100
    """How many at most."""
    before: Name | None = None
    """The name of the last archive of the page before."""
    skip: Annotated[int, Field(ge=0)] = 0
    """How many of the newest to leave out (after `before`, if that is given too)."""
    evidence: list[Evidence] | None = None
    """Only those with this evidence."""
    held: bool | None = None
    """Only those that are held, or are not."""
    trend_days: Annotated[int, Field(ge=0, le=3660)] = 0
    """Of so many days tell sizes by day; 0: of none."""


class ArchiveName(Params):
    """One archive, wherever it is."""

    archive: Name
    """Its name."""


class ArchiveRead(OfTarget):
    """Some bytes of an archive."""

    archive: Name
    """Its name."""
    offset: Annotated[int, Field(ge=0)] = 0
    """Where to begin, in bytes."""
    length: Annotated[int, Field(ge=0, le=MOST_READ)] = MOST_READ
    """How many bytes at most; 0 only tells size and etag."""
    etag: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    """The object that has to be read, as the first piece told it: another one of that name is refused
    (TARGET_CHANGED)."""


class Archive(OfTarget, Recovered):
    """One archive of the target."""

    archive: Name
    """Its name."""


class ArchiveJob(Mutation, OfTarget):
    """One archive of the target."""

    archive: Name
    """Its name."""


class ArchiveVerify(ArchiveJob, Opened):
    """An archive to read."""


class ArchiveHold(Mutation, OfTarget):
    """An archive to hold."""

    archive: Name
    """Its name."""
    reason: Annotated[str, Field(max_length=500)] = ""
    """Why, for people."""


class ArchiveDelete(Mutation, OfTarget):
    """An archive to remove for good."""

    archive: Name
    """Its name."""
    even_the_last: bool = False
    """Remove it even though it is the newest one that was verified."""


class ArchiveCopy(Mutation):
    """An archive to copy to another of the configured targets."""

    archive: Name
    """Its name."""
    target: Url
    """The URL of the target that is to have it."""
    source: Url | None = None
    """The URL of the target to copy from; any that has it when left out."""


class DrillStart(Mutation, OfTarget, Opened):
    """What to restore for practice."""

    archive: Name | None = None
    """The archive's name. When it is left out: the newest verified one that no drill has restored yet, in the target
    (unless one is named) whose last proof is the oldest."""


DrillName = Annotated[str, Field(pattern=r"^[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}$")]


class DrillList(Params):
    """A page of drills, the newest first."""

    limit: Count = 20
    """How many at most."""
    before: DrillName | None = None
    """The id of the last drill of the page before."""


class DrillId(Params):
    """One drill."""

    id: DrillName
    """The drill's id."""


class RetentionApply(Mutation, OfTarget):
    """Where to remove what no rule keeps; in every target when left out."""


Named = Annotated[str, Field(min_length=1, max_length=500)]


class Part(Params):
    """What of an archive is wanted; all of it when nothing is said."""

    sources: Annotated[list[Named], Field(max_length=100)] = []
    """Only these sources of the archive."""
    databases: Annotated[list[Named], Field(max_length=1000)] = []
    """Only these PostgreSQL databases."""
    only: Kind | None = None
    """Only directories (config), only the roles of PostgreSQL servers, or only databases."""


class RestorePlanOf(OfTarget, Opened, Part):
    """The archive that would be restored."""

    archive: Name
    """Its name."""


PlanToken = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class RestoreStart(Mutation, OfTarget, Opened, Part):
    """The archive to restore."""

    archive: Name
    """Its name."""
    allow: list[Annotated[str, Field(pattern=r"^[A-Z_]{1,64}$")]] = []
    """Codes of obstacles to go ahead in spite of."""
    token: PlanToken | None = None
    """A plan's token: the restore is refused (PLAN_CHANGED) when it finds something else than that plan told."""


class RestoreTables(Mutation, OfTarget, Opened):
    """Tables to restore into a new database beside the live one."""

    archive: Name
    """Its name."""
    database: Named
    """The archived database that has them."""
    tables: Annotated[list[Named], Field(min_length=1, max_length=1000)]
    """Their names: SCHEMA.TABLE, or TABLE for one in the schema public."""
    into: Annotated[str, Field(min_length=1, max_length=63)]
    """The name of the database to make."""
    source_name: Named | None = None
    """The archive's source that has the database; it is found when only one has."""
    allow: list[Annotated[str, Field(pattern=r"^[A-Z_]{1,64}$")]] = []
    """Codes of obstacles to go ahead in spite of."""


class ResetPlanOf(Opened):
    """How far a reset would go."""

    remove_new_databases: bool = False
    """Whether databases that were made since the baseline go, with the old state."""


class ResetStart(Mutation, Opened):
    """How far the reset goes."""

    remove_new_databases: bool = False
    """Whether databases that were made since the baseline go, with the old state."""
    allow: list[Annotated[str, Field(pattern=r"^[A-Z_]{1,64}$")]] = []
    """Codes of obstacles to go ahead in spite of."""
    token: PlanToken | None = None
    """A plan's token: the reset is refused (PLAN_CHANGED) when it finds something else than that plan told, such as
    another baseline."""


class SchedulePreview(Params):
    """How many runs to tell, of which schedule."""

    count: Annotated[int, Field(ge=1, le=100)] = 10
    """How many."""
    schedule: dict[str, Any] | None = None
    """A schedule to try; the one in force when left out."""


class RetentionPreview(OfTarget):
    """Which policy to try."""

    retention: dict[str, Any] | None = None
    """A policy to try; the one in force when left out."""
    schedule: dict[str, Any] | None = None
    """A schedule to try it with: days, weeks and months begin in its time zone."""


class Since(Params):
    """Where to begin."""

    since: Annotated[int, Field(ge=0)] | None = None
    """The number of the last event that is known; only new ones when left out."""
