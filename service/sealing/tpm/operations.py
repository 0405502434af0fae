"""Wrap and unwrap, step by step, with an open TPM. Runs in the gate's thread."""

from __future__ import annotations

import hmac

from tpm2_pytss import TSS2_Exception  # type: ignore[import-untyped]

from service.errors import PinUnusable, SealError, TpmChanged, TpmCleared, WrongTpm
from service.sealing.tpm import faults
from service.sealing.tpm.chip import Chip
from service.sealing.tpm.endorsement import endorsement_names, salted
from service.sealing.tpm.parents import Parent, choose_parent, find_parent
from service.sealing.tpm.pin import TpmPin
from service.sealing.tpm.public_area import BadPublicArea, fingerprint, pin_policy
from service.sealing.tpm.restore_pin import PinClaim, PinObject
from service.sealing.tpm.sealed import load, require_pin_object_here, seal, unseal, unseal_with_pin
from service.sealing.tpm.slot import TpmSlot, refused

_DATA_KEY_BYTES = 32


def wrap(chip: Chip, pin: TpmPin, data_key: bytes, archive_id: bytes, asks: PinObject | None) -> TpmSlot:
    """Seal under the pinned key: compared before a session is started, whose secret would else be for anybody.

    `asks` is the restore PIN that the slot is to ask for; that this TPM has it is proven, though not its PIN.
    """
    parent = pinned_parent(chip, pin)
    if asks is not None:
        require_pin_object_here(chip, parent, *asks.areas())
    private, public = seal(chip, parent, data_key, policy=pin_policy(bytes.fromhex(asks.public)) if asks else b"")
    return TpmSlot(
        srk_name=parent.name.hex(),
        srk_public=parent.public.hex(),
        parent=parent.origin,
        private=private.hex(),
        public=public.hex(),
        ek_salted=salted(pin.ek_name, archive_id) if pin.ek_name else None,
        pin=asks,
        fingerprint=fingerprint(parent.name),
    )


def pinned_parent(chip: Chip, pin: TpmPin) -> Parent:
    """Return the storage key that was pinned. Raises TpmChanged when this TPM has it not (any more)."""
    parent = find_parent(chip, pin.srk_name, pin.srk_public)
    if parent is None:
        raise _changed(chip, pin)
    return parent


def unwrap(chip: Chip, slot: TpmSlot, archive_id: bytes, claim: PinClaim | None) -> bytes:
    """Open a slot that was parsed; one that asks for a PIN with `claim`.

    Load fails with one and the same code for another TPM, a cleared one and a damaged slot. So the key is looked for by
    name first: what then fails is the slot.
    """
    parent = _parent_of(chip, slot, archive_id)
    if claim is not None and not claim.of_the_slot:
        require_pin_object_here(chip, parent, claim.private, claim.public)  # else its fault would be the slot's
    try:
        areas = bytes.fromhex(slot.private), bytes.fromhex(slot.public)
        data_key = unseal(chip, parent, *areas) if claim is None else unseal_with_pin(chip, parent, *areas, claim)
    except TSS2_Exception as error:
        if faults.blames_input(error.rc):
            raise refused("its bytes are not those that the TPM made") from error
        raise
    if len(data_key) != _DATA_KEY_BYTES:
        raise refused("what it holds is no data key")
    return data_key


def look(chip: Chip, slot: TpmSlot, archive_id: bytes, asks: PinObject | None) -> None:
    """Do what `unwrap` does as far as it goes without a PIN: the TPM takes all that belongs to the slot as its own."""
    parent = _parent_of(chip, slot, archive_id)
    if asks is not None:
        try:
            require_pin_object_here(chip, parent, *asks.areas())
        except PinUnusable as error:
            if asks is slot.pin:
                raise refused("the restore PIN that it asks for is not one that the TPM made") from error
            raise
    try:
        load(chip, parent, bytes.fromhex(slot.private), bytes.fromhex(slot.public))
    except TSS2_Exception as error:
        if faults.blames_input(error.rc):
            raise refused("its bytes are not those that the TPM made") from error
        raise


def _parent_of(chip: Chip, slot: TpmSlot, archive_id: bytes) -> Parent:
    try:
        parent = find_parent(chip, bytes.fromhex(slot.srk_name), bytes.fromhex(slot.srk_public))
    except BadPublicArea as error:
        raise refused(f"its storage key cannot be used: {error}") from error
    except TSS2_Exception as error:
        # The owner password is missing, so the key cannot be looked for; but another chip is another chip.
        if faults.tpm_code(error.rc) == faults.BAD_AUTH and _same_chip(chip, slot, archive_id) is False:
            raise _wrong_tpm(slot, None) from error
        raise
    if parent is not None:
        return parent
    here = fingerprint(choose_parent(chip).name)
    if _same_chip(chip, slot, archive_id):
        raise TpmCleared(
            f"this archive was made on this very TPM chip as {slot.fingerprint}, but the TPM has been cleared since "
            f"and is {here} now: the key that opens the archive no longer exists",
            hint="Clearing the TPM (in the firmware's settings, by tpm2_clear, by a firmware update or a CPU swap) "
            "cannot be undone. Use an archive made since then, or a recovery key if the archive has one.",
        )
    raise _wrong_tpm(slot, here)


def _same_chip(chip: Chip, slot: TpmSlot, archive_id: bytes) -> bool | None:
    """Tell whether the slot was made on this chip; None when the slot or the chip does not say."""
    names = endorsement_names(chip)
    if slot.ek_salted is None or not names:
        return None
    return any(hmac.compare_digest(salted(name, archive_id), slot.ek_salted) for name in names)


def _wrong_tpm(slot: TpmSlot, here: str | None) -> SealError:
    machine = f"this machine has {here}" if here else "this machine has another TPM"
    return WrongTpm(
        f"this archive was made on {slot.fingerprint}, {machine}",
        hint="Restore on the machine whose TPM made the archive, or use a recovery key if the archive has one. On a "
        "virtual machine check that it was started with its own TPM state.",
    )


def _changed(chip: Chip, pin: TpmPin) -> TpmChanged:
    here = fingerprint(choose_parent(chip).name)
    same = pin.ek_name in endorsement_names(chip)
    what = "the TPM has been cleared since it was pinned" if same else "this is not the TPM that was pinned"
    return TpmChanged(
        f"{what}: expected {pin.fingerprint}, found {here}",
        hint="If the board was replaced or the TPM cleared on purpose: `deviceon-backup provision --new-tpm`, then "
        "`deviceon-backup key rewrap` with the recovery key, for archives made before. Otherwise find out who changed "
        "the machine.",
    )
