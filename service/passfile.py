r"""libpq's password file (~/.pgpass): `host:port:database:user:password` a line, `*` for any, `\\` before `:` and `\\`.

https://www.postgresql.org/docs/current/libpq-pgpass.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from service.errors import ConfigError
from service.secret import MAX_SECRET_BYTES, remember

DEFAULT_SOCKET_DIRECTORY = "/var/run/postgresql"

_FIELD = re.compile(r"((?:[^:\\]|\\.)*)(?::|$)")


def password_from(file: Path, *, host: str, port: int, user: str, database: str) -> str:
    """Return the password of the first line that fits. Raises ConfigError when none does, or others may read it."""
    # libpq knows the default socket directory as localhost, and another one by its path.
    wanted = ("localhost" if host == DEFAULT_SOCKET_DIRECTORY else host, str(port), database, user)
    for fields in _lines(file):
        if len(fields) >= 5 and all(said in ("*", actual) for said, actual in zip(fields[:4], wanted, strict=True)):
            return remember(fields[4])
    raise ConfigError(
        f"the password file {file} has no line for user {user} at {host}, port {port}, database {database}",
        hint="Add a line host:port:*:user:password, or use password_file.",
    )


def _lines(file: Path) -> Iterator[list[str]]:
    try:
        with file.open("rb") as handle:
            mode = file.stat().st_mode
            data = handle.read(MAX_SECRET_BYTES)
    except OSError as exc:
        raise ConfigError(
            f"cannot read the password file {file}: {exc.strerror}", hint="Correct its path, owner or mode."
        ) from exc
    if mode & 0o077:
        raise ConfigError(f"the password file {file} can be read by others", hint=f"chmod 0600 {file}")
    for line in data.decode(errors="surrogateescape").splitlines():
        if line and not line.startswith("#"):
            yield [re.sub(r"\\(.)", r"\1", field) for field in _FIELD.findall(line)]
