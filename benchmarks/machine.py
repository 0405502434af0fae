"""One dataset on a machine of its own: server, TPM, keys of the peers, and our configuration, in one directory.

server/       the cluster        tpm/       the software TPM's state       archives/WAY/   what a way wrote last
work/         staging and logs   age.key    identity of age                dataset.json    made when all is there
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import data
from benchmarks.measure import CommandFailed
from demo.postgresql_server import PostgresqlServer
from demo.software_tpm import SoftwareTpm

RESTORED = "restored"
"""The database that peers restore into."""
_PROJECT = Path(__file__).parent.parent
_MEASURING: dict[str, str | int] = {
    "autovacuum": "off",  # it would run at times of its own choosing
    "fsync": "on",
    "wal_level": "replica",
    "max_wal_senders": 10,
    "max_wal_size": "1GB",
}
_FILLING: dict[str, str | int] = {
    "autovacuum": "off",
    "fsync": "off",
    "wal_level": "minimal",
    "max_wal_senders": 0,
    "max_wal_size": "8GB",
}
_BLOCK = 1 << 20


class Machine:
    """A running server with one dataset, and everything that commands on it need."""

    def __init__(self, directory: Path, server: PostgresqlServer, tpm: SoftwareTpm, dataset: dict[str, Any]) -> None:
        self.directory = directory
        self.server = server
        self.dataset = dataset
        self.database = str(dataset["database"])
        self._tpm = tpm
        self.work = directory / "work"
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()

    def archives(self, way: str) -> Path:
        """Return the directory that a way writes to."""
        return self.directory / "archives" / way

    @property
    def result(self) -> Path:
        """Where our `--json` goes."""
        return self.work / "result.json"

    def environment(self, way: str, **source: Any) -> dict[str, str]:
        """Return the variables that commands are written with; `source` are more settings of our PostgreSQL source."""
        cleaned = {
            name: value for name, value in os.environ.items() if not name.startswith(("PG", "DEVICEON_", "BORG"))
        }
        archives = self.archives(way)
        return cleaned | {
            "PATH": f"{self.server.programs}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
            "PGHOST": str(self.server.socket_directory),
            "PGPORT": str(self.server.port),
            "PGUSER": self.server.user,
            "PGPASSWORD": self.server.password,
            "DB": self.database,
            "RESTORED": RESTORED,
            "OUT": str(archives),
            "STAGING": str(self.work / "staging"),
            "RESULT": str(self.result),
            "PYTHON": sys.executable,
            "PYTHONPATH": str(_PROJECT),
            "CONFIG": str(self._configuration(archives, source)),
            "KEY": str(self.directory / "age.key"),
            "RECIPIENT": str(self.dataset["recipient"]),
            "RESTIC_REPOSITORY": str(archives / "repository"),
            "RESTIC_PASSWORD": "benchmark",
            "RESTIC_CACHE_DIR": str(archives / "cache"),
            "BORG_REPO": str(archives / "repository"),
            "BORG_PASSPHRASE": "benchmark",
            "BORG_BASE_DIR": str(archives / "base"),
        }

    def run(self, script: str, environment: Mapping[str, str]) -> str:
        """Run what is not measured; return what it printed."""
        command = ["bash", "-c", f"set -o pipefail; {script}"]
        result = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
        if result.returncode:
            raise CommandFailed(f"{script!r} failed: {result.stderr.strip()[-1000:]}")
        return result.stdout

    def try_run(self, script: str, environment: Mapping[str, str]) -> None:
        """Run what may have nothing to do: the way back after a command that failed."""
        subprocess.run(["bash", "-c", script], env=dict(environment), capture_output=True, check=False)

    def clear_staging(self) -> None:
        """Remove what a command staged, be it a file or a directory."""
        staging = self.work / "staging"
        shutil.rmtree(staging) if staging.is_dir() else staging.unlink(missing_ok=True)

    def settle(self) -> None:
        """Let every command find the same state: nothing left to write, the database's files in the page cache."""
        asyncio.run(self.server.execute("CHECKPOINT"))
        os.sync()
        rows = asyncio.run(self.server.fetch("SELECT oid FROM pg_database WHERE datname = $1", self.database))
        for path in (self.server.data / "base" / str(rows[0][0])).iterdir():
            with path.open("rb") as file:
                while file.read(_BLOCK):
                    pass
        time.sleep(0.5)

    def relations(self, database: str) -> int:
        """Return how many tables and indexes a database has."""
        query = (
            "SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'p', 'i', 'I', 'm') AND oid >= 16384"
            " AND relnamespace <> 'pg_toast'::regnamespace"
        )
        return int(asyncio.run(self.server.fetch(query, database=database))[0][0])

    def _configuration(self, target: Path, source: Mapping[str, Any]) -> Path:
        host = str(self.server.socket_directory)
        content = {
            "server": {"product": "DeviceOn", "version": "5.4.1"},
            "target": {"url": target.as_uri()},
            "state_dir": str(self.directory / "state"),
            "sealing": {"mode": "tpm", "tcti": self._tpm.tcti},
            "sources": [self.server.source_settings(host=host, include=[self.database], **source)],
        }
        path = self.work / "config.yaml"
        path.write_text(json.dumps(content, indent=1))  # JSON is YAML
        return path


class Machines:
    """The machines of one invocation; one runs at a time, and what was made is used again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextmanager
    def running(self, shape: str, size: float) -> Iterator[Machine]:
        """Give the machine with a dataset, which is made first when it is not there."""
        directory = self.directory / f"{shape}-{size:g}"
        described = directory / "dataset.json"
        if not described.exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            self._make(directory, described, shape, size)
        with ExitStack() as stack:
            server = stack.enter_context(PostgresqlServer(directory / "server", settings=_MEASURING))
            tpm = stack.enter_context(SoftwareTpm(directory / "tpm"))
            yield Machine(directory, server, tpm, json.loads(described.read_text()))

    def remove(self, shape: str, size: float) -> None:
        """Delete a dataset."""
        shutil.rmtree(self.directory / f"{shape}-{size:g}", ignore_errors=True)

    def _make(self, directory: Path, described: Path, shape: str, size: float) -> None:
        print(f"making {shape}, {size:g} GB", end=" ", flush=True)
        began = time.monotonic()
        with PostgresqlServer(directory / "server", settings=_FILLING) as server:
            database = asyncio.run(data.make(server, shape, size))
            server.restart(_MEASURING)
            os.sync()
            dataset = {"shape": shape, "size": size, "database": database, "recipient": _age_key(directory / "age.key")}
            with SoftwareTpm(directory / "tpm") as tpm:
                machine = Machine(directory, server, tpm, dataset)
                counted = machine.run('pg_dump -Fp "$DB" | wc -c', machine.environment("none"))
                dataset |= {"dump_bytes": int(counted), "relations": machine.relations(database)}
        described.write_text(json.dumps(dataset))
        print(f"{time.monotonic() - began:.1f} s; the text dump has {int(counted) / 1e9:.3f} GB", flush=True)


def _age_key(key: Path) -> str:
    """Make an identity of age's and return its recipient; nothing when there is no age."""
    if shutil.which("age-keygen") is None:
        return ""
    subprocess.run(["age-keygen", "-o", key], check=True, capture_output=True)
    return subprocess.run(["age-keygen", "-y", key], check=True, capture_output=True, text=True).stdout.strip()
