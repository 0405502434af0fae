"""Places that the conformance suite puts objects in: one class a backend, all with this interface."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from storage_backends import StorageBackend
from storage_backends.local import LocalBackend
from storage_backends.local_file import TEMPORARY_PREFIX, TEMPORARY_SUFFIX


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
        path = self.directory / f"{TEMPORARY_PREFIX}{os.urandom(8).hex()}{TEMPORARY_SUFFIX}"
        path.write_bytes(b"half")
        os.utime(path, (touched.astimezone(UTC).timestamp(),) * 2)

    def put_by_hand(self, name: str, content: bytes) -> None:
        """Write a file."""
        (self.directory / name).write_bytes(content)


def make_place(kind: str, directory: Path) -> Place:
    """Make a place; `directory` is the test's own."""
    if kind in S3_KINDS:
        from tests.conformance.s3_place import make_s3_place  # noqa: PLC0415  which imports this module

        return make_s3_place(kind, directory)
    target = directory / "target"
    target.mkdir()
    return LocalPlace(target, unnamed=kind == "local")


S3_KINDS = ("ceph", "ceph-tls", "amazon", "swift")
KINDS = ("local", "local-named", *S3_KINDS)
