"""A real SMB server (Samba, Debian's) in a directory of its own, for the demo and the tests.

It listens on 127.0.0.1 only, speaks SMB 3.1.1 and nothing older, demands encryption and signing, and has one share and
one user. It needs root: Samba changes users for each connection. It ends with the process that started it, however that
process ends.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ACCOUNT = "nobody"  # any user of the system; files belong to root all the same
SHARE = "backups"
START_SECONDS = 30.0

# The kernel watches the *thread* that forked, so this one has to live as long as the interpreter.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="samba-spawner")

_CONFIGURATION = """[global]
server role = standalone server
workgroup = DEMO
netbios name = DEMO
interfaces = 127.0.0.1/8
bind interfaces only = yes
disable netbios = yes
server min protocol = SMB3_11
server smb encrypt = required
server signing = mandatory
server multi channel support = no
map to guest = never
passdb backend = tdbsam:{0}/private/passdb.tdb
private dir = {0}/private
state directory = {0}/state
lock directory = {0}/lock
cache directory = {0}/cache
pid directory = {0}/pid
ncalrpc dir = {0}/ncalrpc
log file = {0}/log
log level = 1
load printers = no
disable spoolss = yes
printing = bsd
printcap name = /dev/null
"""


class SambaMissing(RuntimeError):
    """The server is not installed; the message names the Debian package."""


class SambaFailed(RuntimeError):
    """A program of Samba's failed; the message ends with what it said."""


class SambaServer:
    """One server. Entering starts it; leaving stops it, and removes its directory if it made that itself.

    `settings` are added to smb.conf's global section, and `shares` are more shares with their settings.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        shares: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        for program in ("smbd", "smbpasswd"):
            if shutil.which(program) is None:
                raise SambaMissing(f"{program} is not installed: apt-get install --no-install-recommends samba")
        self._temporary = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="samba-"))
        self.settings = dict(settings or {})
        self.shares = {name: dict(values) for name, values in (shares or {}).items()}
        self.host = "127.0.0.1"
        self.port = 0
        self.username = ACCOUNT
        self.password = secrets.token_urlsafe(18)
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"SambaServer({str(self.directory)!r})"

    @property
    def share(self) -> Path:
        """Return the directory that is shared."""
        return self.directory / "share"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def url(self) -> str:
        """Return what `target.url` has to be, for the share's own directory."""
        return f"smb://{self.host}:{self.port}/{SHARE}"

    @property
    def storage_options(self) -> dict[str, Any]:
        """Return what `target.storage_options` has to be, with the password itself."""
        return {"username": self.username, "password": self.password}

    @property
    def pid(self) -> int:
        """Return the main process's number. Raises SambaFailed when it does not run."""
        if self._process is None:
            raise SambaFailed("the SMB server is not running")
        return self._process.pid

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start and wait until connections are accepted; on the same port as before when there was one."""
        if self._process is not None:
            return
        if os.geteuid() != 0:
            raise SambaFailed("an SMB server can be started as root only")
        first = self.port == 0
        self.port = self.port or _free_port()
        if first:
            self._configure()
        self._process = _SPAWNER.submit(self._spawn).result()
        self._wait_ready()

    def stop(self) -> None:
        """End the server and all that it does for its clients. Fine when it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill -9 of all processes of the server, as when its machine loses power (but for what is on its disks)."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop every process of the server where it is: connections stay, and nothing is answered."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        os.killpg(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Stop, and remove the directory if it was made here."""
        self._end(signal.SIGKILL if self._temporary else signal.SIGTERM)
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def _configuration(self) -> Path:
        return self.directory / "smb.conf"

    def _configure(self) -> None:
        for name in ("private", "state", "lock", "cache", "pid", "ncalrpc", "share"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        shares = {SHARE: {"path": str(self.share)}, **self.shares}
        text = _CONFIGURATION.format(self.directory) + _lines({"smb ports": str(self.port), **self.settings})
        for name, values in shares.items():
            access = {"read only": "no", "force user": "root", "valid users": ACCOUNT}
            text += f"[{name}]\n" + _lines({**access, **values})
        self._configuration.write_text(text)
        result = subprocess.run(
            ["smbpasswd", "-c", self._configuration, "-s", "-a", ACCOUNT],
            input=f"{self.password}\n{self.password}\n",
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise SambaFailed(f"smbpasswd failed: {result.stderr.strip() or result.stdout.strip()}")

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = ["setpriv", "--pdeathsig", "KILL", "smbd", f"--configfile={self._configuration}"]
        command += ["--foreground", "--no-process-group"]
        with self.log.open("ab") as log:
            # A session of its own is also the process group that all of the server's processes are in.
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True
            )

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process is not None and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=1):
                return
            time.sleep(0.01)
        self._end(signal.SIGKILL)
        raise SambaFailed(f"smbd does not start in {self.directory}: {_tail(self.log)}")

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        group = self._process.pid
        children = _children(group)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, how)
            os.killpg(group, signal.SIGCONT)  # a paused process ends only when it goes on
        try:
            self._process.wait(timeout=START_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(group, signal.SIGKILL)
            self._process.wait()
        self._process = None
        deadline = time.monotonic() + START_SECONDS
        while any(_alive(child) for child in children) and time.monotonic() < deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            time.sleep(0.005)


def _lines(values: Mapping[str, str]) -> str:
    return "".join(f"{name} = {value}\n" for name, value in values.items())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tail(path: Path, size: int = 2000) -> str:
    return path.read_bytes()[-size:].decode(errors="replace").strip() if path.exists() else ""


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
