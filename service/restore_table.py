"""Tables out of an archive into a new database beside the live one, which is not touched.

The database gets its name when all is checked, and then it stays: there is no commit and no rollback. Until then the
restore journal has it, so that a failure or a crash leaves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from service import sources
from service.backup import utc_now
from service.blocking import to_the_end
from service.catalog import opened
from service.config import Config
from service.errors import ConfigError, JobRefused, RestoreRefused, SwapFailed
from service.exclusive import servers_locked
from service.journal import Journal
from service.pipeline.unpack import ArchiveReader
from service.progress import Progress
from service.restore import pending, recover
from service.restore_plan import plan_for, require_allowable
from service.selection import Selection
from service.sources.base import Record, Restorer, StoredSource
from service.state_directory import only_job
from service.terminal import counted

_MATTERS = (
    "ARCHIVE_NOT_SEALED",
    "ORIGIN_NOT_PROVEN",
    "SOURCE_NOT_CONFIGURED",
    "STREAM_KIND_UNKNOWN",
    "SERVER_UNREACHABLE",
    "SERVER_READ_ONLY",
    "SERVER_LOCKED",
    "CONNECTIONS_FULL",
    "POSTGRESQL_VERSION",
    "POSTGRESQL_PRIVILEGE",
    "POSTGRESQL_CLIENT",
    "EXTENSION_MISSING",
    "EXTENSION_VERSION",
    "LOCALE_MISSING",
)
"""Obstacles of a restore that are some here, too; the others concern what a restore would replace."""

_NAME_BYTES = 63


@dataclass(frozen=True, slots=True)
class TablesRestored:
    """What is in the new database: `tables` with schema, table, rows and copy_back (a shell command)."""

    archive: str
    database: str
    tables: list[dict[str, Any]]
    notes: list[str]
    seconds: float


def named(text: str) -> tuple[str, str]:
    """Return schema and name of a table written as SCHEMA.TABLE, or TABLE for one in the schema public."""
    schema, dot, table = text.partition(".")
    if not schema or (dot and not table):
        raise ConfigError(f"{text!r} is no name of a table", hint="Write SCHEMA.TABLE.")
    return (schema, table) if dot else ("public", schema)


def _require_name(database: str) -> None:
    """PostgreSQL would cut a longer name, and nothing would find the database under the name that it was given."""
    if not database or "\0" in database or len(database.encode()) > _NAME_BYTES:
        raise ConfigError(
            f"{database!r} cannot be the name of a database",
            hint=f"Names have {_NAME_BYTES} bytes at most, and other letters than a to z may take several.",
        )


async def restore_tables(
    config: Config,
    archive: str,
    *,
    database: str,
    tables: list[str],
    into: str,
    source: str | None = None,
    allow: frozenset[str] = frozenset(),
    progress: Progress,
) -> TablesRestored:
    """Restore tables of one archived database into the new database `into` of the same server.

    Raises RestoreRefused (also when `into` is there), NotInArchive, StageFailed, SourceError, ArchiveError, SealError,
    StorageError; nothing is left then.
    """
    started = utc_now()
    require_allowable(allow)
    _require_name(into)
    wanted = [named(table) for table in dict.fromkeys(tables)]
    await recover(config, progress=progress)
    with only_job(config.state_dir, "a restore of tables"):
        if (waiting := pending(config)) is not None:
            raise JobRefused(
                f"the restore of {waiting.archive} still keeps the state before it",
                hint="`deviceon-backup commit` removes that old state, `deviceon-backup rollback` returns to it.",
            )
        async with opened(config, archive) as reader:
            progress.begin("plan", f"Checking what restoring tables of {archive} would do")
            select = Selection(sources=(source,) if source else (), databases=(database,))
            stored = _only_one(select.of(reader.sources()), database)
            plan = await plan_for(config, reader, archive, select=select)
            if blocking := [o for o in plan.obstacles if o.code in _MATTERS and o.code not in allow]:
                raise RestoreRefused(blocking)
            journal = Journal.begin(config.state_dir, archive=archive, started=started.isoformat())
            settings = sources.settings_for(config, stored)
            async with servers_locked([settings], "a restore of tables"):
                done, notes = await _staged(config, reader, stored, journal, wanted, into, progress)
    seconds = (utc_now() - started).total_seconds()
    return TablesRestored(archive, into, done, notes, seconds)


def _only_one(found: list[StoredSource], database: str) -> StoredSource:
    if len(found) != 1:
        raise ConfigError(
            f"several sources have a database {database!r}: {', '.join(each.name for each in found)}",
            hint="Say which with --source.",
        )
    return found[0]


async def _staged(
    config: Config,
    reader: ArchiveReader,
    stored: StoredSource,
    journal: Journal,
    wanted: list[tuple[str, str]],
    into: str,
    progress: Progress,
) -> tuple[list[dict[str, Any]], list[str]]:
    settings = sources.settings_for(config, stored)
    record = journal.add(stored.name, settings.model_dump(mode="json"), [])
    restorer = sources.restorer(settings, [])
    try:
        progress.begin("stage", f"Restoring {counted(len(wanted), 'table')} into the new database {into}")
        done, notes = await sources.stage_tables(
            settings, stored, reader, record, journal.save, progress, tables=wanted, into=into
        )
        await restorer.swap(record, journal.save)
        progress.past_cancelling = True
        await journal.remove()
    except BaseException as error:
        await to_the_end(_undo(journal, restorer, record, error))
        raise
    return done, notes


async def _undo(journal: Journal, restorer: Restorer, record: Record, cause: BaseException) -> None:
    try:
        await journal.save("undoing")
        await restorer.undo(record)
        await journal.remove()
    except Exception as error:
        raise SwapFailed(
            f"restoring the tables failed ({cause}), and what was begun could not be removed: {error}",
            hint="Remove that cause, then run `deviceon-backup rollback`: it goes on where this stopped.",
        ) from error
