"""RESTORE: open an archive, then read single streams of it or check every byte.

`ArchiveReader.open` reads only the two ends and the manifest. Nothing it says, and no byte that `read` yields, is
taken from the file without having been checked: by the AEAD when the archive is sealed, by CRC-32, zstd's checksum
and SHA-256 in any case. What is not exactly as the format says is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from service.archive.names import FOOTER, HEADER, KEYSLOTS, MANIFEST_STREAM
from service.archive.parts import MAX_MANIFEST_BYTES, Footer, Header, KeySlots, Manifest, check_manifest
from service.archive.zip64 import Entry, last_entry
from service.errors import ArchiveError, CorruptArchive, SealError
from service.pipeline.chunks import DAMAGED, ChunkMap, ChunkOpener, Place, StreamSum
from service.pipeline.ends import Front, read_back, read_directory, read_front
from service.pipeline.ranges import PinnedObject, ahead
from service.pipeline.sidecar import read_sidecar
from service.pipeline.signature import signer_of
from service.pipeline.threads import SMALL_BYTES, done_here, finished, start_thread
from service.pipeline.verify import Expected, FileCheck, compare, describe
from service.progress import Progress
from service.sealing.slots import Identity, KeySlot, Recipient, no_key, try_slots
from service.sealing.suite import ArchiveKeys, check_commit, check_footer_mac
from service.sources.base import StoredSource, StoredStream
from storage_backends.base import ObjectInfo, StorageBackend, StorageError


@dataclass(frozen=True, slots=True)
class Peek:
    """What an archive says of itself to anybody: claims, since no key was used."""

    info: ObjectInfo
    header: Header
    footer: Footer


async def peek(target: StorageBackend, name: str, *, listed: ObjectInfo | None = None) -> Peek:
    """Look at an archive's header and footer without any key, with two small reads.

    `listed` is what a listing has just told of it, which saves one more request.
    Raises UnsupportedArchive, IncompleteArchive, CorruptArchive, StorageError.
    """
    archive = PinnedObject(target, listed or await target.stat(name))
    front = await read_front(archive)
    back = await read_back(archive)
    footer = Footer.from_bytes(await back.window.part(last_entry(back.window.content, back.location)))
    if (footer.archive_id, footer.entries) != (front.header.archive_id, back.location.entries - 1):
        raise CorruptArchive("header and footer are of different archives", hint=DAMAGED)
    check_name(archive.info, front.header)
    return Peek(archive.info, front.header, footer)


class ArchiveReader:
    """An opened archive of a target; its manifest and footer are authenticated. Made by `open`.

    It holds no connection, thread or task between calls, and needs no closing. Memory: some 300 bytes an entry, and
    for each `read` at a time four chunks (one being used, one being opened).
    """

    def __init__(
        self,
        archive: PinnedObject,
        header: Header,
        footer: Footer,
        manifest: Manifest,
        contents: _Contents,
        unlocked: _Unlocked | None,
    ) -> None:
        self.info = archive.info
        self.header = header
        self.footer = footer
        self.manifest = manifest
        self.opened_by = unlocked.opened_by if unlocked else None
        """Whose key opened it; None when it is not sealed."""
        self.signer: str | None = None
        """Fingerprint of who has signed it, checked; None when nobody has. Anybody can sign: compare it."""
        self._contents = contents
        self._unlocked = unlocked
        self._streams = _stored_streams(manifest)

    @classmethod
    async def open(cls, target: StorageBackend, name: str, identities: Sequence[Identity]) -> Self:
        """Open an archive with the first key slot that one of `identities` opens; none is needed when it is unsealed.

        Raises UnsupportedArchive, IncompleteArchive, CorruptArchive; NoMatchingIdentity, NotAuthentic and what else
        `Identity.unwrap` raises; StorageError. The object is pinned: if it is replaced, later calls raise
        ObjectChanged.
        """
        archive = PinnedObject(target, await target.stat(name))
        front = await read_front(archive)
        directory = await read_directory(await read_back(archive), front.header)
        check_name(archive.info, front.header)
        parts = {HEADER: front.content, FOOTER: directory.footer_content}
        keys = unlocked = None
        if front.header.sealed:
            parts[KEYSLOTS] = await front.window.part(directory.entries[1])
            unlocked = await _unlock(target, front, KeySlots.from_bytes(parts[KEYSLOTS]).slots, identities)
            keys = unlocked.keys
            assert directory.footer.mac is not None  # as the header says: `check_footer`
            check_footer_mac(keys, directory.footer.without_mac(), bytes.fromhex(directory.footer.mac))
        max_raw = front.header.max_raw
        chunks = ChunkMap(directory.entries, max_raw=max_raw)
        contents = _Contents(
            archive,
            directory.entries,
            chunks,
            ChunkOpener(keys, max_raw=max_raw),
            parts=parts,
            rest=hashlib.sha256(directory.rest).digest(),
        )
        content = await contents.manifest()
        manifest = Manifest.from_bytes(content)
        check_manifest(manifest, footer=directory.footer, entries=directory.entries)
        reader = cls(archive, front.header, directory.footer, manifest, contents, unlocked)
        reader.signer = signer_of(content, manifest, front.content)
        return reader

    @property
    def opened_by_tpm(self) -> bool:
        """Whether the TPM that has sealed it opened it, and not a recovery key."""
        return self.opened_by is not None and self.opened_by.proves_origin

    async def wrap_for(self, recipient: Recipient) -> KeySlot:
        """Return a slot by which `recipient` opens this archive too. Raises SealError."""
        if self._unlocked is None:
            raise ValueError("an archive that is not sealed has no key")
        return await recipient.wrap(self._unlocked.data_key, bytes.fromhex(self.header.archive_id))

    @property
    def entries(self) -> Sequence[Entry]:
        """Every entry, in the order of the file."""
        return self._contents.entries

    def sources(self) -> list[StoredSource]:
        """Return the sources in the order of the manifest, each with its streams in the order of their ids.

        Their facts are those that the snapshot told, with `excluded` (which the manifest lists for all together).
        """
        streams: dict[str, list[StoredStream]] = {source.name: [] for source in self.manifest.sources}
        for stream in self._streams.values():
            streams[stream.source].append(stream)
        excluded: dict[str, list[Any]] = {source.name: [] for source in self.manifest.sources}
        for item in self.manifest.excluded:
            excluded.get(item.get("source", ""), []).append(item)
        return [
            StoredSource(
                name=source.name,
                type=source.type,
                facts={**source.facts, "excluded": excluded[source.name]},
                streams=tuple(streams[source.name]),
            )
            for source in self.manifest.sources
        ]

    async def read(self, stream: StoredStream) -> AsyncGenerator[bytes, None]:
        """Yield a stream's raw bytes in order, chunk by chunk; see `StreamReader.read`.

        The next chunk is fetched and opened while the caller works on this one. The last chunk is yielded after the
        whole stream's length and SHA-256 were found to be the manifest's.
        """
        if self._streams.get(stream.id) != stream:
            raise ValueError(f"{describe(stream)} is not a stream of this archive")
        tally = StreamSum()
        async with aclosing(ahead(self._contents.opened(stream.id, tally, what=describe(stream)))) as chunks:
            async for place, raw in chunks:
                if place.last:
                    compare(tally, stream)
                yield raw

    async def verify(self, progress: Progress) -> None:
        """Read the file once, from its first byte to its last, and check every one; moves `progress` along.

        Raises CorruptArchive, IncompleteArchive, NotAuthentic, StorageError.
        """
        progress.expected_raw = self.footer.raw_bytes
        await self._contents.check(self._streams, progress=progress)


class _Contents:
    """The chunks of an opened archive, before and after its manifest is known."""

    def __init__(
        self,
        archive: PinnedObject,
        entries: list[Entry],
        chunks: ChunkMap,
        opener: ChunkOpener,
        *,
        parts: Mapping[str, bytes],
        rest: bytes,
    ) -> None:
        self.entries = entries
        self._archive = archive
        self._chunks = chunks
        self._opener = opener
        self._parts = parts
        self._rest = rest
        self._manifest: StoredStream | None = None

    async def opened(self, stream: int, tally: StreamSum, *, what: str) -> AsyncGenerator[tuple[Place, bytes], None]:
        """Yield each chunk of a stream, checked and opened; `tally` holds all that was yielded."""
        entries = self._chunks.entries(stream)
        index = 0
        async with aclosing(self._archive.records(entries)) as records:
            async for entry, record in records:
                place = Place(stream, index, index == len(entries) - 1)
                work = partial(self._open, entry, record, place, what, tally)
                raw = await finished(done_here(work) if entry.size <= SMALL_BYTES else start_thread(work))
                del work, record  # not to be held while the caller has the chunk
                yield place, raw
                index += 1

    def _open(self, entry: Entry, record: memoryview, place: Place, what: str, tally: StreamSum) -> bytes:
        raw = self._opener.open(entry, record, place, what=what)
        tally.add(raw)
        return raw

    async def manifest(self) -> bytes:
        """Read the manifest's bytes."""
        tally = StreamSum()
        content = bytearray()
        async with aclosing(self.opened(MANIFEST_STREAM, tally, what="the manifest")) as chunks:
            async for _, raw in chunks:
                content += raw
                if len(content) > MAX_MANIFEST_BYTES:
                    raise CorruptArchive("the manifest is larger than a manifest may be", hint=DAMAGED)
        self._manifest = StoredStream(
            id=MANIFEST_STREAM,
            source="",
            kind="manifest",
            labels={},
            chunks=tally.chunks,
            bytes=tally.bytes,
            sha256=tally.sha256(),
            details={},
        )
        return bytes(content)

    async def check(self, streams: Mapping[int, StoredStream], *, progress: Progress) -> None:
        """Check the whole file; see `FileCheck.run`."""
        assert self._manifest is not None
        expected = Expected(
            entries=self.entries,
            parts=self._parts,
            streams={**streams, MANIFEST_STREAM: self._manifest},
            rest=self._rest,
        )
        await FileCheck(self._archive, expected, self._chunks, self._opener, progress=progress).run()


@dataclass(frozen=True, slots=True, repr=False)
class _Unlocked:
    """The keys of an archive, and whose key opened it."""

    data_key: bytes
    keys: ArchiveKeys
    opened_by: Identity


async def read_slots(target: StorageBackend, name: str) -> tuple[Header, list[dict[str, Any]]]:
    """Return an archive's header and its own key slots, none when it is not sealed. Both are claims.

    Raises UnsupportedArchive, IncompleteArchive, CorruptArchive, StorageError.
    """
    archive = PinnedObject(target, await target.stat(name))
    front = await read_front(archive)
    if not front.header.sealed:
        return front.header, []
    directory = await read_directory(await read_back(archive), front.header)
    return front.header, KeySlots.from_bytes(await front.window.part(directory.entries[1])).slots


async def _unlock(
    target: StorageBackend, front: Front, own: Sequence[KeySlot], identities: Sequence[Identity]
) -> _Unlocked:
    """Return the keys that belong to exactly this header, by a slot of the archive or else one beside it."""
    assert front.header.commit is not None
    archive_id, commit = bytes.fromhex(front.header.archive_id), bytes.fromhex(front.header.commit)

    def keys_of(data_key: bytes) -> ArchiveKeys:
        keys = ArchiveKeys(data_key, archive_id=archive_id, header=front.content)
        check_commit(keys, commit)
        return keys

    attempt = await try_slots(own, identities, archive_id, belongs=keys_of)
    slots, reasons, note = [*own], attempt.reasons, ""
    if attempt.data_key is None:
        try:
            beside = await read_sidecar(target, front.header.name)
        except (ArchiveError, StorageError) as error:
            beside, note = [], str(error)
        attempt = await try_slots(beside, identities, archive_id, belongs=keys_of)
        slots, reasons = [*own, *beside], reasons + attempt.reasons
    if attempt.data_key is None or attempt.opened_by is None:
        why: SealError = no_key(slots, reasons)
        if all(identity.proves_origin for identity in identities):
            why.hint += _recovery_hint(slots)
        if note:
            why.add_note(note)
        raise why
    return _Unlocked(attempt.data_key, keys_of(attempt.data_key), attempt.opened_by)


def _recovery_hint(slots: Sequence[KeySlot]) -> str:
    """Say that a recovery key would open the archive, to somebody who gave none."""
    for_keys = [slot for slot in slots if slot.get("type") == "age"]
    if not for_keys:
        return ""
    option = "--recovery-passphrase-file" if any("identity" in slot for slot in for_keys) else "--recovery-key"
    return f" It was sealed for a recovery key too: give that with {option}."


def check_name(info: ObjectInfo, header: Header) -> None:
    """An archive tells its name, so that an old one cannot be passed off as a newer one."""
    if header.name != info.key:
        raise ArchiveError(
            f"the archive {info.key} was written as {header.name}",
            hint=f"If you renamed it on purpose, name it {header.name} again.",
        )


def _stored_streams(manifest: Manifest) -> dict[int, StoredStream]:
    return {
        stream.id: StoredStream(
            id=stream.id,
            source=stream.source,
            kind=stream.kind,
            labels=stream.labels,
            chunks=stream.chunks,
            bytes=stream.bytes,
            sha256=stream.sha256,
            details=stream.details,
        )
        for stream in sorted(manifest.streams, key=lambda stream: stream.id)
    }
