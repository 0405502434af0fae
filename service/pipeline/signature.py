"""The signature in an archive's manifest: which machine's TPM has made it, for those who open it without that TPM.

What is signed is SHA-256(header.json) and the canonical manifest without its `signature`; the manifest has the length
and SHA-256 of every stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Final

from service.archive.parts import Manifest, ManifestSignature
from service.archive.strict_json import canonical_json, strict_loads
from service.sealing.signature import signer_fingerprint, verify

PURPOSE: Final = "archive"

Sign = Callable[[str, bytes], Awaitable[tuple[bytes, bytes] | None]]
"""Gives public key and signature (both DER) for a purpose and a message; None when there is nobody to sign."""


async def signed(manifest: Manifest, header: bytes, sign: Sign) -> Manifest:
    """Return the manifest with its signature, when somebody signs. `header` is header.json as it is written."""
    made = await sign(PURPOSE, _message(manifest.to_bytes(), header))
    if made is None:
        return manifest
    public_key, value = made
    signature = ManifestSignature(public_key=public_key.hex(), value=value.hex())
    return manifest.model_copy(update={"signature": signature})


def signer_of(content: bytes, manifest: Manifest, header: bytes) -> str | None:
    """Return the fingerprint of who has signed a manifest (`content` as it was read); None when nobody has.

    Whether that signer is one to be trusted is another question. Raises NotAuthentic.
    """
    if manifest.signature is None:
        return None
    value = strict_loads(content)
    del value["signature"]
    public_key = bytes.fromhex(manifest.signature.public_key)
    verify(public_key, PURPOSE, _message(canonical_json(value), header), bytes.fromhex(manifest.signature.value))
    return signer_fingerprint(public_key)


def _message(manifest: bytes, header: bytes) -> bytes:
    return hashlib.sha256(header).digest() + manifest
