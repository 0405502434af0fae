"""Who opens archives: key slots of those that are there, and the proof that a recovery key opens them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from service.api import params as p
from service.api.context import Family
from service.api.registry import method
from service.config_types import Recipient
from service.job import Job
from service.key_slots import ArchiveSlots, Proof, prove_recovery, slots_of

Recipients = Annotated[list[Recipient], Field(max_length=16)]
Code = Annotated[str, Field(pattern=r"^[A-Z_]{1,64}$")]


class KeyList(p.OfTarget):
    """Whose key slots to tell."""

    archive: p.Name | None = None
    """Of this archive; of all when left out."""


class KeyAdd(p.Mutation, p.OfTarget, p.Opened):
    """For whom to add key slots."""

    archive: p.Name | None = None
    """To this archive; to all when left out."""
    recipients: Recipients = []
    """age recipients."""
    tpm: bool = False
    """This machine's TPM."""
    allow: list[Code] = []
    """ORIGIN_NOT_PROVEN: a TPM's slot is also added where only a recovery key opens the archive and no signer that is
    trusted has signed it."""
    apply: bool = True
    """Whether slots are written; else it is only tried and told what would be."""


class KeyRemove(p.Mutation, p.OfTarget):
    """Whose key slots to remove."""

    archive: p.Name | None = None
    """Beside this archive; beside all when left out."""
    whom: Annotated[list[p.Line], Field(min_length=1, max_length=16)]
    """Recipients, or fingerprints of TPMs."""


class KeyProve(p.OfTarget, p.Recovered):
    """The recovery key to prove."""


@dataclass(frozen=True, slots=True)
class Slots:
    """The key slots of archives, the newest first."""

    archives: list[ArchiveSlots]


class KeyMethods(Family):
    """Who opens archives."""

    @method("key.list")
    async def slots(self, params: KeyList) -> Slots:
        """Tell who opens an archive, or each of them, as its key slots say."""
        return Slots(await slots_of(self.context.chosen(params), params.archive, ledger=self.context.ledger))

    @method("key.add", admin=True)
    async def add(self, params: KeyAdd) -> Job:
        """Queue the adding of key slots beside archives, each proven. What has them already is left alone."""
        return await self.context.submit("keys", "key.add", params)

    @method("key.remove", admin=True)
    async def remove(self, params: KeyRemove) -> Job:
        """Queue the removal of key slots that were added beside archives. Those in the archives themselves stay."""
        return await self.context.submit("keys", "key.remove", params)

    @method("key.prove", admin=True)
    async def prove(self, params: KeyProve) -> list[Proof]:
        """Open the newest archive of each target with a recovery key alone, whatever the TPM could do."""
        config = self.context.chosen(params).opened_with(p.opening(params))
        return await prove_recovery(config, ledger=self.context.ledger)
