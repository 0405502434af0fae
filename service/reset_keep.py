"""What a reset leaves as it is: this installation's own files, and what `reset.keep` names in the trees."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from service import sources
from service.config import Config
from service.config_sources import SourceSettings, TreeSettings
from service.errors import ConfigError
from service.sources.base import StoredSource

_THE_SERVERS = frozenset({"version_file"})
"""Keys that name files of the server, which the baseline brings back with everything else."""


def keeping(config: Config, stored: Sequence[StoredSource]) -> Config:
    """Return the configuration with what a reset keeps among what its trees leave out."""
    settings: dict[tuple[str, str], SourceSettings] = {(each.type, each.name): each for each in config.sources}
    for one in stored:
        try:
            found = sources.settings_for(config, one)
        except ConfigError:
            continue  # the plan says so
        settings.setdefault((found.type, found.name), found)
    own = own_files(config)
    changed = [
        each.model_copy(update={"exclude": [*each.exclude, *kept_in(each.path, config.reset.keep, own)]})
        if isinstance(each, TreeSettings)
        else each
        for each in settings.values()
    ]
    return config.model_copy(update={"sources": changed})


def kept_in(tree: Path, keep: Sequence[str], own: Sequence[Path]) -> list[str]:
    """Return, as globs relative to a tree, what a reset leaves there as it is."""
    top = f"{str(tree).rstrip('/')}/"
    globs = [pattern.removeprefix(top) for pattern in keep if not pattern.startswith("/") or pattern.startswith(top)]
    tops = {top, f"{os.path.realpath(tree).rstrip('/')}/"}
    inside = {
        path[len(each) :]
        for path in (*map(str, own), *map(os.path.realpath, own))
        for each in tops
        if path.startswith(each)
    }
    return [*globs, *(re.sub(r"([*?\[])", r"[\1]", path) for path in sorted(inside))]


def own_files(config: Config) -> list[Path]:
    """Return this service's configuration file and the files that it names: passwords, keys, certificates, hooks."""
    found = list(_files_in(config.model_dump()))
    return sorted({*found, config.read_from} if config.read_from else set(found))


def _files_in(value: Any, key: str = "") -> Iterable[Path]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _files_in(inner, str(name))
    elif isinstance(value, list | tuple):
        # of a hook only the program: its arguments may be what it works on, which the baseline brings back
        for inner in value[:1] if key == "command" else value:
            yield from _files_in(inner, key)
    elif (
        isinstance(value, str | Path)
        and (key.endswith("_file") or key in ("passfile", "file", "command"))
        and key not in _THE_SERVERS
        and Path(value).is_absolute()
    ):
        yield Path(value)
