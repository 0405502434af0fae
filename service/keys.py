"""Who archives are sealed for and who may open them here, as the configuration says."""

from __future__ import annotations

from dataclasses import dataclass

from service.config import Config
from service.sealing.slots import Identity, KeySlot, Recipient


@dataclass(frozen=True, slots=True)
class Sealer:
    """What a new archive is sealed for. `fingerprint` is shown to people."""

    recipients: tuple[Recipient, ...]
    fingerprint: str | None

    async def wrap(self, data_key: bytes, archive_id: bytes) -> list[KeySlot]:
        """Make one proven key slot for each recipient. Raises SealError."""
        return [await recipient.wrap(data_key, archive_id) for recipient in self.recipients]


async def sealer(config: Config) -> Sealer | None:
    """Return whom to seal for; None when sealing is off. The first time, this machine's TPM is pinned."""
    if config.sealing.mode == "off":
        return None
    import service.sealing.tpm as tpm  # noqa: PLC0415, PLR0402 - a heavy library

    gate = tpm.TpmGate(config.sealing.tcti, owner_auth=config.sealing.owner_auth())
    path = config.state_dir / "tpm-pin.json"
    pin = tpm.load_pin(path)
    if pin is None:
        pin = await tpm.read_pin(gate)
        tpm.save_pin(path, pin)
    return Sealer((tpm.TpmRecipient(gate, pin),), pin.fingerprint)


def identities(config: Config) -> list[Identity]:
    """Return who can open archives here, also those sealed before sealing was switched off.

    A TPM that is absent shows when it is first asked.
    """
    import service.sealing.tpm as tpm  # noqa: PLC0415, PLR0402 - a heavy library

    return [tpm.TpmIdentity(tpm.TpmGate(config.sealing.tcti, owner_auth=config.sealing.owner_auth()))]
