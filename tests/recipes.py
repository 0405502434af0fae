"""A configuration for one real server, and the ways tests run the recipes with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.postgresql_server import PostgresqlServer
from service.backup import BackupResult, backup
from service.catalog import list_archives
from service.config import Config
from service.progress import Progress
from service.restore import RestoreResult, commit, restore, rollback
from storage_backends import open_target


@dataclass(slots=True)
class Installation:
    """A server with its own target and state directory below `root`; sealing is off unless told."""

    server: PostgresqlServer
    root: Path
    source: dict[str, Any] = field(default_factory=dict)
    hooks: dict[str, Any] = field(default_factory=dict)
    sealing: dict[str, Any] = field(default_factory=lambda: {"mode": "off"})
    more_sources: list[dict[str, Any]] = field(default_factory=list)
    compression: dict[str, Any] = field(default_factory=lambda: {"chunk_bytes": 256 * 1024})
    version: str = "5.4.1"
    said: list[str] = field(default_factory=list)

    @property
    def target(self) -> Path:
        directory = self.root / "archives"
        directory.mkdir(exist_ok=True)
        return directory

    @property
    def config(self) -> Config:
        return Config.model_validate(
            {
                "server": {"version": self.version},
                "target": {"url": f"file://{self.target}"},
                "state_dir": str(self.root / "state"),
                "sealing": self.sealing,
                "compression": self.compression,
                "restore": {"hooks": self.hooks},
                "sources": [self.server.source_settings(**self.source), *self.more_sources],
            },
            strict=False,
        )

    def progress(self) -> Progress:
        return Progress(on_step=self.said.append)

    async def backup(self, progress: Progress | None = None) -> BackupResult:
        return await backup(self.config, progress=progress or self.progress())

    async def restore(self, archive: str, *, allow: frozenset[str] = frozenset()) -> RestoreResult:
        return await restore(self.config, archive, allow=allow, progress=self.progress())

    async def rollback(self) -> str:
        return await rollback(self.config, progress=self.progress())

    async def commit(self) -> str:
        return await commit(self.config, progress=self.progress())

    async def archives(self) -> list[str]:
        async with open_target(self.config.target.url) as target:
            return [entry.name for entry in await list_archives(target)]

    async def databases(self) -> set[str]:
        rows = await self.server.fetch("SELECT datname FROM pg_database WHERE NOT datistemplate")
        return {row[0] for row in rows}


async def eventually(condition: Callable[[], object], *, seconds: float = 20) -> None:
    """Wait until `condition` holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.001)
