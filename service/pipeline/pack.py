"""BACKUP: read the streams of all sources and put them into a target as one archive.

    lanes (several streams at once) -> outlet (bounded) -> layout -> target.put

The target pulls. What it does not take, fills the outlet; a full outlet stops the lanes; a lane that stops no longer
reads its source. The manifest is sent when every stream succeeded, the footer after it; the target publishes when
it has got the last byte, so whatever fails before, fails the whole: nothing appears.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar

from service.archive.names import FOOTER, HEADER, KEYSLOTS, MANIFEST_STREAM
from service.archive.parts import Footer, Header, KeySlots, Manifest, ManifestSource, ManifestStream
from service.errors import SourceError
from service.pipeline.lane import FileEntry, Lane, file_entry
from service.pipeline.layout import Layout
from service.pipeline.level import Compressor, Level
from service.pipeline.signature import Sign, signed
from service.pipeline.threads import Threads
from service.progress import Progress
from service.sealing.suite import ArchiveKeys
from service.sources.base import Snapshot, Stream
from storage_backends.base import ObjectInfo, TargetUnavailable

T = TypeVar("T")

OUTLET_CHUNKS = 2  # the target takes one as the next comes; more would grow with the cores, and each lane holds one too


class Compression(Protocol):
    """What of the settings the pipeline needs."""

    @property
    def level(self) -> Level:
        """The zstd level, or `auto`."""
        ...

    @property
    def chunk_bytes(self) -> int:
        """Raw bytes of a chunk."""
        ...


class Destination(Protocol):
    """Where an archive goes: a target, or several."""

    @property
    def url(self) -> str:
        """Where it is, for messages."""
        ...

    async def put(self, key: str, data: AsyncIterable[bytes | bytearray]) -> ObjectInfo:
        """Store what `data` yields under `key`, as `storage_backends.StorageBackend.put` does."""
        ...


@dataclass(frozen=True, slots=True)
class Packed:
    """What was published."""

    info: ObjectInfo
    manifest: Manifest
    footer: Footer
    level: int
    """The zstd level, which `auto` has chosen."""


async def pack(
    target: Destination,
    header: Header,
    slots: KeySlots | None,
    keys: ArchiveKeys | None,
    sources: Sequence[tuple[str, str, Snapshot]],
    *,
    compression: Compression,
    progress: Progress,
    clock: Callable[[], datetime],
    tool_version: str,
    sign: Sign | None = None,
) -> Packed:
    """Write one archive under `header.name` and return when the target has published it.

    `sources` are (name, type, snapshot). One source is read after the other; of each, up to `snapshot.parallel`
    streams at once. Sealed with `keys` and described by `slots`; both None when sealing is off. `sign` is asked for a
    signature of the manifest.

    If anything fails or the task is cancelled, nothing is published, every thread and task has ended, every stream
    is closed, and what is raised is the first error itself: a source's (SourceError), or the target's (StorageError).

    Memory, with c = chunk_bytes, p = the largest `parallel`, t = number of cores, is at most about
    c * (3p + min(t, p) + 3): two buffers a lane, and for each lane a chunk that is worked on (compressed, and sealed
    with its local header: two copies; no more lanes than threads) or one that waits for the outlet; two chunks in the
    outlet and one at the target; plus 80 bytes an entry for the directory. While level `auto` tries, two more copies
    in each thread. What the target holds of its own comes to that.
    Neither the size of the data nor the speed of the target is in it.
    """
    if (slots is None) != (keys is None) or header.commit != (keys.commit.hex() if keys is not None else None):
        raise ValueError("header, key slots and keys do not belong to one archive")
    if compression.chunk_bytes > header.max_raw:
        raise ValueError("chunks would be larger than the header allows")
    async with Threads() as threads:
        packing = _Packing(
            header,
            slots,
            keys,
            sources,
            compression=compression,
            progress=progress,
            clock=clock,
            tool_version=tool_version,
            threads=threads,
            sign=sign,
        )
        info = await packing.run(target)
    return Packed(info, packing.manifest, packing.footer, packing.compressor.level)


class _Packing:
    """The state of one `pack`: who produces entries, and the file that the target pulls."""

    manifest: Manifest
    footer: Footer

    def __init__(
        self,
        header: Header,
        slots: KeySlots | None,
        keys: ArchiveKeys | None,
        sources: Sequence[tuple[str, str, Snapshot]],
        *,
        compression: Compression,
        progress: Progress,
        clock: Callable[[], datetime],
        tool_version: str,
        threads: Threads,
        sign: Sign | None,
    ) -> None:
        self._header = header
        self._slots = slots
        self._keys = keys
        self._sources = [(name, kind, snapshot, list(snapshot.streams)) for name, kind, snapshot in sources]
        self._compression = compression
        self.compressor = Compressor(compression.level, chunk_bytes=compression.chunk_bytes)
        self._progress = progress
        self._clock = clock
        self._tool_version = tool_version
        self._threads = threads
        self._sign_manifest = sign
        self._outlet: asyncio.Queue[FileEntry | None] = asyncio.Queue(OUTLET_CHUNKS)
        self._lanes: list[Lane] = []
        self._layout = Layout()
        self._complete = False
        self._started = clock()
        told = sum(stream.expected_bytes for *_, streams in self._sources for stream in streams)
        progress.expected_raw = progress.expected_raw or told  # what the last archive had is the better guess

    async def run(self, target: Destination) -> ObjectInfo:
        """Produce and put at the same time; see `pack` for what is raised."""
        first: list[BaseException] = []

        async def noting(work: Callable[[], Awaitable[T]]) -> T:
            """Whoever fails first is the cause; what the other one says while it is torn down is not."""
            try:
                return await work()
            except BaseException as error:
                first.append(error)
                raise

        failure: BaseException
        try:
            async with aclosing(self._file()) as file, asyncio.TaskGroup() as group:
                group.create_task(noting(self._produce))
                return await noting(lambda: self._put(target, file))
        except BaseExceptionGroup:
            failure = _first_cause(first[0])
        raise failure  # outside of the handler, so that its own cause and context stay as they are

    async def _put(self, target: Destination, file: AsyncGenerator[bytes | bytearray, None]) -> ObjectInfo:
        info = await target.put(self._header.name, file)
        if not self._complete or info.size != self._layout.offset:
            raise TargetUnavailable(
                f"{target.url} says that {info.key} has {info.size} bytes, but {self._layout.offset} were sent",
                hint="Do not use this archive; check the target.",
            )
        return info

    # What is produced

    async def _produce(self) -> None:
        """Send the chunks of every stream, then of the manifest, then say that this was all."""
        described: list[tuple[str, str, dict[str, Any]]] = []
        streams: list[ManifestStream] = []
        excluded: list[dict[str, Any]] = []
        warnings: list[str] = []
        for name, kind, snapshot, listed in self._sources:
            streams += await self._read(name, snapshot.parallel, listed, first=len(streams) + 1)
            facts = dict(await snapshot.facts())
            warnings += [f"{name}: {warning}" for warning in facts.pop("warnings", ())]
            excluded += [{"source": name, **item} for item in facts.pop("excluded", ())]
            described.append((name, kind, facts))
        content = self._describe(described, streams, excluded, warnings)
        if self._sign_manifest is not None:
            self.manifest = await signed(self.manifest, self._header.to_bytes(), self._sign_manifest)
            content = self.manifest.to_bytes()
        await self._lane(0).carry(MANIFEST_STREAM, _one(content), count=lambda _: None)
        await self._outlet.put(None)

    def _describe(
        self,
        sources: Sequence[tuple[str, str, dict[str, Any]]],
        streams: list[ManifestStream],
        excluded: list[dict[str, Any]],
        warnings: list[str],
    ) -> bytes:
        """Set the manifest and return its bytes."""
        try:
            self.manifest = Manifest(
                archive_id=self._header.archive_id,
                started=self._started,
                finished=self._clock(),
                tool={"name": "deviceon-backup", "version": self._tool_version},
                sources=[ManifestSource(name=name, type=kind, facts=facts) for name, kind, facts in sources],
                streams=streams,
                excluded=excluded,
                warnings=warnings,
            )
            return self.manifest.to_bytes()
        except ValueError as exc:  # too long, or text in it that is not Unicode
            raise SourceError(
                f"what the sources tell of themselves does not fit into a manifest: {exc}",
                hint="Nothing was published. This is a fault of the program: please report it.",
            ) from exc

    async def _read(self, source: str, parallel: int, listed: Sequence[Stream], *, first: int) -> list[ManifestStream]:
        """Read one source's streams through up to `parallel` lanes; give them ids from `first` in their order."""
        waiting = iter(enumerate(listed))
        done: dict[int, ManifestStream] = {}

        async def work(lane: Lane) -> None:
            for position, stream in waiting:
                carried = await lane.carry(first + position, stream.read(), count=self._count)
                done[position] = ManifestStream(
                    id=first + position,
                    source=source,
                    kind=stream.kind,
                    labels=dict(stream.labels),
                    chunks=carried.chunks,
                    bytes=carried.bytes,
                    sha256=carried.sha256,
                    details=dict(stream.details),
                )

        async with asyncio.TaskGroup() as group:
            for number in range(min(max(parallel, 1), len(listed))):
                group.create_task(work(self._lane(number)))
        return [done[position] for position in range(len(listed))]

    def _lane(self, number: int) -> Lane:
        """Lanes keep their buffers from source to source: memory follows the largest `parallel`."""
        while len(self._lanes) <= number:
            lane = Lane(
                self._threads,
                self._outlet,
                keys=self._keys,
                compressor=self.compressor,
                chunk_bytes=self._compression.chunk_bytes,
            )
            self._lanes.append(lane)
        return self._lanes[number]

    def _count(self, raw: int) -> None:
        self._progress.raw += raw

    # What the target pulls

    async def _file(self) -> AsyncGenerator[bytes | bytearray, None]:
        yield self._place(file_entry(HEADER, self._header.to_bytes()))
        if self._slots is not None:
            yield self._place(file_entry(KEYSLOTS, self._slots.to_bytes()))
        while (entry := await self._outlet.get()) is not None:
            yield self._place(entry)
        self.footer = self._sign()
        yield self._place(file_entry(FOOTER, self.footer.to_bytes()))
        for piece in self._layout.finish():
            self._progress.stored += len(piece)
            yield piece
        self._complete = True

    def _place(self, entry: FileEntry) -> bytes | bytearray:
        self._progress.stored += len(entry.blob)
        return self._layout.place(entry)

    def _sign(self) -> Footer:
        footer = Footer(
            archive_id=self._header.archive_id,
            entries=self._layout.entries,
            bytes=self._layout.offset,
            raw_bytes=sum(stream.bytes for stream in self.manifest.streams),
            started=self._started,
            finished=self.manifest.finished,
            directory_sha256=self._layout.directory_sha256(),
        )
        if self._keys is None:
            return footer
        return footer.model_copy(update={"mac": self._keys.footer_mac(footer.without_mac()).hex()})


async def _one(piece: bytes) -> AsyncGenerator[bytes, None]:
    yield piece


def _first_cause(error: BaseException) -> BaseException:
    """Return the first error in a group: of several tasks the one that failed first comes first, and none cancelled."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
