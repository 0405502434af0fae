"""The ZIP profile: written as published, and read only when it is exactly that. One table for both readers."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.archive import zip64
from service.errors import ArchiveError, CorruptArchive, IncompleteArchive, NotAuthentic, UnsupportedArchive
from tests.vectors.second_reader import open_archive, read_second
from tests.vectors.small import ARCHIVE_ID, DATA_KEY, STREAMS, Draft, container, draft, make_header, place, read

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "zip.json").read_text())
SEALED = draft(sealed=True).finish()
UNSEALED = draft(sealed=False).finish()


def refused_by_both(data: bytes, errors: Any = (ArchiveError, NotAuthentic), *, match: str | None = None) -> None:
    with pytest.raises(errors, match=match):
        read(data, DATA_KEY)
    with pytest.raises(open_archive.Problem):
        read_second(data, DATA_KEY)


def parse(data: bytes) -> list[zip64.Entry]:
    location = zip64.locate_directory(data[-zip64.TAIL_BYTES :], file_size=len(data))
    return zip64.parse_directory(data[location.offset : location.offset + location.size], location)


@pytest.mark.parametrize("data", [SEALED, UNSEALED], ids=["sealed", "unsealed"])
def test_what_is_written_is_read_by_both(data: bytes) -> None:
    assert read(data, DATA_KEY) == STREAMS
    assert read_second(data, DATA_KEY) == {stream: b"".join(raws) for stream, raws in STREAMS.items()}


@pytest.mark.parametrize("vector", VECTORS["entries"], ids=lambda vector: vector["name"])
def test_records_are_written_and_read_as_published(vector: dict[str, Any]) -> None:
    entry = zip64.Entry(vector["name"], vector["offset"], vector["size"], vector["crc32"])
    header, record = bytes.fromhex(vector["local_header"]), bytes.fromhex(vector["directory_record"])
    assert zip64.local_header(entry.name, size=entry.size, crc32=entry.crc32) == header
    assert zip64.directory_record(entry) == record
    assert zip64.read_local_header(header + b"content", offset=entry.offset) == entry
    second, position = open_archive.Archive._record(record, 0)
    assert (second.name, second.offset, second.size, second.crc) == (entry.name, entry.offset, entry.size, entry.crc32)
    assert (position, second.data) == (len(record), entry.data_offset)


@pytest.mark.parametrize("vector", VECTORS["ends"], ids=lambda vector: f"{vector['entries']} entries")
def test_end_records_are_written_as_published_and_zip64_only_when_needed(vector: dict[str, Any]) -> None:
    count, offset, size = vector["entries"], vector["directory_offset"], vector["directory_size"]
    records = bytes.fromhex(vector["records"])
    assert zip64.end_records(entries=count, directory_offset=offset, directory_size=size) == records
    needed = count >= 0xFFFF or offset >= 0xFFFFFFFF or size >= 0xFFFFFFFF
    assert len(records) == (98 if needed else 22)


@pytest.mark.parametrize("size", [-1, 0xFFFF_FFFF, 1 << 32])
def test_an_entry_of_four_gib_cannot_be_written(size: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        zip64.local_header("header.json", size=size, crc32=0)
    with pytest.raises(ValueError, match="does not fit"):
        zip64.directory_record(zip64.Entry("header.json", 0, size, 0))


def test_the_directory_is_found_beyond_four_gib_and_with_many_entries() -> None:
    first = zip64.Entry("header.json", 0, 2, 7)
    entries = [first]
    for index in range(66_000):  # by arithmetic: 66,000 chunks of 64 MiB are 4 TiB
        entries.append(zip64.Entry(f"streams/00000001/{index:08x}.zst", entries[-1].end, 64 << 20, index))
    entries.append(zip64.Entry("streams/ffffffff/00000000.zst", entries[-1].end, 5, 1))
    entries.append(zip64.Entry("footer.json", entries[-1].end, 5, 1))
    directory = b"".join(map(zip64.directory_record, entries))
    offset = entries[-1].end
    end = zip64.end_records(entries=len(entries), directory_offset=offset, directory_size=len(directory))
    tail = (directory + end)[-zip64.TAIL_BYTES :]
    location = zip64.locate_directory(tail, file_size=offset + len(directory) + len(end))
    assert location == zip64.DirectoryLocation(offset, len(directory), len(entries))
    assert zip64.parse_directory(directory, location) == entries
    assert zip64.last_entry(tail, location) == entries[-1]


def test_the_last_entry_is_found_from_the_tail_alone() -> None:
    location = zip64.locate_directory(SEALED, file_size=len(SEALED))
    assert zip64.last_entry(SEALED[-200:], location) == parse(SEALED)[-1]
    entries, body = place([("header.json", b"{}")])
    directory = zip64.directory_record(entries[0])
    data = container([("header.json", b"{}")])
    with pytest.raises(CorruptArchive, match="footer"):
        zip64.last_entry(data, zip64.DirectoryLocation(len(body), len(directory), 1))


FIELDS = {  # of the local header and, two bytes further, of the directory record: offset and width
    "signature": (0, 4), "version": (4, 2), "flags": (6, 2), "method": (8, 2), "time": (10, 2), "date": (12, 2),
    "crc": (14, 4), "packed size": (18, 4), "size": (22, 4), "name length": (26, 2), "extra length": (28, 2),
}  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_local_header_that_differs_from_the_directory_is_refused(field: str, number: int) -> None:
    at, width = FIELDS[field]
    entry = parse(SEALED)[number]
    for bit in range(width * 8):
        data = bytearray(SEALED)
        data[entry.offset + at + bit // 8] ^= 1 << bit % 8
        refused_by_both(bytes(data))
        with pytest.raises(CorruptArchive):
            zip64.check_entry(bytes(data[entry.offset : entry.end]), entry)


@pytest.mark.parametrize(("at", "width"), [(0, 4), *((at, 2) for at in range(4, 46, 2))])
def test_every_bit_of_a_directory_record_counts(at: int, width: int) -> None:
    location = zip64.locate_directory(SEALED, file_size=len(SEALED))
    second_record = location.offset + 46 + len("header.json")
    for bit in range(width * 8):
        data = bytearray(SEALED)
        data[second_record + at + bit // 8] ^= 1 << bit % 8
        refused_by_both(bytes(data))


def test_every_bit_of_the_end_records_counts_with_zip64_too() -> None:
    for far in (False, True):
        offset = 1 << 33 if far else 4000
        end = zip64.end_records(entries=4, directory_offset=offset, directory_size=300)
        tail = bytes(300) + end
        size = offset + len(tail)
        padded = bytes(zip64.TAIL_BYTES - len(tail)) + tail if far else bytes(size - len(tail)) + tail
        assert zip64.locate_directory(padded, file_size=size).offset == offset
        for bit in range(len(end) * 8):
            data = bytearray(padded)
            data[len(padded) - len(end) + bit // 8] ^= 1 << bit % 8
            with pytest.raises(ArchiveError):
                zip64.locate_directory(bytes(data), file_size=size)


def test_zip64_records_where_none_are_needed_are_refused() -> None:
    entries = parse(UNSEALED)
    location = zip64.locate_directory(UNSEALED, file_size=len(UNSEALED))
    size, offset = location.size, location.offset
    zip64_end = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 0x032D, 45, 0, 0, *[len(entries)] * 2, size, offset)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, offset + size, 1)
    for end in (UNSEALED[-22:], struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, *[0xFFFF] * 2, 0xFFFFFFFF, 0xFFFFFFFF, 0)):
        data = UNSEALED[:-22] + zip64_end + locator + end
        assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None, "other readers take it"
        refused_by_both(data, CorruptArchive)


def test_a_directory_that_would_fill_the_memory_is_refused_before_it_is_read() -> None:
    size = 1 << 40
    end = zip64.end_records(entries=5, directory_offset=1000, directory_size=size)
    tail = bytes(zip64.TAIL_BYTES - len(end)) + end
    with pytest.raises(UnsupportedArchive):
        zip64.locate_directory(tail, file_size=1000 + size + len(end))
    with pytest.raises(ValueError, match="does not fit"):
        zip64.end_records(entries=zip64.MAX_ENTRIES + 1, directory_offset=0, directory_size=0)
    most = zip64.end_records(entries=zip64.MAX_ENTRIES, directory_offset=1000, directory_size=size)
    more = most.replace(zip64.MAX_ENTRIES.to_bytes(8, "little"), (zip64.MAX_ENTRIES + 1).to_bytes(8, "little"))
    with pytest.raises(CorruptArchive, match="more than the format allows"):
        zip64.locate_directory(tail[: -len(more)] + more, file_size=1000 + size + len(more))


def test_the_tail_has_to_be_the_file_s_last_64_kib() -> None:
    with pytest.raises(ValueError, match="tail"):
        zip64.locate_directory(SEALED[1:], file_size=len(SEALED))


Change = Callable[[Draft], None]


def at(made: Draft, name: str) -> int:
    return next(number for number, (entry, _) in enumerate(made.entries) if entry.startswith(name))


def rename(old: str, new: str) -> Change:
    def change(made: Draft) -> None:
        number = at(made, old)
        made.entries[number] = (new, made.entries[number][1])

    return change


def move(name: str, to: int) -> Change:
    return lambda made: made.entries.insert(to, made.entries.pop(at(made, name)))


def drop(name: str) -> Change:
    return lambda made: made.entries.__delitem__(at(made, name))


def insert(name: str, content: bytes = b"x", to: int = 3) -> Change:
    return lambda made: made.entries.insert(to, (name, content))


def swap(one: str, other: str) -> Change:
    """Exchange the contents of two entries."""

    def change(made: Draft) -> None:
        a, b = at(made, one), at(made, other)
        (name, content), (other_name, other_content) = made.entries[a], made.entries[b]
        made.entries[a], made.entries[b] = (name, other_content), (other_name, content)

    return change


def splice(name: str, **other: Any) -> Change:
    """Put in the same entry of another archive."""

    def change(made: Draft) -> None:
        donor = draft(sealed=made.keys is not None, **other)
        number = at(made, name)
        made.entries[number] = (made.entries[number][0], donor.entries[at(donor, name)][1])

    return change


def rewrap(**header: Any) -> Change:
    """Change the header of a finished archive, keeping the commitment."""

    def change(made: Draft) -> None:
        made.entries[0] = ("header.json", make_header(sealed=made.keys is not None, **header).to_bytes())

    return change


OTHER_ID = bytes(range(1, 17))
HOSTILE: dict[str, Change] = {
    "a name that climbs": insert("../x"),
    "a name that climbs from inside": insert("streams/../../x"),
    "an absolute name": insert("/etc/passwd"),
    "a backslash name": insert("streams\\00000001\\00000009.sealed"),
    "a drive letter": insert("C:x"),
    "an empty name": insert(""),
    "a folder": insert("streams/"),
    "a name with NUL": insert("header.json\0.txt"),
    "a chunk with a trailing newline": rename("streams/00000007", "streams/00000007/00000000.sealed\n"),
    "upper-case digits": rename("streams/00000007", "streams/0000000A/00000000.sealed"),
    "an unknown extra entry": insert("readme.txt"),
    "a second header": insert("header.json", make_header(sealed=True).to_bytes()),
    "a second footer": insert("footer.json", b"{}"),
    "key slots in the middle": insert("keyslots.json", b"{}"),
    "key slots first": move("keyslots", 0),
    "key slots last": move("keyslots", 3),
    "header last": move("header", 99),
    "no header": drop("header"),
    "no key slots": drop("keyslots"),
    "no manifest": drop("streams/ffffffff"),
    "a stream behind the manifest": move("streams/00000007", 99),
    "a duplicate chunk": lambda made: made.entries.insert(3, made.entries[3]),
    "a chunk that is not sealed": rename("streams/00000007", "streams/00000007/00000000.zst"),
    "chunks not in order": lambda made: made.entries.insert(3, made.entries.pop(4)),
    "the first chunk dropped": drop("streams/00000002/00000000"),
    "a middle chunk dropped": drop("streams/00000002/00000001"),
    "the last chunk dropped": drop("streams/00000002/00000002"),
    "a whole stream dropped": drop("streams/00000007"),
    "a stream that the manifest does not list": rename("streams/00000007", "streams/00000008/00000000.sealed"),
    "a chunk appended": insert("streams/00000002/00000003.sealed", b"x" * 20, to=6),
    "chunks exchanged in a stream": swap("streams/00000002/00000000", "streams/00000002/00000001"),
    "chunks exchanged between streams": swap("streams/00000001/00000000", "streams/00000007/00000000"),
    "a chunk replaced by its neighbour": lambda made: made.entries.__setitem__(
        4, (made.entries[4][0], made.entries[3][1])
    ),
    "a chunk of another archive, same key": splice("streams/00000001", archive_id=OTHER_ID),
    "a chunk of another archive, other key": splice("streams/00000001", data_key=bytes(32)),
    "a chunk of the same archive with another header": splice(
        "streams/00000001", header=make_header(sealed=True, seq=4).to_bytes()
    ),
    "the manifest of another archive": splice("streams/ffffffff", archive_id=OTHER_ID),
    "the header of another archive": splice("header.json", archive_id=OTHER_ID),
    "another server version in the header": rewrap(server_version="5.2.4"),
    "another name in the header": rewrap(name="Backup_20250131_0201Z.zip"),
    "a lower bound for chunks in the header": rewrap(max_raw=1),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_sealed_archive_changed_in_structure_is_refused_by_both(what: str) -> None:
    """Footer, MAC and directory are made anew over the change, as only the key's owner could."""
    made = draft(sealed=True)
    HOSTILE[what](made)
    refused_by_both(made.finish())


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("a duplicate chunk", "missing, doubled or out of order"),
        ("chunks not in order", "missing, doubled or out of order"),
        ("the first chunk dropped", "missing, doubled or out of order"),
        ("a middle chunk dropped", "missing, doubled or out of order"),
        ("a stream behind the manifest", "follows the manifest"),
        ("no manifest", "no manifest"),
        ("no key slots", "out of place"),
        ("a chunk that is not sealed", "out of place"),
        ("a second header", "out of place"),
        ("header last", "not an archive"),
        ("a name that climbs", "no name"),
        ("a chunk with a trailing newline", "no name"),
    ],
)
def test_the_directory_alone_gives_it_away(what: str, why: str) -> None:
    made = draft(sealed=True)
    HOSTILE[what](made)
    with pytest.raises(ArchiveError, match=why):
        parse(made.finish())


NEEDS_SEALING = (
    "is not sealed",
    "key slots",
    "no key slots",
    "same key",
    "other key",
    "another header",
    "in the header",
)


@pytest.mark.parametrize("what", [what for what in HOSTILE if not any(word in what for word in NEEDS_SEALING)])
def test_an_unsealed_archive_changed_in_structure_is_refused_by_both(what: str) -> None:
    made = draft(sealed=False)
    made.entries.insert(1, ("keyslots.json", b""))  # keeps the table's positions; gone again below
    HOSTILE[what](made)
    made.entries = [(name.replace(".sealed", ".zst"), content) for name, content in made.entries if content or not name]
    refused_by_both(made.finish())


def test_names_that_are_not_ascii_are_refused() -> None:
    made = draft(sealed=False)
    data = made.finish().replace(b"streams/00000007/00000000.zst", "streams/0000007/0000000٣.zst".encode())
    assert len(data) == len(made.finish())
    refused_by_both(data, CorruptArchive, match="no name")


@pytest.mark.parametrize(
    "change",
    [{"entries": 1}, {"bytes": 1}, {"raw_bytes": 1}, {"archive_id": "11" * 16}, {"directory_sha256": "11" * 32}],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("sealed", [True, False])
def test_a_footer_that_tells_something_else_is_refused_by_both(change: dict[str, Any], sealed: bool) -> None:
    refused_by_both(draft(sealed=sealed).finish(**change), CorruptArchive)


def test_another_key_is_refused_by_both() -> None:
    with pytest.raises(NotAuthentic, match="not the one"):
        read(SEALED, bytes(32))
    with pytest.raises(open_archive.KeyProblem):
        read_second(SEALED, bytes(32))


def test_a_forged_footer_mac_is_refused_by_both() -> None:
    made = draft(sealed=True)
    assert made.keys is not None
    made.keys.footer_mac = lambda footer_without_mac: bytes(32)  # type: ignore[method-assign]
    refused_by_both(made.finish(), NotAuthentic, match="footer")


@pytest.mark.parametrize("sealed", [True, False])
def test_a_footer_that_is_not_canonical_json_is_refused_by_both(sealed: bool) -> None:
    made = draft(sealed=sealed)
    footer = zipfile.ZipFile(io.BytesIO(made.finish())).read("footer.json")
    assert container([*made.entries, ("footer.json", footer)]) == made.finish()
    spaced = json.dumps(json.loads(footer)).encode()
    refused_by_both(container([*made.entries, ("footer.json", spaced)]), CorruptArchive, match="footer")


def test_a_newer_format_is_unsupported_whatever_the_rest_looks_like() -> None:
    header = json.loads(make_header(sealed=True).to_bytes()) | {"version": 2, "min_reader": 2}
    data = container([("header.json", json.dumps(header).encode()), ("new/layout", b"x")])
    refused_by_both(data, UnsupportedArchive, match="needs a reader for format 2")


def foreign(method: int = zipfile.ZIP_STORED, *, comment: bytes = b"", first: str = "a.txt") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.writestr(first, b"hello" * 100)
        file.writestr("b.txt", b"hello" * 100)
        file.comment = comment
    return buffer.getvalue()


def as_other_tools_write_it(*, method: int = zipfile.ZIP_STORED, seekable: bool = True, comment: bytes = b"") -> bytes:
    """Return a small archive's entries in a ZIP file by Python's writer."""
    buffer = io.BytesIO()
    if not seekable:
        buffer.seekable = lambda: False  # type: ignore[method-assign]
    source = zipfile.ZipFile(io.BytesIO(UNSEALED))
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name in source.namelist():
            file.writestr(name, source.read(name))
        file.comment = comment
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        foreign(),
        foreign(zipfile.ZIP_DEFLATED),
        foreign(comment=b"hello"),
        foreign(first="header.json"),
        container([("a.txt", b"x")]),
        as_other_tools_write_it(),
        as_other_tools_write_it(method=zipfile.ZIP_DEFLATED),
        as_other_tools_write_it(seekable=False),
        as_other_tools_write_it(comment=b"x"),
        zip64.end_records(entries=1, directory_offset=0, directory_size=0).replace(b"\1\0\1\0", bytes(4)),
        b"",
        b"P",
        b"not a ZIP file at all" * 10,
        b"PK\x05\x06",
        b"\x1f\x8b" + bytes(100),
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_foreign_files_are_refused_by_both(data: bytes) -> None:
    refused_by_both(data)


def test_a_foreign_zip_is_called_that() -> None:
    data = foreign()
    location = zip64.locate_directory(data, file_size=len(data))
    with pytest.raises(UnsupportedArchive, match="not an archive of this service"):
        zip64.parse_directory(data[location.offset : location.offset + location.size], location)


def test_a_file_without_its_end_is_incomplete() -> None:
    for length in (0, 1, 21, 22, 100, len(SEALED) - 1):
        with pytest.raises(IncompleteArchive):
            zip64.locate_directory(SEALED[:length], file_size=length)


@pytest.mark.parametrize("data", [SEALED, UNSEALED], ids=["sealed", "unsealed"])
def test_bytes_in_front_behind_or_between_are_refused(data: bytes) -> None:
    location = zip64.locate_directory(data, file_size=len(data))
    for more in (b"\0", b"PK", b"\n", bytes(22), data):
        refused_by_both(more + data)
        refused_by_both(data + more)
        refused_by_both(data[: location.offset] + more + data[location.offset :])
        end = zip64.end_records(
            entries=location.entries, directory_offset=location.offset + len(more), directory_size=location.size
        )
        refused_by_both(data[: location.offset] + more + data[location.offset : -22] + end, CorruptArchive)
    commented = data[:-2] + b"\x01\x00x"
    refused_by_both(commented, CorruptArchive, match="comment")


@pytest.mark.parametrize("names", [["footer.json"], ["keyslots.json", "footer.json"], ["keyslots.json"], []], ids=str)
def test_an_archive_of_nothing_but_its_parts_is_refused_by_both(names: list[str]) -> None:
    data = container(
        [("header.json", make_header(sealed=len(names) > 1).to_bytes()), *((name, b"{}") for name in names)]
    )
    with pytest.raises(CorruptArchive, match="lacks"):
        parse(data)
    refused_by_both(data)


def test_a_directory_that_ends_early_is_refused() -> None:
    location = zip64.locate_directory(UNSEALED, file_size=len(UNSEALED))
    directory = UNSEALED[location.offset : location.offset + location.size]
    for length in (0, 1, 45, 46, location.size - 1):
        with pytest.raises(CorruptArchive, match="whole"):
            zip64.parse_directory(directory[:length], location)
        cut = zip64.DirectoryLocation(location.offset, length, location.entries)
        with pytest.raises(ArchiveError):
            zip64.parse_directory(directory[:length], cut)
    more = zip64.DirectoryLocation(location.offset, location.size, location.entries + 1)
    with pytest.raises(CorruptArchive, match="cut off"):
        zip64.parse_directory(directory, more)
    end = zip64.end_records(entries=more.entries, directory_offset=more.offset, directory_size=more.size)
    refused_by_both(UNSEALED[:-22] + end, CorruptArchive, match="cut off")


def test_bytes_behind_the_last_record_of_the_directory_are_refused() -> None:
    location = zip64.locate_directory(UNSEALED, file_size=len(UNSEALED))
    for more in (b"\0", bytes(46), b"PK\x01\x02" + bytes(42)):
        size = location.size + len(more)
        end = zip64.end_records(entries=location.entries, directory_offset=location.offset, directory_size=size)
        refused_by_both(UNSEALED[:-22] + more + end, CorruptArchive, match="follow the last record")


def test_overlapping_entries_are_refused() -> None:
    made = draft(sealed=False)
    placed, body = place(made.entries)
    overlapping = [
        *placed[:2],
        zip64.Entry(placed[2].name, placed[1].offset, placed[2].size, placed[2].crc32),
        *placed[3:],
    ]
    directory = b"".join(map(zip64.directory_record, overlapping))
    end = zip64.end_records(entries=len(overlapping), directory_offset=len(body), directory_size=len(directory))
    refused_by_both(body + directory + end, CorruptArchive, match="where the one before it ends")


def test_an_archive_id_is_what_ties_header_and_footer() -> None:
    assert draft(sealed=False).finish(archive_id=ARCHIVE_ID.hex()) == UNSEALED
