"""A second real S3 server of another make: OpenStack Swift with its S3 middleware, Debian's, on 127.0.0.1.

It is here because it is so different from Ceph: it knows no conditional writes, no checksums but Content-MD5, and
answers some requests with 501. Needs root. It ends with the process that started it, however that process ends.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import botocore.session
from botocore.config import Config

from demo.s3_server import free_ports

START_SECONDS = 60.0
_STORAGE = ("object", "container", "account")

# The kernel watches the *thread* that forked, so this one has to live as long as the interpreter.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="swift-spawner")

_HASH = """
[swift-hash]
swift_hash_path_suffix = suffix
swift_hash_path_prefix = prefix
[storage-policy:0]
name = default
default = yes
"""

_STORAGE_SERVER = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
devices = {directory}/devices
mount_check = false
user = root
swift_dir = {directory}
workers = 0
conn_timeout = 30
node_timeout = 60
# By default a listing may miss an object whose update took longer than a second, as it may on a busy machine.
container_update_timeout = 60
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""

_PROXY_SERVER = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = root
swift_dir = {directory}
workers = 0
[pipeline:main]
pipeline = catch_errors cache s3api tempauth bulk slo dlo symlink versioned_writes proxy-server
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached}
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
s3_acl = false
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:symlink]
use = egg:swift#symlink
[filter:versioned_writes]
use = egg:swift#versioned_writes
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
conn_timeout = 30
node_timeout = 60
error_suppression_limit = 1000000
"""


class SwiftFailed(RuntimeError):
    """A server program failed; the message ends with what it said."""


class SwiftServer:
    """One Swift. Use it as a context manager: started inside the block, stopped and removed after it."""

    access_key = "test:tester"
    secret_key = "testing"

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="swift-"))
        self.port, self._memcached_port, *self._storage_ports = free_ports(2 + len(_STORAGE))
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

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
        """Make the rings and start the daemons; returns when the proxy answers."""
        (self.directory / "devices" / "d1").mkdir(parents=True)
        (self.directory / "swift.conf").write_text(_HASH)
        system = Path("/etc/swift/swift.conf")  # read when Swift is imported; its place cannot be changed
        if not system.exists():
            system.parent.mkdir(exist_ok=True)
            system.write_text(_HASH)
        for name, port in zip(_STORAGE, self._storage_ports, strict=True):
            self._make_ring(name, port)
            (self.directory / f"{name}.conf").write_text(
                _STORAGE_SERVER.format(name=name, port=port, directory=self.directory)
            )
        (self.directory / "proxy.conf").write_text(
            _PROXY_SERVER.format(port=self.port, memcached=self._memcached_port, directory=self.directory)
        )
        self._spawn("memcached", "-u", "root", "-l", "127.0.0.1", "-p", str(self._memcached_port), "-m", "16")
        for name in (*_STORAGE, "proxy"):
            self._spawn(f"swift-{name}-server", f"{name}.conf")
        self._wait_ready()

    def create_bucket(self, name: str) -> None:
        """Make a bucket. The storage daemons may still be starting, so it is tried again."""
        deadline = time.monotonic() + START_SECONDS
        client = self.client()
        while True:
            try:
                client.create_bucket(Bucket=name)
                break
            except client.exceptions.ClientError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        client.close()

    def client(self) -> Any:
        """Return a plain S3 client of botocore's, which blocks: another program's view. The caller closes it."""
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
        )

    def close(self) -> None:
        """Stop everything and remove it."""
        for process in reversed(self._processes):
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
        self._processes.clear()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _make_ring(self, name: str, port: int) -> None:
        builder = f"{name}.builder"
        for command in (["create", "4", "1", "0"], ["add", f"r1z1-127.0.0.1:{port}/d1", "1"], ["rebalance"]):
            result = subprocess.run(
                ["swift-ring-builder", builder, *command],
                cwd=self.directory, capture_output=True, text=True, check=False, timeout=START_SECONDS,
            )  # fmt: skip
            if result.returncode > 1:  # 1 is a warning
                raise SwiftFailed(f"swift-ring-builder {command[0]}: {result.stdout} {result.stderr}")

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with urlopen(self.endpoint, timeout=5):
                    return
            except HTTPError:
                return  # it answers
            except (URLError, OSError) as error:
                if time.monotonic() > deadline or any(process.poll() is not None for process in self._processes):
                    said = "\n".join(path.read_text()[-1000:] for path in self.directory.glob("*.out"))
                    raise SwiftFailed(f"Swift does not answer: {error}; {said}") from error
                time.sleep(0.05)

    def _spawn(self, program: str, *arguments: str) -> None:
        def spawn() -> subprocess.Popen[bytes]:
            with (self.directory / f"{program}.out").open("wb") as out:
                return subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", program, *arguments],
                    cwd=self.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )

        self._processes.append(_SPAWNER.submit(spawn).result())
