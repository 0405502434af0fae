"""A real PostgreSQL server in a directory of its own, for the demo, the tests and the benchmarks.

The programs are Debian's. The server listens on 127.0.0.1 (password, scram-sha-256) and on a UNIX socket in its
directory. PostgreSQL refuses to run as root, so root runs it as the system user `postgres`. It ends with the process
that started it, however that process ends: the kernel sends the postmaster SIGQUIT (immediate shutdown), and its
children leave when they find the postmaster gone.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import asyncpg

DEBIAN_ROOT = Path("/usr/lib/postgresql")
SUPERUSER = "postgres"
START_SECONDS = 60.0

# The kernel watches the *thread* that forked, not the process: a server started from a short-lived worker thread
# would die with that thread. This one lives as long as the interpreter.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-spawner")


class PostgresqlMissing(RuntimeError):
    """The server programs are not installed; the message names the Debian package."""


class PostgresqlFailed(RuntimeError):
    """A server program failed; the message ends with what it said."""


def find_programs(major: int | None = None) -> Path:
    """Return the directory with initdb and postgres: of `major`, or else of the newest installed."""
    found = {int(path.parent.parent.name): path.parent for path in DEBIAN_ROOT.glob("[0-9]*/bin/initdb")}
    if major is None and found:
        return found[max(found)]
    if major in found:
        return found[major]
    package = f"postgresql-{major}" if major else "postgresql"
    raise PostgresqlMissing(
        f"No PostgreSQL server{f' {major}' if major else ''} below {DEBIAN_ROOT}: "
        f"install the Debian package (apt-get install --no-install-recommends {package})"
    )


class PostgresqlServer:
    """One server. Use it as a context manager: started inside the block, stopped and (if made here) removed after it.

    All methods block for well below a second and may be called from any thread.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        major: int | None = None,
        programs: Path | None = None,
        settings: Mapping[str, str | int] | None = None,
        fsync: bool = True,
    ) -> None:
        """Describe a server; nothing is started yet.

        `directory` is made when missing and must be reachable by the user `postgres`; without it a temporary one is
        made now, and removed by `close`. `settings` are server settings (`max_connections`, ...); `fsync=False` for
        tests that do not cut the power.
        """
        self.programs = programs or find_programs(major)
        self._temporary = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="postgresql-"))
        self.settings: dict[str, str | int] = {"fsync": "on" if fsync else "off", **(settings or {})}
        self.host = "127.0.0.1"
        self.port = 0
        self.user = SUPERUSER
        self._process: subprocess.Popen[bytes] | None = None
        self._account = pwd.getpwnam(SUPERUSER) if os.geteuid() == 0 else None

    @classmethod
    def copy_of(cls, stopped: PostgresqlServer) -> PostgresqlServer:
        """Return a new server, not yet started, with all that a stopped one holds: quicker than making it again."""
        copy = cls(programs=stopped.programs, settings=stopped.settings)
        command = ["cp", "-a", "--reflink=auto", str(stopped.data), str(stopped.password_file), str(copy.directory)]
        subprocess.run(command, check=True)
        return copy

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    @property
    def socket_directory(self) -> Path:
        """Where the UNIX socket is: give it as `host` to connect through it."""
        return self.directory

    @property
    def password_file(self) -> Path:
        return self.directory / "password"

    @property
    def password(self) -> str:
        return self.password_file.read_text().strip()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        if self._process is None:
            raise PostgresqlFailed("the server is not running")
        return self._process.pid

    def __enter__(self) -> Self:
        try:
            self.initialise()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def initialise(self) -> None:
        """Make the cluster, unless the directory already has one."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._account:
            os.chown(self.directory, self._account.pw_uid, self._account.pw_gid)
        if (self.data / "PG_VERSION").exists():
            return
        self.password_file.touch(mode=0o600)
        self.password_file.write_text(secrets.token_urlsafe(18) + "\n")
        if self._account:
            os.chown(self.password_file, self._account.pw_uid, self._account.pw_gid)
        command: list[str | Path] = [self.programs / "initdb", "-D", self.data, "-U", self.user, "-A", "scram-sha-256"]
        command += [f"--pwfile={self.password_file}", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        result = subprocess.run(
            self._as_owner(command), capture_output=True, text=True, check=False, cwd="/", env=self._environment()
        )
        if result.returncode:
            raise PostgresqlFailed(f"initdb failed in {self.directory}: {result.stderr.strip()}")

    def start(self) -> None:
        """Start and wait until connections are accepted; on the same port as before when there was one."""
        if self.running:
            return
        deadline = time.monotonic() + START_SECONDS
        while True:
            self.port = self.port or _free_port()
            self._process = _SPAWNER.submit(self._spawn).result()
            problem = self._wait_ready(deadline)
            if problem is None:
                return
            # After kill -9 the old children may still hold the shared memory for a moment.
            if "in use" not in problem or time.monotonic() > deadline:
                raise PostgresqlFailed(f"PostgreSQL does not start in {self.directory}: {problem}")
            time.sleep(0.05)

    def stop(self, mode: str = "fast") -> None:
        """Shut down: `smart`, `fast` (rolls back what runs) or `immediate` (recovery at the next start)."""
        if self._process is None:
            return
        stop_signal = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode]
        if self._process.poll() is None:
            self._process.send_signal(stop_signal)
        try:
            self._process.wait(timeout=START_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """Kill -9 of the postmaster, as the kernel does when memory runs out; returns when all children are gone."""
        if self._process is None:
            return
        children = _children(self._process.pid)
        self._process.kill()
        self._process.wait()
        self._process = None
        deadline = time.monotonic() + START_SECONDS
        while any(_alive(child) for child in children) and time.monotonic() < deadline:
            time.sleep(0.01)

    def restart(self, settings: Mapping[str, str | int] | None = None) -> None:
        """Stop and start, with `settings` added to those given before."""
        self.stop()
        self.settings.update(settings or {})
        self.start()

    def close(self) -> None:
        """Stop, and remove the directory if it was made here. For ever: a temporary server cannot start again."""
        self.stop("immediate" if self._temporary else "fast")
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def dsn(self, database: str = "postgres", *, user: str | None = None, password: str | None = None) -> str:
        """Return a libpq URI, password included."""
        credentials = f"{quote(user or self.user, safe='')}:{quote(password or self.password, safe='')}"
        return f"postgresql://{credentials}@{self.host}:{self.port}/{quote(database, safe='')}"

    def source_settings(self, name: str = "postgresql", **more: Any) -> dict[str, Any]:
        """Return one entry of the configuration's `sources`, of type postgresql."""
        return {
            "type": "postgresql",
            "name": name,
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password_file": str(self.password_file),
            "client_dir": str(self.programs),
        } | more

    async def connect(
        self, database: str = "postgres", *, user: str | None = None, password: str | None = None
    ) -> asyncpg.Connection[asyncpg.Record]:
        """Open a connection; the caller closes it."""
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
            host=self.host,
            port=self.port,
            user=user or self.user,
            password=password or self.password,
            database=database,
            timeout=30,
        )
        return connection

    @contextlib.asynccontextmanager
    async def connected(self, database: str = "postgres") -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        """Hold a connection inside the block."""
        connection = await self.connect(database)
        try:
            yield connection
        finally:
            await connection.close()

    async def execute(self, sql: str, *, database: str = "postgres") -> None:
        """Run statements on a connection of their own. More than one are one transaction."""
        async with self.connected(database) as connection:
            await connection.execute(sql)

    async def fetch(self, sql: str, *values: object, database: str = "postgres") -> list[asyncpg.Record]:
        """Run one query on a connection of its own."""
        async with self.connected(database) as connection:
            return await connection.fetch(sql, *values)

    def run(self, program: str, arguments: Sequence[str], *, timeout: float = 300) -> str:
        """Run a client program (`pg_dump`, `pgbench`, ...) against this server and return what it printed."""
        environment = self._environment() | {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
            # A database may have been given a timeout that stops pg_dump before it can switch it off.
            "PGOPTIONS": "-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0",
        }
        command = [str(self.programs / program), *arguments]
        result = subprocess.run(command, capture_output=True, check=False, env=environment, timeout=timeout)
        if result.returncode:
            raise PostgresqlFailed(f"{program} failed: {result.stderr.decode(errors='replace').strip()}")
        return result.stdout.decode()

    def program_output(self, program: str, *arguments: str) -> str:
        """Run a program that needs no server (`pg_config --sharedir`)."""
        return subprocess.run(
            [self.programs / program, *arguments], capture_output=True, check=True, text=True
        ).stdout.strip()

    def _spawn(self) -> subprocess.Popen[bytes]:
        values: dict[str, str | int] = {
            "listen_addresses": self.host,
            "port": self.port,
            "unix_socket_directories": str(self.directory),
            "logging_collector": "off",
            **self.settings,
        }
        command: list[str | Path] = [self.programs / "postgres", "-D", self.data]
        for name, value in values.items():
            command += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self._as_owner(command, die_with_parent=True),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=self._environment(),
                start_new_session=True,
            )

    def _wait_ready(self, deadline: float) -> str | None:
        """Return None once the server is ready, or the end of its log if it gave up."""
        assert self._process is not None
        status = self.data / "postmaster.pid"
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                self._process = None
                return _tail(self.log)
            with contextlib.suppress(OSError):
                lines = status.read_text().splitlines()
                # The 8th line is the state; the 1st tells a file left by a killed server from ours.
                if len(lines) >= 8 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready":
                    return None
            time.sleep(0.005)
        self.stop("immediate")
        return f"not ready in {START_SECONDS:.0f} s: {_tail(self.log)}"

    def _as_owner(self, command: Sequence[str | Path], *, die_with_parent: bool = False) -> list[str]:
        prefix = ["setpriv"]
        if die_with_parent:
            prefix += ["--pdeathsig", "QUIT"]
        if self._account:
            prefix += [f"--reuid={SUPERUSER}", f"--regid={SUPERUSER}", "--clear-groups"]
        return [*(prefix if len(prefix) > 1 else []), *map(str, command)]

    @staticmethod
    def _environment() -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not re.match("PG|LC_|LANG", name)}
        return kept | {"LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def _tail(path: Path, size: int = 2000) -> str:
    return path.read_bytes()[-size:].decode(errors="replace").strip() if path.exists() else ""
