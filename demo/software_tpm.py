"""A real TPM 2.0 in software (swtpm, Debian's) in a directory of its own, for the demo and the tests.

Its state is a file: two instances are two TPMs, and one that is stopped and started again is the same TPM after a power
cycle. It listens on UNIX sockets only and ends with the process that started it, however that ends.
"""

from __future__ import annotations

import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

START_SECONDS = 20.0
_LONGEST_SOCKET_PATH = 100  # bytes; the kernel's limit is 107 and ".ctrl" is appended

# The kernel watches the *thread* that forked, so this one has to live as long as the interpreter.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="swtpm-spawner")


class SoftwareTpmMissing(RuntimeError):
    """swtpm is not installed; the message names the Debian package."""


class SoftwareTpmFailed(RuntimeError):
    """swtpm did not start or refused a command."""


class SoftwareTpm:
    """One software TPM. Entering starts it; leaving stops it, and removes its directory if it made that itself.

    `log_level` 20 writes every byte that the TPM sees and says into `log`.
    """

    def __init__(self, directory: Path | None = None, *, log_level: int = 1) -> None:
        self._temporary = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="swtpm-"))
        self.state = self.directory / "state"
        self.log = self.directory / "log"
        self.socket = self.directory / "sock"
        self._log_level = log_level
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"SoftwareTpm({str(self.directory)!r})"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._remove()

    @property
    def tcti(self) -> str:
        """Return what `sealing.tcti` has to be."""
        return f"swtpm:path={self.socket}"

    @property
    def pid(self) -> int:
        """Return the process's number. Raises SoftwareTpmFailed when it does not run."""
        if self._process is None:
            raise SoftwareTpmFailed("the software TPM is not running")
        return self._process.pid

    def start(self) -> None:
        """Switch the TPM on: with the state it had, or as a new TPM. Takes about 10 ms."""
        if len(str(self.socket).encode()) > _LONGEST_SOCKET_PATH:
            raise SoftwareTpmFailed(f"the path of the socket is too long for a UNIX socket: {self.socket}")
        program = shutil.which("swtpm")
        if program is None:
            raise SoftwareTpmMissing("There is no swtpm: install the Debian package (apt-get install swtpm)")
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._unlink_sockets()
        self._process = _SPAWNER.submit(self._spawn, program).result()
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                said = self.log.read_text(errors="replace") if self.log.exists() else ""
                raise SoftwareTpmFailed(f"swtpm did not start: {said.strip()[-2000:]}")
            time.sleep(0.002)

    def stop(self) -> None:
        """Switch the TPM off. What it keeps is in its state."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Pull the plug."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Power-cycle the TPM: the same TPM, with nothing loaded."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Let the TPM hang until `resume`."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End a pause."""
        self._running().send_signal(signal.SIGCONT)

    def clear(self) -> None:
        """TPM2_Clear by the platform hierarchy, as a firmware's "reset TPM" does: a new storage seed."""
        platform, password_session = 0x4000000C, 0x40000009
        body = struct.pack(">IIIIHBH", 0x126, platform, 9, password_session, 0, 0, 0)
        command = struct.pack(">HI", 0x8002, 6 + len(body)) + body
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(START_SECONDS)
            connection.connect(str(self.socket))
            connection.sendall(command)
            answer = connection.recv(4096)
        code = struct.unpack(">I", answer[6:10])[0]
        if code:
            raise SoftwareTpmFailed(f"TPM2_Clear was refused with 0x{code:x}")

    def _remove(self) -> None:
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _spawn(self, program: str) -> subprocess.Popen[bytes]:
        command = [
            *("setpriv", "--pdeathsig", "KILL", program, "socket", "--tpm2"),
            *("--tpmstate", f"dir={self.state},mode=0600"),
            *("--server", f"type=unixio,path={self.socket},mode=0600"),
            *("--ctrl", f"type=unixio,path={self.socket}.ctrl,mode=0600"),
            *("--flags", "not-need-init,startup-clear"),
            *("--log", f"file={self.log},level={self._log_level}"),
        ]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _answers(self) -> bool:
        """Ask a question: swtpm takes connections before it has found out whether its state is any good."""
        question = struct.pack(">HII", 0x8001, 10, 0x17C)  # TPM2_GetTestResult
        try:
            with socket.socket(socket.AF_UNIX) as control, socket.socket(socket.AF_UNIX) as data:
                control.connect(f"{self.socket}.ctrl")
                data.settimeout(START_SECONDS)
                data.connect(str(self.socket))
                data.sendall(question)
                return bool(data.recv(4096))
        except OSError:
            return False

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise SoftwareTpmFailed("the software TPM is not running")
        return self._process

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)  # it may be paused
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._unlink_sockets()

    def _unlink_sockets(self) -> None:
        for path in (self.socket, self.socket.with_name(f"{self.socket.name}.ctrl")):
            path.unlink(missing_ok=True)
