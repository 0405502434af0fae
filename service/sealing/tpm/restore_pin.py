"""The restore PIN: backups run without it, and an archive made while it is set opens only with it.

The PIN is the authorisation of an object P of the TPM, made below the pinned storage key and of no use on another TPM.
An archive's sealed key has the policy "whoever knows P's PIN" instead of none; making that takes P's name alone, so no
PIN. P counts wrong tries, and the TPM locks after some. P's areas are kept in a file here and stand in every key slot,
so that an archive needs nothing but itself.

A change of the PIN gives P a new private area and leaves its name, so older archives open on this machine with the new
PIN. Their slots still hold the former area: where this file is lost they open with the PIN of their day, and whoever
has kept such a slot, and has the TPM, can go on using that PIN.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from service.errors import ConfigError, PinUnusable
from service.sealing.tpm.gate import TpmGate
from service.sealing.tpm.pin import TpmPin
from service.sealing.tpm.public_area import BadPublicArea, name_of, require_pin_object
from service.state_directory import make_directory, read_file, remove_file, replace_file

if TYPE_CHECKING:
    from service.sealing.tpm.chip import Chip

PIN_FILE = "restore-pin.json"
SHORTEST_PIN, LONGEST_PIN = 6, 128  # characters; the TPM bounds how many can be tried
_LARGEST = 16 * 1024  # bytes; such a file has about one thousand
_LABEL = b"deviceon-backup/v1/restore-pin\x00"
_SALT_BYTES = 16

_Hex = Annotated[str, Field(pattern=r"^(?:[0-9a-f]{2})+$", max_length=2048)]


class PinObject(BaseModel):
    """The PIN as it stands in a key slot: the object's two areas (TPM2B_PRIVATE, TPM2B_PUBLIC), its salt, its date."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    private: _Hex
    public: _Hex
    salt: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    since: Annotated[AwareDatetime, Field(strict=False)]
    """When this PIN was set; tells people which one is meant."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        require_pin_object(bytes.fromhex(self.public))
        private = bytes.fromhex(self.private)
        if int.from_bytes(private[:2], "big") != len(private) - 2:
            raise BadPublicArea("the size of the PIN's private area is wrong")
        return self

    @property
    def name(self) -> bytes:
        """Return the object's name, which stays when the PIN is changed."""
        return name_of(bytes.fromhex(self.public))

    def areas(self) -> tuple[bytes, bytes]:
        """Return the private and the public area."""
        return bytes.fromhex(self.private), bytes.fromhex(self.public)

    def authorisation(self, pin: str) -> bytes:
        """Return what a PIN is to the TPM."""
        return authorisation(bytes.fromhex(self.salt), pin)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return self.model_dump(mode="json")


@dataclass(frozen=True, slots=True)
class PinClaim:
    """A PIN object's areas, and the authorisation that somebody claims to be its PIN's."""

    private: bytes
    public: bytes
    auth: bytes = field(repr=False)
    of_the_slot: bool = True
    """Whether the areas come from the archive; else from this machine's own file."""


class _Stored(PinObject):
    version: Literal[1] = 1
    srk_name: _Hex


@dataclass(frozen=True, slots=True)
class RestorePin:
    """The PIN that is set on this machine: the object, and the name of the storage key that it was made below."""

    object: PinObject
    srk_name: bytes


def authorisation(salt: bytes, pin: str) -> bytes:
    """Return SHA-256(label || salt || PIN in NFC) without zeros at its end, which TPMs cut off in any case."""
    return hashlib.sha256(_LABEL + salt + unicodedata.normalize("NFC", pin).encode()).digest().rstrip(b"\0")


def require_good_pin(pin: str) -> None:
    """Raise ConfigError when a new PIN is too short, too long or hard to type."""
    if not SHORTEST_PIN <= len(pin) <= LONGEST_PIN or not pin.isprintable() or pin != pin.strip():
        raise ConfigError(
            f"a restore PIN has {SHORTEST_PIN} to {LONGEST_PIN} characters, none of them a control character, and no "
            "space at its ends",
            hint="Choose another one.",
        )


def load_restore_pin(path: Path) -> RestorePin | None:
    """Return the PIN that is set, or None. Raises PinUnusable when the file cannot be used."""
    hint = "Correct its owner and mode."
    data = read_file(path, "the restore PIN", most=_LARGEST, hint=hint, failure=PinUnusable)
    if data is None:
        return None
    try:
        stored = _Stored.model_validate_json(data)
    except ValueError as error:  # ValidationError is one
        raise PinUnusable(
            f"the restore PIN in {path} is damaged",
            hint="Bring the file back from a copy. Or delete it and set a PIN anew: older archives then open with the "
            "PIN of their day.",
        ) from error
    found = PinObject(private=stored.private, public=stored.public, salt=stored.salt, since=stored.since)
    return RestorePin(found, bytes.fromhex(stored.srk_name))


def save_restore_pin(path: Path, pin: RestorePin) -> None:
    """Keep the PIN's object, readable by the owner only, whole or not at all. Raises PinUnusable."""
    stored = _Stored(**pin.object.model_dump(), srk_name=pin.srk_name.hex())
    try:
        make_directory(path.parent)
        replace_file(path, (json.dumps(stored.model_dump(mode="json"), indent=1) + "\n").encode())
    except OSError as error:
        raise _unwritable(path, error) from error


def forget_restore_pin(path: Path) -> None:
    """Remove the PIN from this machine: new archives open without one. Raises PinUnusable."""
    try:
        remove_file(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def require_usable(pin: RestorePin, tpm: TpmPin) -> None:
    """Raise PinUnusable when the PIN was set on another TPM than the pinned one: to go on without would be worse."""
    if pin.srk_name != tpm.srk_name:
        raise PinUnusable(
            f"the restore PIN was set on another TPM than {tpm.fingerprint}",
            hint="Set one for this TPM (`deviceon-backup pin set`), or go on without (`deviceon-backup pin remove`).",
        )


async def make_pin(gate: TpmGate, tpm: TpmPin, pin: str, *, now: datetime) -> RestorePin:
    """Make a PIN object that was proven to open what is sealed for it, and only with its PIN.

    Raises ConfigError when the PIN is no good one, TpmChanged, TpmUnavailable, SealError.
    """
    require_good_pin(pin)
    salt = os.urandom(_SALT_BYTES)
    auth = authorisation(salt, pin)

    def work(chip: Chip) -> PinObject:
        from service.sealing.tpm import pin_operations  # noqa: PLC0415 - loads libtss2

        private, public = pin_operations.make(chip, tpm, auth)
        return _object(private, public, salt, now)

    return RestorePin(await gate.run(work), tpm.srk_name)


async def change_pin(
    gate: TpmGate, tpm: TpmPin, current: RestorePin, old: str, new: str, *, now: datetime
) -> RestorePin:
    """Return the PIN object with another PIN, proven as in `make_pin`. Raises PinWrong, TpmLockout, and what that does.

    A wrong old PIN counts as a try.
    """
    require_good_pin(new)
    require_usable(current, tpm)
    salt = os.urandom(_SALT_BYTES)
    old_auth, auth = current.object.authorisation(old), authorisation(salt, new)

    def work(chip: Chip) -> PinObject:
        from service.sealing.tpm import pin_operations  # noqa: PLC0415 - loads libtss2

        private = pin_operations.change(chip, tpm, current.object.areas(), old_auth, auth)
        return _object(private, bytes.fromhex(current.object.public), salt, now)

    return RestorePin(await gate.run(work), tpm.srk_name)


async def check_pin(gate: TpmGate, tpm: TpmPin, current: RestorePin, pin: str) -> None:
    """Prove that this is the PIN. A wrong one counts as a try. Raises PinWrong, TpmLockout, TpmChanged, SealError."""
    require_usable(current, tpm)
    auth = current.object.authorisation(pin)

    def work(chip: Chip) -> None:
        from service.sealing.tpm import pin_operations  # noqa: PLC0415 - loads libtss2

        pin_operations.check(chip, tpm, current.object.areas(), auth)

    await gate.run(work)


def _object(private: bytes, public: bytes, salt: bytes, now: datetime) -> PinObject:
    return PinObject(private=private.hex(), public=public.hex(), salt=salt.hex(), since=now.replace(microsecond=0))


def _unwritable(path: Path, error: OSError) -> PinUnusable:
    return PinUnusable(
        f"the restore PIN cannot be written to {path}: {error.strerror}", hint="Make state_dir writable."
    )
