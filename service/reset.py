"""RESET TO DEFAULT: the baseline, restored beside what is there like any archive, with what belongs to this
installation left as it is.

What stays: this service's own state and archives (no tree ever replaces those), its configuration file and the files
that it names, and what `reset.keep` names in the configuration trees. All of it is left where it is by the rule that
leaves excluded paths where they are. A kept file that is not there now comes back from the baseline.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from service import sources
from service.baseline import Baseline, named, require_baseline
from service.catalog import opened
from service.config import Config
from service.errors import SealError
from service.ledger import Ledger
from service.progress import Progress
from service.reset_keep import keeping
from service.restore import RestoreResult, restore
from service.restore_plan import RestorePlan, plan_restore
from service.selection import EVERYTHING


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
    baseline, doubts = await require_baseline(config, ledger)
    try:
        prepared, archive = await _prepared(config, baseline)
    except SealError:  # the plan says why it cannot be opened
        prepared, archive = config, named(config, baseline)
    plan = await plan_restore(prepared, archive, select=replace(EVERYTHING, exactly=remove_new))
    plan.warnings.extend(doubts)
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
    token: str | None = None,
    ledger: Ledger,
    progress: Progress,
) -> RestoreResult:
    """Bring the server back to its baseline. Returns and raises as `restore`; NotFound when there is no baseline.

    `token` is of the plan that somebody has looked at: a baseline that was replaced since is refused.
    """
    baseline, doubts = await require_baseline(config, ledger)
    for doubt in doubts:
        progress.warn(doubt)
    prepared, archive = await _prepared(config, baseline)
    progress.say(f"Resetting to the baseline {baseline.archive}")
    select = replace(EVERYTHING, exactly=remove_new)
    return await restore(prepared, archive, allow=allow, select=select, token=token, progress=progress)


async def _prepared(config: Config, baseline: Baseline) -> tuple[Config, str]:
    """Return the configuration to restore the baseline with, and how to name the archive."""
    archive = named(config, baseline)
    async with opened(config, archive) as reader:
        return keeping(config, reader.sources()), archive
