"""What we write, read by programs that know nothing of us: Python's zipfile, Info-ZIP, 7-Zip, libarchive, zstd."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from service.archive import chunk, names, zip64
from service.archive.parts import Footer
from tests.vectors.second_reader import PATH, open_archive
from tests.vectors.small import ARCHIVE_ID, CREATED, STREAMS, Draft, container, draft, make_header, make_manifest

GIB = 1 << 30
TEST_COMMANDS = {
    "Info-ZIP": ["unzip", "-t"],
    "7-Zip": ["7z", "t"],
    "libarchive": ["bsdtar", "-xOf"],
}
LIST_COMMANDS = {
    "Info-ZIP": ["unzip", "-Z1"],
    "7-Zip": ["7z", "l", "-slt", "-ba"],
    "libarchive": ["bsdtar", "-tf"],
}
PIPE_COMMANDS = {
    "Info-ZIP": ["unzip", "-p"],
    "7-Zip": ["7z", "e", "-so"],
    "libarchive": ["bsdtar", "-xOf"],
}


def run(*command: str | Path, stdin: bytes | None = None) -> bytes:
    done = subprocess.run(list(map(str, command)), input=stdin, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, (command, done.stdout[-500:], done.stderr[-500:])
    assert b"arning" not in done.stderr, done.stderr
    return done.stdout


def listed(reader: str, archive: Path) -> list[str]:
    lines = run(*LIST_COMMANDS[reader], archive).decode().splitlines()
    if reader == "7-Zip":
        return [line.removeprefix("Path = ") for line in lines if line.startswith("Path = ")]
    return lines


@pytest.fixture(params=[True, False], ids=["sealed", "unsealed"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Draft]:
    made = draft(sealed=request.param)
    path = tmp_path / "Backup_20250131_0200Z.zip"
    path.write_bytes(made.finish())
    return path, made


@pytest.mark.parametrize("reader", TEST_COMMANDS)
def test_foreign_readers_test_and_list_our_archives(archive: tuple[Path, Draft], reader: str) -> None:
    path, made = archive
    output = run(*TEST_COMMANDS[reader], path)
    assert b"arning" not in output
    assert listed(reader, path) == [*(name for name, _ in made.entries), "footer.json"]


def test_python_s_zipfile_reads_every_entry(archive: tuple[Path, Draft]) -> None:
    path, made = archive
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        assert [(name, file.read(name)) for name in file.namelist()[:-1]] == made.entries
        assert {info.external_attr >> 16 for info in file.infolist()} == {0o100600}


def test_a_streaming_reader_needs_no_directory(archive: tuple[Path, Draft]) -> None:
    path, made = archive
    assert run("bsdtar", "-tf", "-", stdin=path.read_bytes()).decode().splitlines()[:-1] == [
        name for name, _ in made.entries
    ]


def test_an_unzipped_unsealed_stream_is_plain_zstd(tmp_path: Path) -> None:
    path = tmp_path / "Backup_20250131_0200Z.zip"
    path.write_bytes(draft(sealed=False).finish())
    run("unzip", "-q", path, "-d", tmp_path)
    for stream, chunks in STREAMS.items():
        folder = tmp_path / "streams" / f"{stream:08x}"
        command = f'cat "{folder}"/*.zst | zstd -d -q'
        assert run("sh", "-c", command) == b"".join(chunks)
    manifest = run("zstd", "-d", "-q", "-c", tmp_path / "streams/ffffffff/00000000.zst")
    assert len(json.loads(manifest)["streams"]) == len(STREAMS)


@pytest.fixture(scope="module")
def crowded_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an archive of 65,603 entries."""
    path = tmp_path_factory.mktemp("crowded") / "Backup_20250131_0200Z.zip"
    path.write_bytes(draft(sealed=False, streams={1: [b"x"] * 65_600}).finish())
    return path


@pytest.mark.parametrize("reader", LIST_COMMANDS)
def test_more_than_65535_entries_are_listed_by_foreign_readers(crowded_archive: Path, reader: str) -> None:
    told = listed(reader, crowded_archive)
    assert len(told) == 65_603
    assert told[-3] == names.stream_entry(1, 65_599, sealed=False)


def test_more_than_65535_entries_are_read_by_zipfile_and_by_both_of_our_readers(crowded_archive: Path) -> None:
    with zipfile.ZipFile(crowded_archive) as file:
        assert len(file.namelist()) == 65_603
        assert file.read("footer.json")
    data = crowded_archive.read_bytes()
    location = zip64.locate_directory(data[-zip64.TAIL_BYTES :], file_size=len(data))
    assert len(zip64.parse_directory(data[location.offset : location.offset + location.size], location)) == 65_603
    assert b"65603 entries, 65600 bytes" in run(sys.executable, PATH, "list", crowded_archive)


@pytest.fixture(scope="module")
def far_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an archive of 4.2 GiB: 68 chunks of 64 MiB of zeros are holes in a sparse file, and a real stream follows.

    The holes are no zstd frames; whoever only lists, or reads the last stream, never looks at them.
    """
    path = tmp_path_factory.mktemp("far") / "Backup_20250131_0200Z.zip"
    size, raw = 64 << 20, STREAMS[1]
    crc = chunk.crc32(bytes(size))
    holes = [(names.stream_entry(1, index, sealed=False), size, crc, b"") for index in range(68)]
    streams = {1: [b""] * 68, 2: raw}
    header = make_header(sealed=False, max_raw=size).to_bytes()
    made = Draft(header, None)
    made.add_stream(2, raw)
    made.add_stream(names.MANIFEST_STREAM, [make_manifest(streams).to_bytes()])
    real = [(name, len(content), chunk.crc32(content), content) for name, content in made.entries]
    entries: list[zip64.Entry] = []
    with path.open("wb") as file:

        def put(name: str, size: int, crc: int, content: bytes) -> None:
            entries.append(zip64.Entry(name, file.tell(), size, crc))
            file.write(zip64.local_header(name, size=size, crc32=crc) + content)
            file.seek(size - len(content), 1)

        put(names.HEADER, len(header), chunk.crc32(header), header)
        for entry in [*holes, *real]:
            put(*entry)
        footer = Footer(
            archive_id=ARCHIVE_ID.hex(),
            entries=len(entries),
            bytes=file.tell(),
            raw_bytes=len(b"".join(raw)),
            started=CREATED,
            finished=CREATED,
            directory_sha256=zip64.directory_digest(entries),
        ).to_bytes()
        put(names.FOOTER, len(footer), chunk.crc32(footer), footer)
        offset, directory = file.tell(), b"".join(map(zip64.directory_record, entries))
        file.write(directory)
        file.write(zip64.end_records(entries=len(entries), directory_offset=offset, directory_size=len(directory)))
    assert path.stat().st_size > 4 * GIB
    assert path.stat().st_blocks * 512 < 16 << 20, "the test's file is not sparse here"
    return path


@pytest.mark.parametrize("reader", PIPE_COMMANDS)
def test_offsets_beyond_4_gib_are_found_by_foreign_readers(far_archive: Path, reader: str) -> None:
    assert len(listed(reader, far_archive)) == 72
    footer = json.loads(run(*PIPE_COMMANDS[reader], far_archive, "footer.json"))
    assert footer["bytes"] > 4 * GIB
    body = run(*PIPE_COMMANDS[reader], far_archive, names.stream_entry(2, 0, sealed=False))
    assert chunk.decompress(body, max_raw=1000) == STREAMS[1][0]


def test_offsets_beyond_4_gib_are_found_by_zipfile_and_by_both_of_our_readers(
    far_archive: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(far_archive) as file:
        assert json.loads(file.read("footer.json"))["entries"] == 71
    size = far_archive.stat().st_size
    with far_archive.open("rb") as file:
        file.seek(size - zip64.TAIL_BYTES)
        tail = file.read()
        location = zip64.locate_directory(tail, file_size=size)
        file.seek(location.offset)
        entries = zip64.parse_directory(file.read(location.size), location)
        file.seek(entries[-1].offset)
        footer = Footer.from_bytes(
            bytes(zip64.check_entry(file.read(entries[-1].end - entries[-1].offset), entries[-1]))
        )
        assert zip64.last_entry(tail, location) == entries[-1]
        assert footer.bytes == entries[-1].offset > 4 * GIB
        archive = open_archive.Archive(file)
        (last,) = [stream for stream in archive.manifest["streams"] if stream["id"] == 2]
        assert hashlib.sha256(b"".join(archive.stream(last))).hexdigest() == last["sha256"]


def test_a_plain_container_of_other_content_is_valid_zip_too(tmp_path: Path) -> None:
    """The profile itself, apart from our names, is what other programs expect."""
    path = tmp_path / "x.zip"
    path.write_bytes(container([("empty", b""), ("a/b", b"\0" * 100_000)]))
    for command in TEST_COMMANDS.values():
        run(*command, path)
