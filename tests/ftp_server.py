"""A real FTP server (Debian's pyftpdlib) on a directory, for tests of drivers that rename."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

# Debian's own Python has the package. Without TLS: it listens on loopback only.
_PROGRAM = """
import ctypes, signal, sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
authorizer = DummyAuthorizer()
authorizer.add_user("tester", sys.argv[3], sys.argv[1], perm="elradfmwMT")
handler = FTPHandler
handler.authorizer = authorizer
FTPServer(("127.0.0.1", int(sys.argv[2])), handler).serve_forever()
"""


class FtpServer:
    """Use it as a context manager. `directory` is what clients see."""

    password: ClassVar[str] = "not-a-secret"

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __enter__(self) -> Self:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        command = ["/usr/bin/python3", "-W", "ignore", "-c", _PROGRAM, str(self.directory), str(self.port)]
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen([*command, self.password], stderr=self._log)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return self
            time.sleep(0.01)
        raise AssertionError(f"the FTP server does not start: is python3-pyftpdlib installed? {self._stop()}")

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def url(self) -> str:
        """Return the URL of the directory, without the password."""
        return f"ftp://tester@127.0.0.1:{self.port}"

    def _stop(self) -> str:
        self._process.kill()
        self._process.wait()
        with self._log as log:
            log.seek(0)
            return log.read()[-2000:].decode(errors="replace")
