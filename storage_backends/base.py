"""The contract of a target: a flat set of immutable objects named by keys.

A target knows nothing of backups. Every implementation passes `tests/conformance/test_targets.py`.

Rules that hold for each backend:

* A key is 1 to 200 characters of `A-Z a-z 0-9 . _ -`, starts with a letter or digit and ends with no dot (Windows has
  no such names). Names that start with a dot are the backend's own (unfinished uploads) and are never listed.
* An object appears under its key whole or not at all, also when the writer is cancelled, killed, or cut off.
* An object never changes. `put` refuses a key that exists unless `overwrite=True`; of two writers that race
  for one key, exactly one succeeds and the other gets `ObjectExists`.
* When `put` returns, the object is as durable as the medium allows (fsync of file and directory; see each backend).
* Any failed write is final: the backend starts no second attempt on the same handle (fsync errors are not retried).

    StorageError
    ├── InvalidKey         the key breaks the rule above
    ├── InvalidUrl         the target's URL or options cannot be used
    ├── ObjectNotFound
    ├── ObjectExists
    ├── ObjectChanged      the object is not the one whose etag was pinned
    ├── AccessDenied
    ├── TargetFull         no space, or quota
    └── TargetUnavailable  cannot be reached or does not answer (transient)
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Self

Announce = Callable[[str], Awaitable[None]]
"""Gets the name of something unfinished, to be remembered for `discard`."""

KEY_PATTERN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,198}[A-Za-z0-9_-])?")


class StorageError(Exception):
    """Root. `code` is stable, `hint` says what to do next, `transient` whether a retry may help."""

    code: ClassVar[str] = "TARGET"
    transient: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InvalidKey(StorageError):
    """The key is not one that a target may hold."""

    code = "TARGET_INVALID_KEY"


class InvalidUrl(StorageError):
    """The target's URL or its options cannot be used."""

    code = "TARGET_INVALID_URL"


class ObjectNotFound(StorageError):
    """No object has this key."""

    code = "TARGET_NOT_FOUND"


class ObjectExists(StorageError):
    """An object has this key already; nothing was replaced."""

    code = "TARGET_EXISTS"


class ObjectChanged(StorageError):
    """The object is not the one whose etag was pinned."""

    code = "TARGET_CHANGED"


class AccessDenied(StorageError):
    """The target refuses the credentials or the operation."""

    code = "TARGET_ACCESS_DENIED"


class TargetFull(StorageError):
    """The target has no space left, or its quota is used up."""

    code = "TARGET_FULL"


class TargetUnavailable(StorageError):
    """The target cannot be reached or does not answer."""

    code = "TARGET_UNAVAILABLE"
    transient = True


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a target knows of one object. `size` in bytes, `modified` in UTC; `etag` changes when the object does."""

    key: str
    size: int
    etag: str
    modified: datetime


@dataclass(frozen=True, slots=True)
class Promise:
    """What a kind of target keeps of the contract and what not, in a sentence each, for whoever chooses a target."""

    whole_or_not_at_all: str
    no_overwrite: str
    durable: str


def check_key(key: str) -> str:
    """Return `key` when it keeps the key rule; raise `InvalidKey` otherwise."""
    if not KEY_PATTERN.fullmatch(key):
        raise InvalidKey(f"{key!r} is not a valid object name")
    return key


async def one_piece(content: bytes) -> AsyncGenerator[bytes, None]:
    """Yield the content of a small object, for `put`."""
    yield content


class StorageBackend(ABC):
    """One place where archives are kept. Safe to use from many tasks of one event loop at once."""

    url: str
    """Where it is, without any secret; for messages."""
    promise: Promise
    cautions: tuple[str, ...] = ()
    """What its options leave unprotected, in a sentence each."""

    @abstractmethod
    async def put(
        self,
        key: str,
        data: AsyncIterable[bytes | bytearray],
        *,
        overwrite: bool = False,
        announce: Announce | None = None,
    ) -> ObjectInfo:
        """Store what `data` yields under `key`. Pulls `data` no faster than it can write, in bounded memory.

        A piece that was yielded is not changed any more.

        The object becomes visible after `data` ended without an exception and every byte is durable; on any
        exception (also cancellation) nothing becomes visible and nothing is left behind that `sweep` cannot find.
        Raises ObjectExists (early when it can, at the latest when publishing), TargetFull, AccessDenied,
        TargetUnavailable; an exception of `data` passes through unchanged.

        `announce` is awaited with the name of each thing that a killed writer would leave, before any data is put into
        it. One that names itself (an S3 upload) is there by then. An exception of `announce` ends the `put`.
        """

    @abstractmethod
    def get(
        self, key: str, *, offset: int = 0, length: int | None = None, etag: str | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield `length` bytes (to the end when None) from `offset`, in pieces of at most 1 MiB.

        Fewer bytes come only when the object ends sooner. Raises ObjectNotFound, and ObjectChanged when `etag` is
        given and is not the object's. Close the iterator (`contextlib.aclosing`) when leaving early.
        """

    @abstractmethod
    async def stat(self, key: str) -> ObjectInfo:
        """Describe one object. Raises ObjectNotFound."""

    @abstractmethod
    def list_objects(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Yield every finished object whose key starts with `prefix`, in the order of their keys."""

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Remove one object; one that is absent is fine."""

    @abstractmethod
    async def sweep(self, before: datetime) -> int:
        """Remove what was left unfinished by writers like this one and last touched before `before`; return how many.

        Other machines may be writing to the same place, so keep `before` a day back.
        """

    @abstractmethod
    async def discard(self, unfinished: str) -> bool:
        """Remove one unfinished thing that a `put` announced and that is known to be over, however young it is.

        Returns False when it is not there (any more), cannot go yet, or is no such thing; nothing else is touched.
        """

    async def free_bytes(self) -> int | None:
        """Tell how many bytes the target still takes from this user; None when it cannot say."""
        return None

    @abstractmethod
    async def aclose(self) -> None:
        """Release connections; the backend cannot be used afterwards."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
