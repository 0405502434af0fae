"""What the methods on archives give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Self

from service.catalog import CatalogEntry
from service.holding import Hold
from service.size_trend import SizeOfDay


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveEntry(CatalogEntry):
    """One archive in a target. `problem` says why it cannot be used; then only name and size are known."""

    hold: Hold | None = None
    """Why it is held, by whom, since when; null when it is not held."""

    @classmethod
    def of(cls, entry: CatalogEntry, hold: Hold | None) -> Self:
        """Return the view of an archive."""
        return cls(**{each.name: getattr(entry, each.name) for each in fields(CatalogEntry)}, hold=hold)


@dataclass(frozen=True, slots=True)
class ArchivePage:
    """Archives, the newest first; `more` says whether there are older ones."""

    target: str
    archives: Sequence[ArchiveEntry]
    total: int
    """How many there are of those that were asked for."""
    more: bool
    bytes: int = 0
    """Bytes that all of these take in the target."""
    trend: list[SizeOfDay] = field(default_factory=list)
    """The sizes of the days that were asked for, whatever else was asked, the oldest first."""


@dataclass(frozen=True, slots=True)
class ArchiveCopy:
    """What one target has of an archive."""

    target: str
    entry: ArchiveEntry | None
    """null when the target does not have it, or cannot be asked."""
    last_good: str = ""
    """In which way it is the last good one there, so that its removal has to be asked for; empty when it is not."""
    problem: str = ""
    """Why the target cannot be asked."""


@dataclass(frozen=True, slots=True)
class ArchiveCopies:
    """What every target has of an archive, in the order of the configuration."""

    archive: str
    copies: list[ArchiveCopy]


@dataclass(frozen=True, slots=True)
class ArchivePiece:
    """Some bytes of an archive as it lies in the target, sealed or not."""

    data: str
    """In base64. Fewer bytes than were asked for come only at the archive's end."""
    offset: int
    etag: str
    """Of the object that was read: ask for all other pieces with it."""
    size: int | None
    """The archive's bytes in all; null when an etag was given, since that object does not change."""
