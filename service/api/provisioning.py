"""Setting up sealing: which TPM is trusted, and who opens archives when it is gone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, SecretStr

from service import recovery_kit
from service.api import params as p
from service.api.context import Context, Family
from service.api.registry import Params, method
from service.config_types import Recipient
from service.provisioning import Begun, Kind, Provisioning, Standing, standing
from service.recovery_kit import Kit


class ProvisionBegin(Params):
    """What is chosen."""

    recovery: Kind
    """Who opens archives without this TPM: nobody, recipients of your own, or a key that is generated here (an age
    identity, or a passphrase)."""
    recipients: Annotated[list[Recipient], Field(max_length=16)] = []
    """Your own recipients."""
    new_tpm: bool = False
    """Whether another TPM than the one that was trusted until now is right: it was replaced or cleared."""


class ProvisionFinish(p.Mutation):
    """The proof that the recovery key is there."""

    token: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """What provision.begin gave."""
    answers: Annotated[list[Annotated[SecretStr, Field(max_length=16_384)]], Field(max_length=16)] = []
    """For each challenge, in order: the word in it, or the recovery key. Never stored, logged or told again."""


@dataclass(frozen=True, slots=True)
class Provisioned:
    """What was set up, and the recovery kit for printing, without any secret."""

    kit: Kit
    text: str
    html: str


class ProvisionMethods(Family):
    """Setting up sealing."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._provisioning = Provisioning()
        self._done: dict[str, Provisioned] = {}

    @method("provision.status", admin=True)
    async def status(self, params: p.Nothing) -> Standing:
        """Tell which TPM is trusted, which one is there, and who opens archives without it."""
        return await standing(self.context.file())

    @method("provision.begin", admin=True)
    async def begin(self, params: ProvisionBegin) -> Begun:
        """Look at the TPM and prepare the choice of recovery keys; changes nothing. A key that is generated is told in
        this answer, and never again.
        """
        return await self._provisioning.begin(
            self.context.file(),
            params.recovery,
            params.recipients,
            new_tpm=params.new_tpm,
            now=self.context.clock(),
        )

    @method("provision.finish", admin=True)
    async def finish(self, params: ProvisionFinish) -> Provisioned:
        """Check the proofs, then trust the TPM and seal new archives for the recovery keys. Take a baseline next."""
        if params.token in self._done:  # the same request again: what it set up is set up
            return self._done[params.token]
        file = self.context.file()
        system_backup = file.system_backup(self.context.stored.value)
        targets = [system_backup.target, *file.copies]
        kit = await self._provisioning.finish(
            file,
            params.token,
            [answer.get_secret_value() for answer in params.answers],
            server=f"{file.server.product} on {os.uname().nodename}",
            targets=[target.url for target in targets if target is not None],
            now=self.context.clock(),
        )
        await self.context.announcer.tell("provisioned", {"tpm": kit.tpm, "recipients": [*kit.recipients]})
        done = Provisioned(kit, recovery_kit.text(kit), recovery_kit.page(kit))
        self._done = {params.token: done}
        return done
