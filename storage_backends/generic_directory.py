"""A directory reached through one instance of an fsspec driver. Blocking; used by one thread."""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from fsspec.spec import AbstractFileSystem

from storage_backends.base import (
    AccessDenied,
    InvalidUrl,
    ObjectChanged,
    ObjectExists,
    ObjectInfo,
    ObjectNotFound,
    StorageError,
    TargetFull,
    TargetUnavailable,
)

# What drivers call the time of the last change and what tells one version of a file from another. There is no standard.
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "modify", "timeModified", "modificationTime")
_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "generation", "version_id", "ino", "unique")
_DENIED = ("Auth", "Forbidden", "Unauthorized", "Credential", "error_perm")


_SECRET = re.compile(r"passw|passphrase|secret|token|credential|key|connection_string", re.IGNORECASE)


def publishes_by_rename(driver: type[Any]) -> bool:
    """Say whether the driver has a way of its own to give a file another name; fsspec's copies."""
    return driver.mv is not AbstractFileSystem.mv


def is_sftp(url: str) -> bool:
    """Say whether a URL names a place that is reached by SFTP."""
    return url.startswith(("sftp://", "ssh://"))


def generic_sftp() -> Any:
    """Return the module that knows SFTP: it imports paramiko, which only those have who use it."""
    from storage_backends import generic_sftp as module  # noqa: PLC0415

    return module


class Directory:
    """What `url` names. `make` makes it when it is first written to; without that an absent one is an error."""

    def __init__(self, driver: type[Any], url: str, options: Mapping[str, Any], *, make: bool) -> None:
        self.driver = driver
        self.url = url.partition("?")[0]
        self._whole_url = url
        self._options = options
        self._make = make
        self._fs: Any = None
        self._path = ""

    @property
    def usable(self) -> bool:
        """Say whether `open` was called; fsspec does not tell whether the server is still there."""
        return self._fs is not None

    @property
    def fs(self) -> Any:
        """Return the driver's instance."""
        return self._fs

    def open(self) -> None:
        """Make the driver's instance; many connect by that."""
        with self.mapped_errors():
            try:
                given = {**self.driver._get_kwargs_from_urls(self._whole_url), **self._options}
                fs = self._instance(given)
            except TypeError as exc:
                raise InvalidUrl(f"{self.url}: the driver refuses its options: {self._told(exc)}") from exc
            self._path = str(self.driver._strip_protocol(self._whole_url)).rstrip("/")
            self._fs = fs

    def _instance(self, given: Mapping[str, Any]) -> Any:
        """Make an instance. It and its listings are not shared with anybody: both caches outlive what they hold."""
        try:
            return self.driver(**given, skip_instance_cache=True, use_listings_cache=False)
        except TypeError as exc:
            if "use_listings_cache" not in str(exc):
                raise
            return self.driver(**given, skip_instance_cache=True)  # it gives all options to a library, as SFTP's does

    def close(self) -> None:
        """Let go of it."""
        fs, self._fs = self._fs, None
        if self.sftp and fs is not None:
            generic_sftp().close(fs)

    def reopen(self) -> None:
        """Make another instance: the connection of the first may be broken."""
        self.close()
        self.open()

    @property
    def sftp(self) -> bool:
        """Say whether it is reached by SFTP, of which more is known than of others."""
        return is_sftp(self.url)

    @property
    def break_off(self) -> Callable[[], None] | None:
        """Fsspec has no way to end a call; SFTP's socket can be shut."""
        return (lambda: generic_sftp().break_off(self._fs)) if self.sftp else None

    def rename(self, old: str, new: str, *, replace: bool) -> None:
        """Give a file another name. Only SFTP refuses one that is taken, unless `replace`."""
        with self.mapped_errors():
            if self.sftp and not replace:
                generic_sftp().rename(self._fs, self.path(old), self.path(new))
            else:
                self._fs.mv(self.path(old), self.path(new))

    def path(self, name: str) -> str:
        """Return the whole path of a name in the directory."""
        return f"{self._path}/{name}"

    def make_directory(self) -> None:
        """Make the directory if that is wished."""
        if self._make:
            with self.mapped_errors():
                self._fs.makedirs(self._path, exist_ok=True)

    def look(self, key: str) -> ObjectInfo | None:
        """Describe the file `key`, None when there is none. ObjectExists when the name is another thing's."""
        with self.mapped_errors(key):
            try:
                info = self._fs.info(self.path(key))
            except FileNotFoundError:
                return None
        if info.get("type") != "file":
            raise ObjectExists(f"{self.url}/{key} exists already, and is no file", hint="Choose another name.")
        return self._described(key, info)

    def stat(self, key: str) -> ObjectInfo:
        """Describe the file `key`. Raises ObjectNotFound."""
        try:
            info = self.look(key)
        except ObjectExists:
            info = None
        if info is None:
            raise ObjectNotFound(f"{self.url} has no {key}")
        return info

    def read(self, info: ObjectInfo, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end` of the object `info`. Raises ObjectChanged when it is another now."""
        with self.mapped_errors(info.key):
            data = bytes(self._fs.cat_file(self.path(info.key), start=start, end=end))
        # Looked at after reading: what was read before is of this object if it still is.
        if len(data) != end - start or self.stat(info.key).etag != info.etag:
            raise ObjectChanged(f"{self.url}/{info.key} was replaced while it was read")
        return data

    def entries(self) -> dict[str, Mapping[str, Any]]:
        """Return the files of the directory by name, in order, with what the driver tells of each."""
        with self.mapped_errors():
            try:
                listed = self._fs.ls(self._path or "/", detail=True)
            except FileNotFoundError:
                if self._make or not publishes_by_rename(self.driver):
                    return {}  # not made yet; or a store of objects, which has no directories
                raise
        files = {
            str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]: entry for entry in listed if entry["type"] == "file"
        }
        return dict(sorted(files.items()))

    def described(self, entries: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> list[ObjectInfo]:
        """Describe the files `names` of `entries`; one that is gone meanwhile is left out."""
        found = []
        for name in names:
            try:
                found.append(self._described(name, entries[name]))
            except ObjectNotFound:
                continue
        return found

    def modified(self, name: str, info: Mapping[str, Any]) -> datetime | None:
        """Tell when a file was last changed, in UTC; None when the driver does not know."""
        for key in _TIMES:
            if info.get(key) is not None:
                return _time(info[key])
        with self.mapped_errors(name):
            try:
                return _time(self._fs.modified(self.path(name)))
            except NotImplementedError:
                return None

    def remove(self, name: str) -> bool:
        """Remove a file; False when there is none."""
        try:
            if self.look(name) is None:
                return False
        except ObjectExists:
            return False
        with self.mapped_errors(name):
            try:
                self._fs.rm_file(self.path(name))
            except FileNotFoundError:
                return False
        return True

    @contextmanager
    def mapped_errors(self, key: str = "") -> Iterator[None]:
        """Raise a `StorageError` in place of all that the driver raises."""
        try:
            yield
        except (StorageError, AttributeError, NameError, AssertionError):
            raise
        except Exception as exc:
            raise _mapped(exc, self._told(exc), self.url, key) from exc

    def _told(self, exc: Exception) -> str:
        """Return what an exception says, without the secrets that drivers may repeat."""
        told = str(exc) or type(exc).__name__
        for name, value in self._options.items():
            if isinstance(value, str) and value and _SECRET.search(name):
                told = told.replace(value, "***")
        return told

    def _described(self, key: str, info: Mapping[str, Any]) -> ObjectInfo:
        modified = self.modified(key, info)
        size = int(info["size"] or 0)
        told = [f"{name}={info[name]}" for name in _VERSIONS if info.get(name)]
        etag = hashlib.sha256(repr((size, modified, told)).encode()).hexdigest()[:32]
        return ObjectInfo(key=key, size=size, etag=etag, modified=modified or datetime.fromtimestamp(0, UTC))


def _time(value: object) -> datetime | None:
    """Read a time as drivers tell it: a datetime, seconds, or text. Without a zone it is UTC."""
    try:
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str) and len(value) == 14 and value.isdigit():  # FTP: 20261231235959
            return datetime.strptime(value, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        read = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return read.astimezone(UTC) if read.tzinfo else read.replace(tzinfo=UTC)


def _mapped(exc: Exception, reason: str, url: str, key: str) -> StorageError:
    where = f"{url}/{key}" if key else url
    code = exc.errno if isinstance(exc, OSError) else None
    error: StorageError
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        error = TargetFull(f"{where}: {reason}", hint="Make room there, or keep fewer archives.")
    elif isinstance(exc, FileExistsError | IsADirectoryError):
        error = ObjectExists(f"{where} exists already", hint="Nothing was replaced. Choose another name.")
    elif isinstance(exc, FileNotFoundError) and key:
        error = ObjectNotFound(f"{url} has no {key}")
    elif isinstance(exc, FileNotFoundError):
        error = TargetUnavailable(
            f"the directory {url} does not exist", hint="Create it, or set storage_options: {auto_mkdir: true}."
        )
    elif isinstance(exc, PermissionError) or any(word in type(exc).__name__ for word in _DENIED):
        error = AccessDenied(f"{where}: {reason}", hint="Check the credentials in storage_options and what they allow.")
    elif isinstance(exc, NotImplementedError):
        error = InvalidUrl(f"{where}: fsspec's driver cannot do that", hint="Choose another kind of target.")
    else:
        error = TargetUnavailable(
            f"{where}: {reason}", hint="See whether the server can be reached, then run it again."
        )
    return error
