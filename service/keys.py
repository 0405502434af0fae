"""Who archives are sealed for and who may open them here, as the configuration says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.config import Config
from service.sealing.slots import Identity, KeySlot, Recipient

if TYPE_CHECKING:
    from service.sealing.tpm import TpmGate, TpmPin, TpmSigner


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

    gate = _gate(config)
    pin = await _pinned(config, gate)
    return Sealer((tpm.TpmRecipient(gate, pin),), pin.fingerprint)


async def signer(config: Config) -> TpmSigner | None:
    """Return what signs for this machine; None when sealing is off. The first time, its key is made in the TPM.

    Raises TpmChanged, TpmUnavailable, SealError. No archive depends on a signature, so a backup goes on without one.
    """
    if config.sealing.mode == "off":
        return None
    import service.sealing.tpm as tpm  # noqa: PLC0415, PLR0402 - a heavy library

    gate = _gate(config)
    return await tpm.open_signer(gate, await _pinned(config, gate), config.state_dir / "tpm-signing-key.json")


def identities(config: Config) -> list[Identity]:
    """Return who can open archives here, also those sealed before sealing was switched off.

    A TPM that is absent shows when it is first asked.
    """
    import service.sealing.tpm as tpm  # noqa: PLC0415, PLR0402 - a heavy library

    return [tpm.TpmIdentity(_gate(config))]


def _gate(config: Config) -> TpmGate:
    import service.sealing.tpm as tpm  # noqa: PLC0415, PLR0402 - a heavy library

    return tpm.TpmGate(config.sealing.tcti, owner_auth=config.sealing.owner_auth())


async def _pinned(config: Config, gate: TpmGate) -> TpmPin:
    import service.sealing.tpm as tpm  # noqa: PLC0415, PLR0402 - a heavy library

    path = config.state_dir / "tpm-pin.json"
    pin = tpm.load_pin(path)
    if pin is None:
        pin = await tpm.read_pin(gate)
        tpm.save_pin(path, pin)
    return pin
