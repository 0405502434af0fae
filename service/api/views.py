"""What the methods give, where it is not a value of the recipes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Self

from service.archive.parts import Footer, Header, Manifest
from service.config import ConfigFile
from service.errors import SealError
from service.job import Job
from service.jobs import Jobs
from service.prune import PruneResult
from service.recovery_choice import recovery_choice
from storage_backends.base import ObjectInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView(Job):
    """A job, and how far it is while it runs."""

    progress: dict[str, Any] | None = None
    """stage, raw_bytes, stored_bytes, expected_raw_bytes (null when unknown), rate (bytes a second), eta_seconds,
    and for a backup targets (url, state, why)."""

    @classmethod
    def of(cls, job: Job, jobs: Jobs) -> Self:
        """Return the view of a job."""
        values = {each.name: getattr(job, each.name) for each in fields(Job)}
        return cls(**values, progress=jobs.how_far(job.id))


@dataclass(frozen=True, slots=True)
class Pending:
    """A restore that keeps the state before it."""

    id: str
    archive: str
    started: str
    state: str
    sources: list[str]
    expires: datetime | None = None
    """When the state before it will be removed by itself; null: not before `restore.commit`."""


@dataclass(frozen=True, slots=True)
class RecoveryInfo:
    """The recovery keys that new archives are sealed for. `warning` says what is at stake without one."""

    recipients: list[str]
    passphrase: bool
    """Whether the key is a passphrase."""
    decided: bool
    fixed: bool
    """Whether the configuration file says so."""
    warning: str | None

    @classmethod
    def of(cls, file: ConfigFile) -> Self | None:
        """Return what is in force; a choice that cannot be read is a warning."""
        if file.sealing.mode == "off":
            return None
        try:
            choice = recovery_choice(file)
        except SealError as error:
            return cls([], passphrase=False, decided=False, fixed=False, warning=str(error))
        protected = choice.protected is not None
        return cls([*choice.recipients], protected, choice.decided, choice.fixed, choice.warning)


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemInfo:
    """What service this is and how it stands. `not_ready` says why it takes no jobs; null when it does."""

    version: str
    boot_id: str
    started: datetime
    now: datetime
    host: str
    """The name of this machine, which whoever restores is asked to type."""
    product: str
    targets: list[str]
    """The URLs of the targets, those with copies last; empty when there is none yet."""
    state_dir: str
    sealing: str
    not_ready: str | None
    active: JobView | None
    waiting: int
    next_run: datetime | None
    last_backup: Job | None
    last_success: Job | None
    next_drill: datetime | None
    last_drill: Job | None
    clock_doubted_since: datetime | None
    restore: Pending | None
    """The restore that keeps the state before it."""
    recovery: RecoveryInfo | None
    """Who opens archives beside this TPM; null when sealing is off."""


@dataclass(frozen=True, slots=True)
class Changed:
    """The System Backup settings in force. Secrets show as where they are kept."""

    settings: dict[str, Any]
    fixed: list[str]
    """Settings that the configuration file gives, which cannot be changed here."""
    copies: list[str]
    """URLs of further targets, which only the configuration file gives."""


@dataclass(frozen=True, slots=True)
class JobPage:
    """Jobs, the newest first; `more` says whether there are older ones."""

    jobs: list[Job]
    more: bool


@dataclass(frozen=True, slots=True)
class DrillSummary:
    """What one drill has found, in short."""

    id: str
    result: str
    """passed or failed."""
    archive: str
    target: str
    started: str
    seconds: float
    signed: bool
    failure: dict[str, Any] | None
    """Why it failed: stage, code, message, hint."""

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Self:
        """Return the summary of a report."""
        return cls(
            id=report["id"],
            result=report["result"],
            archive=report["archive"]["name"],
            target=report["archive"]["target"],
            started=report["started"],
            seconds=report["seconds"],
            signed=report["signature"] is not None,
            failure=report["failure"],
        )


@dataclass(frozen=True, slots=True)
class DrillPage:
    """Drills, the newest first; `more` says whether there are older ones."""

    drills: list[DrillSummary]
    more: bool


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events, the oldest first."""

    events: list[dict[str, Any]]
    boot_id: str


@dataclass(frozen=True, slots=True)
class RetentionVerdicts:
    """What retention says of the archives of each target."""

    targets: list[PruneResult]


@dataclass(frozen=True, slots=True)
class Done:
    """It was done."""

    done: bool = True


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is in an archive. `closed` says why its content cannot be read; the rest is then not authenticated."""

    name: str
    size: int
    header: dict[str, Any]
    footer: dict[str, Any]
    sources: list[dict[str, Any]] = field(default_factory=list)
    """For each source: name, type, streams, bytes, rows, and databases with their number of streams."""
    excluded: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    closed: str | None = None
    signer: str | None = None
    """Fingerprint of the TPM's key that has signed the archive."""
    origin_proven: bool = False
    """Whether this machine's TPM, or a signer that is trusted here, has surely made it."""

    @classmethod
    def of(
        cls, info: ObjectInfo, header: Header, footer: Footer, manifest: Manifest | None, *, closed: str | None = None
    ) -> Self:
        """Return the view of an archive."""
        return cls(
            name=info.key,
            size=info.size,
            header=header.model_dump(mode="json", exclude_none=True),
            footer=footer.model_dump(mode="json", exclude_none=True),
            sources=[] if manifest is None else _sources(manifest),
            excluded=[] if manifest is None else [dict(item) for item in manifest.excluded],
            warnings=[] if manifest is None else list(manifest.warnings),
            closed=closed,
        )


def _sources(manifest: Manifest) -> list[dict[str, Any]]:
    told = []
    for source in manifest.sources:
        streams = [stream for stream in manifest.streams if stream.source == source.name]
        databases = Counter(stream.labels["database"] for stream in streams if "database" in stream.labels)
        told.append(
            {
                "name": source.name,
                "type": source.type,
                "streams": len(streams),
                "bytes": sum(stream.bytes for stream in streams),
                "rows": sum(int(stream.details.get("rows", 0)) for stream in streams),
                "databases": dict(sorted(databases.items())),
            }
        )
    return told
