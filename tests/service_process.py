"""The real service as a process of its own, and clients of its socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from service.client import Client, ConnectionLost
from service.job import ENDED

START_SECONDS = 60.0
JOB_SECONDS = 120.0


@dataclass(slots=True)
class ServiceProcess:
    """`deviceon-backup serve` with a configuration file of its own in `directory`; `with` starts and stops it."""

    directory: Path
    document: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)
    clock: tuple[float, ...] | None = None
    """EPOCH, FACTOR and SHOWN of `tests.fast_service`; None for the real clock."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.directory / "run" / "service.sock"

    @property
    def state_dir(self) -> Path:
        return self.directory / "state"

    @property
    def config_file(self) -> Path:
        return self.directory / "config.yaml"

    @property
    def log(self) -> str:
        return (self.directory / "service.log").read_text()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def complete_document(self) -> dict[str, Any]:
        """The configuration with what is this process's own."""
        service = {"socket": str(self.socket)} | self.document.get("service", {})
        return {"state_dir": str(self.state_dir)} | self.document | {"service": service}

    def write_config(self) -> None:
        self.config_file.write_text(yaml.safe_dump(self.complete_document))

    def start(self) -> None:
        """Start it, without waiting for it to be ready."""
        self.write_config()
        with (self.directory / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self.environment,
                cwd=Path(__file__).parent.parent,
            )

    def _command(self) -> list[str]:
        if self.clock is not None:
            return [sys.executable, "-m", "tests.fast_service", str(self.config_file), *map(str, self.clock)]
        return [sys.executable, "-m", "service", "--config", str(self.config_file), "serve"]

    def stop(self, number: signal.Signals = signal.SIGTERM, *, seconds: float = 60.0) -> int:
        """Send a signal and wait for the end; return the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def kill(self) -> None:
        """Kill it as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    @contextlib.asynccontextmanager
    async def client(self, *, ready: bool = True) -> AsyncIterator[Client]:
        """Connect as soon as it takes connections; `ready`: and is settled and takes jobs."""
        async with contextlib.AsyncExitStack() as stack:
            client = await self._connected(stack)
            deadline = time.monotonic() + START_SECONDS
            while ready and (why := (await client.call("system.info"))["not_ready"]) is not None:
                assert time.monotonic() < deadline, why
                await asyncio.sleep(0.02)
            yield client

    async def _connected(self, stack: contextlib.AsyncExitStack) -> Client:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return await stack.enter_async_context(Client.unix(self.socket))
            except ConnectionLost:
                assert self.process is not None and self.process.poll() is None, self.log
                assert time.monotonic() < deadline, self.log
                await asyncio.sleep(0.02)


async def ended(client: Client, job: dict[str, Any], *, seconds: float = JOB_SECONDS) -> dict[str, Any]:
    """Wait for the end of a job and return it."""
    deadline = time.monotonic() + seconds
    while True:
        found: dict[str, Any] = await client.call("job.get", id=job["id"])
        if found["state"] in ENDED:
            return found
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.02)


async def idle(client: Client, *, seconds: float = JOB_SECONDS) -> None:
    """Wait until no job runs or waits."""
    deadline = time.monotonic() + seconds
    while True:
        info = await client.call("system.info")
        if info["active"] is None and not info["waiting"]:
            return
        assert time.monotonic() < deadline, info
        await asyncio.sleep(0.02)
