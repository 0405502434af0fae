"""RESET TO DEFAULT: the baseline, restored beside what is there like any archive, with what belongs to this
installation left as it is.

What stays: this service's own state and archives (no tree ever replaces those), its configuration file and the files
that it names, and what `reset.keep` names in the configuration trees. All of it is left where it is by the rule that
leaves excluded paths where they are. A kept file that is not there now comes back from the baseline.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from service import sources
from service.baseline import Baseline, require_baseline
from service.catalog import archive_at, opened
from service.config import Config
from service.config_sources import SourceSettings, TreeSettings
from service.errors import ConfigError, SealError
from service.ledger import Ledger
from service.progress import Progress
from service.restore import RestoreResult, restore
from service.restore_plan import RestorePlan, plan_restore
from service.selection import EVERYTHING
from service.sources.base import StoredSource

_THE_SERVERS = frozenset({"version_file"})
"""Keys that name files of the server, which the baseline brings back with everything else."""


@dataclass(frozen=True, slots=True)
class ResetPlan:
    """What a reset would do."""

    baseline: Baseline
    plan: RestorePlan


async def plan_reset(config: Config, *, remove_new: bool = False, ledger: Ledger) -> ResetPlan:
    """Tell what a reset would replace, what stays, and every obstacle. Touches nothing.

    `remove_new`: whether databases that were made since the baseline go, with the old state. Raises NotFound when there
    is no baseline.
    """
    baseline = await require_baseline(config, ledger)
    try:
        prepared, archive = await _prepared(config, baseline)
    except SealError:  # the plan says why it cannot be opened
        prepared, archive = config, named(config, baseline)
    plan = await plan_restore(prepared, archive, select=replace(EVERYTHING, exactly=remove_new))
    if new := [item.what for item in plan.items if item.action == "keep" and item.note == sources.MADE_SINCE]:
        plan.warnings.append(
            f"Made since the baseline, and left as it is: {', '.join(new)}. --remove-new-databases takes it away."
        )
    return ResetPlan(baseline, plan)


async def reset(
    config: Config,
    *,
    remove_new: bool = False,
    allow: frozenset[str] = frozenset(),
    ledger: Ledger,
    progress: Progress,
) -> RestoreResult:
    """Bring the server back to its baseline. Returns and raises as `restore`; NotFound when there is no baseline."""
    baseline = await require_baseline(config, ledger)
    prepared, archive = await _prepared(config, baseline)
    progress.say(f"Resetting to the baseline {baseline.archive}")
    select = replace(EVERYTHING, exactly=remove_new)
    return await restore(prepared, archive, allow=allow, select=select, progress=progress)


async def _prepared(config: Config, baseline: Baseline) -> tuple[Config, str]:
    """Return the configuration to restore the baseline with, and how to name the archive."""
    archive = named(config, baseline)
    async with opened(config, archive) as reader:
        return keeping(config, reader.sources()), archive


def named(config: Config, baseline: Baseline) -> str:
    """Return the baseline as recipes take an archive: in the first target that holds it."""
    held_in = {url.rstrip("/") for url in baseline.targets}
    url = next(one.target.url for one in config.each() if one.target.url.rstrip("/") in held_in)
    return archive_at(config, baseline.archive, None if url == config.target.url else url)


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
    """Return this service's configuration file and the files that it names: passwords, keys, certificates."""
    found = list(_files_in(config.model_dump()))
    return sorted({*found, config.read_from} if config.read_from else set(found))


def _files_in(value: Any, key: str = "") -> Iterable[Path]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _files_in(inner, str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _files_in(inner, key)
    elif (
        isinstance(value, str | Path)
        and (key.endswith("_file") or key in ("passfile", "file"))
        and key not in _THE_SERVERS
        and Path(value).is_absolute()
    ):
        yield Path(value)
