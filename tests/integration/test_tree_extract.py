"""The parts of a tree's restore by themselves: what a stream says, where it is written, what may stand in the way."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import CorruptArchive, StageFailed
from service.sources import tree_compare
from service.sources.directories import mounts_below, opened
from service.sources.selection import Selection
from service.sources.tar_stream import END, HeaderWriter, Kind, Member, padding
from service.sources.tree_extract import MemberReader, Place, TreeExtractor
from service.sources.tree_swap import Planner, Survey, choose_areas, survey
from service.sources.tree_unpack import ChosenMembers
from tests.trees import NOBODY, as_nobody, mounted

XATTR = (("user.note", b"x"),)


def member(path: str, kind: Kind = Kind.FILE, *, size: int = 0, **more: object) -> Member:
    return Member(path, kind, 0o755, 0, 0, "root", "root", 0, size, **more)  # type: ignore[arg-type]


def stream(*members: Member) -> bytes:
    """A tree of these members; a file is filled with the last letter of its name."""
    writer = HeaderWriter()
    whole = b""
    for each in (member("", Kind.DIRECTORY), *members):
        whole += writer.header(each) + each.path[-1:].encode() * each.size + padding(each.size)
    return whole + END


@pytest.fixture
def area(workspace: Path) -> Iterator[int]:
    """A directory in which everybody may write."""
    workspace.chmod(0o777)
    with opened(workspace) as fd:
        yield fd


def extracted(
    area: int, data: bytes, *, at_once: int = 1 << 20, reader: MemberReader | None = None, lenient: bool = False
) -> list[str]:
    """Write a stream to `tree` in the area; return what was said."""
    said: list[str] = []
    with TreeExtractor({"": Place(area, "tree")}, say=said.append, reader=reader, lenient=lenient) as extractor:
        for at in range(0, len(data), at_once):
            extractor.feed(data[at : at + at_once])
        extractor.finish()
    return said


def test_a_stream_that_ends_before_it_began_is_refused(area: int) -> None:
    with pytest.raises(CorruptArchive, match="is empty"):
        extracted(area, END)


def test_a_file_where_a_file_system_is_mounted_now_is_refused(area: int) -> None:
    places = {"": Place(area, "tree"), "volume": Place(area, "volume")}
    with (
        TreeExtractor(places, say=print) as extractor,
        pytest.raises(StageFailed, match="volume is no directory in the archive, but a file system is mounted there"),
    ):
        extractor.feed(stream(member("volume")))


def test_a_directory_that_belongs_to_somebody_else_needs_root(area: int, workspace: Path) -> None:
    with as_nobody(), pytest.raises(StageFailed, match="the tree's root could not be made as it was") as caught:
        extracted(area, stream())
    assert caught.value.hint.startswith("Run the restore as root")
    assert (workspace / "tree").stat().st_uid == NOBODY


def test_what_is_extracted_belongs_to_who_extracts_it(area: int, workspace: Path) -> None:
    with as_nobody():
        assert extracted(area, stream(member("file", size=3)), lenient=True) == []
    found = (workspace / "tree/file").stat()
    assert (found.st_uid, found.st_mtime_ns, (workspace / "tree/file").read_text()) == (NOBODY, 0, "eee")


def test_an_attribute_that_cannot_be_set_fails_a_restore_and_is_told_by_an_extraction(
    area: int, workspace: Path
) -> None:
    """A symbolic link has no attributes of users on Linux."""
    data = stream(member("link", Kind.SYMLINK, link="file", xattrs=XATTR), member("file", size=1))
    assert extracted(area, data, lenient=True) == ["Owners or attributes of some files could not be set here."]
    assert (workspace / "tree/link").read_text() == "e"
    (workspace / "tree").rename(workspace / "before")
    with pytest.raises(StageFailed, match=r"link could not be made as it was: extended attribute user\.note"):
        extracted(area, data)


def test_what_the_file_system_cannot_take_is_told_with_the_name_and_the_reason(area: int) -> None:
    with pytest.raises(StageFailed, match=f"link could not be written: {os.strerror(errno.ENAMETOOLONG)}"):
        extracted(area, stream(member("link", Kind.SYMLINK, link="x" * 5000)))


@pytest.mark.parametrize("at_once", [100, 512, 1 << 20])
def test_chosen_files_are_whole_however_the_stream_is_cut(area: int, workspace: Path, at_once: int) -> None:
    data = stream(member("a", size=2000), member("b", size=1500), member("c", size=3000))
    extracted(area, data, at_once=at_once, reader=ChosenMembers({"a", "c"}.__contains__, say=print))
    found = {path.name: path.read_text() for path in (workspace / "tree").iterdir()}
    assert found == {"a": "a" * 2000, "c": "c" * 3000}


def test_reading_a_copy_back_ends_where_it_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    stop = threading.Event()
    whole = tree_compare._digest(tmp_path, stop)
    stop.set()
    assert tree_compare._digest(tmp_path, stop) == hashlib.sha256().hexdigest() != whole


def surveyed(root: Path) -> Survey:
    return survey(root, lambda: Selection([], kept=(), mounts=mounts_below(root)))


def test_a_file_in_the_place_of_the_tree_is_exchanged_whole(tmp_path: Path) -> None:
    (tmp_path / "tree").write_text("no directory")
    assert surveyed(tmp_path / "tree") == Survey(exists=True)


def test_a_file_system_that_was_mounted_since_the_copy_was_made_stops_the_exchange(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    areas = choose_areas(root, surveyed(root), "area")
    with (
        mounted(root / "volume"),
        pytest.raises(StageFailed, match="was mounted below the tree since the copy was made"),
    ):
        Planner(root, areas, surveyed(root)).plan()
