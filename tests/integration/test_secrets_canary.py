"""Known secrets go through a real backup that succeeds and real ones that fail: none is seen anywhere outside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from demo.postgresql_server import PostgresqlServer
from demo.software_tpm import SoftwareTpm
from service.catalog import opened
from service.config import Config
from tests.integration.network_sinks import HttpSink, http_sink
from tests.integration.test_notify import free_port
from tests.integration.tpm_wire import Tools
from tests.pipeline_archives import contents

OPTION, NOTIFICATION, PING = "canary-option/Zx81+", "canary-notification-Zx82", "canary-ping-Zx83"
WRONG, OWNER, UNRELATED = "canary-wrong-Zx84", "canary-owner-Zx85", "canary-unrelated-Zx86"
CANARIES = (OPTION, NOTIFICATION, PING, WRONG, OWNER, UNRELATED)


@dataclass
class Machine:
    """One server with all its secrets, and what was seen of the children of the backup's process."""

    server: PostgresqlServer
    tpm: SoftwareTpm
    root: Path
    sink: HttpSink
    children: dict[str, list[bytes]] = field(default_factory=dict)
    process: int = 0

    @property
    def secrets(self) -> tuple[str, ...]:
        return (self.server.password, *CANARIES)

    @property
    def seen_by_programs(self) -> Path:
        return self.root / "seen"

    def file(self, name: str, content: str, *, mode: int = 0o600) -> str:
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        path.chmod(mode)
        return str(path)

    def program(self, name: str, then: str) -> str:
        """Make a program that notes what others can see of it, and then does its work."""
        note = f"cat /proc/$$/cmdline /proc/$$/environ >> {self.seen_by_programs}"
        return self.file(name, f"#!/bin/sh\n{note}\n{then}\n", mode=0o755)

    def config(self, **changes: Any) -> dict[str, Any]:
        for name in ("pg_dump", "pg_restore"):
            self.program(f"clients/{name}", f'exec {self.server.programs}/{name} "$@"')
        (self.root / "archives").mkdir(exist_ok=True)
        source = self.server.source_settings(client_dir=str(self.root / "clients"))
        return {
            "server": {"version_command": [self.program("tell-version", "echo 5.4.1")]},
            "target": {"url": f"file://{self.root}/archives"},
            "state_dir": str(self.root / "state"),
            "sealing": {
                "mode": "tpm",
                "tcti": self.tpm.tcti,
                "owner_auth_file": self.file("owner", f"{OWNER}\n"),
            },
            "sources": [source],
        } | changes

    async def run(self, config: dict[str, Any], *, log: str = "json") -> tuple[str, str]:
        """Make a backup in a process of its own; return its stdout and stderr."""
        urls = f"json://me:{NOTIFICATION}@{self.sink.url}/hook\njson://me:{NOTIFICATION}@127.0.0.1:{free_port()}\n"
        given = {
            "config": config,
            "log": log,
            "notifications": {"urls_file": self.file("urls", urls), "events": ["failure", "success"]},
            "dead_man": {"url_env": "PING_URL"},
        }
        program = [sys.executable, "-X", "dev", "-m", "tests.integration.observed_backup"]
        environment = os.environ | {
            "STORAGE_SECRET": OPTION,
            "PING_URL": f"http://{self.sink.url}/{PING}",
            "SOME_TOKEN": UNRELATED,
        }
        process = await asyncio.create_subprocess_exec(
            *program,
            self.file("given.json", json.dumps(given)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        self.process = process.pid
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode(), err.decode()

    def look(self) -> None:
        """Note what others can see of every process below the backup's own: called while a request is answered."""
        for child in descendants(self.process):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{child}/cmdline").read_bytes()
                self.children.setdefault(command.decode(), []).append(Path(f"/proc/{child}/environ").read_bytes())

    def assert_nothing_is_seen(self, *outputs: str) -> None:
        everything = "\n".join(outputs).encode() + self.seen_by_programs.read_bytes()
        everything += b"".join(command.encode() + b"".join(seen) for command, seen in self.children.items())
        everything += self.server.log.read_bytes()
        for path in sorted([*(self.root / "state").rglob("*"), *(self.root / "archives").iterdir()]):
            everything += path.read_bytes() if path.is_file() else b""
        assert hits(everything, self.secrets) == []


def descendants(process: int) -> Iterator[int]:
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, path.read_text().split()):
                yield child
                yield from descendants(child)


def hits(data: bytes, secrets: tuple[str, ...]) -> list[str]:
    """Return the secrets that are in the data, as they are or quoted."""
    return [
        secret
        for secret in secrets
        if any(form.encode() in data for form in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1]))
    ]


@pytest.fixture
async def machine(own_postgresql: PostgresqlServer, software_tpm: SoftwareTpm, workspace: Path) -> Any:
    tools = Tools(software_tpm.tcti, workspace)
    tools("changeauth", "-c", "owner", OWNER)
    async with http_sink() as sink:
        machine = Machine(own_postgresql, software_tpm, workspace, sink)
        sink.look = machine.look
        yield machine


def assert_told(machine: Machine, *pings: str) -> None:
    """The notification and the pings did arrive with their secrets, and their senders were looked at."""
    assert [path for _, path, _ in machine.sink.seen if path != "/hook"] == [f"/{PING}{ping}" for ping in pings]
    assert [path for _, path, _ in machine.sink.seen].count("/hook") == 1
    assert hits("".join(body for _, _, body in machine.sink.seen).encode(), machine.secrets) == []
    assert any("service.notify_send" in command for command in machine.children)
    assert b"tell-version" in machine.seen_by_programs.read_bytes()


async def test_a_backup_that_succeeds_shows_no_secret(machine: Machine) -> None:
    await machine.server.execute("CREATE TABLE things AS SELECT md5(n::text) FROM generate_series(1, 1000) AS n")
    config = machine.config()
    out, err = await machine.run(config)
    assert '"state": "succeeded"' in out
    assert_told(machine, "/start", "")
    assert b"--version" in machine.seen_by_programs.read_bytes()
    machine.assert_nothing_is_seen(out, err)
    (archive,) = (machine.root / "archives").iterdir()
    async with opened(Config.model_validate(config, strict=False), archive.name) as reader:
        unsealed = repr(reader.header).encode() + repr(reader.manifest).encode() + b"".join(await contents(reader))
    assert b"SCRAM-SHA-256" in unsealed, "what the server keeps of the password is in the archive, not the password"
    assert hits(unsealed, machine.secrets) == []
    said = [json.loads(line) for line in err.splitlines()]
    assert {"connecting to postgresql://postgres:***@127.0.0.1/postgres", "it failed"} <= {
        record["message"] for record in said
    }
    assert all(record["job"] == "j-1" for record in said if record["logger"].startswith("service."))
    assert any("notification" in record["message"] and "was not sent" in record["message"] for record in said)


@pytest.mark.parametrize("log", ["json", "text"])
async def test_a_backup_with_a_wrong_password_shows_no_secret(machine: Machine, log: str) -> None:
    config = machine.config()
    config["sources"][0]["password_file"] = machine.file("wrong", f"{WRONG}\n")
    out, err = await machine.run(config, log=log)
    assert '"SOURCE_UNAVAILABLE"' in out
    assert "password authentication failed" in err
    assert "Traceback" in err, "it is level debug"
    assert_told(machine, "/start", "/fail")
    machine.assert_nothing_is_seen(out, err)


async def test_a_backup_to_a_target_out_of_reach_shows_no_secret(machine: Machine) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    options = {"key": "AKIAIOSFODNN7EXAMPLE", "secret": {"env": "STORAGE_SECRET"}, "endpoint_url": endpoint}
    out, err = await machine.run(machine.config(target={"url": "s3://bucket/path", "storage_options": options}))
    assert '"state": "failed"' in out
    assert '"TARGET' in out
    assert_told(machine, "/start", "/fail")
    machine.assert_nothing_is_seen(out, err)


async def test_a_backup_with_a_wrong_password_of_the_tpm_shows_no_secret(machine: Machine) -> None:
    config = machine.config()
    config["sealing"]["owner_auth_file"] = machine.file("wrong", f"{WRONG}\n")
    out, err = await machine.run(config)
    assert '"code": "TPM_' in out
    assert_told(machine, "/start", "/fail")
    machine.assert_nothing_is_seen(out, err)
