"""The `tpm2` key slot of an archive: a strict model of what anybody may have written there. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import DamagedSlot
from service.sealing.tpm.public_area import (
    BadPublicArea,
    fingerprint,
    name_of,
    pin_policy,
    require_sealed_object,
    require_storage_parent,
)
from service.sealing.tpm.restore_pin import PinObject

SLOT_TYPE = "tpm2"
_HINT = "The archive was altered or damaged after it was made. Use another copy of it, or another archive."

Hex = Annotated[str, Field(pattern=r"^(?:[0-9a-f]{2})+$")]
_Hash = Annotated[Hex, Field(min_length=64, max_length=64)]
_Area = Annotated[Hex, Field(min_length=20, max_length=2048)]


class TpmSlot(BaseModel):
    """A sealed data key and the public half of the key that it is sealed under. Binary members are lower-case hex."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    type: Literal["tpm2"] = "tpm2"
    srk_name: Hex
    """nameAlg || digest of the storage root key's public area."""
    srk_public: _Area
    """The storage root key's TPM2B_PUBLIC; also tells how to derive that key again."""
    parent: Annotated[str, Field(pattern=r"^(?:0x8100000[12]|derived)$")]
    """How that key was obtained when the archive was made. For people; a restore looks everywhere."""
    private: _Area
    """The sealed object's TPM2B_PRIVATE, encrypted and authenticated by the TPM."""
    public: _Area
    """The sealed object's TPM2B_PUBLIC."""
    ek_salted: _Hash | None = None
    """SHA-256("deviceon-backup/v1/ek" || archive_id || name of the endorsement key), where that could be had."""
    pin: PinObject | None = None
    """The restore PIN that the sealed object's policy asks for, when the archive has one."""
    fingerprint: str
    """The storage root key's fingerprint, which people compare."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        public, private = bytes.fromhex(self.srk_public), bytes.fromhex(self.private)
        require_storage_parent(public)
        if name_of(public).hex() != self.srk_name:
            raise BadPublicArea("the storage key's name is not that of its public area")
        if fingerprint(name_of(public)) != self.fingerprint:
            raise BadPublicArea("the fingerprint is not that of the storage key")
        require_sealed_object(bytes.fromhex(self.public), policy=self.policy)
        if int.from_bytes(private[:2], "big") != len(private) - 2:
            raise BadPublicArea("the size of the sealed object's private area is wrong")
        return self

    @property
    def policy(self) -> bytes:
        """Return the policy that the sealed object has to have: the PIN's, or none."""
        return pin_policy(bytes.fromhex(self.pin.public)) if self.pin else b""

    def to_json(self) -> dict[str, Any]:
        """Return the slot as it stands in `keyslots.json`."""
        return self.model_dump(mode="json", exclude_none=True)


def parse_slot(slot: Mapping[str, Any]) -> TpmSlot:
    """Check everything that can be checked without a TPM. Raises DamagedSlot."""
    try:
        return TpmSlot.model_validate(dict(slot))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise DamagedSlot(
            f"the archive's TPM key slot is damaged: {where}{': ' if where else ''}{reason}", hint=_HINT
        ) from error


def refused(reason: str) -> DamagedSlot:
    """Return the error for a slot that the right TPM refuses."""
    return DamagedSlot(f"this machine's TPM made this archive but refuses its key slot: {reason}", hint=_HINT)
