"""The System Backup settings, and trying a target."""

from __future__ import annotations

import asyncio
from pathlib import Path

from service.api import params as p
from service.api.context import Context, Family
from service.api.registry import method
from service.api.views import (
    Changed,
)
from service.config import SystemBackup, TargetSettings, require_consistent
from service.errors import JobRefused
from service.finding import Finding
from service.settings import shown
from service.target_test import try_target


class SystemBackupSettings(Family):
    """The System Backup settings, and trying a target."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._changing = asyncio.Lock()

    @method("settings.get")
    async def settings(self, params: p.Nothing) -> Changed:
        """Return the System Backup settings in force, and which of them the configuration file fixes."""
        return self._settings()

    @method("settings.update", admin=True)
    async def update(self, params: p.SettingsUpdate) -> Changed:
        """Change System Backup settings. A new target is tried first; nothing changes when anything is wrong."""

        async def change() -> Changed:
            given = params.model_fields_set - {"idempotency_key"}
            file = self.context.file()
            changes = {name: getattr(params, name) for name in given}
            value, secrets = self.context.stored.changed(file.fixed, changes)
            try:
                require_consistent(file, value)
                if "target" in given and value.target is not None:
                    await _require_good(value.target, file.system_backup(value))
            except BaseException:
                _remove(secrets)
                raise
            await self.context.stored.store(value, idle=self.context.jobs.active is None)
            await self.context.announcer.tell("settings.changed", {"changed": sorted(given)})
            self.context.scheduler.wake()
            return self._settings()

        async with self._changing:
            return await self.context.once("settings.update", params, change, again=self._settings)

    @method("target.test", admin=True)
    async def test_target(self, params: p.TargetTest) -> list[Finding]:
        """Write a small object to a target, read it back, try to overwrite, list and remove it; tell what was found."""
        if params.target is None:
            config = self.context.config()
            return [finding for one in config.targets for finding in await try_target(one, config)]
        # As an update would take it: a client has no more say in what is read on this machine because it only tries.
        file = self.context.file()
        known = file.copies if file.target is None else [file.target, *file.copies]
        async with self._changing:  # an update removes the files of secrets that it does not know
            value, secrets = self.context.stored.changed(frozenset(), {"target": params.target}, known)
            try:
                return await try_target(value.target, file.system_backup(value)) if value.target is not None else []
            finally:
                _remove(secrets)

    def _settings(self) -> Changed:
        file = self.context.file()
        settings = shown(file.system_backup(self.context.stored.value))
        return Changed(settings, fixed=sorted(file.fixed), copies=[target.url for target in file.copies])


def _remove(files: list[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)


async def _require_good(target: TargetSettings, system_backup: SystemBackup) -> None:
    wrong = [finding for finding in await try_target(target, system_backup) if finding.ok is False]
    if wrong:
        raise TargetNotGood(f"the target did not pass its test: {wrong[0].message}", hint=wrong[0].remedy)


class TargetNotGood(JobRefused):
    """A target that was to be set did not pass its test."""

    code = "TARGET_TEST_FAILED"
