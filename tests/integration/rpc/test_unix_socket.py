"""The socket's file: who may reach it, what happens to stale and foreign ones, and that it goes at the end."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from service.client import Client
from service.errors import ConfigError, JobRefused
from service.rpc.unix_socket import LONGEST, listening
from tests.integration.rpc.service import NOBODY, serving

GROUP = 54321


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_socket_and_directory_are_for_owner_and_group_whatever_the_umask(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with listening(path, group=GROUP) as listener:
            assert stat.S_ISSOCK(path.lstat().st_mode)
            assert (mode(path), path.lstat().st_gid) == (0o660, GROUP)
            assert (mode(path.parent), path.parent.stat().st_gid) == (0o750, GROUP)
            assert not listener.getblocking()
            assert not listener.get_inheritable()
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert not path.exists()


def test_a_directory_that_is_there_stays_as_it_is(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with listening(path, group="root"):
        assert mode(path.parent) == 0o700


@pytest.mark.parametrize("wide", [0o755, 0o770, 0o751, 0o1777])
def test_a_directory_that_others_may_use_is_refused(path: Path, wide: int) -> None:
    path.parent.mkdir()
    path.parent.chmod(wide)
    with pytest.raises(ConfigError, match="others may use") as refused, listening(path):
        pass
    assert "chmod 0750" in refused.value.hint
    assert list(path.parent.iterdir()) == []


def test_a_directory_of_another_user_is_refused(path: Path) -> None:
    path.parent.mkdir(mode=0o750)
    os.chown(path.parent, NOBODY, -1)
    with pytest.raises(ConfigError, match=f"another user .uid {NOBODY}"), listening(path):
        pass


def test_a_group_that_is_not_there_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="no group 'no-such-group'"), listening(path, group="no-such-group"):
        pass


def test_a_path_that_does_not_fit_is_refused_and_one_that_just_fits_is_not(workspace: Path) -> None:
    directory = workspace / "run"
    name = "s" * (LONGEST - len(str(directory)) - 1)
    with listening(directory / name):
        assert (directory / name).is_socket()
    with pytest.raises(ConfigError, match="108 bytes") as refused, listening(directory / f"{name}s"):
        pass
    assert "short" in refused.value.hint


def test_an_abstract_socket_is_refused() -> None:
    with pytest.raises(ConfigError, match="zero byte"), listening(Path("\0abstract")):
        pass


def test_a_path_that_cannot_be_made_is_a_configuration_error(workspace: Path) -> None:
    (workspace / "run").write_text("a file")
    with pytest.raises(ConfigError, match="cannot listen"), listening(workspace / "run" / "service.sock"):
        pass


def test_a_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    path.parent.mkdir(mode=0o750)
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is no socket"), listening(path):
        pass
    assert path.read_text() == "precious"


def test_a_second_service_is_refused_and_the_first_goes_on(path: Path) -> None:
    with listening(path) as first:
        inode = path.lstat().st_ino
        with pytest.raises(JobRefused, match="another service runs on this socket"), listening(path):
            pass
        assert path.lstat().st_ino == inode
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            first.accept()[0].close()
    with listening(path):
        pass


def test_a_second_service_is_refused_also_when_the_file_of_the_first_was_removed(path: Path) -> None:
    with listening(path):
        path.unlink()
        with pytest.raises(JobRefused, match="another service runs on this socket"), listening(path):
            pass


def test_a_service_that_holds_no_lock_but_answers_is_left_alone(path: Path) -> None:
    path.parent.mkdir(mode=0o750)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(0)
        for _ in range(3):  # the second and third find its backlog full
            with pytest.raises(JobRefused, match="another service"), listening(path):
                pass
        assert path.is_socket()


KILLED = """
import os, sys, time
from pathlib import Path
from service.rpc.unix_socket import listening
with listening(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


async def test_the_socket_of_a_killed_service_is_taken_over(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"ready\n"
        with pytest.raises(JobRefused), listening(path):
            pass
        killed.send_signal(signal.SIGKILL)
    assert path.is_socket()
    async with serving(path), Client.unix(path) as client:
        assert await client.call("echo") == {}
    assert not path.exists()


def test_at_the_end_only_its_own_socket_is_removed(path: Path) -> None:
    with listening(path):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.is_socket()
    with listening(path):
        path.unlink()


def test_an_error_inside_the_block_is_not_changed(path: Path) -> None:
    with pytest.raises(OSError, match="of the block's own"), listening(path):
        raise OSError("of the block's own")
    assert not path.exists()
