"""The SMB server that other tests stand on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.smb_server import SHARE, SambaMissing, SambaServer


def listing(server: SambaServer, *, password: str | None = None) -> subprocess.CompletedProcess[str]:
    """List the share with Samba's own client."""
    command = ["smbclient", f"//{server.host}/{SHARE}", "-p", str(server.port), "-t", "2", "-c", "ls"]
    command += ["-U", f"{server.username}%{password or server.password}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_only_the_one_user_gets_in_and_a_restarted_server_is_the_same() -> None:
    with SambaServer() as server:
        (server.share / "object").write_text("x")
        assert "object" in listing(server).stdout
        assert "LOGON_FAILURE" in listing(server, password="wrong").stdout
        port = server.port
        for end in (server.stop, server.kill):
            end()
            assert listing(server).returncode != 0
            server.start()
            assert server.port == port
            assert "object" in listing(server).stdout
    assert not server.directory.exists()


def test_a_directory_that_was_given_stays(tmp_path: Path) -> None:
    with SambaServer(tmp_path / "samba") as server:
        (server.share / "object").write_text("x")
    assert (tmp_path / "samba/share/object").read_text() == "x"


def test_nothing_of_the_server_outlives_the_process_that_started_it() -> None:
    script = (
        "import demo.smb_server as d; s = d.SambaServer(); s.start(); print(s.pid, s.directory, flush=True); input()"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdin
    assert owner.stdout
    group, directory = owner.stdout.readline().split()
    os.killpg(int(group), 0)
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    deadline = time.monotonic() + 30
    while running(int(group)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert running(int(group)) == []
    subprocess.run(["rm", "-rf", directory], check=True)


def running(group: int) -> list[int]:
    """Return the processes of a group that are alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


def test_a_missing_server_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SambaMissing, match="samba"):
        SambaServer()
