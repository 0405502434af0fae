"""A real SFTP server (Debian's OpenSSH) on loopback, for tests; its user is the one who runs the tests."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_CONFIG = """
ListenAddress 127.0.0.1:{port}
HostKey {root}/host_key
AuthorizedKeysFile {root}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
MaxStartups 100
Subsystem sftp internal-sftp
"""


class SftpServer:
    """Use it as a context manager. `directory` is what targets are made in; `root` holds keys and the configuration."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = root / "files"
        self.user = pwd.getpwuid(os.getuid()).pw_name

    @property
    def url(self) -> str:
        return f"sftp://{self.user}@127.0.0.1:{self.port}{self.directory}"

    def sessions(self) -> list[int]:
        """Return the processes that serve somebody."""
        found = subprocess.run(["pgrep", "-P", str(self._process.pid)], check=False, capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    @property
    def known_hosts(self) -> Path:
        """Return a file with the server's host key."""
        return self.root / "known_hosts"

    @property
    def storage_options(self) -> dict[str, Any]:
        return {"key_filename": str(self.root / "user_key"), "known_hosts": str(self.known_hosts), "allow_agent": False}

    def __enter__(self) -> Self:
        self.directory.mkdir()
        for key in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.root / key], check=True)
        (self.root / "authorized_keys").write_bytes((self.root / "user_key.pub").read_bytes())
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        key = (self.root / "host_key.pub").read_text()
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {key}")
        config = self.root / "sshd_config"
        config.write_text(_CONFIG.format(port=self.port, root=self.root))
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self._log = (self.root / "log").open("wb")
        self._process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", config], stderr=self._log)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return self
            time.sleep(0.01)
        self._stop()
        raise AssertionError(f"sshd does not start: is openssh-server installed? {(self.root / 'log').read_text()}")

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._log.close()
