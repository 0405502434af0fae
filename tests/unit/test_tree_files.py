"""What a tree's files have besides their content, and reading what changes meanwhile: on real files."""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path

import pytest

from service.sources import tree_walk
from service.sources.attributes import (
    Attributes,
    apply_link_attributes,
    group_name,
    read_link_xattrs,
    read_xattrs,
    set_xattr,
    strip_acls,
    user_name,
)

NOBODY_HAS = 3_999_999_999
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, 5, who)
    for tag, who in ((1, 2**32 - 1), (2, 1234), (4, 2**32 - 1), (16, 2**32 - 1), (32, 2**32 - 1))
)


@pytest.fixture
def directory(tmp_path: Path) -> int:
    return os.open(tmp_path, os.O_RDONLY)


def test_a_symbolic_link_gets_its_own_owner_attributes_and_time(tmp_path: Path, directory: int) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    wanted = Attributes(0o777, 1, 2, 10**18, (("trusted.a", b"1"), ("trusted.b", b"\0")))
    apply_link_attributes("link", directory, wanted, say=pytest.fail)
    status = (tmp_path / "link").lstat()
    assert (status.st_uid, status.st_gid, status.st_mtime_ns) == (1, 2, 10**18)
    assert read_link_xattrs("link", directory) == wanted.xattrs
    assert (tmp_path / "file").stat().st_uid == os.getuid()
    assert read_link_xattrs("file", directory) == ()
    with pytest.raises(OSError, match=r"extended attribute user\.a: Operation not permitted"):
        set_xattr(str(tmp_path / "link"), "user.a", b"1", say=pytest.fail)


def test_what_cannot_be_read_is_an_error_and_not_a_file_without_attributes(tmp_path: Path, directory: int) -> None:
    with pytest.raises(FileNotFoundError):
        read_link_xattrs("gone", directory)
    os.close(directory)
    with pytest.raises(OSError) as refused:
        read_xattrs(directory)
    assert refused.value.errno == errno.EBADF


def test_only_what_the_systems_policy_decides_may_be_refused() -> None:
    said: list[str] = []
    with Path("/proc/self/status").open() as file:
        set_xattr(file.fileno(), "security.selinux", b"1", say=said.append)
        assert said == [
            "The attribute security.selinux could not be set here (Operation not supported); the system's policy "
            "decides it."
        ]
        with pytest.raises(OSError, match=r"extended attribute user\.a: "):
            set_xattr(file.fileno(), "user.a", b"1", say=said.append)
    assert len(said) == 1


def test_inherited_acls_are_taken_off_and_other_attributes_stay(tmp_path: Path, directory: int) -> None:
    os.setxattr(tmp_path, "system.posix_acl_default", ACL)
    os.setxattr(tmp_path, "user.a", b"1")
    assert len(read_xattrs(directory)) == 2
    strip_acls(directory)
    assert read_xattrs(directory) == (("user.a", b"1"),)


def test_a_number_that_nobody_has_here_has_no_name() -> None:
    assert (user_name(NOBODY_HAS), group_name(NOBODY_HAS)) == ("", "")
    assert (user_name(0), group_name(0)) == ("root", "root")


def test_a_file_that_comes_in_pieces_is_read_to_its_end() -> None:
    for pieces, wanted in (([b"ab", b"cd"], b"abcd"), ([b"ab"], b"ab"), ([b"abcdef", b"more"], b"abcdef")):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            for piece in pieces:
                theirs.send(piece)
            theirs.shutdown(socket.SHUT_WR)
            assert tree_walk._read_up_to(ours.fileno(), 7) == wanted


@pytest.mark.parametrize(
    ("number", "why", "hint"),
    [
        (errno.EACCES, "permission denied", "as a user who may read"),
        (errno.EIO, "Input/output error", "no backup made"),
    ],
)
def test_what_stops_a_backup_names_the_file_and_what_to_do(number: int, why: str, hint: str) -> None:
    error = tree_walk._unreadable(Path("/etc/x"), "a/b", OSError(number, os.strerror(number)))
    assert str(error) == f"/etc/x/a/b cannot be read: {why}."
    assert hint in error.hint
