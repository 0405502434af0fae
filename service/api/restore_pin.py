"""The restore PIN."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr

from service.api import params as p
from service.api.context import Family
from service.api.registry import method
from service.api.views import Done
from service.restore_pin import PinStatus, change_pin, pin_status, remove_pin, set_pin

NewPin = Annotated[SecretStr, Field(max_length=128)]


class PinSet(p.Mutation):
    """A PIN that archives made from now on ask for."""

    new: NewPin
    """The PIN: 6 to 128 characters."""


class PinChange(p.Mutation, p.Opened):
    """Another PIN in place of the one there is, which `pin` is."""

    new: NewPin
    """The PIN: 6 to 128 characters."""


class PinRemove(p.Mutation, p.Opened):
    """The PIN that is to go."""


class PinMethods(Family):
    """The restore PIN."""

    @method("pin.status")
    async def status(self, params: p.Nothing) -> PinStatus:
        """Tell whether archives are made with a restore PIN, and how many wrong tries the TPM still takes."""
        return await pin_status(self.context.config())

    @method("pin.set", admin=True)
    async def set(self, params: PinSet) -> Done:
        """Set a restore PIN: archives made from now on open with it only; backups need none."""

        async def do() -> Done:
            await set_pin(self.context.config(), params.new.get_secret_value(), clock=self.context.clock)
            return await self._told("set")

        return await self.context.once("pin.set", params, do, again=Done)

    @method("pin.change", admin=True)
    async def change(self, params: PinChange) -> Done:
        """Change the restore PIN. On this machine older archives open with the new one too."""

        async def do() -> Done:
            config = self.context.config().opened_with(p.opening(params))
            await change_pin(config, params.new.get_secret_value(), clock=self.context.clock)
            return await self._told("changed")

        return await self.context.once("pin.change", params, do, again=Done)

    @method("pin.remove", admin=True)
    async def remove(self, params: PinRemove) -> Done:
        """Make archives without a PIN from now on. Those that were made with it still ask for it."""

        async def do() -> Done:
            await remove_pin(self.context.config().opened_with(p.opening(params)))
            return await self._told("removed")

        return await self.context.once("pin.remove", params, do, again=Done)

    async def _told(self, what: str) -> Done:
        await self.context.announcer.tell("pin.changed", {"what": what})
        return Done()
