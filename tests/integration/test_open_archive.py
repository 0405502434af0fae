"""The stand-alone reader as a program, and both readers against every way to damage a small archive."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.archive.parts import KeySlots
from service.errors import ArchiveError, NotAuthentic
from service.pipeline.pack import pack
from service.progress import Progress
from service.sealing.suite import ArchiveKeys
from service.sources.base import Stream
from storage_backends.local import LocalBackend
from tests.pipeline_archives import NAME, GivenSnapshot, packed
from tests.vectors.second_reader import PATH, open_archive, read_second
from tests.vectors.small import ARCHIVE_ID, CREATED, DATA_KEY, STREAMS, draft, make_header, make_manifest, read

VECTORS = Path(__file__).parents[1] / "vectors"
ARCHIVES = {name: (VECTORS / f"{name}.zip").read_bytes() for name in ("sealed", "unsealed")}
KEY = str(VECTORS / "sealed.key")
RAW = {stream: b"".join(raws) for stream, raws in STREAMS.items()}


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [options.pop("python", sys.executable), str(PATH), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def refused(data: bytes) -> None:
    """Both readers refuse it, with errors that are meant."""
    with pytest.raises((ArchiveError, NotAuthentic)):
        read(data, DATA_KEY)
    with pytest.raises(open_archive.Problem):
        read_second(data, DATA_KEY)


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_committed_archives_are_read_by_both(name: str) -> None:
    assert read(ARCHIVES[name], DATA_KEY) == STREAMS
    assert read_second(ARCHIVES[name], DATA_KEY) == RAW


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_cut_at_any_length_is_refused_by_both(name: str) -> None:
    for length in range(len(ARCHIVES[name])):
        refused(ARCHIVES[name][:length])


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("flip", [lambda _: 0xFF, lambda at: 1 << at % 8], ids=["whole byte", "one bit"])
def test_an_archive_with_any_byte_flipped_is_refused_by_both(name: str, flip: Callable[[int], int]) -> None:
    for at in range(len(ARCHIVES[name])):
        data = bytearray(ARCHIVES[name])
        data[at] ^= flip(at)
        refused(bytes(data))


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_with_bytes_inserted_or_removed_is_refused_by_both(name: str) -> None:
    data = ARCHIVES[name]
    for at in range(0, len(data), 7):
        refused(data[:at] + b"\0" + data[at:])
        refused(data[:at] + data[at + 1 :])


@pytest.mark.parametrize("name", ARCHIVES)
def test_verify_says_what_was_proven(name: str) -> None:
    done = run("verify", VECTORS / f"{name}.zip", "--key-file", KEY)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 streams, 128 bytes" in done.stdout
    assert ("authentic" in done.stdout) == (name == "sealed")
    told = json.loads(run("verify", VECTORS / f"{name}.zip", "--key-file", KEY, "--json").stdout)
    assert told == {"name": "Backup_20250131_0200Z.zip", "ok": True, "raw_bytes": 128, "streams": 3, "signer": None}


def test_list_tells_what_is_inside_and_without_key_what_is_claimed() -> None:
    done = run("list", VECTORS / "sealed.zip", "--key", DATA_KEY.hex())
    assert "DeviceOn 5.3.12" in done.stdout
    assert "postgresql.rows" in done.stdout
    without = run("list", VECTORS / "sealed.zip")
    assert without.returncode == 0
    assert "postgresql.rows" not in without.stdout
    assert "not proven" in without.stdout
    told = json.loads(run("list", VECTORS / "sealed.zip", "--key-file", KEY, "--json").stdout)
    assert [stream["id"] for stream in told["manifest"]["streams"]] == [1, 2, 7]
    assert told["slots"] == ["age"]
    assert json.loads(run("list", VECTORS / "sealed.zip", "--json").stdout)["manifest"] is None


@pytest.mark.parametrize("name", ARCHIVES)
def test_extract_writes_one_private_file_a_stream(name: str, tmp_path: Path) -> None:
    done = run("extract", VECTORS / f"{name}.zip", tmp_path / "new" / "out", "--key-file", KEY)
    assert (done.returncode, done.stderr) == (0, "")
    written = {path.name: path for path in (tmp_path / "new" / "out").iterdir()}
    assert set(written) == {
        "000001-postgresql.schema-deviceon-table_1.dump",
        "000002-postgresql.rows-deviceon-table_2.copy",
        "000007-tree.tar-deviceon-table_7.tar",
        "manifest.json",
    }
    for stream in STREAMS:
        (path,) = (path for file, path in written.items() if file.startswith(f"{stream:06d}"))
        assert path.read_bytes() == RAW[stream]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(written["manifest.json"].read_bytes())["tool"]["name"] == "deviceon-backup"


@pytest.mark.parametrize(("choice", "count"), [(["--stream", "2"], 1), (["--kind", "tree.tar"], 1), ([], 3)])
def test_extract_writes_what_was_chosen(choice: list[str], count: int, tmp_path: Path) -> None:
    assert run("extract", VECTORS / "unsealed.zip", tmp_path, *choice).returncode == 0
    assert len(list(tmp_path.iterdir())) == count + 1
    assert (tmp_path / "000002-postgresql.rows-deviceon-table_2.copy").exists() == ("tree.tar" not in choice)


def test_extract_never_replaces_a_file(tmp_path: Path) -> None:
    mine = tmp_path / "000002-postgresql.rows-deviceon-table_2.copy"
    mine.write_text("mine")
    done = run("extract", VECTORS / "unsealed.zip", tmp_path)
    assert (done.returncode, mine.read_text(), len(list(tmp_path.iterdir()))) == (5, "mine", 1)
    mine.unlink()
    mine.symlink_to("/nonexistent")
    assert run("extract", VECTORS / "unsealed.zip", tmp_path).returncode == 5


def test_a_stream_that_differs_from_the_manifest_leaves_no_file(tmp_path: Path) -> None:
    manifest = make_manifest(STREAMS)
    wrong = [stream.model_copy(update={"sha256": "00" * 32}) for stream in manifest.streams]
    lying = manifest.model_copy(update={"streams": [manifest.streams[0], *wrong[1:]]}).to_bytes()
    archive = tmp_path / "a.zip"
    archive.write_bytes(draft(sealed=True, manifest=lying).finish())
    done = run("extract", archive, tmp_path / "out", "--key-file", KEY)
    assert done.returncode == 1
    assert "not what the manifest says" in done.stderr
    assert [path.name[:6] for path in (tmp_path / "out").iterdir()] == ["000001"]


def test_labels_cannot_lead_a_file_elsewhere(tmp_path: Path) -> None:
    manifest = make_manifest(STREAMS)
    labels = [{"path": "../../etc/passwd"}, {"path": "/abs\n\x1b[31m"}, {"path": "x" * 5000}]
    streams = [one.model_copy(update={"labels": label}) for one, label in zip(manifest.streams, labels, strict=True)]
    archive = tmp_path / "a.zip"
    hostile = manifest.model_copy(update={"streams": streams}).to_bytes()
    archive.write_bytes(draft(sealed=False, manifest=hostile).finish())
    done = run("extract", archive, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip", "out"}
    assert len(list((tmp_path / "out").iterdir())) == 4
    assert "\x1b" not in run("list", archive).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["verify", VECTORS / "sealed.zip"], 3, "sealed"),
        (["extract", VECTORS / "sealed.zip", "out"], 3, "sealed"),
        (["verify", VECTORS / "sealed.zip", "--key", "00" * 32], 3, "not the one"),
        (["verify", VECTORS / "sealed.zip", "--key", "xyz"], 3, "32 bytes"),
        (["verify", VECTORS / "sealed.zip", "--key-file", "/nonexistent"], 5, "key file"),
        (["verify", "/nonexistent"], 5, "No such file"),
        (["verify", "/dev/null"], 1, "not an archive"),
        (["verify", "/"], 5, "directory"),
        (["verify", PATH], 1, "not an archive"),
        (["extract", VECTORS / "unsealed.zip", "/dev/null/x"], 5, "Not a directory"),
        (["extract", VECTORS / "unsealed.zip", "out", "--stream", "99"], 1, "no such stream"),
        (["frobnicate"], 2, "usage"),
        (["verify", "a", "--key", "0", "--key-file", "b"], 2, "usage"),
        ([], 2, "usage"),
    ],
)
def test_errors_are_one_plain_line_and_an_exit_code(
    arguments: list[str | Path], code: int, message: str, tmp_path: Path
) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_archive_is_refused_by_the_program(tmp_path: Path) -> None:
    data = bytearray(ARCHIVES["sealed"])
    data[len(data) // 3] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    done = run("verify", tmp_path / "a.zip", "--key-file", KEY)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    header = json.loads(make_header(sealed=False).to_bytes()) | {"version": 3, "min_reader": 3}
    (tmp_path / "a.zip").write_bytes(draft(sealed=False, header=json.dumps(header).encode()).finish())
    done = run("list", tmp_path / "a.zip")
    assert done.returncode == 1
    assert "format version 3" in done.stderr


def test_help_has_examples_and_the_way_to_the_key() -> None:
    for arguments in (["--help"], ["extract", "--help"]):
        done = run(*arguments)
        assert done.returncode == 0
        assert "open_archive.py extract" in done.stdout
        assert "age -d" in done.stdout
        assert "exit codes" in done.stdout


def test_it_imports_nothing_of_the_project_and_works_alone(tmp_path: Path) -> None:
    """A copy of the one file, in an empty directory, without site packages: the program zstd has to do."""
    alone = tmp_path / "open_archive.py"
    shutil.copy(PATH, alone)
    command = [sys.executable, "-I", "-S", str(alone), "verify", str(VECTORS / "unsealed.zip")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "service" not in {
        line.split()[1].split(".")[0] for line in alone.read_text().splitlines() if "import " in line[:7]
    }


def test_without_software_it_says_what_to_install(tmp_path: Path) -> None:
    environment = os.environ | {"PATH": str(tmp_path)}
    for archive, package in (("sealed.zip", "cryptography"), ("unsealed.zip", "zstd")):
        command = [sys.executable, "-I", "-S", str(PATH), "verify", str(VECTORS / archive), "--key-file", KEY]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
        assert done.returncode == 4, done.stderr
        assert f"install {package}" in done.stderr.replace("the program ", "").replace(
            "it (apt-get install python3-", ""
        )


def test_the_program_zstd_is_bounded_and_refuses_what_is_damaged() -> None:
    program = shutil.which("zstd")
    assert program is not None, "apt-get install zstd"
    frames: dict[str, Any] = json.loads((VECTORS / "frames.json").read_text())

    def engine(frame: bytes, most: int) -> bytes:
        return bytes(open_archive.run_zstd(program, frame, most))

    for vector in frames["good"]:
        assert len(open_archive.decompress(engine, bytes.fromhex(vector["frame"]), 1 << 20)) == vector["bytes"]
    for vector in frames["bad"]:
        with pytest.raises(open_archive.Problem):
            open_archive.decompress(engine, bytes.fromhex(vector["frame"]), 1 << 20)


def test_the_debian_python_reads_sealed_archives() -> None:
    """Debian 12 has Python 3.11 with cryptography 38: the machine on which somebody needs this is no newer."""
    done = run("verify", VECTORS / "sealed.zip", "--key-file", KEY, python="/usr/bin/python3")
    assert done.returncode == 0, f"apt-get install python3-cryptography zstd: {done.stderr}"


@dataclass(frozen=True)
class ManyChunks:
    level: int = 3
    chunk_bytes: int = 1000


@dataclass
class Given:
    streams: list[Stream]
    parallel: int = 3

    async def facts(self) -> dict[str, Any]:
        return {"excluded": [{"path": "data/db", "reason": "MongoDB"}], "warnings": ["something to look at"]}


def given_stream(number: int, content: bytes) -> Stream:
    async def pieces() -> AsyncGenerator[bytes, None]:
        for at in range(0, len(content), 777):
            await asyncio.sleep(0)
            yield content[at : at + 777]

    return Stream(kind="postgresql.rows", labels={"table": str(number)}, read=pieces)


@pytest.mark.parametrize("sealed", [True, False])
async def test_an_archive_that_the_service_packed_is_read(sealed: bool, tmp_path: Path) -> None:
    """Streams that interleave, by the real pipeline into a real target; out come the same bytes."""
    contents = [os.urandom(size) if size % 2 else b"device\n" * size for size in (0, 1, 999, 1000, 1001, 5000, 12_345)]
    header = make_header(sealed=sealed, max_raw=1000)
    keys = ArchiveKeys(DATA_KEY, archive_id=ARCHIVE_ID, header=header.to_bytes()) if sealed else None
    slots = KeySlots(slots=[{"type": "age", "file": ""}]) if sealed else None
    given_streams = [given_stream(number, content) for number, content in enumerate(contents)]
    async with LocalBackend(tmp_path) as target:
        await pack(
            target,
            header,
            slots,
            keys,
            [("server", "postgresql", Given(given_streams))],
            compression=ManyChunks(),
            progress=Progress(),
            clock=lambda: CREATED,
            tool_version="1",
        )
    data = (tmp_path / header.name).read_bytes()
    assert list(read_second(data, DATA_KEY).values()) == contents
    first = read(data, DATA_KEY)
    assert [b"".join(first[number]) for number in sorted(first)] == contents
    done = await asyncio.to_thread(run, "extract", tmp_path / header.name, tmp_path / "out", "--key-file", KEY)
    assert done.returncode == 0, done.stderr
    assert [path.read_bytes() for path in sorted((tmp_path / "out").glob("0*"))] == contents


async def test_extract_gives_each_small_table_its_own_file(tmp_path: Path) -> None:
    tables = [("public", "a/b", b"1\tone\n"), ("public", "empty", b""), ("Odd schema", "c", b"2\ttwo\n3\tthree\n")]

    async def pieces() -> AsyncGenerator[bytes, None]:
        for _, _, content in tables:
            yield content

    def archive(shift: int) -> list[Stream]:
        told: list[dict[str, Any]] = [{"schema": one[0], "table": one[1], "bytes": len(one[2])} for one in tables]
        told[0]["bytes"] += shift
        details = {"tables": told}
        return [Stream(kind="postgresql.small_tables", labels={"database": "app"}, read=pieces, details=details)]

    for shift, code in ((0, 0), (1, 1)):
        directory = tmp_path / f"shifted by {shift}"
        directory.mkdir()
        async with LocalBackend(directory) as target:
            await packed(target, {"db": GivenSnapshot(archive(shift), parallel=1)}, None)
        done = await asyncio.to_thread(run, "extract", directory / NAME, directory / "out")
        assert done.returncode == code, done.stderr
        if code == 0:
            folder = directory / "out" / "000001-postgresql.small_tables-app"
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
                "000-public.a_b.copy": b"1\tone\n",
                "001-public.empty.copy": b"",
                "002-Odd_schema.c.copy": b"2\ttwo\n3\tthree\n",
            }
            assert {path.name for path in (directory / "out").iterdir()} == {folder.name, "manifest.json"}
        else:
            assert "where its tables end" in done.stderr
