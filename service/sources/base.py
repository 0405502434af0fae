"""The seam between the recipes and what is backed up.

BACKUP. `Source.snapshot()` holds one consistent view from start to end. It lists the streams that make up the
source; the recipe reads them, up to `parallel` at a time, in the order given. When every stream is read,
`facts()` is the source's part of the manifest.

RESTORE. A `Restorer` is made for one source of one archive. Its work is split so that a restore can be undone by
anybody at any time, also after a crash, from nothing but its `record` (JSON, in the restore journal):

    obstacles()   nothing is touched; says what stands in the way
    stage()       makes the copy beside the live data, checks it against the manifest
    swap()        exchanges copy and live data; the old state stays beside it
    undo()        from any of these states, brings the old state back and removes the copy; idempotent
    commit()      removes the old state; idempotent

A drill stages, and then, instead of exchanging anything, compares once more and undoes:

    room()        says what the copy would take, and what of that there is
    compare()     reads the staged copy and compares it with the manifest, further than `stage` does

Every step must write what it is about to do into `record` and await `save()` before doing it; `undo` and `commit`
decide by looking at what is really there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from service.errors import Obstacle
from service.progress import Progress

Json = Any
"""A value that JSON can hold."""

Record = dict[str, Json]
"""One source's part of the restore journal. The restorer owns its content; the recipe saves it."""


@dataclass(slots=True, kw_only=True)
class Stream:
    """One byte stream of a snapshot. `read` is called at most once."""

    kind: str
    """What the bytes are: `postgresql.schema`, `postgresql.rows`, `tree.tar`, ... (docs/ARCHIVE_FORMAT.md)."""
    labels: Mapping[str, str]
    """Where they come from: database, schema, table, path."""
    read: Callable[[], AsyncGenerator[bytes, None]]
    """Yields the bytes in pieces of any size, in bounded memory."""
    expected_bytes: int = 0
    """An estimate for progress; 0 when unknown."""
    details: dict[str, Json] = field(default_factory=dict)
    """Goes into the manifest; complete when `read` has ended (rows, format, columns)."""


class Snapshot(Protocol):
    """A consistent view of one source, held open."""

    @property
    def streams(self) -> Sequence[Stream]:
        """All streams, those to be started first at the front."""
        ...

    @property
    def parallel(self) -> int:
        """How many streams may be read at once."""
        ...

    async def facts(self) -> dict[str, Json]:
        """The source's part of the manifest; awaited after every stream was read.

        Confirms that the view was held to the end, and raises SourceError when it was not.
        `warnings` (list of sentences) and `excluded` (list of {path, reason}) are shown to people.
        """
        ...


class Source(ABC):
    """One thing that is backed up. `name` is unique in the configuration, `type` names the implementation."""

    type: str
    name: str

    @abstractmethod
    def snapshot(self) -> AbstractAsyncContextManager[Snapshot]:
        """Open a consistent view; leaving the block lets it go. Raises SourceError, SourceUnavailable."""


@dataclass(frozen=True, slots=True)
class StoredStream:
    """One stream as the manifest tells it."""

    id: int
    source: str
    kind: str
    labels: Mapping[str, str]
    chunks: int
    bytes: int
    sha256: str
    details: Mapping[str, Json]


class StreamReader(Protocol):
    """Reads streams out of an archive; each byte it yields is authenticated."""

    def read(self, stream: StoredStream) -> AsyncGenerator[bytes, None]:
        """Yield the stream's bytes in order, chunk by chunk.

        A chunk is authenticated before it is yielded; the length and SHA-256 of the whole stream are compared with
        the manifest before the iterator ends normally. Raises ArchiveError, NotAuthentic, StorageError.
        Safe to use for several streams at once; close with `contextlib.aclosing`.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSource:
    """One source as the manifest tells it, with its streams."""

    name: str
    type: str
    facts: Mapping[str, Json]
    streams: Sequence[StoredStream]
    whole: bool = True
    """Whether all of it is wanted. Else `facts` and `streams` are of what is, and what its parts share with others
    stays as it is on the server."""
    exactly: bool = False
    """Whether what the source selects and the archive does not have is to go, with the old state."""


MADE_SINCE = "not in this archive, although the source selects it"
"""The note of a plan's item for what was made since the archive."""


@dataclass(frozen=True, slots=True)
class PlanItem:
    """One line of a restore plan: what would be replaced by what."""

    what: str
    action: str
    """`replace`, `create`, `keep`; `remove`: goes with the old state at commit."""
    note: str = ""


class SourcePlan(NamedTuple):
    """What a restore would do to one source, what stands in its way, and what is worth knowing but does not."""

    items: list[PlanItem]
    obstacles: list[Obstacle]
    notes: Sequence[Obstacle] = ()
    """Like obstacles, with a stable code and a remedy, but nobody has to allow them."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a copy of one source takes of where it would be made."""

    needed: Mapping[Path, int]
    """Directories that it would be written below, with the bytes that it needs there."""
    unseen: str = ""
    """A place of which nobody here sees how full it is; empty when all can be seen."""
    free_connections: int | None = None
    """How many more connections the server takes; None where there is no server."""


@dataclass(slots=True)
class Compared:
    """What was found equal: numbers by what they count, for people, and what they should know of."""

    counts: dict[str, int] = field(default_factory=dict)
    """databases, tables, rows, definitions, identical_definitions, files, directories, bytes, read_back_digests, ..."""
    notes: list[str] = field(default_factory=list)


class Restorer(ABC):
    """Brings one source back; see the module's text for the states."""

    kinds: frozenset[str]
    """The kinds of streams that it restores. An archive with another one is newer, and refused."""

    @abstractmethod
    async def plan(self, stored: StoredSource, reader: StreamReader | None = None) -> SourcePlan:
        """Say what a restore would do and what stands in its way. Touches nothing.

        Without `reader`, what only the archive's streams tell (roles) is left out. Raises ArchiveError, StorageError.
        """

    async def differences(
        self, stored: StoredSource, reader: StreamReader, *, since: datetime, ignore: Sequence[str]
    ) -> list[str]:
        """Say how live data differs from the archive of `since`, as far as that is cheap to tell. Changes nothing.

        `ignore` are globs of what may have changed in a tree. Nothing said is no proof that nothing differs. Raises
        SourceError.
        """
        return []

    @abstractmethod
    async def stage(
        self,
        stored: StoredSource,
        reader: StreamReader,
        record: Record,
        save: Callable[[], Awaitable[None]],
        progress: Progress,
    ) -> None:
        """Make and check the copy beside the live data. Raises StageFailed, SourceError, ArchiveError."""

    async def ready(self, record: Record) -> None:  # noqa: B027 - most have nothing that could have gone away
        """Raise ServiceError when `swap` could not begin now, since what it needs is gone. Changes nothing."""

    @abstractmethod
    async def room(self, stored: StoredSource) -> Room:
        """Say what `stage` would take. Touches nothing. Raises SourceError, OSError."""

    @abstractmethod
    async def compare(self, stored: StoredSource, reader: StreamReader, record: Record, progress: Progress) -> Compared:
        """Read what `stage` has made and compare it with the manifest. Raises StageFailed when it differs."""

    @abstractmethod
    async def swap(self, record: Record, save: Callable[[], Awaitable[None]]) -> None:
        """Exchange the staged copy and the live data. Raises SwapFailed; the recipe then calls `undo`."""

    @abstractmethod
    async def undo(self, record: Record) -> None:
        """Bring back the state before the restore, from wherever it stands, and remove the copy. Idempotent."""

    async def confirm(self, record: Record) -> None:  # noqa: B027 - most have nothing to look at
        """Raise RestoreError when `commit` would refuse; changes nothing, so that a rollback stays possible."""

    @abstractmethod
    async def commit(self, record: Record) -> None:
        """Remove the old state for good. Idempotent."""
