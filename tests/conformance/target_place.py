"""Places that the conformance suite puts objects in: one class a backend, all with this interface."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

from fsspec.implementations.memory import MemoryFileSystem

from demo.smb_server import SambaServer
from storage_backends import StorageBackend, open_target
from storage_backends.local import LocalBackend
from storage_backends.temporary import temporary_name
from tests.ftp_server import FtpServer
from tests.sftp_server import SftpServer


class Place(ABC):
    """An empty place of one kind of target, made for one test. Can be pickled: other processes open it too."""

    in_this_process: ClassVar[bool] = False
    """The objects are kept in this process's memory: no other process sees them, and they count as its own."""
    other_processes_keep_out: ClassVar[bool] = True
    """A writer in another process cannot replace an object; otherwise `promise` says that only this process's do."""
    readers_keep_theirs: ClassVar[bool] = True
    """A reader goes on with the object that it began; otherwise it is told that the object changed."""

    rounds: ClassVar[int] = 60
    """How often it is cancelled at other moments: fewer where connecting takes long."""
    announces: ClassVar[bool] = True
    """A writer has unfinished things with a name."""

    @property
    def leaves_something(self) -> bool:
        """Say whether a killed writer leaves what somebody sees."""
        return True

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

    @property
    def leaves_something(self) -> bool:
        """Say whether files have a name from the beginning."""
        return not self.unnamed

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


@dataclass(frozen=True)
class MemoryPlace(Place):
    """A directory of fsspec's own memory: a driver that commits."""

    directory: str
    in_this_process = True
    announces = False
    other_processes_keep_out = False
    readers_keep_theirs = False

    def open(self) -> StorageBackend:
        """Open the directory."""
        return open_target(f"memory:/{self.directory}")

    def unfinished(self) -> list[str]:
        """Look for hidden names."""
        paths = [path for path in MemoryFileSystem.store if path.startswith(f"{self.directory}/")]
        return [name for name in (path.rpartition("/")[2] for path in paths) if name.startswith(".")]

    @property
    def leaves_something(self) -> bool:
        """Say that nothing is left of what was not committed."""
        return False

    def abandon_upload(self, touched: datetime) -> None:
        """Make a hidden file: none of ours would be left by a driver that commits."""
        name = temporary_name()
        self.put_by_hand(name, b"half")
        MemoryFileSystem.store[f"{self.directory}/{name}"].modified = touched.astimezone(UTC)

    def put_by_hand(self, name: str, content: bytes) -> None:
        """Write a file."""
        MemoryFileSystem().pipe_file(f"{self.directory}/{name}", content)


@dataclass(frozen=True)
class FtpPlace(LocalPlace):
    """A directory of a real FTP server: a driver that renames."""

    url: str = ""
    other_processes_keep_out = False
    readers_keep_theirs = False

    @property
    def leaves_something(self) -> bool:
        """Every file has a name."""
        return True

    def open(self) -> StorageBackend:
        """Open the directory by way of the server."""
        return open_target(self.url, {"password": FtpServer.password})


@dataclass(frozen=True)
class SftpPlace(LocalPlace):
    """A directory of a real SFTP server: a driver that renames, and a server that refuses to replace."""

    url: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    readers_keep_theirs = False
    rounds = 12

    @property
    def leaves_something(self) -> bool:
        """Every file has a name."""
        return True

    def open(self) -> StorageBackend:
        """Open the directory by way of the server."""
        return open_target(self.url, self.options)


def make_place(kind: str, directory: Path, fixture: Callable[[str], Any]) -> Place:
    """Make a place; `directory` is the test's own, `fixture` gives the session's servers by name."""
    if kind in S3_KINDS:
        from tests.conformance.s3_place import make_s3_place  # noqa: PLC0415  which imports this module

        return make_s3_place(kind, directory)
    if kind == "smb":
        return smb_place(fixture("samba"))
    if kind == "memory":
        return MemoryPlace(f"/{uuid4().hex}")
    if kind == "ftp":
        server: FtpServer = fixture("ftp_server")
        name = uuid4().hex
        (server.directory / name).mkdir()
        return FtpPlace(server.directory / name, url=f"{server.url}/{name}")
    if kind == "sftp":
        ssh: SftpServer = fixture("sftp_server")
        name = uuid4().hex
        (ssh.directory / name).mkdir()
        return SftpPlace(ssh.directory / name, url=f"{ssh.url}/{name}", options=ssh.storage_options)
    target = directory / "target"
    target.mkdir()
    return LocalPlace(target, unnamed=kind == "local")


S3_KINDS = ("ceph", "ceph-tls", "amazon", "swift")
KINDS = ("local", "local-named", "smb", "memory", "ftp", "sftp", *S3_KINDS)
