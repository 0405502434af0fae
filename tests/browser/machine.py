"""A server's machine as a visitor of the portal finds it: PostgreSQL with data, a TPM, S3, files, service and portal.

Everything is real and a process of its own. What is made here has the same names and sizes each time, so that the
pictures of two runs are alike.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import yaml
from playwright.async_api import Browser

from demo import config_files
from demo.compare import fingerprint
from demo.postgresql_server import PostgresqlServer
from demo.s3_server import free_ports
from demo.software_tpm import SoftwareTpm
from tests.browser.watched import Watched, visiting
from tests.s3_servers import ceph, ceph_options
from tests.service_process import ServiceProcess
from tests.tcp_proxy import TcpProxy

START_SECONDS = 60.0
DATABASES = ("deviceon", "grafana_reports")
VERSION = "5.3.12"
BUCKET = "deviceon-backups"
TOKENS = {"admin": "admin-token-of-the-tests-0123456789", "read": "reader-token-of-the-tests-0123456789"}

_DEVICEON = """
    CREATE TABLE devices AS SELECT n AS id, 'EPC-' || lpad(n::text, 5, '0') AS name, md5(n::text) AS serial
        FROM generate_series(1, 20000) AS n;
    ALTER TABLE devices ADD PRIMARY KEY (id);
    CREATE TABLE events AS SELECT n AS id, 1 + n % 20000 AS device, md5((n * 7)::text) || md5((n * 11)::text) AS message
        FROM generate_series(1, 120000) AS n;
    ALTER TABLE events ADD PRIMARY KEY (id);
    CREATE TABLE firmware AS SELECT n AS id, decode(string_agg(md5((n * 1000 + m)::text), ''), 'hex') AS image
        FROM generate_series(1, 64) AS n, generate_series(1, 4096) AS m GROUP BY n;
    CREATE MATERIALIZED VIEW events_by_device AS SELECT device, count(*) AS events FROM events GROUP BY device;
    GRANT SELECT ON ALL TABLES IN SCHEMA public TO deviceon_readonly;
"""
_REPORTS = "CREATE TABLE reports AS SELECT n AS id, 'Report ' || n AS title FROM generate_series(1, 200) AS n"


@dataclass
class Machine:
    """The servers that all tests of a session share, and the files beside them."""

    directory: Path
    server: PostgresqlServer
    tpm: SoftwareTpm
    files: config_files.ServerFiles
    s3: TcpProxy
    """S3 is reached through here, so that a test can make it slow (`rate`)."""

    async def make_data(self) -> None:
        """Fill PostgreSQL; what is there already is dropped first."""
        for name in DATABASES:
            await self.server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await self.server.execute("DROP ROLE IF EXISTS deviceon_app, deviceon_readonly")
        await self.server.execute("CREATE ROLE deviceon_app LOGIN PASSWORD 'app'; CREATE ROLE deviceon_readonly")
        for name, sql in zip(DATABASES, (_DEVICEON, _REPORTS), strict=True):
            await self.server.execute(f"CREATE DATABASE {name} OWNER deviceon_app TEMPLATE template0")
            await self.server.execute(sql, database=name)

    async def grow(self) -> None:
        """Have devices report a little more, so that archives grow."""
        await self.server.execute(
            "INSERT INTO firmware SELECT max(id) + 1, decode(string_agg(md5(n::text || id), ''), 'hex') "
            "FROM firmware, generate_series(1, 140) AS n",
            database="deviceon",
        )

    async def destroy_data(self) -> None:
        """Lose a database, a table of the other one, and the configuration."""
        await self.server.execute("DROP DATABASE grafana_reports WITH (FORCE)")
        await self.server.execute("DROP TABLE events CASCADE; DELETE FROM devices WHERE id > 10", database="deviceon")
        shutil.rmtree(self.files.config / "deviceon" / "certs")

    async def state(self) -> dict[str, str]:
        """Return what there is, by content, for `demo.compare.diff`."""
        there = await self.server.fetch("SELECT datname FROM pg_database WHERE NOT datistemplate")
        found = await fingerprint(self.server, [row["datname"] for row in there])
        return found | {f"configuration {name}": value for name, value in self.files.config_listing().items()}

    def archives(self, name: str) -> Path:
        """Make a directory for archives."""
        directory = self.directory / name
        directory.mkdir()
        return directory

    def s3_target(self, prefix: str) -> dict[str, Any]:
        """Return a `target` as a setting."""
        options = ceph_options(endpoint_url=self.s3.endpoint)
        options |= {key: {"secret": options[key]} for key in ("key", "secret")}
        return {"url": f"s3://{BUCKET}/{prefix}", "storage_options": options}

    def service(self, name: str, **more: Any) -> ServiceProcess:
        """Describe a service of this machine, with a directory of its own; not started yet."""
        directory = self.directory / name
        directory.mkdir()
        return ServiceProcess(directory, self.document(**more))

    def document(self, **more: Any) -> dict[str, Any]:
        """Return a configuration of the service, without a target: that is the portal's to set."""
        document: dict[str, Any] = {
            "server": {"product": "DeviceOn", "version": VERSION},
            "sealing": {"mode": "tpm", "tcti": self.tpm.tcti},
            "sources": [
                self.server.source_settings(),
                {"type": "tree", "name": "config", "path": str(self.files.config)},
                {"type": "sqlite", "name": "grafana", "path": str(self.files.grafana)},
            ],
        }
        return document | more


@contextlib.asynccontextmanager
async def machine(directory: Path | None = None) -> AsyncIterator[Machine]:
    """Start the servers and fill them, below `directory` or a temporary one; all of it is gone afterwards."""
    directory = directory or Path(tempfile.mkdtemp(prefix="deviceon-backup-browser-"))
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)
    try:
        with (
            PostgresqlServer(directory / "postgresql", fsync=False) as server,
            SoftwareTpm(directory / "tpm") as tpm,
        ):
            async with TcpProxy(ceph().endpoint) as s3:
                ceph().create_bucket(BUCKET)
                made = Machine(directory, server, tpm, config_files.write(directory / "deviceon"), s3)
                await made.make_data()
                yield made
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@dataclass
class PortalProcess:
    """`deviceon-backup portal` before one service; `with` starts and stops it."""

    service: ServiceProcess
    settings: dict[str, Any] = field(default_factory=dict)
    ahead: float | None = None
    """Seconds by which its clock is ahead, negative for one that is late (`tests.browser.late_portal`)."""
    port: int = field(default_factory=lambda: free_ports(1)[0])
    process: subprocess.Popen[bytes] | None = None

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.service.directory / "portal.log").read_text()

    def start(self) -> None:
        """Start it; returns when it answers."""
        directory = self.service.directory
        for role, token in TOKENS.items():
            file = directory / f"{role}.token"
            file.touch(0o600)
            file.write_text(f"{token}\n")
        document = {
            "listen": f"127.0.0.1:{self.port}",
            "service": {"socket": str(self.service.socket)},
            "access": {"token": {f"{role}_file": str(directory / f"{role}.token") for role in TOKENS}},
        }
        file = directory / "portal.yaml"
        file.write_text(yaml.safe_dump(document | self.settings))
        with (directory / "portal.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self._program(), "portal", "--config", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                cwd=Path(__file__).parents[2],
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def _program(self) -> list[str]:
        return ["-m", "service"] if self.ahead is None else ["-m", "tests.browser.late_portal", str(self.ahead)]

    def stop(self) -> None:
        """End it in good order."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(START_SECONDS)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()

    @contextlib.asynccontextmanager
    async def visitor(self, browser: Browser, role: str | None = "admin", **settings: Any) -> AsyncIterator[Watched]:
        """Give a visitor who has logged in, or with None one who has not; `settings` are those of `visiting`."""
        async with visiting(browser, self.origin, **settings) as visitor:
            if role is not None:
                page = await visitor.page("/login")
                await page.locator("input[name=token]").fill(TOKENS[role])
                await page.locator("input[name=token]").press("Enter")
                await page.wait_for_url(f"{self.origin}/")
                await page.close()
            yield visitor

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.origin}/login", timeout=5):
                return True
        except HTTPError:
            return True
        except (URLError, OSError):
            return False
