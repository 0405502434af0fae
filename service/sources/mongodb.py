"""How MongoDB's storage files are told from configuration. Pure: names in, names out.

DeviceOn's sensor data is left out of every backup, also when a configured directory happens to hold MongoDB's dbPath.
Only what the storage engine owns is left out; anything else in the same directory (a mongod.conf, a key file) is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

REASON = "MongoDB data"

_ENGINE = re.compile(r"WiredTiger.*|.*\.wt|mongod\.lock|storage\.bson|sizeStorer\.wt", re.DOTALL)
_DIRECTORIES = frozenset({"journal", "diagnostic.data", "_tmp"})
_WITNESSES = frozenset({"WiredTiger.wt", "_mdb_catalog.wt", "mongod.lock", "storage.bson"})


def storage_names(names: set[str], list_directory: Callable[[str], Iterable[str] | None]) -> set[str]:
    """Return which names of one directory belong to MongoDB's storage; nothing when it is no dbPath.

    `list_directory(path)` gives the names in a directory below this one, None when it is no directory.
    """
    if "WiredTiger" in names and names & _WITNESSES:
        engine = {name for name in names if _ENGINE.fullmatch(name) or name in _DIRECTORIES}
        return engine | {name for name in names - engine if _holds_only_tables(name, list_directory)}
    return _mmapv1(names)


def _holds_only_tables(name: str, list_directory: Callable[[str], Iterable[str] | None], depth: int = 0) -> bool:
    # directoryPerDB and wiredTigerDirectoryForIndexes: <db>/*.wt or <db>/{collection,index}/*.wt
    below = list_directory(name)
    inside = list(below) if below is not None else []
    return bool(inside) and all(
        entry.endswith(".wt")
        or (
            depth == 0 and entry in {"collection", "index"} and _holds_only_tables(f"{name}/{entry}", list_directory, 1)
        )
        for entry in inside
    )


def _mmapv1(names: set[str]) -> set[str]:
    databases = [name[:-3] for name in names if name.endswith(".ns") and f"{name[:-3]}.0" in names]
    if not databases:
        return set()
    files = re.compile("(?:" + "|".join(map(re.escape, databases)) + r")\.(?:ns|[0-9]+)", re.DOTALL)
    return {n for n in names if files.fullmatch(n) or n in {"mongod.lock", "journal", "_tmp", "diagnostic.data"}}
