"""Suite 1: AES-256-GCM under keys of HKDF-SHA-256. The only cryptography that this project composes itself.

    PRK               = HKDF-Extract(salt = archive_id, ikm = data_key)
    commit            = HKDF-Expand(PRK, L || "/commit" || 00 || u16 suite)
    key[32]||base[12] = HKDF-Expand(PRK, L || "/stream" || 00 || u16 suite || u32 stream || SHA-256(header))
    key_footer        = HKDF-Expand(PRK, L || "/footer" || 00 || u16 suite || SHA-256(header))
    nonce(i, last)    = base XOR (00 * 7 || u32 i || u8 last)
    AAD(s, i, last)   = L || "/chunk" || 00 || archive_id || u32 s || u32 i || u8 last

Frozen with version 1 of the format; docs/ARCHIVE_FORMAT.md says what each part is for and has test vectors.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from service.errors import NotAuthentic

SUITE: Final = 1
KEY_BYTES: Final = 32
ARCHIVE_ID_BYTES: Final = 16
TAG_BYTES: Final = 16
"""A sealed chunk is this much longer than its body."""

_LABEL: Final = b"deviceon-backup/v1"
_SUITE: Final = SUITE.to_bytes(2, "big")


class StreamCipher:
    """Seals and opens the chunks of one stream. Safe in many threads; releases the GIL."""

    def __init__(self, key_and_base: bytes, *, aad_prefix: bytes) -> None:
        self._aead = AESGCM(key_and_base[:32])
        self._base = int.from_bytes(key_and_base[32:], "big")
        self._aad_prefix = aad_prefix

    def seal(self, index: int, body: bytes, *, into: bytearray | memoryview, last: bool) -> None:
        """Encrypt the body of chunk `index` into a buffer that is `TAG_BYTES` longer.

        Two different bodies must never be sealed under one index: the nonce is made from it.
        """
        nonce, aad = self._bind(index, last=last)
        self._aead.encrypt_into(nonce, body, aad, into)

    def open(self, index: int, sealed: bytes | bytearray | memoryview, *, last: bool) -> bytearray:
        """Decrypt chunk `index`. Raises NotAuthentic unless it is that chunk of that stream of that archive."""
        nonce, aad = self._bind(index, last=last)
        body = bytearray(max(len(sealed) - TAG_BYTES, 0))
        try:
            self._aead.decrypt_into(nonce, sealed, aad, body)
        except InvalidTag as exc:
            raise NotAuthentic(
                f"chunk {index} is not what was sealed there",
                hint="The archive was damaged or altered. Use another archive.",
            ) from exc
        return body

    def _bind(self, index: int, *, last: bool) -> tuple[bytes, bytes]:
        place = index.to_bytes(4, "big") + bytes([last])
        nonce = self._base ^ int.from_bytes(place, "big")
        return nonce.to_bytes(12, "big"), self._aad_prefix + place


class ArchiveKeys:
    """All keys of one archive, derived from its data key. Keep it short: it holds secrets; its repr shows none.

    `header` is the exact bytes of header.json; without it only `commit` can be had (which goes into the header).
    """

    def __init__(self, data_key: bytes, *, archive_id: bytes, header: bytes | None) -> None:
        if len(data_key) != KEY_BYTES or len(archive_id) != ARCHIVE_ID_BYTES:
            raise ValueError("a data key has 32 bytes and an archive id 16")
        self._prk = hmac.digest(archive_id, data_key, "sha256")  # HKDF-Extract, RFC 5869 section 2.2
        self._archive_id = archive_id
        self._header_hash = None if header is None else hashlib.sha256(header).digest()
        self.commit: bytes = self._expand(b"/commit", b"", 32)
        """Tells which data key an archive was made with, without revealing anything of it."""

    def stream(self, stream: int) -> StreamCipher:
        """Return the cipher of one stream."""
        number = stream.to_bytes(4, "big")
        prefix = _LABEL + b"/chunk\x00" + self._archive_id + number
        return StreamCipher(self._expand(b"/stream", number + self._bound_header(), 44), aad_prefix=prefix)

    def footer_mac(self, footer_without_mac: bytes) -> bytes:
        """Return the footer's MAC: HMAC-SHA-256 over the canonical JSON of the footer without `mac`."""
        return hmac.digest(self._expand(b"/footer", self._bound_header(), 32), footer_without_mac, "sha256")

    def _bound_header(self) -> bytes:
        if self._header_hash is None:
            raise ValueError("these keys were made without a header: only `commit` can be had")
        return self._header_hash

    def _expand(self, purpose: bytes, context: bytes, length: int) -> bytes:
        info = _LABEL + purpose + b"\x00" + _SUITE + context
        return HKDFExpand(algorithm=SHA256(), length=length, info=info).derive(self._prk)


def check_commit(keys: ArchiveKeys, commit: bytes) -> None:
    """Raise NotAuthentic unless `commit` (from the header) is that of `keys`. Takes the same time either way."""
    if not hmac.compare_digest(keys.commit, commit):
        raise NotAuthentic(
            "this key is not the one the archive was made with",
            hint="The key slots belong to another archive, or the header was altered.",
        )


def check_footer_mac(keys: ArchiveKeys, footer_without_mac: bytes, mac: bytes) -> None:
    """Raise NotAuthentic unless `mac` is the footer's. Takes the same time either way."""
    if not hmac.compare_digest(keys.footer_mac(footer_without_mac), mac):
        raise NotAuthentic(
            "the archive's footer is not what was sealed there",
            hint="The archive was damaged or altered. Use another archive.",
        )
