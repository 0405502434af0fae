"""Key slots for recovery keys: the data key in a whole age file (age-encryption.org/v1), which `age -d` opens too.

A slot is made for one public recipient, so a backup needs no secret. A recovery passphrase works through an identity:
the slot then also holds that identity, encrypted with the passphrase (scrypt), so the archive still needs nothing but
itself.
Whoever knows a recipient can make such a slot: opening one does not prove where an archive comes from.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import pyrage  # type: ignore[import-untyped]
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from service.blocking import run_in_thread
from service.errors import DamagedSlot, SealError
from service.recovery import ARMOR, BadRecoveryKey, RecoveryKey, is_recipient, parse_identities
from service.sealing import age_apart
from service.sealing.slots import KeySlot
from service.secret import remember

SLOT_TYPE: Final = "age"
DATA_KEY_BYTES: Final = 32
MOST_WORK: Final = 20
"""The largest scrypt work factor (log2 N) that is tried: 1 GiB of memory. Bounds what a hostile slot can cost."""
MOST_TRIES: Final = 8
"""As many files are tried with one passphrase for one archive; each costs seconds, and anybody can write slots."""

_LITTLE_WORK: Final = 14
"""Up to this work factor (16 MiB, some 50 ms) a passphrase is tried in this process."""
_PLUGIN_SECONDS, _PASSPHRASE_SECONDS = 120.0, 300.0

_one_passphrase = threading.Lock()  # each takes up to 1 GiB of memory
_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # 5 bits a character; no i, l, o, u to be misread
_GROUPS, _GROUP = 5, 4
_NO_MATCH, _WRONG_PASSPHRASE = "No matching keys", "Decryption failed"
_DAMAGE: Final = (
    "Header ",
    "Unknown age format",
    "decryption error",
    "invalid armor",
    "line contains CR",
    "DecodeError",
)
"""What the library says of a file that it cannot read, whatever the key; its errors have no classes of their own."""
_HINT: Final = "The archive was altered or damaged after it was made. Use another copy of it, or another archive."


class WrongRecoveryKey(SealError):
    """The recovery key is not one that the slot was made for."""

    code = "SEAL_RECOVERY_KEY_WRONG"


class PluginFailed(SealError):
    """The age plugin of a hardware key is missing, or did not do its part."""

    code = "SEAL_PLUGIN"


def _armored(value: str) -> str:
    if not value.startswith(ARMOR):
        raise ValueError("it is no armored age file")
    return value


_File = Annotated[str, Field(max_length=16 * 1024), AfterValidator(_armored)]


class AgeSlot(BaseModel):
    """A data key in an age file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    type: Literal["age"] = "age"
    file: _File
    """Armored; holds the 32 bytes of the data key."""
    recipient: Annotated[str, Field(max_length=4000)] | None = None
    """Whom `file` is encrypted to, for people; a passphrase has none."""
    identity: _File | None = None
    """Armored; holds the identity that opens `file`, encrypted with the recovery passphrase."""


class AgeRecipient:
    """Seals for one recovery key (service.sealing.slots.Recipient)."""

    def __init__(self, recipient: str, *, protected: str | None = None) -> None:
        """`protected` is the recipient's identity under the recovery passphrase, when it is kept so."""
        self.recipient = recipient
        self._protected = protected

    async def wrap(self, data_key: bytes, archive_id: bytes) -> KeySlot:
        """Encrypt a data key of 32 bytes. That it opens again cannot be tried without the private half: what the file
        is made of is looked at, and the recovery key was proven when it was chosen. Raises SealError.
        """
        if len(data_key) != DATA_KEY_BYTES:
            raise ValueError("a data key has 32 bytes")
        file = await run_in_thread(encrypt, data_key, self.recipient)
        slot = AgeSlot(file=file, recipient=self.recipient, identity=self._protected)
        return slot.model_dump(exclude_none=True)


class AgeIdentity:
    """Opens age slots with what a person has given (service.sealing.slots.Identity)."""

    proves_origin = False

    def __init__(self, key: RecoveryKey) -> None:
        self._key = key
        self._identities = [_checked(text) for text in key.identities]
        self._unlocked: dict[bytes, list[str]] = {}
        self._tries = 0

    def __repr__(self) -> str:
        return "the recovery key"

    def accepts(self, slot: KeySlot) -> bool:
        """Tell whether this is an age slot."""
        return slot.get("type") == SLOT_TYPE

    async def unwrap(self, slot: KeySlot, archive_id: bytes) -> bytes:
        """Return the data key. Raises WrongRecoveryKey, DamagedSlot, PluginFailed."""
        return await run_in_thread(self._open, parse_slot(slot))

    def opened(self, file: str) -> bytes:
        """Return what any armored age file for this key holds. Blocks; raises as `unwrap`."""
        return decrypt(file, self._candidates(AgeSlot(file=file)))

    def _open(self, slot: AgeSlot) -> bytes:
        if any(kind == "scrypt" for kind, *_ in stanzas(slot.file)):
            data_key = self._by_passphrase(slot.file)
        else:
            data_key = decrypt(slot.file, self._candidates(slot), whom=slot.recipient)
        if len(data_key) != DATA_KEY_BYTES:
            raise DamagedSlot("a recovery key slot of the archive holds no data key", hint=_HINT)
        return data_key

    def _candidates(self, slot: AgeSlot) -> list[str]:
        found = list(self._identities)
        protected = self._key.protected or (slot.identity if not found else None)
        if protected is not None:
            found += self._unlock(protected)
        if not found:
            raise WrongRecoveryKey(
                "a passphrase alone does not open this archive: its recovery key is kept in a file",
                hint=f"Give the identity of {slot.recipient or 'the recovery kit'} with --recovery-key.",
            )
        return found

    def _unlock(self, protected: str) -> list[str]:
        """Return the identities in an age file under the passphrase; asked once for each file, for it takes seconds."""
        digest = hashlib.sha256(protected.encode()).digest()
        if digest not in self._unlocked:
            try:
                text = self._by_passphrase(protected).decode()
            except UnicodeDecodeError:
                raise DamagedSlot("the protected recovery key holds no identity", hint=_HINT) from None
            self._unlocked[digest] = [_checked(each) for each in parse_identities(text)]
        return self._unlocked[digest]

    def _by_passphrase(self, file: str) -> bytes:
        work = check_work(file)
        passphrase = self._key.passphrase
        if passphrase is None:
            raise WrongRecoveryKey(
                "this archive's recovery key is a passphrase", hint="Give it with --recovery-passphrase-file."
            )
        self._tries += 1
        if self._tries > MOST_TRIES:
            raise WrongRecoveryKey(
                "there are more slots for passphrases than are tried",
                hint="Somebody has added them: look at `key list`.",
            )
        for text in dict.fromkeys((normal(passphrase), passphrase)):
            try:
                with _one_passphrase:
                    if work <= _LITTLE_WORK:
                        return bytes(pyrage.passphrase.decrypt(file.encode(), text))
                    return _apart("passphrase", file.encode(), _PASSPHRASE_SECONDS, passphrase=text)
            except _Failed as error:
                raise WrongRecoveryKey(
                    f"the recovery passphrase could not be tried: {error}",
                    hint="It takes 1 GiB of memory. Make room, and try again.",
                ) from error
            except (pyrage.DecryptError, _Refused) as error:
                if "xcessive" in str(error):  # it would take this machine minutes
                    raise WrongRecoveryKey(
                        "this machine is too slow to try the recovery passphrase",
                        hint="Open the slot on a faster machine with `age -d` (docs/ARCHIVE_FORMAT.md), and restore"
                        " with the identity (--recovery-key).",
                    ) from error
                if str(error) != _WRONG_PASSPHRASE:
                    raise _damaged(error) from error
        raise WrongRecoveryKey(
            "this recovery passphrase is not the one that the archive was sealed for",
            hint="Type it as the recovery kit has it.",
        )


def parse_slot(slot: KeySlot) -> AgeSlot:
    """Check an age slot's shape. Raises DamagedSlot."""
    try:
        return AgeSlot.model_validate(dict(slot))
    except ValidationError as error:
        first = error.errors()[0]
        raise DamagedSlot(
            f"a recovery key slot of the archive is damaged: {first['loc'][0]} {first['msg']}", hint=_HINT
        ) from error


def encrypt(data: bytes, recipient: str) -> str:
    """Return an armored age file of `data` for one recipient. Raises SealError."""
    try:
        whom = _recipient(recipient)
    except (pyrage.RecipientError, ValueError) as error:
        raise SealError(
            f"archives cannot be sealed for {recipient}: {error}",
            hint="Correct the recipient: a line that begins with age1, as age-keygen or the plugin prints it.",
        ) from error
    if isinstance(whom, str):
        try:
            file = _apart("encrypt", data, _PLUGIN_SECONDS, recipient=whom).decode()
        except (_Refused, _Failed) as error:
            raise _no_plugin(recipient, error) from error
    else:
        file = bytes(pyrage.encrypt(data, [whom], armored=True)).decode()
    kinds = [kind for kind, *_ in stanzas(file) if not kind.endswith("-grease")]
    native = recipient.rpartition("1")[0] == "age"
    if len(kinds) != 1 or (native and kinds != ["X25519"]):
        raise SealError(f"the file for {recipient} is not made as it must be", hint="Report this: it is a fault.")
    return file


def decrypt(file: str, identities: Sequence[str], *, whom: str | None = None) -> bytes:
    """Return what is in an armored age file, by identities that `_checked` has passed.

    Raises WrongRecoveryKey, DamagedSlot, PluginFailed.
    """
    plugin = any(text.startswith("AGE-PLUGIN-") for text in identities)
    try:
        if plugin:
            return _apart("decrypt", file.encode(), _PLUGIN_SECONDS, identities=list(identities))
        return bytes(pyrage.decrypt(file.encode(), [pyrage.x25519.Identity.from_str(text) for text in identities]))
    except (pyrage.DecryptError, _Refused, _Failed) as error:
        if plugin and not str(error).startswith((*_DAMAGE, _NO_MATCH)):  # its own words, or those of its end
            raise PluginFailed(
                f"the plugin of the hardware key failed: {error}", hint="Plug the key in, and install its plugin here."
            ) from error
        if not str(error).startswith(_NO_MATCH):
            raise _damaged(error) from error
        raise WrongRecoveryKey(
            f"this recovery key is not the one that the archive was sealed for{f' ({whom})' if whom else ''}",
            hint="Give the recovery key of that recipient; the recovery kit names it.",
        ) from error


def generate() -> tuple[str, str]:
    """Return a new identity and its recipient."""
    identity = pyrage.x25519.Identity.generate()
    return remember(str(identity)), str(identity.to_public())


def generate_passphrase() -> str:
    """Return a new passphrase of 100 random bits, in groups that can be read out."""
    groups = ["".join(secrets.choice(_ALPHABET) for _ in range(_GROUP)) for _ in range(_GROUPS)]
    return remember("-".join(groups))


def normal(passphrase: str) -> str:
    """Return a generated passphrase as it was generated, however it was typed; any other text as it is."""
    bare = re.sub(r"[\s-]+", "", passphrase).lower()
    if len(bare) != _GROUPS * _GROUP or not set(bare) <= set(_ALPHABET):
        return passphrase
    return "-".join(bare[at : at + _GROUP] for at in range(0, len(bare), _GROUP))


def protect(identity: str, passphrase: str) -> str:
    """Return an armored age file with an identity, encrypted with a passphrase. Takes a second or two."""
    try:
        return _apart("protect", f"{identity}\n".encode(), _PASSPHRASE_SECONDS, passphrase=passphrase).decode()
    except (_Refused, _Failed) as error:
        raise SealError(
            f"the recovery key could not be protected by its passphrase: {error}",
            hint="It takes 1 GiB of memory. Make room, and try again.",
        ) from error


def stanzas(armored: str) -> list[list[str]]:
    """Return type and arguments of each recipient stanza in an armored age file's header. Raises DamagedSlot."""
    body = "".join(armored.removeprefix(ARMOR).partition("-----END")[0].split())
    try:
        raw = base64.b64decode(body, validate=True)
    except ValueError:
        raise DamagedSlot("a recovery key slot of the archive is damaged: no base64", hint=_HINT) from None
    found: list[list[str]] = []
    lines = raw.split(b"\n")
    if lines[0] != b"age-encryption.org/v1":
        raise DamagedSlot("a recovery key slot of the archive is no age file of version 1", hint=_HINT)
    for line in lines:
        if line.startswith(b"---"):
            return found
        if line.startswith(b"-> "):
            found.append(line[3:].decode("ascii", "replace").split(" "))
    raise DamagedSlot("a recovery key slot of the archive is cut off", hint=_HINT)


def check_work(armored: str) -> int:
    """Return the work factor of a passphrase's file. Raises DamagedSlot when it would take too much memory and time."""
    found = 0
    for kind, *arguments in stanzas(armored):
        factor = arguments[1] if kind == "scrypt" and len(arguments) == 2 else ""
        if not re.fullmatch("[1-9][0-9]?", factor) or int(factor) > MOST_WORK:
            raise DamagedSlot(
                f"a recovery key slot of the archive is no passphrase's, or wants a work factor above {MOST_WORK}",
                hint=_HINT,
            )
        found = max(found, int(factor))
    return found


def _recipient(text: str) -> Any:
    """Return a recipient of the library; the text itself when it needs a plugin."""
    if not is_recipient(text):
        raise ValueError("its checksum is wrong, so it was mistyped or cut off")
    prefix = text.rpartition("1")[0]
    if prefix == "age":
        return pyrage.x25519.Recipient.from_str(text)
    if prefix in {"age1tag", "age1tagpq"}:  # made for hardware, but needing no plugin to encrypt to
        return getattr(pyrage, prefix.removeprefix("age1")).Recipient.from_str(text)
    return text


def _checked(text: str) -> str:
    """Return an identity that can be used: its checksum is right, its plugin is there."""
    try:
        if text.startswith("AGE-SECRET-KEY-1"):
            pyrage.x25519.Identity.from_str(text)
            return text
        identity = pyrage.plugin.Identity.from_str(text)
    except pyrage.IdentityError as error:
        raise BadRecoveryKey(
            f"what was given as the recovery key cannot be used: {error}", hint="It may be cut off or mistyped."
        ) from None
    try:
        age_apart.plugin_identity(text)
    except Exception as error:
        raise PluginFailed(
            f"the plugin {identity.plugin()} cannot be started: {error}",
            hint=f"Install age-plugin-{identity.plugin()} on this machine.",
        ) from error
    return text


class _Refused(Exception):
    """The other process says that the library refused it, in the library's words."""


class _Failed(Exception):
    """The other process did not come to an answer."""


def _apart(what: str, data: bytes, seconds: float, **given: Any) -> bytes:
    """Have a step done by a process of its own (service.sealing.age_apart). Raises _Refused, _Failed."""
    asked = {"what": what, "data": base64.b64encode(data).decode(), **given}
    with subprocess.Popen(
        [sys.executable, "-I", age_apart.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # not a pipe, which a plugin that hangs would keep open
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(json.dumps(asked).encode(), timeout=seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # the plugin, too
            if isinstance(error, subprocess.TimeoutExpired):
                raise _Failed(f"no answer came in {seconds:.0f} s") from None
            raise
    try:
        answer = json.loads(said)
    except ValueError:
        raise _Failed(f"its process ended with {process.returncode}") from None
    if "done" in answer:
        return base64.b64decode(answer["done"])
    raise _Refused(answer["refused"]) if "refused" in answer else _Failed(answer.get("failed", ""))


def _damaged(error: Exception) -> DamagedSlot:
    return DamagedSlot(f"a recovery key slot of the archive is damaged: {error}", hint=_HINT)


def _no_plugin(recipient: str, error: Exception) -> PluginFailed:
    name = recipient.rpartition("1")[0].removeprefix("age1")
    return PluginFailed(
        f"the key cannot be sealed for {recipient}: {error}",
        hint=f"Install age-plugin-{name} where the service finds programs (its PATH).",
    )
