"""Archives in memory, made and read with nothing but the project's pure code.

`Draft` holds the entries before the footer; a test may change them at will, since `finish` makes footer, MAC and
directory fit again. So what refuses the result is the rule that the test is about, and not a checksum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from service.archive import chunk, names, zip64
from service.archive.parts import Footer, Header, KeySlots, Manifest, check_footer, check_manifest
from service.errors import CorruptArchive
from service.sealing.slots import KeySlot
from service.sealing.suite import TAG_BYTES, ArchiveKeys, StreamCipher, check_commit, check_footer_mac

DATA_KEY = bytes(range(0x20))
ARCHIVE_ID = bytes(range(0x10))
CREATED = datetime(2025, 1, 31, 2, 0, 7, tzinfo=UTC)


class KnownKey:
    """An identity that opens any slot with one data key."""

    proves_origin = True

    def __init__(self, data_key: bytes = DATA_KEY) -> None:
        self._data_key = data_key

    def accepts(self, slot: KeySlot) -> bool:
        return True

    async def unwrap(self, slot: KeySlot, archive_id: bytes) -> bytes:
        return self._data_key


Streams = dict[int, list[bytes]]
"""Raw chunks by stream."""

STREAMS: Streams = {1: [b"CREATE TABLE device ();\n"], 2: [b"1\tpump\n" * 8, b"2\tfan\n" * 8, b""], 7: [b""]}
KINDS = {1: "postgresql.schema", 2: "postgresql.rows", 7: "tree.tar"}


def make_header(*, sealed: bool, data_key: bytes = DATA_KEY, archive_id: bytes = ARCHIVE_ID, **change: Any) -> Header:
    """Describe a small archive."""
    members: dict[str, Any] = {
        "suite": int(sealed),
        "archive_id": archive_id.hex(),
        "name": names.archive_name(CREATED),
        "created": CREATED,
        "seq": 3,
        "product": "DeviceOn",
        "server_version": "5.3.12",
        "max_raw": 65536,
        "commit": ArchiveKeys(data_key, archive_id=archive_id, header=None).commit.hex() if sealed else None,
        "sealing": "age" if sealed else "off",
        "notice": "A backup of a DeviceOn server. See docs/ARCHIVE_FORMAT.md of deviceon-backup.",
    }
    return Header(**(members | change))


def make_manifest(streams: Streams, *, archive_id: bytes = ARCHIVE_ID, **change: Any) -> Manifest:
    """Describe what `streams` hold."""
    described = []
    for number, chunks in streams.items():
        raw = b"".join(chunks)
        described.append(
            {
                "id": number,
                "source": "server",
                "kind": KINDS.get(number, "tree.tar"),
                "labels": {"database": "deviceon", "table": f"table/{number}"},
                "chunks": len(chunks),
                "bytes": len(raw),
                "sha256": hashlib.sha256(raw).hexdigest(),
                "details": {"rows": number},
            }
        )
    members: dict[str, Any] = {
        "archive_id": archive_id.hex(),
        "started": CREATED,
        "finished": CREATED,
        "tool": {"name": "deviceon-backup", "version": "0.1.0"},
        "sources": [{"name": "server", "type": "postgresql", "facts": {"encoding": "UTF8"}}],
        "streams": described,
        "excluded": [{"source": "server", "path": "data/db", "reason": "MongoDB"}],
        "warnings": ["ünïcode is fine"],
    }
    return Manifest(**(members | change))


def sealed_chunk(cipher: StreamCipher, index: int, body: bytes, *, last: bool) -> bytes:
    """Return one chunk as it stands in an archive."""
    sealed = bytearray(len(body) + TAG_BYTES)
    cipher.seal(index, body, into=sealed, last=last)
    return bytes(sealed)


@dataclass
class Draft:
    """An archive before its footer: entries as (name, content), in the order of the file."""

    header: bytes
    keys: ArchiveKeys | None
    archive_id: bytes = ARCHIVE_ID
    raw_bytes: int = 0
    entries: list[tuple[str, bytes]] = field(default_factory=list)

    def add_stream(self, stream: int, chunks: Sequence[bytes]) -> None:
        """Add the chunks of one stream."""
        for index, raw in enumerate(chunks):
            body = chunk.compress(raw, level=1)
            if self.keys is not None:
                body = sealed_chunk(self.keys.stream(stream), index, body, last=index == len(chunks) - 1)
            self.entries.append((names.stream_entry(stream, index, sealed=self.keys is not None), body))

    def finish(self, **footer_change: Any) -> bytes:
        """Return the file: the entries, a footer that fits them, the directory."""
        placed, body = place(self.entries)
        members: dict[str, Any] = {
            "archive_id": self.archive_id.hex(),
            "entries": len(placed),
            "bytes": len(body),
            "raw_bytes": self.raw_bytes,
            "started": CREATED,
            "finished": CREATED,
            "directory_sha256": zip64.directory_digest(placed),
        }
        footer = Footer(**(members | footer_change))
        if self.keys is not None:
            mac = self.keys.footer_mac(footer.without_mac()).hex()
            footer = footer.model_copy(update={"mac": mac})
        return container([*self.entries, (names.FOOTER, footer.to_bytes())])


def place(entries: Sequence[tuple[str, bytes]]) -> tuple[list[zip64.Entry], bytes]:
    """Lay entries out one after the other."""
    placed: list[zip64.Entry] = []
    body = bytearray()
    for name, content in entries:
        crc = chunk.crc32(content)
        placed.append(zip64.Entry(name, len(body), len(content), crc))
        body += zip64.local_header(name, size=len(content), crc32=crc) + content
    return placed, bytes(body)


def container(entries: Sequence[tuple[str, bytes]]) -> bytes:
    """Return a ZIP file of the format's profile with whatever entries."""
    placed, body = place(entries)
    directory = b"".join(map(zip64.directory_record, placed))
    end = zip64.end_records(entries=len(placed), directory_offset=len(body), directory_size=len(directory))
    return body + directory + end


def draft(
    *,
    sealed: bool,
    streams: Streams = STREAMS,
    data_key: bytes = DATA_KEY,
    archive_id: bytes = ARCHIVE_ID,
    manifest: bytes | None = None,
    header: bytes | None = None,
) -> Draft:
    """Return an archive of `streams` that lacks nothing but its footer."""
    header = header or make_header(sealed=sealed, data_key=data_key, archive_id=archive_id).to_bytes()
    keys = ArchiveKeys(data_key, archive_id=archive_id, header=header) if sealed else None
    made = Draft(header, keys, archive_id)
    made.raw_bytes = sum(len(raw) for chunks in streams.values() for raw in chunks)
    made.entries.append((names.HEADER, header))
    if sealed:
        slots = KeySlots(slots=[{"type": "age", "file": "-----BEGIN AGE ENCRYPTED FILE-----\n..."}])
        made.entries.append((names.KEYSLOTS, slots.to_bytes()))
    for stream, chunks in streams.items():
        made.add_stream(stream, chunks)
    described = manifest or make_manifest(streams, archive_id=archive_id).to_bytes()
    made.add_stream(names.MANIFEST_STREAM, [described])
    return made


def read(data: bytes, data_key: bytes | None) -> Streams:
    """Read a whole archive with the pure code; return the raw chunks of each stream, without the manifest's."""
    tail = data[-zip64.TAIL_BYTES :]
    first = zip64.read_local_header(data, offset=0)
    header_bytes = bytes(zip64.check_entry(data[: first.end], first))
    header = Header.from_bytes(header_bytes)
    location = zip64.locate_directory(tail, file_size=len(data))
    entries = zip64.parse_directory(data[location.offset : location.offset + location.size], location)
    contents = [zip64.check_entry(data[entry.offset : entry.end], entry) for entry in entries]
    footer = Footer.from_bytes(bytes(contents[-1]))
    check_footer(footer, header=header, entries=entries)
    keys = None
    if header.commit is not None and footer.mac is not None:
        KeySlots.from_bytes(bytes(contents[1]))
        keys = ArchiveKeys(data_key or b"", archive_id=bytes.fromhex(header.archive_id), header=header_bytes)
        check_commit(keys, bytes.fromhex(header.commit))
        check_footer_mac(keys, footer.without_mac(), bytes.fromhex(footer.mac))
    counts: dict[int, int] = {}
    for entry in entries:
        if parsed := names.parse_stream_entry(entry.name):
            counts[parsed[0]] = parsed[1] + 1
    streams: Streams = {}
    for entry, content in zip(entries, contents, strict=True):
        if parsed := names.parse_stream_entry(entry.name):
            stream, index, _ = parsed
            body = keys.stream(stream).open(index, content, last=index == counts[stream] - 1) if keys else content
            streams.setdefault(stream, []).append(chunk.decompress(body, max_raw=header.max_raw))
    manifest = Manifest.from_bytes(b"".join(streams.pop(names.MANIFEST_STREAM)))
    check_manifest(manifest, footer=footer, entries=entries)
    for described in manifest.streams:
        raw = b"".join(streams[described.id])
        if (len(raw), hashlib.sha256(raw).hexdigest()) != (described.bytes, described.sha256):
            raise CorruptArchive("a stream is not what the manifest says")
    return streams
