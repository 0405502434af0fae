"""What a drill has seen so far, and the report that it makes of it."""

from __future__ import annotations

import os
import platform
import secrets
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Self

from service.config import Config
from service.drill_report import FORMAT, VERSION, Report
from service.drill_requirements import requirements
from service.failure import as_json
from service.ledger import Evidence
from service.pipeline.unpack import ArchiveReader
from service.progress import Progress
from service.secret import redact
from service.sources.base import Compared

_COMPARED = (
    "Every chunk that was read was authenticated (sealed archives) and agreed with its checksums.",
    "Length and SHA-256 of every stream that was restored agreed with the manifest.",
    "PostgreSQL: what COPY wrote into each table agreed with the manifest. Afterwards the rows of each table were "
    "counted by reading it, but for configuration tables of extensions, which hold rows of their own.",
    "PostgreSQL: numbers of relations, indexes, functions, types, constraints, triggers, policies, rules, large "
    "objects and extensions agreed. So did type, schema, name and owner of every definition. Their texts were "
    "compared.",
    "Directories were read back as a backup reads them; SQLite files were checked and read back. Their digests agreed "
    "unless the notes say otherwise.",
)


@dataclass(slots=True)
class Seen:
    """Filled while a drill goes on."""

    id: str
    started: datetime
    target: str
    name: str
    product: str
    archive: dict[str, Any]
    evidence: Evidence | None = None
    """What the drill has found out; None when it said nothing of the archive."""
    sealed: bool | None = None
    """None until the archive is opened."""
    by_tpm: bool = False
    """Whether this machine's TPM opened it, and no key that somebody gave."""
    installed: str | None = None
    """The version of the server that is installed here."""
    failed_while: str = ""
    """The stage in which the drill failed; empty when it is the last one."""
    digests: int = 0
    """Streams whose digest was compared."""
    counts: Counter[str] = field(default_factory=Counter)
    restored_into: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, config: Config, archive: str, now: datetime) -> Self:
        """Begin with what is known before the archive is opened."""
        moment = now.astimezone(UTC)
        url = redact(config.target.url)
        return cls(
            id=f"{moment:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}",
            started=moment,
            target=url,
            name=archive,
            product=config.server.product,
            archive={"name": archive, "target": url},
        )

    def opened(self, reader: ArchiveReader) -> None:
        """Note what the archive is: authenticated, for it was opened."""
        header = reader.header
        self.sealed = header.sealed
        self.by_tpm = reader.opened_by_tpm
        self.archive |= {
            "etag": reader.info.etag,
            "archive_id": header.archive_id,
            "created": header.created.isoformat(),
            "number": header.seq,
            "server_version": header.server_version,
            "sealing": header.sealing,
            "tpm": header.fingerprint,
            "size": reader.info.size,
            "raw_bytes": reader.footer.raw_bytes,
            "streams": len(reader.manifest.streams),
        }
        self.warnings += reader.manifest.warnings

    def add(self, compared: Compared) -> None:
        """Note what was found equal."""
        self.counts.update(compared.counts)
        self.notes += compared.notes

    def report(self, ended: datetime, progress: Progress, error: BaseException | None) -> Report:
        """Return the report, not signed yet; `error` is why the drill did not pass."""
        passed = error is None
        failure = None if error is None else as_json(error)
        return {
            "format": FORMAT,
            "version": VERSION,
            "id": self.id,
            "result": "passed" if passed else "failed",
            "evidence": self.evidence,
            "failure": failure
            and {"stage": self.failed_while or progress.stage}
            | {name: failure[name] for name in ("code", "message", "hint")},
            "archive": self.archive,
            "started": self.started.isoformat(),
            "ended": ended.astimezone(UTC).isoformat(),
            "seconds": round((ended - self.started).total_seconds(), 3),
            "stages": progress.end(),
            "restored_into": self.restored_into,
            "counts": {"stream_digests": self.digests, **dict(sorted(self.counts.items()))},
            "compared": list(_COMPARED) if passed else [],
            "notes": [redact(note) for note in self.notes],
            "machine": {"host": os.uname()[1], "product": self.product, "installed_version": self.installed},
            "versions": {"deviceon_backup": version("deviceon-backup"), "python": platform.python_version()},
            "requirements": requirements(passed=passed, sealed=self.sealed, by_tpm=self.by_tpm),
            "signature": None,
        }
