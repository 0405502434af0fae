"""Which recovery keys new archives are sealed for: fixed by the configuration file, else chosen at provisioning.

The choice made at provisioning is a file of the state directory. It holds nothing secret: public recipients, and for a
recovery passphrase the identity encrypted with it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.config import ConfigFile
from service.config_types import Recipient
from service.errors import SealError
from service.state_directory import prepare, read_file, replace_file

FILE_NAME: Final = "recovery.json"
NO_RECOVERY: Final = "no recovery key: loss of this TPM is loss of all backups"
_LARGEST: Final = 64 * 1024


class ChosenRecovery(BaseModel):
    """What was chosen at provisioning."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = 1
    recipients: Annotated[list[Recipient], Field(max_length=16)] = []
    protected: str | None = None
    """The identity of the only recipient as an armored age file under the recovery passphrase, when that is the key."""


@dataclass(frozen=True, slots=True)
class RecoveryChoice:
    """The recovery keys in force."""

    recipients: tuple[str, ...] = ()
    protected: str | None = None
    decided: bool = False
    """Whether somebody has said so, be it that there is none."""
    fixed: bool = False
    """Whether the configuration file says so."""

    @property
    def warning(self) -> str | None:
        """Say what is at stake without a recovery key; None when there is one."""
        if self.recipients:
            return None
        return NO_RECOVERY if self.decided else f"{NO_RECOVERY} (run `deviceon-backup provision` to choose)"


def recovery_choice(config: ConfigFile) -> RecoveryChoice:
    """Return the recovery keys in force. Raises SealError when the choice that was made cannot be read."""
    fixed = config.sealing.recovery
    if fixed is not None:
        return RecoveryChoice(() if fixed == "none" else tuple(fixed), decided=True, fixed=True)
    chosen = _load(config.state_dir / FILE_NAME)
    if chosen is None:
        return RecoveryChoice()
    return RecoveryChoice(tuple(chosen.recipients), chosen.protected, decided=True)


def without_recovery(config: ConfigFile) -> bool:
    """Tell whether archives are sealed for this TPM alone; true also when what was chosen cannot be read."""
    if config.sealing.mode == "off":
        return False
    try:
        return not recovery_choice(config).recipients
    except SealError:
        return True


def save_choice(state_dir: Path, chosen: ChosenRecovery) -> None:
    """Remember what was chosen; durable when this returns. Raises SealError, ConfigError."""
    try:
        replace_file(prepare(state_dir) / FILE_NAME, (json.dumps(chosen.model_dump(), indent=1) + "\n").encode())
    except OSError as error:
        raise SealError(
            f"the choice of recovery keys cannot be written: {error.strerror}", hint="Make state_dir writable."
        ) from error


def _load(path: Path) -> ChosenRecovery | None:
    # What cannot be read must not be taken as no recovery key: archives would go on being made without it, unnoticed.
    data = read_file(path, "the choice of recovery keys", most=_LARGEST, hint="Correct its mode.")
    if data is None:
        return None
    try:
        return ChosenRecovery.model_validate_json(data)
    except ValidationError as error:
        raise SealError(
            f"the choice of recovery keys in {path} is damaged",
            hint="Run `deviceon-backup provision` again; the recipients are in the recovery kit.",
        ) from error
