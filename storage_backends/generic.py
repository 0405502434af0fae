"""Any other protocol that fsspec has a driver for (`sftp`, `gs`, `abfs`, `webdav`, `ftp`, `memory`, ...) as a target.

It keeps as much of the contract as the driver lets it; `promise` says what that is. How an object is published is
told in `generic_upload`. Drivers are not safe to use from several threads (an FTP connection does one thing at a
time), so each task has an instance of its own. fsspec knows neither deadlines nor ways to break a call off: one that
does not come back is left behind in its thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import fsspec

from storage_backends.base import (
    KEY_PATTERN,
    Announce,
    InvalidUrl,
    ObjectChanged,
    ObjectInfo,
    Promise,
    StorageBackend,
    StorageError,
    check_key,
)
from storage_backends.generic_directory import Directory, generic_sftp, is_sftp, publishes_by_rename
from storage_backends.generic_upload import Upload
from storage_backends.options import MOST_SECONDS
from storage_backends.pool import Pool
from storage_backends.temporary import is_temporary
from storage_backends.worker import fill, settled

REQUEST_BYTES = 4 << 20  # every request may mean opening the file anew
PIECE_BYTES = 1 << 20
TIMEOUT_SECONDS = 120.0
WRITE_TIMES = 10

_UNKNOWN = (
    "Supported are file:///directory, smb://host/share and what fsspec has a driver for (fsspec.available_protocols())."
)
_IN_THIS_PROCESS = (
    "Only among backups of one running service: whether a name is free is looked at just before it is given, so "
    "another machine that stores under the same name at the same moment can replace the archive, or be replaced."
)
_BY_RENAME = Promise(
    whole_or_not_at_all="Yes, if the server's rename is atomic: an archive is written under a hidden name first.",
    no_overwrite=_IN_THIS_PROCESS,
    durable="Unknown: fsspec has no way to ask for it. Every archive is read back after it was written.",
)
_BY_COMMIT = Promise(
    whole_or_not_at_all="Yes, as far as the driver shows an upload only when it is committed.",
    no_overwrite=_IN_THIS_PROCESS,
    durable="Unknown: fsspec has no way to ask for it. Every archive is read back after it was written.",
)


def open_generic(url: str, options: Mapping[str, Any]) -> GenericBackend:
    """Return the backend for a URL of fsspec's. Reaches for nothing yet. Raises InvalidUrl.

    `auto_mkdir` and `call_timeout` (seconds that one call of the driver may take) are this backend's; all other
    options are given to the driver, which may take no notice of one that it does not know.
    """
    protocol = url.partition("://")[0].lower()
    rest = url[len(protocol) :]
    try:
        if "::" in url:
            raise ValueError("chained")  # noqa: TRY301
        driver = fsspec.get_filesystem_class(protocol)
    except ImportError as exc:
        raise InvalidUrl(
            f"targets of the protocol {protocol!r} need a package that is not installed", hint=f"{exc}. {_UNKNOWN}"
        ) from exc
    except ValueError as exc:
        raise InvalidUrl(f"targets of the protocol {protocol!r} are not supported", hint=_UNKNOWN) from exc
    if _password_in(f"{protocol}{rest}"):
        raise InvalidUrl(
            f"the target's {protocol} URL must not contain a password", hint="Put it into storage_options."
        )
    own = {name: options[name] for name in ("auto_mkdir", "call_timeout") if name in options}
    if not isinstance(own.get("auto_mkdir", False), bool):
        raise InvalidUrl("storage_options: auto_mkdir must be true or false")
    timeout = own.get("call_timeout", TIMEOUT_SECONDS)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= MOST_SECONDS:
        raise InvalidUrl(f"storage_options: call_timeout must be seconds, more than 0 and {MOST_SECONDS} at most")
    given = {name: value for name, value in options.items() if name not in own}
    cautions: tuple[str, ...] = ()
    if is_sftp(f"{protocol}{rest}"):
        given, cautions = generic_sftp().checked(given)
    elif protocol == "ftp" and not given.get("tls"):
        cautions = ("FTP sends the password and all data unencrypted: others can read and change them.",)
    target = GenericBackend(
        driver, f"{protocol}{rest}", given, auto_mkdir=own.get("auto_mkdir", False), timeout=float(timeout)
    )
    target.cautions = cautions
    return target


def _password_in(url: str) -> bool:
    try:
        return urlsplit(url).password is not None
    except ValueError:
        return False


class GenericBackend(StorageBackend):
    """The objects are files of the directory (or prefix) that `url` names, reached by `driver` with `options`."""

    def __init__(
        self, driver: type[Any], url: str, options: Mapping[str, Any], *, auto_mkdir: bool, timeout: float
    ) -> None:
        self.url = url.partition("?")[0]
        self.promise = _BY_RENAME if publishes_by_rename(driver) else _BY_COMMIT
        if is_sftp(url):
            self.promise = generic_sftp().PROMISE
        self._timeout = timeout
        self._pool = Pool(partial(Directory, driver, url, dict(options), make=auto_mkdir), self.url, within=timeout)

    def __repr__(self) -> str:
        return f"GenericBackend({self.url!r})"

    async def put(
        self,
        key: str,
        data: AsyncIterable[bytes | bytearray],
        *,
        overwrite: bool = False,
        announce: Announce | None = None,
    ) -> ObjectInfo:
        """Store an object. With `overwrite`, a failure after it was published leaves the new one, whole."""
        check_key(key)
        long = WRITE_TIMES * self._timeout
        async with self._pool.line() as line:
            upload = Upload(line.connection, key, overwrite=overwrite)
            try:
                if announce is not None and upload.hidden_name:
                    await announce(upload.hidden_name)
                await line.run(upload.create)
                await fill(line.worker, upload.write, data, within=long)
                return await line.run(upload.publish, within=long)
            except BaseException:
                line.broken = True  # what a driver keeps of a failed upload is not known
                with suppress(StorageError):
                    await line.run(upload.discard, within=long)
                raise

    async def get(
        self, key: str, *, offset: int = 0, length: int | None = None, etag: str | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield a range. An object that is replaced while it is read ends it with ObjectChanged."""
        check_key(key)
        if offset < 0 or (length is not None and length < 0):
            raise ValueError("offset and length count from the start")
        async with self._pool.line() as line:
            info = await line.run(partial(line.connection.stat, key))
            if etag is not None and info.etag != etag:
                raise ObjectChanged(f"{self.url}/{key} is not the file that was looked at before")
            end = info.size if length is None else min(info.size, offset + length)
            ahead: asyncio.Future[bytes] | None = None
            try:
                for start in range(offset, end + REQUEST_BYTES, REQUEST_BYTES):
                    data = b"" if ahead is None else await settled(ahead)
                    ahead = None
                    if start < end:
                        read = partial(line.connection.read, info, start, min(start + REQUEST_BYTES, end))
                        ahead = line.worker.start(read, within=line.within)
                    for begin in range(0, len(data), PIECE_BYTES):
                        yield data[begin : begin + PIECE_BYTES]
            finally:
                if ahead is not None:
                    with suppress(StorageError):
                        await settled(ahead)

    async def stat(self, key: str) -> ObjectInfo:
        """Describe one object."""
        check_key(key)
        async with self._pool.line() as line:
            return await line.run(partial(line.connection.stat, key))

    async def list_objects(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Yield the objects, of one look at the directory."""
        async with self._pool.line() as line:
            entries = await line.run(line.connection.entries)
            wanted = [name for name in entries if name.startswith(prefix) and KEY_PATTERN.fullmatch(name)]
            found = await line.run(partial(line.connection.described, entries, wanted))
        for info in found:
            yield info

    async def delete(self, key: str) -> None:
        """Remove an object."""
        check_key(key)
        async with self._pool.line() as line:
            await line.run(partial(line.connection.remove, key))

    async def sweep(self, before: datetime) -> int:
        """Remove hidden files of ours whose age the driver tells. One may be in use, so keep `before` a day back."""
        removed = 0
        async with self._pool.line() as line:
            entries = await line.run(line.connection.entries)
            for name in filter(is_temporary, entries):
                touched = await line.run(partial(line.connection.modified, name, entries[name]))
                if touched is not None and touched < before:
                    removed += await line.run(partial(line.connection.remove, name))
        return removed

    async def discard(self, unfinished: str) -> bool:
        """Remove a hidden file."""
        if not is_temporary(unfinished):
            return False
        async with self._pool.line() as line:
            return await line.run(partial(line.connection.remove, unfinished))

    async def aclose(self) -> None:
        """Let go of the driver's instances."""
        await self._pool.aclose()
