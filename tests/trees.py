"""Trees for the tests of the file sources: what a tree is (to compare), and a backup held in memory."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.config_sources import TreeSettings
from service.progress import Progress
from service.sources.base import Record, Restorer, Source, StoredSource, StoredStream
from service.sources.config_tree import TreeRestorer, TreeSource

Listing = dict[str, tuple[Any, ...]]


def listing(root: Path, *, inodes: bool = False, skip: Callable[[str], bool] = lambda _: False) -> Listing:
    """Everything that can be told of a tree, however deep, by relative path. Hard links are told as sets of paths."""
    found: Listing = {}
    links: dict[tuple[int, int], list[str]] = {}

    def look(path: Path, name: str) -> None:
        try:
            status = path.lstat()
        except FileNotFoundError:
            return
        kind = stat.S_IFMT(status.st_mode)
        content: object = None
        if kind == stat.S_IFREG:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif kind == stat.S_IFLNK:
            content = str(path.readlink())
        if kind != stat.S_IFDIR and status.st_nlink > 1:
            links.setdefault((status.st_dev, status.st_ino), []).append(name)
        attributes = sorted(os.listxattr(path, follow_symlinks=False))
        xattrs = [(key, os.getxattr(path, key, follow_symlinks=False)) for key in attributes]
        found[name] = (
            kind,
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            xattrs,
            content,
        )
        if inodes:
            found[name] += (status.st_ino, status.st_ctime_ns)
        if kind == stat.S_IFDIR:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                for below in os.listdir(fd):  # noqa: PTH208
                    if not skip(inner := f"{name}/{below}".lstrip("/")):
                        look(Path(f"/proc/self/fd/{fd}") / below, inner)
            finally:
                os.close(fd)

    if not skip(""):
        look(root, "")
    for names in links.values():
        for name in names:
            found[name] += (tuple(sorted(names)),)
    return found


@dataclass
class Archived:
    """One source's backup in memory; reads like an archive."""

    stored: StoredSource
    data: bytes
    piece: int = 1 << 20

    async def read(self, stream: StoredStream) -> AsyncGenerator[bytes, None]:
        for at in range(0, len(self.data), self.piece):
            yield self.data[at : at + self.piece]

    @property
    def facts(self) -> dict[str, Any]:
        return dict(self.stored.facts)

    def changed(self, data: bytes) -> Archived:
        """The same with another stream in it."""
        return Archived(self.stored, data, self.piece)


async def back_up(source: Source) -> Archived:
    async with source.snapshot() as snapshot:
        (stream,) = snapshot.streams
        async with aclosing(stream.read()) as pieces:
            data = b"".join([piece async for piece in pieces])
        facts = json.loads(json.dumps(await snapshot.facts(), ensure_ascii=False).encode())
    digest = hashlib.sha256(data).hexdigest()
    stored = StoredStream(1, source.name, stream.kind, stream.labels, 1, len(data), digest, stream.details)
    return Archived(StoredSource(name=source.name, type=source.type, facts=facts, streams=[stored]), data)


async def back_up_tree(root: Path, *, exclude: Sequence[str] = (), preserve: Sequence[Path] = ()) -> Archived:
    return await back_up(TreeSource(TreeSettings(path=root, exclude=list(exclude)), preserve=preserve))


def tree_restorer(root: Path, *, exclude: Sequence[str] = (), preserve: Sequence[Path] = ()) -> TreeRestorer:
    return TreeRestorer(TreeSettings(path=root, exclude=list(exclude)), preserve=preserve)


class Journal:
    """A restore journal on disk, as the recipe keeps it: what is not in the file does not survive a kill."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record: Record = json.loads(path.read_bytes()) if path.exists() else {}

    async def save(self) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_bytes(json.dumps(self.record, ensure_ascii=False).encode())
        fresh.replace(self.path)


async def stage(restorer: Restorer, archived: Archived, journal: Journal, *, progress: Progress | None = None) -> None:
    await restorer.stage(archived.stored, archived, journal.record, journal.save, progress or Progress())


async def restore(restorer: Restorer, archived: Archived, journal: Journal) -> None:
    """All but the commit."""
    await stage(restorer, archived, journal)
    await restorer.swap(journal.record, journal.save)


def leftovers(*directories: Path) -> list[str]:
    """Work areas that are still there."""
    return [
        os.path.join(above, name)
        for directory in directories
        for above, below, files in os.walk(directory)
        for name in (*below, *files)
        if name.startswith(".deviceon-backup-")
    ]


NOBODY = 65534


@contextmanager
def as_nobody() -> Iterator[None]:
    """Have no rights but those of a user who owns nothing."""
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@contextmanager
def mounted(path: Path, *options: str) -> Iterator[None]:
    """Mount a file system for a block: a small one in memory, unless told."""
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *(options or ("-t", "tmpfs", "-o", "size=2m,mode=755", "none")), path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)
