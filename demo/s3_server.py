"""A real S3 server (Ceph's RADOS gateway) in a directory of its own, for the demo and the tests.

The programs are Debian's: one monitor, one storage daemon that keeps everything in memory, and the gateway, which
speaks http and https on 127.0.0.1. Any user can run it. It ends with the process that started it, however that
process ends: the kernel kills its daemons.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import URLError
from urllib.request import urlopen

import botocore.session
from botocore.config import Config

START_SECONDS = 60.0
REGION = "us-east-1"
_DAEMONS = ("ceph-mon", "ceph-osd", "radosgw")

# The kernel watches the *thread* that forked, so this one has to live as long as the interpreter.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ceph-spawner")

_CONFIGURATION = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{port}/0]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
auth allow insecure global id reclaim = false
run dir = {directory}/out
admin socket = {directory}/out/$name.asok
pid file = {directory}/out/$name.pid
log file = {directory}/out/$name.log
keyring = {directory}/keyring
mon data = {directory}/mon
osd data = {directory}/osd
rgw data = {directory}/rgw
osd objectstore = memstore
memstore device bytes = {memory_bytes}
osd memory target = 939524096
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
mon data avail warn = 2
mon warn on pool no redundancy = false
paxos propose interval = 0.05
paxos min wait = 0.01
rgw override bucket index max shards = 1
rgw run sync thread = false
rgw user quota bucket sync interval = 1
rgw bucket quota ttl = 0
"""


class CephMissing(RuntimeError):
    """The server programs are not installed; the message names the Debian packages."""


class CephFailed(RuntimeError):
    """A server program failed; the message ends with what it said."""


class CephServer:
    """One S3 server. Use it as a context manager: started inside the block, stopped and removed after it.

    All methods block, for seconds at most, and may be called from any thread.
    """

    def __init__(self, *, memory_bytes: int = 8 << 30) -> None:
        """Describe a server that holds `memory_bytes` at most; nothing is started yet."""
        if missing := [program for program in _DAEMONS if shutil.which(program) is None]:
            raise CephMissing(
                f"No {' and no '.join(missing)} here: install the Debian packages "
                "(apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common openssl)"
            )
        self.directory = Path(tempfile.mkdtemp(prefix="ceph-"))
        self.access_key = f"AK{secrets.token_hex(8).upper()}"
        self.secret_key = secrets.token_hex(20)
        self.port, self.tls_port, self._monitor_port = free_ports(3)
        self.ca_file = self.directory / "tls.crt"
        self._memory_bytes = memory_bytes
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __repr__(self) -> str:
        return f"CephServer({self.endpoint!r})"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def tls_endpoint(self) -> str:
        """The same over https; its certificate is `ca_file`, for 127.0.0.1 and localhost."""
        return f"https://127.0.0.1:{self.tls_port}"

    def pid(self, daemon: str) -> int:
        """Return the process id of `ceph-mon`, `ceph-osd` or `radosgw`."""
        return self._processes[daemon].pid

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
        """Make the cluster and start it; returns when S3 requests are answered."""
        for name in ("out", "mon", "osd", "rgw"):
            (self.directory / name).mkdir()
        fsid = str(uuid.uuid4())
        text = _CONFIGURATION.format(
            fsid=fsid, port=self._monitor_port, directory=self.directory, memory_bytes=self._memory_bytes
        )
        (self.directory / "ceph.conf").write_text(text)
        self._make_certificate()
        self._make_keys()
        address = f"[v2:127.0.0.1:{self._monitor_port}/0]"
        self._run("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", address, "monmap")
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring")
        self._spawn("ceph-mon", "-i", "a", "-f")
        osd = str(uuid.uuid4())
        self._run("ceph", "osd", "new", osd)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._spawn("ceph-osd", "-i", "0", "-f")
        self.start_gateway()
        self.add_user("owner", self.access_key, self.secret_key)

    def start_gateway(self) -> None:
        """Start the S3 gateway, on the same ports as before, and wait for its first answer."""
        directory = self.directory
        frontend = f"beast tcp_nodelay=1 endpoint=127.0.0.1:{self.port} ssl_endpoint=127.0.0.1:{self.tls_port} "
        frontend += f"ssl_certificate={self.ca_file} ssl_private_key={directory}/tls.key"
        self._spawn("radosgw", "-f", "-n", "client.rgw", "--rgw-frontends", frontend)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with urlopen(self.endpoint, timeout=5):
                    return
            except (URLError, OSError) as error:
                if time.monotonic() > deadline or self._processes["radosgw"].poll() is not None:
                    raise CephFailed(f"the gateway does not answer: {error}; {self._said('radosgw')}") from error
                time.sleep(0.05)

    def kill_gateway(self) -> None:
        """Kill -9 of the S3 gateway: connections break, new ones are refused. What was stored stays."""
        self._processes["radosgw"].kill()
        self._processes["radosgw"].wait()

    def add_user(self, name: str, access_key: str, secret_key: str, *, quota_bytes: int | None = None) -> None:
        """Make one more user, with buckets of its own; `quota_bytes` limits what all of them hold."""
        self._run(
            "radosgw-admin", "user", "create", "--uid", name, "--display-name", name,
            "--access-key", access_key, "--secret-key", secret_key,
        )  # fmt: skip
        if quota_bytes is not None:
            quota = ("radosgw-admin", "quota")
            self._run(*quota, "set", "--uid", name, "--quota-scope", "user", "--max-size", str(quota_bytes))
            self._run(*quota, "enable", "--uid", name, "--quota-scope", "user")

    def remove_key(self, name: str, access_key: str) -> None:
        """Take an access key from a user."""
        self._run("radosgw-admin", "key", "rm", "--uid", name, "--access-key", access_key)

    def create_bucket(
        self, name: str, *, object_lock: bool = False, access_key: str | None = None, secret_key: str | None = None
    ) -> None:
        """Make a bucket, by default of the server's first user."""
        client = self.client(access_key=access_key, secret_key=secret_key)
        try:
            client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=object_lock)
        finally:
            client.close()

    def empty_bucket(self, name: str) -> None:
        """Delete everything in a bucket, and give its memory back now: the gateway itself waits two hours for that."""
        client = self.client()
        try:
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
                for found in page.get("Contents", []):
                    client.delete_object(Bucket=name, Key=found["Key"])
        finally:
            client.close()
        self._run("radosgw-admin", "gc", "process", "--include-all")

    def client(self, *, access_key: str | None = None, secret_key: str | None = None) -> Any:
        """Return a plain S3 client of botocore's, which blocks: another program's view. The caller closes it."""
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=access_key or self.access_key,
            aws_secret_access_key=secret_key or self.secret_key,
            config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
        )

    def target_settings(self, bucket: str, prefix: str = "") -> dict[str, Any]:
        """Return the configuration's `target` for a place in a bucket, over https."""
        return {
            "url": f"s3://{bucket}/{prefix}".rstrip("/"),
            "storage_options": {
                "endpoint_url": self.tls_endpoint,
                "key": self.access_key,
                "secret": self.secret_key,
                "verify": str(self.ca_file),
            },
        }

    def close(self) -> None:
        """Stop everything and remove it. For ever: what was stored was in memory."""
        for process in reversed(self._processes.values()):
            process.send_signal(signal.SIGCONT)  # a test may have stopped it
            process.kill()
            process.wait()
        self._processes.clear()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _make_certificate(self) -> None:
        self._run(
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "tls.key", "-out", self.ca_file.name,
            "-days", "30", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
        )  # fmt: skip

    def _make_keys(self) -> None:
        everything = ("allow *", "allow *", "allow *")
        for name, capabilities in {
            "mon.": ("allow *",),
            "client.admin": everything,
            "osd.0": ("allow profile osd", "allow *", "allow profile osd"),
            "client.rgw": ("allow rw", "allow rwx"),
        }.items():
            given = [word for kind, text in zip(("mon", "osd", "mgr"), capabilities) for word in ("--cap", kind, text)]  # noqa: B905
            create = ["--create-keyring"] if name == "mon." else []
            self._run("ceph-authtool", *create, "keyring", "--gen-key", "-n", name, *given)

    def _run(self, *command: str) -> str:
        result = subprocess.run(
            command,
            cwd=self.directory,
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=START_SECONDS,
        )
        if result.returncode:
            raise CephFailed(f"{' '.join(command[:3])} failed: {result.stderr.strip()[-2000:]}")
        return result.stdout

    def _spawn(self, *command: str) -> None:
        def spawn() -> subprocess.Popen[bytes]:
            with (self.directory / "out" / f"{command[0]}.out").open("ab") as out:
                return subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", *command],
                    cwd=self.directory,
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )

        self._processes[command[0]] = _SPAWNER.submit(spawn).result()

    def _said(self, daemon: str) -> str:
        path = self.directory / "out" / f"{daemon}.out"
        return path.read_text(errors="replace")[-2000:].strip()

    def _environment(self) -> dict[str, str]:
        return os.environ | {"CEPH_CONF": str(self.directory / "ceph.conf"), "LC_ALL": "C.UTF-8"}


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
