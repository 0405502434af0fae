"""The way to the TPM: what a TCTI string names, who may use it, and what is told to whom that may not."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.sealing.tpm.device import Endpoint, endpoint
from service.sealing.tpm.surroundings import surroundings

NOBODY, OTHER_GROUP = 65534, 4719


@pytest.mark.parametrize(
    ("tcti", "path", "is_socket"),
    [
        ("device", "/dev/tpmrm0", False),
        ("device:", "/dev/tpmrm0", False),
        ("device:/dev/tpm0", "/dev/tpm0", False),
        ("swtpm:path=/run/tpm", "/run/tpm", True),
        ("swtpm:host=a,path=/run/a=b,port=1", "/run/a=b", True),
        ("swtpm:host=localhost,port=2321", None, False),
        ("swtpm:path=", None, False),
        ("swtpm", None, False),
        ("mssim:path=/run/tpm", None, False),
        ("tabrmd", None, False),
    ],
)
def test_a_tcti_names_a_device_or_a_socket_or_nothing_in_the_file_system(
    tcti: str, path: str | None, is_socket: bool
) -> None:
    assert endpoint(tcti) == Endpoint(tcti, Path(path) if path else None, is_socket)


@pytest.mark.parametrize(
    ("tcti", "managed"),
    [
        ("device:/dev/tpmrm0", True),
        ("device:/dev/tpmrm12", True),
        ("tabrmd:bus_type=session", True),
        ("tabrmd", True),
        ("device:/dev/tpm0", False),
        ("device:/dev/tpmrm/tpm0", False),
        ("device:/dev/tpmr0", False),
        ("swtpm:path=/run/tpm", False),
        ("swtpm:port=1", False),
        ("mssim", False),
    ],
)
def test_only_a_resource_manager_cleans_up_what_others_leave(tcti: str, managed: bool) -> None:
    assert endpoint(tcti).has_resource_manager is managed


def test_nothing_is_in_the_way_of_what_has_no_path() -> None:
    assert endpoint("tabrmd").obstacle() is None
    assert endpoint("tabrmd").after_failure() is None


def test_what_is_absent_is_told_with_the_way_to_get_it(tmp_path: Path) -> None:
    there = tmp_path / "tpmrm0"
    for tcti, hint in (
        (f"swtpm:path={there}", "Start the software TPM"),
        (f"device:{there}", surroundings().let_in(there)),
    ):
        for told in (endpoint(tcti).obstacle(), endpoint(tcti).after_failure()):
            assert told is not None
            assert f"there is no TPM at {there}" in str(told)
            assert told.hint.startswith(hint)


def test_a_socket_that_nobody_listens_on_is_told_and_a_busy_one_is_not(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        where = endpoint(f"swtpm:path={tmp_path / 'sock'}")
        told = where.after_failure()
        assert told is not None
        assert "nobody listens" in str(told)
        assert where.obstacle() is None
        listener.listen(0)
        assert where.after_failure() is None
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(str(tmp_path / "sock"))
        assert where.after_failure() is None  # full, so that nobody else gets in
        for each in waiting:
            each.close()
    (tmp_path / "file").write_text("")
    assert "nobody listens" in str(endpoint(f"swtpm:path={tmp_path / 'file'}").after_failure())


def test_a_device_that_cannot_be_opened_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = tmp_path / "tpm0"
    node.write_text("")
    where = endpoint(f"device:{node}")
    assert where.after_failure() is None
    for number in (errno.EPERM, errno.EBUSY, errno.ENODEV, errno.ENXIO, errno.EIO):

        def refused(path: Path, flags: int, number: int = number) -> int:
            assert flags & (os.O_ACCMODE | os.O_NONBLOCK) == os.O_RDWR | os.O_NONBLOCK
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "open", refused)
        told = where.after_failure()
        expected = surroundings().explain_open(node, number)
        assert (expected is None) == (number == errno.EIO)
        assert (told and (str(told), told.hint)) == expected


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Have the rights of a user who may do nothing; our own, when we are not root."""
    if os.geteuid() != 0:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    os.setgroups([OTHER_GROUP])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def told_to_nobody(node: Path) -> tuple[str, str]:
    with as_nobody():
        told = endpoint(f"device:{node}").obstacle()
    return (str(told), told.hint) if told is not None else ("", "")


@pytest.mark.parametrize("mode", [0o660, 0o661, 0o600, 0o640, 0o620, 0o000, 0o666, 0o444, 0o222])
def test_who_may_not_use_a_device_is_told_how_to_join_its_group_or_to_make_one(workspace: Path, mode: int) -> None:
    node = workspace / "tpmrm0"
    node.write_text("")
    if os.geteuid() != 0:
        node.chmod(0)
        assert "mode 0000" in told_to_nobody(node)[0]
        return
    for group in (4711, 0):
        os.chown(node, 0, group)
        node.chmod(mode)
        message, hint = told_to_nobody(node)
        if mode == 0o666:
            assert (message, hint) == ("", "")
            continue
        assert (
            f"no permission to use the TPM: {node} belongs to root (0), group {'4711' if group else 'root'}" in message
        )
        assert f"mode {mode:04o}; this process is nobody (65534), groups 4719 (4719), nogroup (65534)" in message
        if mode | 1 == 0o661 and group:
            assert hint == surroundings().let_use(node, 4711, user="nobody", group="4711")
        else:
            assert "chmod 0660" in hint


def test_users_and_groups_without_a_name_are_told_by_number(workspace: Path) -> None:
    node = workspace / "tpmrm0"
    node.write_text("")
    node.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(node, 4712, 4711)
        assert f"{node} belongs to 4712 (4712), group 4711 (4711), mode 0640" in endpoint(f"device:{node}").ownership()
    assert "mode 0640" in endpoint(f"device:{node}").ownership()
