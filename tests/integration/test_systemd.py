"""What systemd is given: units, users, directories; and what the service tells it and takes from it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import Client
from service.errors import ConfigError, JobRefused
from service.rpc.activation import handed_over
from service.rpc.unix_socket import listening
from service.supervisor import Supervisor
from tests.service_process import START_SECONDS, ServiceProcess

SYSTEMD = Path(__file__).parents[2] / "packaging" / "systemd"
UNITS = [path for path in sorted(SYSTEMD.iterdir()) if path.suffix in {".service", ".socket"}]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give the root directory of a machine: systemd's own units, ours, and programs that they name."""
    units = tmp_path / "usr/lib/systemd/system"
    shutil.copytree("/usr/lib/systemd/system", units, symlinks=True)
    for unit in UNITS:
        shutil.copy(unit, units)
    drop_in = tmp_path / "etc/systemd/system/deviceon-backup.service.d"
    drop_in.mkdir(parents=True)
    shutil.copy(SYSTEMD / "paths.conf", drop_in)
    for program in ("opt/deviceon-backup/bin/deviceon-backup", "bin/sh"):
        (tmp_path / program).parent.mkdir(parents=True)
        (tmp_path / program).touch(0o755)
    return tmp_path


@pytest.mark.parametrize("unit", [unit.name for unit in UNITS])
def test_systemd_finds_nothing_wrong_with_a_unit(root: Path, unit: str) -> None:
    found = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", f"--root={root}", unit)
    assert (found.returncode, found.stderr) == (0, "")


def test_systemd_would_find_a_wrong_line(root: Path) -> None:
    unit = root / "usr/lib/systemd/system/deviceon-backup.service"
    unit.write_text(unit.read_text().replace("ProtectSystem=strict", "ProtectSystem=strictly"))
    assert "strictly" in run("systemd-analyze", "verify", "--man=no", f"--root={root}", unit.name).stderr


@pytest.mark.parametrize(
    ("unit", "exposure"), [("deviceon-backup.service", 28), ("deviceon-backup-portal.service", 14)]
)
def test_a_unit_is_not_more_exposed_than_it_has_to_be(unit: str, exposure: int) -> None:
    """Exposure in tenths; systemd calls an ordinary service 96."""
    found = run(
        "systemd-analyze", "security", "--offline=true", f"--threshold={exposure}", "--no-pager", SYSTEMD / unit
    )
    assert found.returncode == 0, found.stdout[-100:]


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Give a root directory with an administrator's files, after sysusers and tmpfiles have run."""
    etc = tmp_path / "etc" / "deviceon-backup"
    etc.mkdir(parents=True)
    for name in ("config.yaml", "portal.yaml"):
        (etc / name).touch(0o644)
    (tmp_path / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    (tmp_path / "etc" / "group").write_text("root:x:0:\n")
    for program, name in (("systemd-sysusers", "sysusers.conf"), ("systemd-tmpfiles", "tmpfiles.conf")):
        create = ["--create"] if program == "systemd-tmpfiles" else []
        made = run(program, f"--root={tmp_path}", *create, SYSTEMD / name)
        assert made.returncode == 0, made.stderr
    return tmp_path


def test_users_are_made_for_the_portal_and_for_those_who_reach_the_socket(machine: Path) -> None:
    users = {line.split(":")[0]: line.split(":") for line in (machine / "etc/passwd").read_text().splitlines()}
    groups = {line.split(":")[0]: line.split(":") for line in (machine / "etc/group").read_text().splitlines()}
    assert users.keys() == {"root", "deviceon-backup-portal"}
    assert users["deviceon-backup-portal"][6] == "/usr/sbin/nologin"
    assert groups["deviceon-backup"][3] == "deviceon-backup-portal"
    assert users["deviceon-backup-portal"][3] == groups["deviceon-backup-portal"][2]


def test_what_holds_secrets_is_for_its_owner(machine: Path) -> None:
    groups = {line.split(":")[0]: int(line.split(":")[2]) for line in (machine / "etc/group").read_text().splitlines()}

    def facts(path: str) -> tuple[int, int, str]:
        found = (machine / path).stat()
        return (
            stat.S_IMODE(found.st_mode),
            found.st_uid,
            next(name for name, gid in groups.items() if gid == found.st_gid),
        )

    assert facts("etc/deviceon-backup") == (0o750, 0, "deviceon-backup")
    assert facts("etc/deviceon-backup/config.yaml") == (0o600, 0, "root")
    assert facts("etc/deviceon-backup/portal.yaml") == (0o640, 0, "deviceon-backup-portal")
    assert facts("var/lib/deviceon-backup") == (0o700, 0, "deviceon-backup")


def document(directory: Path) -> dict[str, object]:
    (directory / "archives").mkdir()
    (directory / "tree").mkdir()
    (directory / "tree" / "server.conf").write_text("port = 80\n")
    return {
        "server": {"version": "5.4.1"},
        "target": {"url": f"file://{directory / 'archives'}"},
        "sealing": {"mode": "off"},
        "sources": [{"type": "tree", "path": str(directory / "tree")}],
        "service": {"stop_timeout": 7},
    }


@contextlib.contextmanager
def supervisor(path: Path) -> Iterator[socket.socket]:
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listener:
        listener.bind(str(path))
        listener.settimeout(START_SECONDS)
        yield listener


def test_the_service_tells_when_it_is_ready_that_it_lives_and_that_it_stops(tmp_path: Path) -> None:
    service = ServiceProcess(tmp_path, document(tmp_path))
    service.environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
    with supervisor(tmp_path / "notify") as systemd, service:
        first = {systemd.recv(1000).decode() for _ in range(2)}
        assert first == {"READY=1", "WATCHDOG=1"}
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.connect(str(service.socket))
        began = time.monotonic()
        assert systemd.recv(1000) == b"WATCHDOG=1"
        assert time.monotonic() - began < 5
        assert service.stop() == 0
        told = b""
        while told == b"" or told == b"WATCHDOG=1":
            told = systemd.recv(1000)
        assert told == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=22000000"


def test_children_are_not_told_of_the_supervisor_and_its_absence_is_no_failure(tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}
    nobody = Supervisor.taken_from(environment)
    assert environment == {}
    nobody.ready()
    asyncio.run(nobody.keep_alive())  # the watchdog is another process's
    Supervisor().stopping(1.0)


@contextlib.contextmanager
def activated(service: ServiceProcess, path: Path, *, mode: int) -> Iterator[subprocess.Popen[bytes]]:
    """Have systemd listen on `path`, and start the service for whoever comes."""
    service.write_config()
    path.parent.mkdir(mode=0o750)
    command = ["systemd-socket-activate", "-l", str(path), sys.executable, "-m", "service"]
    with (service.directory / "service.log").open("ab") as log:
        service.process = subprocess.Popen(
            [*command, "--config", str(service.config_file), "serve"], stderr=log, cwd=Path(__file__).parents[2]
        )
    with service:
        deadline = time.monotonic() + START_SECONDS
        while not path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        path.chmod(mode)
        yield service.process


class Activated(ServiceProcess):
    """A service that somebody else has started."""

    def start(self) -> None:
        assert self.process is not None


async def test_whoever_calls_on_systemds_socket_is_answered_and_the_file_stays(tmp_path: Path) -> None:
    service = Activated(tmp_path, document(tmp_path))
    with activated(service, service.socket, mode=0o660):
        async with Client.unix(service.socket) as client:  # before there is a service
            assert (await client.call("system.info"))["product"] == "DeviceOn"
        with pytest.raises(JobRefused, match="another service"), listening(service.socket):
            pass
        assert service.stop() == 0
    assert stat.S_ISSOCK(service.socket.lstat().st_mode)


@pytest.mark.parametrize(
    ("mode", "name", "reason"),
    [(0o666, "service.sock", "not private enough"), (0o660, "other.sock", "and service.socket is")],
)
async def test_a_socket_of_systemds_that_is_not_as_it_should_be_is_refused(
    tmp_path: Path, mode: int, name: str, reason: str
) -> None:
    service = Activated(tmp_path, document(tmp_path))
    with (
        activated(service, service.socket.with_name(name), mode=mode) as process,
        contextlib.closing(socket.socket(socket.AF_UNIX)) as connection,
    ):
        connection.connect(str(service.socket.with_name(name)))
        assert await asyncio.to_thread(process.wait, START_SECONDS) == 2
    assert reason in service.log


def test_descriptors_that_are_for_another_process_are_left_alone() -> None:
    environment = {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "x"}
    assert handed_over(environment) is None
    assert environment == {}
    with pytest.raises(ConfigError, match="2 sockets"):
        handed_over({"LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid())})


def test_what_is_handed_over_has_to_be_a_unix_socket_that_listens(tmp_path: Path) -> None:
    path = tmp_path / "datagrams"
    program = "import os; from service.rpc.activation import handed_over; handed_over(os.environ)"
    command = ["systemd-socket-activate", "--datagram", "-l", str(path), sys.executable, "-c", program]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as activating,
        contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as client,
    ):
        deadline = time.monotonic() + START_SECONDS
        while not path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        client.sendto(b"hello", str(path))
        assert "is no UNIX stream socket that listens" in activating.communicate(timeout=START_SECONDS)[1]
