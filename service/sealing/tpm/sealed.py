"""Sealing 32 bytes under a storage key and having them back. Runs in the gate's thread.

With the parent that is two objects and two sessions at most; every TPM has room for three of each.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
from collections.abc import Iterator
from typing import Any

from tpm2_pytss import (  # type: ignore[import-untyped]
    TPM2_ALG,
    TPM2B_AUTH,
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPM2B_SENSITIVE_DATA,
    TPMA_OBJECT,
    TPMA_SESSION,
    TPMS_SENSITIVE_CREATE,
    TPMT_PUBLIC,
    TSS2_Exception,
)

from service.errors import PinUnusable, PinWrong, SealError
from service.sealing.tpm import faults
from service.sealing.tpm.chip import Chip
from service.sealing.tpm.parents import Parent
from service.sealing.tpm.public_area import PIN_ATTRIBUTES, SEALED_ATTRIBUTES
from service.sealing.tpm.restore_pin import PinClaim

_RANDOM_BYTES = 32


def seal(chip: Chip, parent: Parent, data_key: bytes, *, policy: bytes) -> tuple[bytes, bytes]:
    """Return the private and public area of a new sealed object that was proven to give `data_key` back.

    With a `policy` nobody can show here that the policy opens it. So it also gets a random authorisation of 32 bytes,
    by which it is opened once and which is then forgotten; and it is shown that it does not open without one.
    """
    session = chip.encrypted_session(parent.handle)
    once = _nonzero_end(secrets.token_bytes(_RANDOM_BYTES)) if policy else b""
    areas = _create(chip, parent, session, data_key, once, SEALED_ATTRIBUTES, policy)
    with _loaded(chip, parent, session, *areas) as loaded:
        if policy:
            _require_closed(chip, loaded, session)
            chip.esapi.tr_set_auth(loaded, TPM2B_AUTH(once))
        opened = _unseal(chip, loaded, session)
    chip.release(session)
    if not hmac.compare_digest(opened, data_key):
        raise SealError(
            "the TPM sealed a data key and gave back another one", hint="The TPM is faulty: have the hardware examined."
        )
    return areas


def unseal(chip: Chip, parent: Parent, private: bytes, public: bytes) -> bytes:
    """Return what was sealed. Raises TSS2_Exception, with INTEGRITY when the areas are not what this key has sealed."""
    session = chip.encrypted_session(parent.handle)
    with _loaded(chip, parent, session, private, public) as loaded:
        return _unseal(chip, loaded, session)


def load(chip: Chip, parent: Parent, private: bytes, public: bytes) -> None:
    """Have the TPM take a sealed object as its own, and let it go. Raises TSS2_Exception as `unseal` does."""
    with _loaded(chip, parent, chip.encrypted_session(parent.handle), private, public):
        pass


def unseal_with_pin(chip: Chip, parent: Parent, private: bytes, public: bytes, claim: PinClaim) -> bytes:
    """Return what was sealed for a PIN. Raises PinWrong, TpmLockout, TSS2_Exception."""
    session = chip.encrypted_session(parent.handle)
    policy = chip.policy_session(parent.handle)
    with _loaded_pin(chip, parent, session, claim) as pin, _counted_try():
        chip.esapi.policy_secret(pin, policy, expiration=0, session1=session)
    with _loaded(chip, parent, session, private, public) as loaded:
        # What the policy session would encrypt with holds the object's own authorisation, which nobody knows any more.
        chip.esapi.trsess_set_attributes(policy, TPMA_SESSION.CONTINUESESSION)
        chip.esapi.trsess_set_attributes(session, TPMA_SESSION.ENCRYPT | TPMA_SESSION.CONTINUESESSION)
        return bytes(chip.esapi.unseal(loaded, session1=policy, session2=session))


def make_pin_object(chip: Chip, parent: Parent, auth: bytes) -> tuple[bytes, bytes]:
    """Return the private and public area of a new PIN object; what it holds is of no use to anybody."""
    session = chip.encrypted_session(parent.handle)
    areas = _create(chip, parent, session, secrets.token_bytes(_RANDOM_BYTES), auth, PIN_ATTRIBUTES, b"")
    chip.release(session)
    return areas


def require_pin_object_here(chip: Chip, parent: Parent, private: bytes, public: bytes) -> None:
    """Raise PinUnusable unless the TPM takes a PIN object as its own. In lockout it cannot be asked, and is not."""
    session = chip.encrypted_session(parent.handle)
    try:
        with _loaded(chip, parent, session, private, public):
            pass
    except TSS2_Exception as error:
        if faults.tpm_code(error.rc) == faults.LOCKOUT:
            return
        if faults.blames_input(error.rc):
            raise PinUnusable(
                "the TPM refuses the restore PIN's object: its file was altered or damaged",
                hint="Bring restore-pin.json in state_dir back from a copy, or delete it and set a PIN anew.",
            ) from error
        raise
    chip.release(session)


def change_auth(chip: Chip, parent: Parent, claim: PinClaim, new: bytes) -> bytes:
    """Return the private area of a PIN object with another PIN. Raises PinWrong, TpmLockout, TSS2_Exception."""
    session = chip.encrypted_session(parent.handle)
    with _loaded_pin(chip, parent, session, claim) as pin, _counted_try():
        private = chip.esapi.object_change_auth(pin, parent.handle, TPM2B_AUTH(new), session1=session)
    chip.release(session)
    return bytes(private.marshal())


def _create(
    chip: Chip, parent: Parent, session: Any, data: bytes, auth: bytes, attributes: int, policy: bytes
) -> tuple[bytes, bytes]:
    sensitive = TPM2B_SENSITIVE_CREATE(
        TPMS_SENSITIVE_CREATE(userAuth=TPM2B_AUTH(auth), data=TPM2B_SENSITIVE_DATA(data))
    )
    area = TPMT_PUBLIC.parse("keyedhash", nameAlg=TPM2_ALG.SHA256, objectAttributes=TPMA_OBJECT(attributes))
    area.authPolicy.buffer = policy
    private, public, *_ = chip.esapi.create(
        parent.handle, sensitive, in_public=TPM2B_PUBLIC(publicArea=area), session1=session
    )
    return bytes(private.marshal()), bytes(public.marshal())


@contextlib.contextmanager
def _loaded(chip: Chip, parent: Parent, session: Any, private: bytes, public: bytes) -> Iterator[Any]:
    """Load an object for a block. It is freed when the block is left well; otherwise when the operation ends."""
    private_area, _ = TPM2B_PRIVATE.unmarshal(private)
    public_area, _ = TPM2B_PUBLIC.unmarshal(public)
    loaded = chip.keep(chip.esapi.load(parent.handle, private_area, public_area, session1=session))
    yield loaded
    chip.release(loaded)


def _unseal(chip: Chip, loaded: Any, session: Any) -> bytes:
    # Unseal has no parameter that could be encrypted on the way in; asking for it would be refused.
    chip.esapi.trsess_set_attributes(session, TPMA_SESSION.ENCRYPT | TPMA_SESSION.CONTINUESESSION)
    return bytes(chip.esapi.unseal(loaded, session1=session))


def _require_closed(chip: Chip, loaded: Any, session: Any) -> None:
    try:
        _unseal(chip, loaded, session)
    except TSS2_Exception as error:
        if faults.tpm_code(error.rc) == faults.BAD_AUTH:
            return
        raise
    raise SealError(
        "the TPM opens without the PIN what was sealed for it", hint="The TPM is faulty: have the hardware examined."
    )


@contextlib.contextmanager
def _loaded_pin(chip: Chip, parent: Parent, session: Any, claim: PinClaim) -> Iterator[Any]:
    """Load a PIN object for a block that tries its PIN. Raises PinWrong, TpmLockout for what the TPM says of it."""
    try:
        with _loaded(chip, parent, session, claim.private, claim.public) as pin:
            chip.esapi.tr_set_auth(pin, TPM2B_AUTH(claim.auth))
            yield pin
    except TSS2_Exception as error:
        code = faults.tpm_code(error.rc)
        if code == faults.AUTH_FAIL:
            raise wrong_pin(chip.lockout()) from error
        if code == faults.LOCKOUT:  # which may not even load then what counts tries
            raise faults.lockout(chip.lockout()) from error
        raise


@contextlib.contextmanager
def _counted_try() -> Iterator[None]:
    """Never try a PIN twice: when the answer is lost, a second wrong one would count too."""
    try:
        yield
    except TSS2_Exception as error:
        if faults.is_connection(error.rc):
            raise faults.unanswered_try(str(error)) from error
        raise


def wrong_pin(state: faults.Lockout) -> PinWrong:
    """Return the error for a wrong PIN, with how many tries are left."""
    left = state.tries_left
    if left is None:
        told = ""
    elif left > 0:
        told = f"; {left} {'try is' if left == 1 else 'tries are'} left before the TPM locks"
    else:
        told = f"; the TPM is locked now, for {faults.duration(state.wait_seconds)}"
    return PinWrong(
        f"the restore PIN is wrong{told}",
        tries_left=left,
        hint="Look the PIN up before you try again: the TPM counts every wrong try. An archive opens with the PIN that "
        "was set when it was made, or with one it was changed to later on the same machine.",
    )


def _nonzero_end(value: bytes) -> bytes:
    return value[:-1] + bytes([value[-1] or 1])  # a TPM cuts zeros off the end
