"""Reading secrets where they are kept: a file or an environment variable that the configuration names.

No settings object ever holds a secret, so none can reach a repr, a JSON dump, a traceback or `config show`. What a
library puts into an error or a log is out of our hands: every secret that was read is remembered, so that `redact`
can take it out of any text that leaves the process.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import unquote

from service.errors import ConfigError

MAX_SECRET_BYTES = 64 * 1024
MAX_REMEMBERED = 256
"""Secrets that are remembered; of more, those that were read last. A secret that changes is a new one."""
MIN_REDACTED = 4
"""Characters of the shortest secret that is redacted: a shorter one would take words and numbers apart."""
REDACTED = "***"

SECRET_WORD = re.compile(
    r"passw|passphrase|pwd|userpass|secret|token|credential|authorization|api_?key|account_key|private_key|pkey"
    r"|connection_string",
    re.I,
)
"""What the name of an option has in it whose value is a secret."""

_lock = threading.Lock()
_remembered: OrderedDict[str, re.Pattern[str]] = OrderedDict()


def is_place_of_secret(value: object) -> bool:
    """Tell whether the value of an option says where its secret is kept: {file: /path} or {env: NAME}."""
    return isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in ("file", "env")


def read_secret(what: str, *, file: Path | None = None, env: str | None = None, remembered: bool = True) -> str | None:
    """Return the secret from `file`, else from the environment variable `env`; None when neither is given.

    `remembered`: let `redact` know of it. Not for a PIN: so short a text stands in dates and sizes too.

    One line end at the end of a file is not part of the secret, since editors and `echo` add it.
    Raises ConfigError when the place that was named has no secret: falling back to none would hide a mistake.
    """
    if file is not None:
        return _from_file(what, file, remembered=remembered)
    if env is not None:
        value = os.environ.get(env)
        if not value:
            raise ConfigError(
                f"the environment variable {env}, which should hold the {what}, is not set",
                hint=f"Set {env} for this service, or name a file with the {what} instead.",
            )
        return remember(value) if remembered else value
    return None


def _from_file(what: str, file: Path, *, remembered: bool) -> str:
    try:
        with file.open("rb") as handle:
            data = handle.read(MAX_SECRET_BYTES + 1)
    except OSError as exc:
        raise ConfigError(
            f"cannot read the {what} from {file}: {exc.strerror}",
            hint=f"Correct the path if it is wrong. The file has to hold the {what} and nothing else, and be readable"
            " by the user that runs this (mode 0600).",
        ) from exc
    if len(data) > MAX_SECRET_BYTES:
        raise ConfigError(
            f"{file} is too long to be the {what}", hint="The file must hold the secret and nothing else."
        )
    try:
        text = data.decode()
    except UnicodeDecodeError:
        # Not chained: the exception holds the bytes.
        raise ConfigError(f"the {what} in {file} is not UTF-8 text", hint="Write it as plain text.") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise ConfigError(f"{file}, which should hold the {what}, is empty", hint=f"Write the {what} into it.")
    return remember(text) if remembered else text


def remember(secret: str) -> str:
    """Let `redact` know of a secret that was read elsewhere; of one with several lines, each is a secret. Return it."""
    with _lock:
        if secret not in _remembered:
            lines = secret.splitlines()
            pieces = [line.strip() for line in lines] if len(lines) > 1 else [secret]
            forms = [_any_form(piece) for piece in pieces if len(piece) >= MIN_REDACTED]
            if not forms:
                return secret
            _remembered[secret] = re.compile("|".join(sorted(forms, key=len, reverse=True)))
        _remembered.move_to_end(secret)
        if len(_remembered) > MAX_REMEMBERED:
            _remembered.popitem(last=False)
    return secret


def remember_password_in(url: str) -> None:
    """Let `redact` know of the password that a URL holds, if it does, as it is written and as it is meant."""
    authority = url.partition("://")[2].partition("/")[0]
    password = authority.rpartition("@")[0].partition(":")[2]
    for form in (password, unquote(password)):
        remember(form)


def redact(text: str) -> str:
    """Return `text` with every secret that was read replaced by `***`, also where it is quoted for a URL or in JSON."""
    with _lock:
        patterns = list(_remembered.values())
    spans = [match.span() for pattern in patterns for match in pattern.finditer(text)]
    return _without(text, spans) if spans else text


def _without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """Replace `spans`; those that overlap are one, so that no end of a secret stays behind another."""
    kept, position, covered = [], 0, 0
    for start, end in sorted(spans):
        if start >= covered:
            kept += [text[position:start], REDACTED]
        position = covered = max(covered, end)
    return "".join([*kept, text[position:]])


def _any_form(secret: str) -> str:
    """Return a regular expression for the secret with any of its characters quoted, for there are many ways to."""
    return "".join(char if char.isascii() and char.isalnum() else _any_quoting(char) for char in secret)


def _any_quoting(char: str) -> str:
    octets = char.encode("utf-8", "surrogatepass" if "\ud800" <= char < "\udc80" else "surrogateescape")
    forms = [
        rf"\\{{0,8}}{re.escape(char)}",  # itself, or behind backslashes: JSON, repr(), libpq's files
        "(?i:" + "".join(f"%{octet:02x}" for octet in octets) + ")",
        "".join(rf"\\{{1,8}}x{octet:02x}" for octet in octets),  # repr() of bytes
        re.escape(json.dumps(char)[1:-1]).replace(r"\\", r"\\{1,8}"),
    ]
    return f"(?:{'|'.join([*forms, re.escape('+')] if char == ' ' else forms)})"


def safe_environment(*more: str) -> dict[str, str]:
    """Return the environment for a child process: a few harmless variables and `more`, not those that hold secrets."""
    names = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", *more)
    return {"PATH": os.defpath} | {name: os.environ[name] for name in names if name in os.environ}
