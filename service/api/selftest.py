"""The self-test of keys."""

from __future__ import annotations

from service.api import params as p
from service.api.context import Family
from service.api.registry import method
from service.job import Job


class SelfTestStart(p.Mutation, p.Opened):
    """What to open the newest archives with, when they need more than the TPM."""


class SelfTestMethods(Family):
    """The self-test of keys."""

    @method("selftest.start", admin=True)
    async def start(self, params: SelfTestStart) -> Job:
        """Queue a self-test: the key of each target's newest archive is opened as a restore would open it."""
        return await self.context.submit("selftest", "selftest.start", params)
