"""Places that the conformance suite puts objects in: one class a backend, all with this interface."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from demo.smb_server import SambaServer
from storage_backends import StorageBackend, open_target
from storage_backends.local import LocalBackend
from storage_backends.temporary import temporary_name


class Place(ABC):
    """An empty place of one kind of target, made for one test. Can be pickled: other processes open it too."""

    @abstractmethod
    def open(self) -> StorageBackend:
        """Return a new backend; all of one place see the same objects."""

    @abstractmethod
    def unfinished(self) -> list[str]:
        """Name everything in the place that is no finished object: what a user would find there and wonder."""

    @abstractmethod
    def abandon_upload(self, touched: datetime) -> None:
        """Leave what a killed writer leaves in the worst case, last touched then."""

    @abstractmethod
    def put_by_hand(self, name: str, content: bytes) -> None:
        """Put a file there without the backend, as another program would."""


@dataclass(frozen=True)
class LocalPlace(Place):
    """A directory. `unnamed=False` stands for file systems without O_TMPFILE."""

    directory: Path
    unnamed: bool = True

    def open(self) -> StorageBackend:
        """Open the directory."""
        return LocalBackend(self.directory, unnamed=self.unnamed)

    def unfinished(self) -> list[str]:
        """Look for hidden names."""
        return [path.name for path in self.directory.iterdir() if path.name.startswith(".")]

    def abandon_upload(self, touched: datetime) -> None:
        """Make a hidden file as a writer does on file systems without O_TMPFILE."""
        path = self.directory / temporary_name()
        path.write_bytes(b"half")
        os.utime(path, (touched.astimezone(UTC).timestamp(),) * 2)

    def put_by_hand(self, name: str, content: bytes) -> None:
        """Write a file."""
        (self.directory / name).write_bytes(content)


@dataclass(frozen=True)
class SmbPlace(Place):
    """A directory of a real server's share, also reached past the server."""

    url: str
    options: dict[str, Any]
    directory: Path

    def open(self) -> StorageBackend:
        """Open the share's directory."""
        return open_target(self.url, self.options)

    def unfinished(self) -> list[str]:
        """Look for hidden names."""
        return [path.name for path in self.directory.iterdir() if path.name.startswith(".")]

    def abandon_upload(self, touched: datetime) -> None:
        """Make a hidden file, as a writer leaves it."""
        LocalPlace(self.directory).abandon_upload(touched)

    def put_by_hand(self, name: str, content: bytes) -> None:
        """Write a file."""
        (self.directory / name).write_bytes(content)


def smb_place(server: SambaServer) -> SmbPlace:
    """Make a directory of its own in the server's share."""
    name = uuid4().hex
    (server.share / name).mkdir()
    return SmbPlace(f"{server.url}/{name}", server.storage_options, server.share / name)


def make_place(kind: str, directory: Path, fixture: Callable[[str], Any]) -> Place:
    """Make a place; `directory` is the test's own, `fixture` gives the session's servers by name."""
    if kind == "smb":
        return smb_place(fixture("samba"))
    target = directory / "target"
    target.mkdir()
    return LocalPlace(target, unnamed=kind == "local")


KINDS = ("local", "local-named", "smb")
