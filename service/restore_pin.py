"""The restore PIN of this machine: set, changed, taken away, looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from service.config import Config
from service.errors import JobRefused, PinRequired, SealError
from service.keys import pinned_tpm, require_sealing

if TYPE_CHECKING:
    from service.sealing.tpm import RestorePin

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class PinStatus:
    """How it stands with the restore PIN. Numbers are None when the TPM does not tell them."""

    is_set: bool
    since: datetime | None = None
    """When the PIN was set or changed last."""
    problem: str | None = None
    """Why it cannot be used as it is; backups fail then rather than go on without it."""
    hint: str = ""
    tries_left: int | None = None
    """Wrong tries that the TPM takes before it locks."""
    locked: bool = False
    wait_seconds: int | None = None
    """One wrong try is forgiven in this time, in which the machine has power."""


async def pin_status(config: Config) -> PinStatus:
    """Return how it stands with the restore PIN. Raises ConfigError when sealing is off."""
    from service.sealing import tpm  # noqa: PLC0415 - a heavy library

    require_sealing(config)
    gate = tpm.TpmGate(config.sealing.tcti, owner_auth=config.sealing.owner_auth())
    try:
        pin = tpm.load_restore_pin(_path(config))
        if pin is None:
            return PinStatus(is_set=False)
        state = await gate.run(lambda chip: chip.lockout())
        if trusted := tpm.load_pin(config.state_dir / "tpm-pin.json"):
            tpm.require_usable(pin, trusted)
    except SealError as error:
        return PinStatus(is_set=_path(config).exists(), problem=str(error), hint=error.hint)
    return PinStatus(
        is_set=True,
        since=pin.object.since,
        tries_left=state.tries_left,
        locked=state.active,
        wait_seconds=state.wait_seconds,
    )


async def set_pin(config: Config, new: str, *, clock: Clock) -> None:
    """Let archives from now on open with a restore PIN only. Older ones stay as they are.

    A PIN that another TPM has is replaced. Raises JobRefused when one is set, ConfigError when the new one is no good
    or sealing is off, SealError.
    """
    from service.sealing import tpm  # noqa: PLC0415 - a heavy library

    gate, trusted = await pinned_tpm(config)
    before = tpm.load_restore_pin(_path(config))
    if before is not None and before.srk_name == trusted.srk_name:
        raise JobRefused(
            f"a restore PIN is set already, since {before.object.since:%Y-%m-%d}",
            hint="`deviceon-backup pin change` changes it, for older archives too.",
        )
    tpm.save_restore_pin(_path(config), await tpm.make_pin(gate, trusted, new, now=clock()))


async def change_pin(config: Config, new: str, *, clock: Clock) -> None:
    """Change the restore PIN, of older archives too where they are opened on this machine.

    `config.opening` has the old one. Raises JobRefused when none is set, ConfigError, PinRequired, PinWrong,
    TpmLockout, SealError.
    """
    from service.sealing import tpm  # noqa: PLC0415 - a heavy library

    gate, trusted = await pinned_tpm(config)
    current = _current(tpm.load_restore_pin(_path(config)))
    changed = await tpm.change_pin(gate, trusted, current, _given(config), new, now=clock())
    tpm.save_restore_pin(_path(config), changed)


async def remove_pin(config: Config) -> None:
    """Let archives from now on open without a PIN. Those made with it still ask for it. `config.opening` has the PIN.

    Raises JobRefused when none is set, PinRequired, PinWrong, TpmLockout, SealError.
    """
    from service.sealing import tpm  # noqa: PLC0415 - a heavy library

    gate, trusted = await pinned_tpm(config)
    current = _current(tpm.load_restore_pin(_path(config)))
    if current.srk_name == trusted.srk_name:  # another TPM's can be neither used nor tried
        await tpm.check_pin(gate, trusted, current, _given(config))
    tpm.forget_restore_pin(_path(config))


def _current(pin: RestorePin | None) -> RestorePin:
    if pin is None:
        raise JobRefused("no restore PIN is set", hint="`deviceon-backup pin set` sets one.")
    return pin


def _given(config: Config) -> str:
    if config.opening.pin is None:
        raise PinRequired(
            "the restore PIN is needed for that, and none was given",
            hint="Give it with --pin-file FILE. When nobody knows it any more, delete restore-pin.json in state_dir as "
            "root: archives made with that PIN then open by a recovery key only.",
        )
    return config.opening.pin


def _path(config: Config) -> Path:
    from service.sealing import tpm  # noqa: PLC0415 - a heavy library

    return config.state_dir / tpm.PIN_FILE
