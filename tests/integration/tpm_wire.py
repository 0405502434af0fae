"""The wire between the service and a software TPM: sees every byte, and lets commands fail as a TPM or a bus would."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from demo.software_tpm import SoftwareTpm

START_AUTH_SESSION, CREATE, CREATE_PRIMARY, LOAD, UNSEAL = 0x176, 0x153, 0x131, 0x157, 0x15E
DROP = -1
"""Instead of a response code: the connection breaks and the TPM never sees the command."""
LOSE = -2
"""The TPM carries the command out and its answer is lost."""

HANG = -3
"""The TPM does not answer until `TpmWire.let_go`; then the connection breaks."""

Plan = Callable[[int, int], int | None]
"""From the number of a command (from 0) and its code to the response code it fails with; None lets it through."""

Answer = Callable[[bytes, bytes], bytes]
"""From a command and the TPM's answer to what comes out of the wire."""


class TpmWire:
    """A relay in front of `tpm`. `commands` are the codes seen, `seen` is every byte, there and back."""

    def __init__(self, tpm: SoftwareTpm) -> None:
        self.commands: list[int] = []
        self.seen = bytearray()
        self.plan: Plan = lambda _number, _code: None
        self.said: Answer = lambda _command, answer: answer
        self._tpm = tpm
        self._let_go = threading.Event()
        self._path = tpm.directory / "wire"
        self._listeners: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    @property
    def tcti(self) -> str:
        return f"swtpm:path={self._path}"

    def __enter__(self) -> TpmWire:
        self._serve(self._path, self._tpm.socket, self._exchange)
        control = Path(f"{self._path}.ctrl")
        self._serve(control, Path(f"{self._tpm.socket}.ctrl"), _relay)
        return self

    def let_go(self) -> None:
        """End what hangs now."""
        self._let_go.set()
        self._let_go = threading.Event()

    def __exit__(self, *_: object) -> None:
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for thread in self._threads:
            thread.join(10)

    def _serve(self, path: Path, upstream: Path, talk: Callable[[socket.socket, socket.socket], None]) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(64)
        self._listeners.append(listener)

        def body() -> None:
            with contextlib.suppress(OSError):  # closed
                while True:
                    client, _ = listener.accept()
                    with client, socket.socket(socket.AF_UNIX) as tpm, contextlib.suppress(OSError):
                        # A client that only looks whether somebody listens must not keep the TPM's one place.
                        if not client.recv(1, socket.MSG_PEEK):
                            continue
                        tpm.connect(str(upstream))
                        talk(client, tpm)

        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _exchange(self, client: socket.socket, tpm: socket.socket) -> None:
        while command := _message(client):
            code = int(struct.unpack(">I", command[6:10])[0])
            number = len(self.commands)
            self.commands.append(code)
            self.seen += command
            failure = self.plan(number, code)
            if failure == HANG:
                self._let_go.wait(60)
            if failure in (DROP, HANG):
                return
            if failure in (None, LOSE):
                tpm.sendall(command)
                answer = self.said(command, _message(tpm))
                if failure == LOSE:
                    return
            else:
                answer = struct.pack(">HII", 0x8001, 10, failure)
            self.seen += answer
            client.sendall(answer)


class TpmClock:
    """A clock that only the pauses between two tries move on."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return sum(self.slept)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class Tools:
    """Debian's tpm2-tools, a foreign implementation, on one TPM. Leaves nothing loaded in it."""

    def __init__(self, tcti: str, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self._environment = os.environ | {"TPM2TOOLS_TCTI": tcti}

    def __call__(self, command: str, *arguments: str, fails: bool = False) -> bytes:
        done = self._run(f"tpm2_{command}", *arguments)
        assert (done.returncode != 0) == fails, done.stderr.decode()
        if command != "startauthsession":
            self._run("tpm2_flushcontext", "--transient-object")
        return done.stdout

    def persist(self, handle: str, *arguments: str) -> None:
        """Make a storage key persistent, as an installer does: with the attributes of the TCG's templates."""
        attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"
        self("createprimary", "-C", "o", "-c", "primary", "-a", attributes, *arguments)
        self("evictcontrol", "-C", "o", "-c", "primary", handle)

    def lock_out(self) -> None:
        """Give wrong passwords for something of somebody else's until the TPM refuses the right one too."""
        self("createprimary", "-C", "o", "-c", "primary")
        (self.directory / "secret").write_bytes(b"x")
        self("create", "-C", "primary", "-i", "secret", "-p", "right", "-u", "public", "-r", "private")
        self("load", "-C", "primary", "-u", "public", "-r", "private", "-c", "object")
        for _ in range(4):
            self("unseal", "-c", "object", "-p", "wrong", fails=True)
        self("unseal", "-c", "object", "-p", "right", fails=True)

    def _run(self, *command: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            command, cwd=self.directory, env=self._environment, capture_output=True, timeout=60, check=False
        )


@contextlib.contextmanager
def wired(tpm: SoftwareTpm) -> Iterator[TpmWire]:
    """Put a wire in front of a TPM."""
    with TpmWire(tpm) as wire:
        yield wire


def _message(connection: socket.socket) -> bytes:
    head = _exactly(connection, 10)
    if not head:
        return b""
    return head + _exactly(connection, int(struct.unpack(">I", head[2:6])[0]) - 10)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            return b""
        data += piece
    return data


def _relay(client: socket.socket, tpm: socket.socket) -> None:
    while data := client.recv(4096):
        tpm.sendall(data)
        client.sendall(tpm.recv(4096))
