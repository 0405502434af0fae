"""The commands that are compared, ours and the peers', as a person types them into a shell.

They find in the environment: DB, RESTORED (databases), OUT (an empty directory for what a backup writes), STAGING
(a directory that is not there yet), KEY and RECIPIENT (age's), PYTHON, CONFIG and RESULT (ours), and PG...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

T = TypeVar("T")

_PSQL = 'psql -X -q -v ON_ERROR_STOP=1 -o /dev/null -d "$RESTORED"'
_CREATE = 'createdb -T template0 "$RESTORED"'
_PG_RESTORE = 'pg_restore -j"$(nproc)" --exit-on-error -d "$RESTORED"'
_ANALYZE = 'vacuumdb --analyze-only -q -j"$(nproc)" -d "$RESTORED"'


@dataclass(frozen=True, slots=True)
class Way:
    """One way to back up and restore a database. Scripts of bash, with pipefail."""

    name: str
    title: str
    back_up: str
    archive: str
    """What the archive is: globs below OUT."""
    restore: str = ""
    restore_title: str = ""
    prepare: str = ""
    """Done before a backup, not measured."""
    prepare_restore: str = ""
    """Done before a restore, not measured."""
    tidy: str = 'dropdb --if-exists --force "$RESTORED"'
    """Done after a restore, not measured."""


OURS = Way(
    "ours",
    "deviceon-backup",
    '"$PYTHON" -m service -c "$CONFIG" backup --json >"$RESULT"',
    "Backup_*.zip",
    '"$PYTHON" -m service -c "$CONFIG" restore --json --yes "$OUT"/Backup_*.zip >"$RESULT"',
    tidy='"$PYTHON" -m service -c "$CONFIG" rollback --yes',
    restore_title="deviceon-backup",
)
STREAMING = Way(
    "streaming",
    "pg_dump -Fp | zstd -1 | age",
    'pg_dump -Fp "$DB" | zstd -q -1 -T0 | age -r "$RECIPIENT" -o "$OUT/dump.sql.zst.age"',
    "dump.sql.zst.age",
    f'{_CREATE} && age -d -i "$KEY" "$OUT/dump.sql.zst.age" | zstd -q -d | {_PSQL}',
    restore_title="age -d | zstd -d | psql",
)
STREAMING_3 = Way(
    "streaming-3",
    "pg_dump -Fp | zstd -3 | age",
    'pg_dump -Fp "$DB" | zstd -q -3 -T0 | age -r "$RECIPIENT" -o "$OUT/dump.sql.zst.age"',
    "dump.sql.zst.age",
)
DEFAULT = Way(
    "default",
    "pg_dump -Fc | age",
    'pg_dump -Fc "$DB" | age -r "$RECIPIENT" -o "$OUT/dump.age"',
    "dump.age",
    f'{_CREATE} && age -d -i "$KEY" -o "$STAGING" "$OUT/dump.age" && {_PG_RESTORE} "$STAGING"',
    restore_title="age -d, pg_restore -j2 (-Fc)",
)
DIRECTORY = Way(
    "directory",
    "pg_dump -Fd -j2, tar | age",
    'pg_dump -Fd -j"$(nproc)" -f "$STAGING" "$DB" '
    '&& tar -C "$STAGING" -c . | age -r "$RECIPIENT" -o "$OUT/dump.tar.age"',
    "dump.tar.age",
    f'{_CREATE} && mkdir "$STAGING" && age -d -i "$KEY" "$OUT/dump.tar.age" | tar -C "$STAGING" -x '
    f'&& {_PG_RESTORE} "$STAGING"',
    restore_title="age -d | tar, pg_restore -j2 (-Fd)",
)
PLAIN_DIRECTORY = Way(
    "plain-directory",
    "pg_dump -Fd -j2 -Z0 (plain, open)",
    'pg_dump -Fd -j"$(nproc)" -Z0 -f "$OUT/dump" "$DB"',
    "dump/*",
    f'{_CREATE} && {_PG_RESTORE} "$OUT/dump"',
    restore_title="pg_restore -j2 (plain, open)",
)
RESTIC = Way(
    "restic",
    "pg_dump -Fp | restic",
    'pg_dump -Fp "$DB" | restic backup -q --stdin --stdin-filename dump.sql',
    "repository/**/*",
    f"{_CREATE} && restic dump -q latest dump.sql | {_PSQL}",
    prepare="restic init -q",
    restore_title="restic dump | psql",
)
BORG = Way(
    "borg",
    "pg_dump -Fp | borg",
    'pg_dump -Fp "$DB" | borg create --compression zstd,3 "::dump" -',
    "repository/**/*",
    f'{_CREATE} && borg extract --stdout "::dump" | {_PSQL}',
    prepare="borg init -e repokey",
    restore_title="borg extract | psql",
)
DATA_PHASE = Way(
    "data-phase",
    "(restores only)",
    "",
    "",
    f'{_PG_RESTORE} --section=data "$STAGING"',
    prepare_restore=f'{_CREATE} && age -d -i "$KEY" -o "$STAGING" "$OUT/dump.age"'
    f' && {_PG_RESTORE} --section=pre-data "$STAGING"',
    restore_title="pg_restore -j2, data phase alone",
)

STREAMING_ANALYZED = replace(
    STREAMING,
    name="streaming-analyzed",
    restore=f"{STREAMING.restore} && {_ANALYZE}",
    restore_title=f"{STREAMING.restore_title}, vacuumdb --analyze-only",
)
DEFAULT_ANALYZED = replace(
    DEFAULT,
    name="default-analyzed",
    restore=f"{DEFAULT.restore} && {_ANALYZE}",
    restore_title=f"{DEFAULT.restore_title}, vacuumdb --analyze-only",
)

BACKUPS: Sequence[Way] = (OURS, STREAMING, STREAMING_3, DEFAULT, DIRECTORY, PLAIN_DIRECTORY, RESTIC, BORG)
RESTORES: Sequence[Way] = (
    OURS,
    STREAMING,
    STREAMING_ANALYZED,
    DEFAULT,
    DEFAULT_ANALYZED,
    DIRECTORY,
    PLAIN_DIRECTORY,
    DATA_PHASE,
)
SLOW_RESTORES: Sequence[Way] = (RESTIC, BORG)
"""Measured in one round only: they end in the same psql as the streaming peer."""
SHAPE_BACKUPS: Sequence[Way] = (OURS, STREAMING, DEFAULT)
SHAPE_RESTORES: Sequence[Way] = (OURS, DEFAULT)
_ALL = (*BACKUPS, STREAMING_ANALYZED, DEFAULT_ANALYZED, DATA_PHASE)
TITLES = {"backup": {way.name: way.title for way in _ALL}, "restore": {way.name: way.restore_title for way in _ALL}}


def rotated(ways: Sequence[T], number: int) -> list[T]:
    """Return the order of round `number`: another one is first each time, so that the first place helps nobody."""
    start = (number - 1) % len(ways)
    return [*ways[start:], *ways[:start]]
