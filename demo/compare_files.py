"""The states of files: a directory tree with all its metadata, an SQLite database with all its rows."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "block device",
    stat.S_IFCHR: "character device",
}


def tree_listing(path: Path) -> dict[str, str]:
    """Return each path below `path` (and `.`, itself) with its type and all that a restore has to bring back.

    Type, mode, owner, mtime in nanoseconds, extended attributes (ACLs are among them), target of a link, size and
    SHA-256 of a file, and which paths are hard links to one file. Symbolic links are not followed.
    """
    root = os.fsencode(path)
    first_of: dict[tuple[int, int], str] = {}
    listing = {}
    for entry in sorted(_walk(root)):
        name = os.fsdecode(os.path.relpath(entry, root))
        about = os.lstat(entry)
        kind = stat.S_IFMT(about.st_mode)
        parts = [
            _TYPES.get(kind, f"type {kind:o}"),
            f"mode {stat.S_IMODE(about.st_mode):04o}",
            f"owner {about.st_uid}:{about.st_gid}",
            f"mtime {about.st_mtime_ns}",
        ]
        if kind == stat.S_IFREG:
            with open(entry, "rb") as file:  # noqa: PTH123  (names are bytes here)
                parts.append(f"{about.st_size} bytes, sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}")
        if kind == stat.S_IFLNK:
            parts.append(f"to {os.readlink(entry)!r}")  # noqa: PTH115
        if kind in (stat.S_IFBLK, stat.S_IFCHR):
            parts.append(f"device {os.major(about.st_rdev)}:{os.minor(about.st_rdev)}")
        if kind != stat.S_IFDIR and about.st_nlink > 1:
            parts.append(f"same file as {first_of.setdefault((about.st_dev, about.st_ino), name)!r}")
        for attribute in sorted(os.listxattr(entry, follow_symlinks=False)):
            parts.append(f"{attribute}={os.getxattr(entry, attribute, follow_symlinks=False).hex()}")
        listing[name] = ", ".join(parts)
    return listing


def sqlite_dump(path: Path) -> dict[str, str]:
    """Return each table's definition and rows, exactly (types and bytes too), and the header's numbers.

    Reads also what is still in the write-ahead log. Raises sqlite3.DatabaseError when the file is damaged.
    """
    state = {}
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        state["integrity"] = connection.execute("PRAGMA integrity_check").fetchone()[0]
        for pragma in ("user_version", "application_id", "encoding", "page_size", "auto_vacuum"):
            state[pragma] = str(connection.execute(f"PRAGMA {pragma}").fetchone()[0])
        for kind, name, table, sql in connection.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
        ).fetchall():
            title = f"{kind} {name}"
            state[title] = f"on {table}: {sql or ''}"
            if kind == "table" and "VIRTUAL" not in (sql or ""):
                quoted = name.replace('"', '""')
                digest = hashlib.sha256()
                connection.text_factory = _Text  # tells text from a blob of the same bytes, and need not be UTF-8
                rows = sorted(repr(row) for row in connection.execute(f'SELECT * FROM "{quoted}"'))
                for row in rows:
                    digest.update(row.encode() + b"\n")
                state[f"{title} rows"] = f"{len(rows)} rows, sha256 {digest.hexdigest()}"
    return state


class _Text(bytes):
    def __repr__(self) -> str:
        return f"text {super().__repr__()}"


def _walk(root: bytes) -> Iterator[bytes]:
    yield root
    for directory, folders, files in os.walk(root):
        for name in [*folders, *files]:
            yield os.path.join(directory, name)
