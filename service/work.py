"""What each kind of job does: a recipe, with its bookkeeping around it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Any

from service.backup import BackupResult, backup
from service.baseline import make_baseline, require_none
from service.catalog import archive_at
from service.config import Config
from service.copying import NoSource, copy
from service.drill import drill
from service.errors import ConfigError, ServiceError, StateError
from service.holding import delete
from service.job import Job
from service.jobs import Partial, Result
from service.key_jobs import change_keys
from service.opening import Opening
from service.pending_copies import PendingCopies
from service.progress import Progress
from service.prune import PruneResult, prune
from service.reset import reset
from service.restore import commit, restore, rollback
from service.restore_table import restore_tables
from service.selection import Selection
from service.selftest import selftest
from service.settle import settle
from service.state import Archives
from service.targets import Outcome, was_removed
from service.verification import verified
from storage_backends.base import ObjectExists, StorageError

Then = Callable[[BackupResult], Awaitable[list[ServiceError | StorageError]]]
"""What is done with a proven archive; returns what went wrong although it was done."""


class Work:
    """Does jobs with the configuration in force when each begins.

    `clock_suspect` tells whether the clock may have been set; pruning by age waits then. `opening` tells what was given
    for a job to open archives with.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        archives: Archives,
        pending: PendingCopies,
        clock: Callable[[], datetime],
        clock_suspect: Callable[[], bool],
        opening: Callable[[Job], Opening],
    ) -> None:
        self._config = config
        self._archives = archives
        self._pending = pending
        self._clock = clock
        self._clock_suspect = clock_suspect
        self._opening = opening

    async def __call__(self, job: Job, progress: Progress) -> Result:
        """Do a job; its result is JSON values. Raises ServiceError, StorageError, Partial."""
        kinds: dict[str, Callable[[Config, dict[str, Any], Progress], Awaitable[Result]]] = {
            "backup": self._backup,
            "baseline": self._baseline,
            "restore": self._restore,
            "tables": self._tables,
            "reset": self._reset,
            "rollback": self._rollback,
            "commit": self._commit,
            "verify": self._verify,
            "copy": self._copy,
            "keys": partial(change_keys, ledger=self._archives),
            "drill": self._drill,
            "prune": self._prune,
            "delete": self._delete,
            "selftest": self._selftest,
            "settle": self._settle,
        }
        return await kinds[job.kind](self._config().opened_with(self._opening(job)), job.params, progress)

    async def _backup(
        self, config: Config, _: dict[str, Any], progress: Progress, *, then: Then | None = None
    ) -> Result:
        """Back up; do `then` with the proven archive before retention is carried out."""
        try:
            made = await backup(
                config, progress=progress, ledger=self._archives, clock=self._clock, owed=self._pending.add
            )
        except (ServiceError, StorageError) as error:
            if progress.past_cancelling and not was_removed(error):
                raise Partial({"unproven": True}, error) from error
            raise
        problems: list[ServiceError | StorageError] = []
        try:
            await self._pending.add(made.name, [each.url for each in made.targets if each.evidence is None])
        except StateError as error:
            problems.append(error)
        if then is not None:
            try:
                problems += await then(made)
            except asyncio.CancelledError:
                raise Partial(_backed_up(made, []), _NOT_HELD) from None
        try:
            pruned, more = await self._pruned(config, progress)
        except asyncio.CancelledError:  # the archive is made: a stop now must not make it look like none
            raise Partial(_backed_up(made, []), _NOT_PRUNED) from None
        problems += more
        result = _backed_up(made, pruned)
        if missing := [outcome for outcome in made.targets if outcome.error is not None]:
            raise Partial(result, _not_everywhere(missing))
        if problems:
            raise Partial(result, problems[0])
        return result

    async def _baseline(self, config: Config, params: dict[str, Any], progress: Progress) -> Result:
        before = await require_none(config, self._archives, replace=params.get("replace", False))

        async def then(made: BackupResult) -> list[ServiceError | StorageError]:
            return await make_baseline(
                config, made, before, now=self._clock(), ledger=self._archives, progress=progress
            )

        return await self._backup(config, params, progress, then=then)

    async def _restore(self, config: Config, params: dict[str, Any], progress: Progress) -> Result:
        allow = frozenset(params.get("allow", ()))
        archive = archive_at(config, params["archive"], params.get("target"))
        select = Selection.of_params(params)
        token = params.get("token")
        return asdict(await restore(config, archive, allow=allow, select=select, token=token, progress=progress))

    async def _tables(self, config: Config, params: dict[str, Any], progress: Progress) -> Result:
        archive = archive_at(config, params["archive"], params.get("target"))
        done = await restore_tables(
            config,
            archive,
            database=params["database"],
            tables=params["tables"],
            into=params["into"],
            source=params.get("source_name"),
            allow=frozenset(params.get("allow", ())),
            progress=progress,
        )
        return asdict(done)

    async def _reset(self, config: Config, params: dict[str, Any], progress: Progress) -> Result:
        allow, remove_new = frozenset(params.get("allow", ())), params.get("remove_new_databases", False)
        done = await reset(
            config,
            remove_new=remove_new,
            allow=allow,
            token=params.get("token"),
            ledger=self._archives,
            progress=progress,
        )
        return asdict(done)

    async def _rollback(self, config: Config, _: dict[str, Any], progress: Progress) -> Result:
        return {"archive": await rollback(config, progress=progress), "rolled_back": True}

    async def _commit(self, config: Config, params: dict[str, Any], progress: Progress) -> Result:
        healthy = bool(params.get("if_healthy"))
        return {"archive": await commit(config, only_if_healthy=healthy, progress=progress), "committed": True}

    async def _verify(self, config: Config, params: dict[str, Any], progress: Progress) -> Result:
        archive = archive_at(config, params["archive"], params.get("target"))
        return await verified(config, archive, params["archive"], progress=progress, ledger=self._archives)

    async def _copy(self, config: Config, params: dict[str, Any], progress: Progress) -> Result:
        name, target = params["archive"], params["target"]
        try:
            result = await copy(
                config, name, target=target, source=params.get("source"), ledger=self._archives, progress=progress
            )
        except (ServiceError, StorageError) as error:
            if was_removed(error) or isinstance(error, ConfigError | ObjectExists | NoSource):
                await self._pending.remove(name, target)  # trying again would not help
            else:
                await self._pending.postpone(name, target)
            raise
        await self._pending.remove(name, target)
        return asdict(result)

    async def _drill(self, config: Config, params: dict[str, Any], progress: Progress) -> Result:
        archive, target = params.get("archive"), params.get("target")
        done = await drill(config, archive, target=target, progress=progress, ledger=self._archives, clock=self._clock)
        return asdict(done)

    async def _prune(self, config: Config, params: dict[str, Any], progress: Progress) -> Result:
        chosen = config.at(params["target"]) if params.get("target") else config
        pruned, problems = await self._pruned(chosen, progress)
        if problems and not pruned:
            raise problems[0]
        result: Result = {"targets": [asdict(each) for each in pruned]}
        if problems:
            raise Partial(result, problems[0])
        return result

    async def _pruned(
        self, config: Config, progress: Progress
    ) -> tuple[list[PruneResult], list[ServiceError | StorageError]]:
        """Prune every target; one that fails does not keep the others from it."""
        pruned: list[PruneResult] = []
        problems: list[ServiceError | StorageError] = []
        for one in config.each() if config.retention is not None else ():
            try:
                result = await prune(
                    one,
                    ledger=self._archives,
                    clock=self._clock,
                    progress=progress,
                    clock_suspect=self._clock_suspect(),
                )
            except (ServiceError, StorageError) as error:
                problems.append(error)
                continue
            pruned.append(result)
            if result.problem is not None:
                problems.append(NotPruned(f"{result.target}: {result.problem['message']}", hint=result.problem["hint"]))
        return pruned, problems

    async def _delete(self, config: Config, params: dict[str, Any], progress: Progress) -> Result:
        progress.begin("delete", f"Removing {params['archive']}")
        removed = await delete(
            config.at(params.get("target")),
            params["archive"],
            even_the_last=params.get("even_the_last", False),
            ledger=self._archives,
        )
        return {"archive": removed.name, "deleted": True, "size": removed.size}

    async def _selftest(self, config: Config, _: dict[str, Any], progress: Progress) -> Result:
        found = await selftest(config, ledger=self._archives, progress=progress)
        result: Result = {"tested": [asdict(each) | {"created": _text(each.created)} for each in found.tested]}
        if problem := found.worst():
            if found.tested:
                raise Partial(result, problem)
            raise problem
        return result

    async def _settle(self, config: Config, _: dict[str, Any], progress: Progress) -> Result:
        return asdict(await settle(config, archives=self._archives, clock=self._clock, progress=progress))


def _text(time: datetime | None) -> str | None:
    return time.isoformat() if time else None


class NotPruned(ServiceError):
    """Retention was not carried out to its end."""

    code = "TARGET_NOT_PRUNED"
    transient = True


_NOT_HELD = ServiceError(
    "the archive is made and proven, but the service was stopped before it was held as the baseline",
    hint="`deviceon-backup baseline show` tells which one is; take it again.",
)

_NOT_PRUNED = NotPruned(
    "the archive is made and proven, but the service was stopped before retention was carried out",
    hint="It is, after the next backup or by `deviceon-backup prune --apply`.",
)


class TargetMissing(ServiceError):
    """An archive is proven in one target and missing or unproven in another."""

    code = "TARGET_MISSING"
    transient = True


def _not_everywhere(outcomes: Sequence[Outcome]) -> TargetMissing:
    told = "; ".join(f"{outcome.url}: {(outcome.error or {}).get('message')}" for outcome in outcomes)
    return TargetMissing(
        f"not every target has the archive: {told}", hint="It is copied there when that target works again."
    )


def _backed_up(made: BackupResult, pruned: Sequence[PruneResult]) -> Result:
    """Return a backup's result, with what retention removed after it."""
    kept = [
        f"{name} should have been removed, but {each.target} keeps it: {why}"
        for each in pruned
        for name, why in each.kept_by_target.items()
    ]
    several = len(made.targets) > 1
    removed = [f"{each.target}/{name}" if several else name for each in pruned for name in each.removed]
    return asdict(made) | {"removed": removed, "warnings": made.warnings + kept}
