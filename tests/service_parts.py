"""Parts of the service for tests: a clock that is set by hand, and an installation with a small tree and no server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from service.app import App, opened
from service.backup import backup
from service.catalog import CatalogEntry, list_archives
from service.config import Config, ConfigFile
from service.ledger import Ledger
from service.progress import Progress
from service.rpc.peers import Peer
from storage_backends import open_target

START = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
ADMIN, READER = Peer("an admin", "admin"), Peer("a reader", "read")


@dataclass(slots=True)
class Clock:
    """A clock that stands still until it is set."""

    now: datetime = START

    def __call__(self) -> datetime:
        return self.now

    def go(self, **more: float) -> datetime:
        """Let time pass."""
        self.now += timedelta(**more)
        return self.now


@dataclass(slots=True)
class Place:
    """A state directory, a target and a tree to back up, all below `root`; sealing is off."""

    root: Path
    clock: Clock = field(default_factory=Clock)
    settings: dict[str, Any] = field(default_factory=dict)
    """Keys of the configuration file that differ; None takes one away."""

    def __post_init__(self) -> None:
        for directory in (self.target, self.tree):
            directory.mkdir(exist_ok=True)
        if not (self.tree / "server.conf").exists():
            (self.tree / "server.conf").write_text("port = 80\n" * 10)

    @property
    def target(self) -> Path:
        return self.root / "archives"

    @property
    def tree(self) -> Path:
        return self.root / "etc"

    @property
    def state_dir(self) -> Path:
        return self.root / "state"

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "server": {"version": "5.4.1"},
            "target": {"url": f"file://{self.target}"},
            "state_dir": str(self.state_dir),
            "sealing": {"mode": "off"},
            "compression": {"chunk_bytes": 65536},
            "sources": [{"type": "tree", "path": str(self.tree)}],
        }
        return {key: value for key, value in (document | self.settings).items() if value is not None}

    @property
    def file(self) -> ConfigFile:
        return ConfigFile.model_validate(self.document)

    @property
    def config(self) -> Config:
        return Config.model_validate(self.document)

    @asynccontextmanager
    async def app(self) -> AsyncIterator[App]:
        """The service put together on this state directory, with nothing running."""
        async with opened(self.file, clock=self.clock) as app:
            yield app

    async def backup(self, ledger: Ledger, *, after: timedelta = timedelta(days=1)) -> str:
        """Make one more archive, some time after the last; return its name."""
        self.clock.now += after
        made = await backup(self.config, progress=Progress(), ledger=ledger, clock=self.clock)
        return made.name

    async def archives(self, ledger: Ledger | None = None) -> dict[str, CatalogEntry]:
        async with open_target(self.config.target.url) as target:
            return {entry.name: entry for entry in await list_archives(target, ledger)}

    def names(self) -> set[str]:
        """What is in the target, whatever it is."""
        return {path.name for path in self.target.iterdir()}

    def spoil(self, name: str) -> None:
        """Change one byte in the middle of an archive's data, and nothing of its size or place."""
        path = self.target / name
        content = bytearray(path.read_bytes())
        at = content.index(b"stream") + 200 if b"stream" in content else len(content) // 2
        content[at] ^= 0xFF
        path.write_bytes(content)


async def until(condition: Callable[[], object]) -> None:
    """Let others run until `condition` holds; fail when it does not within half a minute."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)
