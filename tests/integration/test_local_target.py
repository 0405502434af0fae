"""The local target on the file systems and as the users it meets: full, read-only, not mounted, not allowed."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from storage_backends import (
    AccessDenied,
    InvalidUrl,
    ObjectExists,
    ObjectNotFound,
    TargetFull,
    TargetUnavailable,
    open_target,
)
from storage_backends.local import LocalBackend
from tests.integration.local_writer import Task, Writer, content

MIB = 1 << 20
NOBODY = 65534


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def read(target: LocalBackend, key: str) -> bytes:
    async with aclosing(target.get(key)) as data:
        return b"".join([piece async for piece in data])


async def keys(target: LocalBackend) -> list[str]:
    return [info.key async for info in target.list_objects()]


@contextmanager
def mounted(directory: Path, *, size: str) -> Iterator[Path]:
    """Mount a file system of its own, of this size, in memory."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0777", "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


@pytest.mark.parametrize("unnamed", [True, False])
async def test_a_full_file_system_is_said_and_nothing_stays_on_it(tmp_path: Path, *, unnamed: bool) -> None:
    with mounted(tmp_path / "small", size="8m") as directory:
        target = LocalBackend(directory, unnamed=unnamed)
        free = await target.free_bytes()
        with pytest.raises(TargetFull) as caught:
            await target.put("big", pieces(*[bytes(MIB)] * 9))
        assert str(directory) in caught.value.hint
        with pytest.raises(TargetFull):  # the system takes the first part of the only write, and says so
            await target.put("big", pieces(bytes(4 * MIB - 1) + bytes(MIB) * 5))
        assert await keys(target) == []
        assert list(directory.iterdir()) == []
        assert await target.free_bytes() == free
        await target.put("fits", pieces(*[bytes(MIB)] * 7))
        assert await keys(target) == ["fits"]


async def test_no_inode_left_is_a_full_target(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", size="8m,nr_inodes=2") as directory:
        target = LocalBackend(directory, unnamed=False)
        await target.put("first", pieces(b"x"))
        with pytest.raises(TargetFull):
            await target.put("second", pieces(b"x"))
        assert await keys(target) == ["first"]


async def test_a_file_system_that_turns_read_only_denies_and_still_reads(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", size="8m") as directory:
        target = LocalBackend(directory)
        await target.put("object", pieces(b"x"))
        subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
        with pytest.raises(AccessDenied) as caught:
            await target.put("other", pieces(b"x"))
        assert "Mount" in caught.value.hint
        with pytest.raises(AccessDenied):
            await target.delete("object")
        with pytest.raises(ObjectExists):
            await target.put("object", pieces(b"x"))
        assert await read(target, "object") == b"x"


@pytest.mark.parametrize("unnamed", [True, False])
def test_an_unprivileged_user_stores_where_it_may(workspace: Path, *, unnamed: bool) -> None:
    directory = workspace / "target"
    directory.mkdir()
    os.chown(directory, NOBODY, NOBODY)
    with Writer(Task(directory, uid=NOBODY, unnamed=unnamed)) as writer:
        assert writer.finish() == "stored"
    assert (directory / "object").read_bytes() == content("object", 3)
    assert (directory / "object").stat().st_uid == NOBODY


@pytest.mark.parametrize("unnamed", [True, False])
def test_an_unprivileged_user_is_denied_where_it_may_not(workspace: Path, *, unnamed: bool) -> None:
    directory = workspace / "target"
    directory.mkdir(mode=0o755)
    with Writer(Task(directory, uid=NOBODY, unnamed=unnamed)) as writer:
        assert writer.finish() == "refused TARGET_ACCESS_DENIED"
    assert list(directory.iterdir()) == []


async def test_an_absent_directory_is_unavailable_and_says_what_to_do(tmp_path: Path) -> None:
    target = LocalBackend(tmp_path / "not" / "mounted")
    with pytest.raises(TargetUnavailable) as caught:
        await target.put("object", pieces(b"x"))
    assert "auto_mkdir" in caught.value.hint
    for call in (
        target.stat("object"),
        target.delete("object"),
        keys(target),
        read(target, "object"),
        target.free_bytes(),
    ):
        with pytest.raises(TargetUnavailable):
            await call
    with pytest.raises(TargetUnavailable):
        await target.sweep(datetime.now(UTC))
    assert not (tmp_path / "not").exists()


async def test_auto_mkdir_makes_the_directory_when_it_is_written_to(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "target"
    target = open_target(f"file://{directory}", {"auto_mkdir": True})
    assert isinstance(target, LocalBackend)
    assert await keys(target) == []
    assert await target.sweep(datetime.now(UTC)) == 0
    for call in (target.stat("object"), read(target, "object")):
        with pytest.raises(ObjectNotFound):
            await call
    await target.delete("object")
    assert (await target.free_bytes() or 0) > 0
    assert not directory.exists()
    await target.put("object", pieces(b"x"))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o750
    assert await keys(target) == ["object"]


async def test_the_directory_may_not_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for options in ({}, {"auto_mkdir": True}):
        with pytest.raises(InvalidUrl):
            await open_target(f"file://{tmp_path}/file/below", options).put("object", pieces(b"x"))
    with pytest.raises(InvalidUrl):
        await open_target(f"file://{tmp_path}/file").stat("object")


async def test_a_directory_that_vanishes_meanwhile_is_an_error_of_the_target(tmp_path: Path) -> None:
    directory = tmp_path / "target"
    directory.mkdir()

    async def data() -> AsyncIterator[bytes]:
        yield bytes(MIB)
        shutil.rmtree(directory)

    with pytest.raises(TargetUnavailable):
        await LocalBackend(directory).put("object", data())


async def test_files_are_not_for_everybody(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        for unnamed in (True, False):
            await LocalBackend(tmp_path, unnamed=unnamed).put(f"object{unnamed}", pieces(b"x"))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}


async def test_only_regular_files_are_objects(tmp_path: Path) -> None:
    target = LocalBackend(tmp_path)
    (tmp_path / "outside").write_text("secret")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "symlink").symlink_to(tmp_path / "outside")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "name with blanks").write_text("x")
    assert await keys(target) == ["outside"]
    for key in ("fifo", "directory", "symlink", "dangling"):
        async with asyncio.timeout(10):
            with pytest.raises(ObjectNotFound):
                await read(target, key)
        with pytest.raises(ObjectNotFound):
            await target.stat(key)
        with pytest.raises(ObjectExists):
            await target.put(key, pieces(b"x"))
        await target.delete(key)
        assert os.path.lexists(tmp_path / key), "what is no object of ours was removed"
    with pytest.raises(ObjectExists):
        await target.put("directory", pieces(b"x"), overwrite=True)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


async def test_sweep_leaves_what_only_looks_like_ours(tmp_path: Path) -> None:
    (tmp_path / ".deviceon-backup-1.part").mkdir()
    (tmp_path / ".deviceon-backup-2.part").symlink_to(tmp_path)
    assert await LocalBackend(tmp_path).sweep(datetime.now(UTC) + timedelta(days=1)) == 0


@pytest.mark.parametrize(
    "url",
    ["file:///var/backups", "local:///var/backups", "/var/backups", "file:///a%20b", "file:///a b/c#d?e", "FILE:///x"],
)
def test_a_url_means_the_directory_that_fsspec_takes_it_for(url: str) -> None:
    lowered = url.replace("FILE:", "file:")
    assert open_target(url).url == f"file://{LocalFileSystem._strip_protocol(lowered)}"


@pytest.mark.parametrize(
    "url",
    ["", "file://", "file://backups", "backups", "./x", "~/x", "file://localhost/x", "file:///a\0b", "C:\\backups"],
)
def test_a_url_that_names_no_absolute_path_is_refused(url: str) -> None:
    with pytest.raises(InvalidUrl) as caught:
        open_target(url)
    assert caught.value.hint


@pytest.mark.parametrize("url", ["smb://user:hunter2@nas/share", "nonsense://hunter2", "gs://hunter2/x"])
def test_another_protocol_is_refused_without_repeating_its_secrets(url: str) -> None:
    with pytest.raises(InvalidUrl) as caught:
        open_target(url, {"password": "hunter2"})
    assert caught.value.hint
    assert "hunter2" not in f"{caught.value}{caught.value.hint}"


def test_unknown_options_are_refused_without_repeating_their_values() -> None:
    with pytest.raises(InvalidUrl, match="no option password, user") as caught:
        open_target("file:///x", {"user": "a", "password": "hunter2", "auto_mkdir": True})
    assert "hunter2" not in str(caught.value)
    with pytest.raises(InvalidUrl, match="auto_mkdir"):
        open_target("file:///x", {"auto_mkdir": "yes"})
