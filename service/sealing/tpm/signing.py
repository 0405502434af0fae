"""The key that this machine signs with: made in its TPM, below the pinned storage key, and never anywhere else.

Its two areas are kept in a file. They are useless on every other TPM, and the private one is encrypted; who reads the
file learns the public key, and who has root here can have anything signed. When the file is lost the next signature
makes a new key: signatures of the old one can still be checked, and no archive depends on it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.errors import NotAuthentic, SealError
from service.sealing.signature import public_key_of, signed_digest, signer_fingerprint, verify
from service.sealing.tpm.gate import TpmGate
from service.sealing.tpm.pin import TpmPin
from service.sealing.tpm.public_area import signing_point
from service.state_directory import make_directory, read_file, replace_file, sync_directory

if TYPE_CHECKING:
    from service.sealing.tpm.chip import Chip

KEY_FILE = "tpm-signing-key.json"
LOST = (
    f"Bring {KEY_FILE} in state_dir back from a copy, or delete it: a new key is made then, with a fingerprint of its "
    "own. No archive needs the old one to be opened."
)
_LARGEST = 16 * 1024  # bytes; a key has about one thousand
_Hex = Annotated[str, Field(pattern=r"^(?:[0-9a-f]{2})+$", max_length=4096)]


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = 1
    fingerprint: str
    srk_name: _Hex
    private: _Hex
    public: _Hex


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key as it is kept: below which storage key it was made, and its areas (TPM2B_PRIVATE, TPM2B_PUBLIC)."""

    srk_name: bytes
    private: bytes
    public: bytes

    @property
    def public_key(self) -> bytes:
        """Return the public key as a SubjectPublicKeyInfo in DER."""
        return public_key_of(*signing_point(self.public))

    @property
    def fingerprint(self) -> str:
        """Return what people compare, `KEY 7Q4F-...`."""
        return signer_fingerprint(self.public_key)


class TpmSigner:
    """Signs with a key of the pinned TPM. `public_key` is its SubjectPublicKeyInfo in DER."""

    def __init__(self, gate: TpmGate, pin: TpmPin, key: SigningKey) -> None:
        self._gate = gate
        self._pin = pin
        self._key = key
        self.public_key: bytes = key.public_key

    @property
    def fingerprint(self) -> str:
        """Return what people compare, `KEY 7Q4F-...`."""
        return signer_fingerprint(self.public_key)

    async def sign(self, purpose: str, message: bytes) -> bytes:
        """Return the signature (ECDSA P-256, SHA-256, DER) of a message for a purpose (service.sealing.signature).

        It was verified before it is returned. Raises TpmChanged, TpmUnavailable, SealError.
        """
        digest = signed_digest(purpose, message)

        def work(chip: Chip) -> bytes:
            from service.sealing.tpm import signed  # noqa: PLC0415 - loads libtss2

            return signed.sign(chip, self._pin, self._key.private, self._key.public, digest)

        signature = await self._gate.run(work)
        try:
            verify(self.public_key, purpose, message, signature)
        except NotAuthentic as error:
            raise SealError(
                "the TPM signed with another key than it was given, or wrongly",
                hint="The TPM or the bus to it is faulty, or someone alters what it says. Have the hardware examined.",
            ) from error
        return signature


async def open_signer(gate: TpmGate, pin: TpmPin, path: Path) -> TpmSigner:
    """Return the signer whose key is in the file `path`, making key and file when there is none.

    A key below another storage key than the pinned one is of a TPM that was replaced on purpose (the pin says so): its
    file is put aside, named after the key's fingerprint, and a new key is made. Raises TpmChanged when the pinned TPM
    is not there, SealError when the file cannot be used, TpmUnavailable.
    """
    key = load_signing_key(path)
    if key is not None and key.srk_name != pin.srk_name:
        _put_aside(path, key)
        key = None
    if key is None:
        key = _save_new(path, await _make(gate, pin))
    return TpmSigner(gate, pin, key)


def load_signing_key(path: Path) -> SigningKey | None:
    """Return the key, or None when there is none yet. Raises SealError when the file cannot be used."""
    data = read_file(path, "the signing key", most=_LARGEST, hint="Correct its owner and mode.")
    if data is None:
        return None
    try:
        stored = _Stored.model_validate_json(data)
        key = SigningKey(*(bytes.fromhex(text) for text in (stored.srk_name, stored.private, stored.public)))
        sound = key.fingerprint == stored.fingerprint and int.from_bytes(key.private[:2], "big") == len(key.private) - 2
    except ValueError as error:  # ValidationError is one
        raise _damaged(path) from error
    if not sound:
        raise _damaged(path)
    return key


def _damaged(path: Path) -> SealError:
    return SealError(f"the signing key in {path} is damaged", hint=LOST)


async def _make(gate: TpmGate, pin: TpmPin) -> SigningKey:
    def work(chip: Chip) -> SigningKey:
        from service.sealing.tpm import signed  # noqa: PLC0415 - loads libtss2

        return SigningKey(pin.srk_name, *signed.make_key(chip, pin))

    return await gate.run(work)


def _save_new(path: Path, key: SigningKey) -> SigningKey:
    """Keep a new key; returns the one that counts, which is another process's when that was quicker."""
    stored = _Stored(
        fingerprint=key.fingerprint, srk_name=key.srk_name.hex(), private=key.private.hex(), public=key.public.hex()
    )
    own = path.with_name(f"{path.name}.{os.getpid()}")

    def publish() -> None:
        make_directory(path.parent)
        replace_file(own, (json.dumps(stored.model_dump(), indent=1) + "\n").encode())
        try:
            with contextlib.suppress(FileExistsError):
                os.link(own, path)
        finally:
            own.unlink()
            sync_directory(path.parent)

    _changing(path, publish)
    return load_signing_key(path) or key


def _put_aside(path: Path, key: SigningKey) -> None:
    former = path.with_name(f"{path.stem}-{key.fingerprint.removeprefix('KEY ')}{path.suffix}")
    _changing(path, lambda: path.replace(former))


def _changing(path: Path, change: Callable[[], object]) -> None:
    try:
        change()
    except OSError as error:
        raise SealError(
            f"the signing key cannot be written to {path}: {error.strerror}", hint="Make state_dir writable."
        ) from error
