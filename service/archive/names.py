"""Names of archives and of the entries in them. A name that is not exactly one of these is nobody's."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

HEADER: Final = "header.json"
KEYSLOTS: Final = "keyslots.json"
FOOTER: Final = "footer.json"
MANIFEST_STREAM: Final = 0xFFFF_FFFF
"""The number of the stream that holds the manifest; other streams have smaller ones."""

MAX_INDEX: Final = 0xFFFF_FFFF

# fullmatch and [0-9] on purpose: `$` lets a trailing newline pass and `\d` lets other scripts' digits pass.
_ARCHIVE = re.compile(r"Backup_([0-9]{4})([0-9]{2})([0-9]{2})_([0-9]{2})([0-9]{2})Z\.zip")
_STREAM = re.compile(r"streams/([0-9a-f]{8})/([0-9a-f]{8})\.(zst|sealed)")


def archive_name(created: datetime) -> str:
    """Return the archive name of an aware time, in UTC to the minute: `Backup_20250131_2359Z.zip`."""
    if created.tzinfo is None:
        raise ValueError("an archive's time must say its time zone")
    utc = created.astimezone(UTC)
    # Not strftime: its %Y does not pad years before 1000 everywhere.
    return f"Backup_{utc.year:04d}{utc.month:02d}{utc.day:02d}_{utc.hour:02d}{utc.minute:02d}Z.zip"


def parse_archive_name(name: str) -> datetime | None:
    """Return the minute an archive name tells, in UTC; None when `name` is not the name of an archive."""
    match = _ARCHIVE.fullmatch(name)
    if match is None:
        return None
    year, month, day, hour, minute = map(int, match.groups())
    try:
        return datetime(year, month, day, hour, minute, tzinfo=UTC)
    except ValueError:  # 31 February
        return None


def stream_entry(stream: int, index: int, *, sealed: bool) -> str:
    """Return the entry name of chunk `index` of `stream`."""
    if not (0 <= stream <= MANIFEST_STREAM and 0 <= index <= MAX_INDEX):
        raise ValueError(f"no entry name for chunk {index} of stream {stream}")
    return f"streams/{stream:08x}/{index:08x}.{'sealed' if sealed else 'zst'}"


def parse_stream_entry(name: str) -> tuple[int, int, bool] | None:
    """Return (stream, index, sealed) of an entry name; None when it is not the name of a chunk."""
    match = _STREAM.fullmatch(name)
    if match is None:
        return None
    stream, index, suffix = match.groups()
    return int(stream, 16), int(index, 16), suffix == "sealed"
