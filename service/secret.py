"""Reading secrets where they are kept: a file or an environment variable that the configuration names.

No settings object ever holds a secret, so none can reach a repr, a JSON dump, a traceback or `config show`.
"""

from __future__ import annotations

import os
from pathlib import Path

from service.errors import ConfigError

MAX_SECRET_BYTES = 64 * 1024


def read_secret(what: str, *, file: Path | None = None, env: str | None = None) -> str | None:
    """Return the secret from `file`, else from the environment variable `env`; None when neither is given.

    One line end at the end of a file is not part of the secret, since editors and `echo` add it.
    Raises ConfigError when the place that was named has no secret: falling back to none would hide a mistake.
    """
    if file is not None:
        return _from_file(what, file)
    if env is not None:
        value = os.environ.get(env)
        if not value:
            raise ConfigError(
                f"the environment variable {env}, which should hold the {what}, is not set",
                hint=f"Set {env} for this service, or name a file with the {what} instead.",
            )
        return value
    return None


def _from_file(what: str, file: Path) -> str:
    try:
        with file.open("rb") as handle:
            data = handle.read(MAX_SECRET_BYTES + 1)
    except OSError as exc:
        raise ConfigError(
            f"cannot read the {what} from {file}: {exc.strerror}",
            hint=f"Create {file} with the {what} in it, readable by the user that runs this service (mode 0600).",
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
    return text
