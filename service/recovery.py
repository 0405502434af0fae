"""Recovery keys as text: whom archives are sealed for beside the TPM, and what a person gives to open them with.

A recipient (`age1...`) is public. An identity (`AGE-SECRET-KEY-1...`, `AGE-PLUGIN-...-1...`) is its private half; it
may be kept as an age file under a passphrase. A recovery key is given for one operation: it is in no setting, in no
file of this service, in no repr, and every piece of it is redacted from whatever leaves the process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from service.errors import SealError
from service.secret import MAX_SECRET_BYTES, remember

ARMOR: Final = "-----BEGIN AGE ENCRYPTED FILE-----"

_CHARSET: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_RECIPIENT = re.compile(r"(age(?:1[a-z0-9+._-]+)?)1([02-9ac-hj-np-z]{6,4000})")
_IDENTITY = re.compile(r"AGE-(?:SECRET-KEY|PLUGIN-[A-Z0-9+._-]+)-1[02-9AC-HJ-NP-Z]{6,10000}")


class BadRecoveryKey(SealError):
    """What was given as a recovery key is none."""

    code = "SEAL_RECOVERY_KEY"


@dataclass(frozen=True, slots=True, repr=False)
class RecoveryKey:
    """What a person gives to open archives without the TPM that sealed them."""

    identities: tuple[str, ...] = ()
    """age identities, one text each."""
    passphrase: str | None = None
    """Opens `protected`, and the identity that an archive's key slot holds under a passphrase."""
    protected: str | None = None
    """An armored age file that holds identities, encrypted with the passphrase."""

    def __repr__(self) -> str:
        return "RecoveryKey(***)"

    def as_params(self) -> dict[str, str]:
        """Return what was given as the socket's methods take it (`recovery_key` reads it again)."""
        text = self.protected or "\n".join(self.identities)
        given = {"identity": text, "passphrase": self.passphrase}
        return {name: value for name, value in given.items() if value}


def recovery_key(text: str | None = None, *, passphrase: str | None = None) -> RecoveryKey:
    """Return the recovery key that the content of an identity file, a passphrase, or both are. Raises BadRecoveryKey.

    Everything secret in it is remembered for redaction.
    """
    if passphrase is not None:
        passphrase = remember(passphrase.strip("\r\n"))
        if not passphrase:
            raise BadRecoveryKey("the recovery passphrase is empty", hint="Give the passphrase of the recovery kit.")
    if text is None and passphrase is None:
        raise BadRecoveryKey("a recovery key was named, and none was given", hint="Give an identity or a passphrase.")
    if text is None:
        return RecoveryKey(passphrase=passphrase)
    if len(text) > MAX_SECRET_BYTES:
        raise BadRecoveryKey(
            "this is too long to be a recovery key", hint="Give the identity file of the recovery kit."
        )
    if text.lstrip().startswith(ARMOR):
        if passphrase is None:
            raise BadRecoveryKey(
                "this recovery key is protected by a passphrase",
                hint="Give the passphrase too (--recovery-passphrase-file).",
            )
        return RecoveryKey(passphrase=passphrase, protected=text.strip())
    return RecoveryKey(identities=parse_identities(text), passphrase=passphrase)


def parse_identities(text: str) -> tuple[str, ...]:
    """Return the identities of an identity file: one a line, comments begin with #. Raises BadRecoveryKey."""
    lines = [line.strip() for line in text.splitlines()]
    found = tuple(line for line in lines if line and not line.startswith("#"))
    for line in found:
        remember(line)
    if not found or not all(_IDENTITY.fullmatch(line) for line in found):
        told = (
            "it holds an age recipient, the public half" if any(map(is_recipient, found)) else "it is no age identity"
        )
        raise BadRecoveryKey(
            f"what was given as the recovery key cannot be used: {told}",
            hint="Give the file with the line AGE-SECRET-KEY-1... (or AGE-PLUGIN-...), as age-keygen writes it.",
        )
    return found


def is_recipient(text: str) -> bool:
    """Tell whether a text is an age recipient (X25519, tag or plugin), its checksum included."""
    match = _RECIPIENT.fullmatch(text)
    if match is None:
        return False
    prefix, data = match.groups()
    if prefix == "age" and len(data) != 58:
        return False
    values = [ord(char) >> 5 for char in prefix] + [0] + [ord(char) & 31 for char in prefix]
    return _polymod(values + [_CHARSET.index(char) for char in data]) == 1


def _polymod(values: list[int]) -> int:
    """The checksum of Bech32 (BIP 173), which age writes its keys with."""
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_GENERATOR):
            check ^= generator if top >> bit & 1 else 0
    return check
