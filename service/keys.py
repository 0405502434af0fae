"""Who archives are sealed for and who may open them here, as the configuration says."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from service.config import Config, ConfigFile
from service.errors import ConfigError, SealError
from service.recovery import RecoveryKey
from service.recovery_choice import recovery_choice
from service.sealing.slots import Identity, KeySlot, Recipient, no_key

if TYPE_CHECKING:
    from service.sealing.tpm import TpmGate, TpmIdentity, TpmPin, TpmRecipient, TpmSigner

log = logging.getLogger(__name__)

TRUSTED_FILE = "tpm-pin.json"


@dataclass(frozen=True, slots=True)
class Sealer:
    """What a new archive is sealed for. `fingerprint` is shown to people."""

    recipients: tuple[Recipient, ...]
    fingerprint: str | None
    kinds: str = "tpm"
    """As the header of an archive names them: `tpm`, `tpm+age`."""
    asks_for_pin: bool = False
    """Whether this machine opens the archive with the restore PIN only."""

    async def wrap(self, data_key: bytes, archive_id: bytes) -> list[KeySlot]:
        """Make one proven key slot for each recipient. Raises SealError."""
        return [await recipient.wrap(data_key, archive_id) for recipient in self.recipients]


async def sealer(config: Config) -> Sealer | None:
    """Return whom to seal for: this machine's TPM and the recovery keys. None when sealing is off.

    The first time, this machine's TPM is pinned. Raises SealError.
    """
    if config.sealing.mode == "off":
        return None
    choice = recovery_choice(config)
    chip, fingerprint = await this_tpm(config)
    recovery = age_recipients(choice.recipients, protected=choice.protected)
    kinds = "tpm+age" if recovery else "tpm"
    return Sealer((chip, *recovery), fingerprint, kinds, asks_for_pin=chip.asks_for_pin)


async def this_tpm(config: ConfigFile) -> tuple[TpmRecipient, str]:
    """Return this machine's TPM, pinned when it is seen for the first time, and its fingerprint. Raises SealError."""
    import service.sealing.tpm as tpm  # noqa: PLC0415, PLR0402 - a heavy library

    gate = _gate(config)
    pin = await _pinned(config, gate)
    return tpm.TpmRecipient(gate, pin, tpm.load_restore_pin(config.state_dir / tpm.PIN_FILE)), pin.fingerprint


def age_recipients(recipients: Sequence[str], *, protected: str | None = None) -> list[Recipient]:
    """Return those who seal for age recipients; `protected` is the identity of the only one under a passphrase."""
    if not recipients:
        return []
    from service.sealing.age import AgeRecipient  # noqa: PLC0415 - a library that most commands do not need

    return [AgeRecipient(recipient, protected=protected) for recipient in recipients]


async def signer(config: ConfigFile) -> TpmSigner | None:
    """Return what signs for this machine; None when sealing is off. The first time, its key is made in the TPM.

    Raises TpmChanged, TpmUnavailable, SealError. A backup goes on without a signature unless one is required.
    """
    if config.sealing.mode == "off":
        return None
    import service.sealing.tpm as tpm  # noqa: PLC0415, PLR0402 - a heavy library

    gate = _gate(config)
    return await tpm.open_signer(gate, await _pinned(config, gate), config.state_dir / "tpm-signing-key.json")


async def sign_archive(
    config: Config, warn: Callable[[str], None], purpose: str, message: bytes
) -> tuple[bytes, bytes] | None:
    """Return this machine's public key and signature of an archive; None when it cannot sign, which is warned of.

    Raises SealError instead when signatures are required.
    """
    try:
        signs = await signer(config)
        return None if signs is None else (signs.public_key, await signs.sign(purpose, message))
    except SealError as error:
        if config.sealing.require_signature:
            raise
        log.warning("the archive is not signed: %s", error)
        warn(f"The archive is not signed, so it proves its origin on this TPM only: {error}. {error.hint}")
        return None


def own_public_key(state_dir: Path) -> bytes | None:
    """Return the public key (DER) that this machine signs with; None when there is none yet. Asks no TPM.

    Raises SealError when it cannot be read.
    """
    from service.sealing.tpm.signing import KEY_FILE, load_signing_key  # noqa: PLC0415 - cryptography

    key = load_signing_key(state_dir / KEY_FILE)
    return None if key is None else key.public_key


def trusted_signers(config: ConfigFile) -> frozenset[str]:
    """Return the fingerprints of whose signatures prove where an archive comes from: configured ones and this machine's
    own, also of TPMs that it had before.
    """
    from service.sealing.tpm.signing import KEY_FILE, load_signing_key  # noqa: PLC0415 - cryptography

    found = set(config.sealing.trusted_signers)
    stem, _, suffix = KEY_FILE.rpartition(".")
    for path in config.state_dir.glob(f"{stem}*.{suffix}"):
        try:
            key = load_signing_key(path)
        except SealError as error:
            log.warning("%s", error)
        else:
            found |= {key.fingerprint} if key else set()
    return frozenset(found)


def identities(config: Config) -> list[Identity]:
    """Return who can open archives here, also those sealed before sealing was switched off: the TPM, and behind it the
    recovery key that somebody gave.

    A TPM that is absent shows when it is first asked. Raises BadRecoveryKey.
    """
    return [own_tpm(config), *recovery_identities(config.opening.recovery)]


async def try_without_pin(config: Config, slots: Sequence[KeySlot], archive_id: bytes) -> None:
    """Do all that opening an archive with a restore PIN takes but for the last step, which needs the PIN.

    Raises SealError when none of the slots gets so far on this machine's TPM.
    """
    chip = own_tpm(config)
    reasons: list[SealError] = []
    for slot in slots:
        if not chip.accepts(slot):
            continue
        try:
            await chip.look(slot, archive_id)
        except SealError as error:
            reasons.append(error)
        else:
            return
    raise no_key(slots, reasons)


def own_tpm(config: Config) -> TpmIdentity:
    """Return this machine's TPM as who opens archives, with the restore PIN that somebody gave.

    It remembers that a PIN was wrong: who opens several archives in a row asks one and the same, so that this counts as
    one wrong try.
    """
    import service.sealing.tpm as tpm  # noqa: PLC0415, PLR0402 - a heavy library

    try:
        restore_pin = tpm.load_restore_pin(config.state_dir / tpm.PIN_FILE)
    except SealError as error:
        log.warning("archives open with the restore PIN of their day: %s", error)
        restore_pin = None
    return tpm.TpmIdentity(_gate(config), pin=config.opening.pin, restore_pin=restore_pin)


def recovery_identities(recovery: RecoveryKey | None) -> list[Identity]:
    """Return who opens archives with a recovery key alone. Raises BadRecoveryKey."""
    if recovery is None:
        return []
    from service.sealing.age import AgeIdentity  # noqa: PLC0415 - a library that most commands do not need

    return [AgeIdentity(recovery)]


async def pinned_tpm(config: ConfigFile) -> tuple[TpmGate, TpmPin]:
    """Return the way to the TPM and which one is trusted; the first time, this machine's TPM is pinned.

    Raises ConfigError when sealing is off, TpmUnavailable, SealError.
    """
    require_sealing(config)
    gate = _gate(config)
    return gate, await _pinned(config, gate)


def require_sealing(config: ConfigFile) -> None:
    """Raise ConfigError when sealing is off."""
    if config.sealing.mode == "off":
        raise ConfigError(
            "sealing is off, so no TPM is used", hint="Set sealing.mode to tpm, or do without what needs a TPM."
        )


async def look_at_tpm(config: ConfigFile) -> tuple[TpmPin | None, TpmPin]:
    """Return the TPM that is pinned, None when there is none yet, and the one that is there. Raises SealError."""
    import service.sealing.tpm as tpm  # noqa: PLC0415, PLR0402 - a heavy library

    return tpm.load_pin(config.state_dir / TRUSTED_FILE), await tpm.read_pin(_gate(config))


async def try_tpm(config: ConfigFile, pin: TpmPin) -> None:
    """Have a TPM seal and open a key that is of no use. Raises SealError."""
    import service.sealing.tpm as tpm  # noqa: PLC0415, PLR0402 - a heavy library

    await tpm.TpmRecipient(_gate(config), pin).wrap(os.urandom(32), os.urandom(16))


def pin_tpm(config: ConfigFile, pin: TpmPin) -> None:
    """Trust this TPM from now on, in place of another one. Raises SealError."""
    import service.sealing.tpm as tpm  # noqa: PLC0415, PLR0402 - a heavy library

    tpm.save_pin(config.state_dir / TRUSTED_FILE, pin)


def _gate(config: ConfigFile) -> TpmGate:
    import service.sealing.tpm as tpm  # noqa: PLC0415, PLR0402 - a heavy library

    return tpm.TpmGate(config.sealing.tcti, owner_auth=config.sealing.owner_auth())


async def _pinned(config: ConfigFile, gate: TpmGate) -> TpmPin:
    import service.sealing.tpm as tpm  # noqa: PLC0415, PLR0402 - a heavy library

    path = config.state_dir / TRUSTED_FILE
    pin = tpm.load_pin(path)
    if pin is None:
        pin = await tpm.read_pin(gate)
        tpm.save_pin(path, pin)
    return pin
