"""What of a tree is left out, and why. The same rules decide at backup, and at restore what must stay where it is."""

# Work by descriptor speaks os, not pathlib.
# ruff: noqa: PTH208

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from service.sources import mongodb
from service.sources.directories import OWN_PREFIX, Mount, join, open_beneath

_PSEUDO = frozenset(
    [
        "autofs",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "devtmpfs",
        "efivarfs",
        "fusectl",
        "hugetlbfs",
        "mqueue",
        "nsfs",
        "proc",
        "pstore",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "sysfs",
        "tracefs",
    ]
)
_SIBLINGS = ("-wal", "-shm", "-journal")

LEFTOVER = "work area of a restore"
SPECIAL = "a socket, pipe or device has no content to keep"


def paths_to_keep(root: Path, preserve: Iterable[Path]) -> set[str]:
    """Which paths below the tree (relative to it) another source looks after, SQLite's companions included."""
    top = str(root).rstrip("/") + "/"
    inside = {path[len(top) :] for path in map(os.path.realpath, preserve) if path.startswith(top)}
    return inside | {path + sibling for path in inside if not path.endswith(_SIBLINGS) for sibling in _SIBLINGS}


class Selection:
    """Decides for each directory which of its entries are left out.

    `patterns` are globs relative to the root: `*`, `?` and `[...]` stay within a name, `**` spans directories.
    `kept` are exact relative paths, `mounts` the mount table below the root.
    """

    def __init__(self, patterns: Sequence[str], *, kept: Iterable[str], mounts: dict[str, Mount]) -> None:
        self._kept = frozenset(kept)
        self._pseudo = frozenset(path for path, mount in mounts.items() if mount.kind in _PSEUDO)
        self._globs = [(pattern, re.compile(translate(pattern), re.DOTALL)) for pattern in patterns]

    def left_out(self, directory: str, kinds: dict[str, int], fd: int) -> dict[str, str]:
        """Return {name: reason} for the entries of one directory. `kinds` is {name: file type bits}."""
        found: dict[str, str] = {}
        if self._globs or self._kept or self._pseudo:
            for name in kinds:
                reason = self._by_path(join(directory, name))
                if reason:
                    found[name] = reason
        for name, kind in kinds.items():
            if name.startswith(OWN_PREFIX):
                found[name] = LEFTOVER
            elif kind not in {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}:
                found.setdefault(name, SPECIAL)
        if "WiredTiger" in kinds or any(name.endswith(".ns") for name in kinds):
            for name in mongodb.storage_names(set(kinds), lambda path: _names_in(fd, path)):
                found.setdefault(name, mongodb.REASON)
        return found

    def _by_path(self, path: str) -> str:
        if path in self._kept:
            return "looked after by another source"
        if path in self._pseudo:
            return "a file system that the kernel makes up"
        for pattern, glob in self._globs:
            if glob.fullmatch(path):
                return f"excluded by {pattern}"
        return ""


def translate(pattern: str) -> str:
    """Turn a glob into a regular expression for a whole relative path."""
    out, at = "", 0
    pattern = pattern.strip("/")
    while at < len(pattern):
        if pattern.startswith("**/", at):
            out, at = out + "(?:[^/]+/)*", at + 3
        elif pattern.startswith("**", at):
            out, at = out + ".*", at + 2
        elif pattern[at] == "*":
            out, at = out + "[^/]*", at + 1
        elif pattern[at] == "?":
            out, at = out + "[^/]", at + 1
        elif pattern[at] == "[" and (end := pattern.find("]", at + 2)) > 0:
            inside = pattern[at + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            inside = "^" + inside[1:] if inside.startswith("!") else inside.replace("^", "\\^")
            out, at = f"{out}(?!/)[{inside}]", end + 1
        else:
            out, at = out + re.escape(pattern[at]), at + 1
    return out


def scan(fd: int) -> dict[str, int]:
    """List a directory: {name: file type bits}, sorted by name, without looking at each file."""
    with os.scandir(fd) as entries:
        found = {entry.name: _type_bits(entry) for entry in entries}
    return dict(sorted(found.items()))


def _type_bits(entry: os.DirEntry[str]) -> int:
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFLNK if entry.is_symlink() else 0


def _names_in(fd: int, path: str) -> list[str] | None:
    try:
        below = open_beneath(fd, path)
    except OSError:
        return None
    try:
        return os.listdir(below)
    finally:
        os.close(below)
