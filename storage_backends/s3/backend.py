"""A bucket, or a prefix in one, as a target: Amazon S3 and what speaks its protocol.

Promise: the contract of `StorageBackend`. `put` returns when the endpoint has acknowledged the object and HEAD shows
it, ours and of the right size; how durable that is, is the endpoint's matter. That nothing is replaced holds by the
endpoint's conditional writes, or by claims where it has none: `exclusive` tells how, and what is best effort.

Memory: of each `put`, `in_flight_bytes` (40 MiB) of parts that are sent, one part that is gathered (8 MiB; 16 MiB from
20 GiB on), and one piece of the data. Beyond 74 GiB parts grow until two of them are more: 64 MiB each at 87 GiB,
256 MiB at 162 GiB. Data is copied only where a piece is cut, never to be joined.

A key is an object directly below the prefix. What lies deeper, or has a name that is no key, is somebody else's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing, suppress
from datetime import UTC, datetime

from storage_backends.base import (
    KEY_PATTERN,
    AccessDenied,
    Announce,
    InvalidUrl,
    ObjectInfo,
    ObjectNotFound,
    Promise,
    StorageBackend,
    StorageError,
    check_key,
)
from storage_backends.s3 import stale
from storage_backends.s3.connection import Connection
from storage_backends.s3.download import read_range
from storage_backends.s3.errors import FAILURES, error_status, exists_error, mapped
from storage_backends.s3.exclusive import conditional_writes
from storage_backends.s3.head import Head, head, object_info
from storage_backends.s3.options import S3Options
from storage_backends.s3.settled import SETTLE_SECONDS, settled
from storage_backends.s3.upload import LOCKED_SUFFIX, Upload


class S3Backend(StorageBackend):
    """The objects of `options.bucket` below `options.prefix`."""

    promise = Promise(
        whole_or_not_at_all="Yes: an object is there when its upload was completed.",
        no_overwrite="Yes where the endpoint has conditional writes, or lists at once what was written; best effort "
        "between two machines elsewhere.",
        durable="As durable as the endpoint makes what it has acknowledged; HEAD shows it before a backup goes on.",
    )

    def __init__(self, options: S3Options) -> None:
        self.url = options.url
        self.cautions = options.cautions
        self._options = options
        self.connection = Connection(options)
        self._conditional: bool | None = None
        self._probing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"S3Backend({self.url!r})"

    async def put(
        self,
        key: str,
        data: AsyncIterable[bytes | bytearray],
        *,
        overwrite: bool = False,
        announce: Announce | None = None,
    ) -> ObjectInfo:
        """Store an object; a cancelled `put` returns when what it sent is settled, after 40 seconds at most.

        With Object Lock, what was published and is taken back stays as a hidden version until its lock ends.
        """
        check_key(key)
        if self._options.lock_mode and self._options.lock_period is None and key.endswith(LOCKED_SUFFIX):
            raise InvalidUrl(
                "storage_options: object_lock_mode needs object_lock_days for writing",
                hint="Say for how many days each archive is locked.",
            )
        if not overwrite and await head(self.connection, key) is not None:
            raise exists_error(self.connection.where(key))
        conditional = await self.conditional_writes(announce)
        upload = Upload(self.connection, key, overwrite=overwrite, conditional=conditional, announce=announce)
        try:
            await upload.send(data)
            return await settled(upload.publish())
        except BaseException:
            with suppress(StorageError, TimeoutError):
                await settled(asyncio.wait_for(upload.discard(), SETTLE_SECONDS))
            raise

    async def get(
        self, key: str, *, offset: int = 0, length: int | None = None, etag: str | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield a range. A broken stream is taken up again, as long as the object is the same."""
        check_key(key)
        if offset < 0 or (length is not None and length < 0):
            raise ValueError("offset and length count from the start")
        async with aclosing(read_range(self.connection, key, offset=offset, length=length, etag=etag)) as pieces:
            async for piece in pieces:
                yield piece

    async def stat(self, key: str) -> ObjectInfo:
        """Describe one object."""
        check_key(key)
        found = await head(self.connection, key)
        if found is None:
            await self._check_bucket()
            raise ObjectNotFound(f"{self.connection.where(key)} does not exist")
        return found.info

    async def list_objects(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Yield the objects, a page of the endpoint's at a time."""
        async for item in stale.pages(self.connection, "list_objects_v2", "Contents", prefix=prefix):
            name = item["Key"].removeprefix(self._options.prefix)
            if KEY_PATTERN.fullmatch(name):
                yield object_info(name, size=item["Size"], etag=item["ETag"], modified=item["LastModified"])

    async def delete(self, key: str) -> None:
        """Remove an object. Raises AccessDenied when it is locked, with a message that says so and until when.

        A bucket with versions keeps what is deleted as an older version. Only with `object_lock_mode`, versions
        themselves are removed: that is what the lock is for, and they would never go away otherwise.
        """
        check_key(key)
        while True:
            found = await head(self.connection, key)
            if found is None:
                return
            if found.locked(datetime.now(UTC)):
                raise self._locked(key, found)
            version = {"VersionId": found.version} if self._options.lock_mode and found.version else {}
            await self.connection.call("delete_object", key=key, Key=self.connection.path(key), **version)
            if not version:
                return

    async def sweep(self, before: datetime) -> int:
        """Abort unfinished uploads under the prefix and remove claims of ours, touched before `before`."""
        return await stale.sweep(self.connection, before)

    async def discard(self, unfinished: str) -> bool:
        """Abort an upload, or remove a hidden object."""
        return await stale.discard(self.connection, unfinished)

    async def free_bytes(self) -> int | None:
        """S3 does not tell."""
        return None

    async def conditional_writes(self, announce: Announce | None = None) -> bool:
        """Say whether the endpoint itself refuses to replace an object; tried once, which may have to be announced."""
        async with self._probing:
            if self._conditional is None:
                self._conditional = await conditional_writes(self.connection, announce)
            return self._conditional

    async def aclose(self) -> None:
        """Close all connections."""
        await self.connection.aclose()

    def _locked(self, key: str, found: Head) -> AccessDenied:
        how = "a legal hold" if found.locked_until is None else f"{found.lock_mode} until {found.locked_until:%F %TZ}"
        return AccessDenied(
            f"{self.connection.where(key)} is locked by Object Lock: {how}",
            hint="It stays until the lock ends; then it can be deleted.",
        )

    async def _check_bucket(self) -> None:
        """HEAD of an object says 404 as well when there is no bucket."""
        try:
            await self.connection.once("head_bucket")
        except FAILURES as exc:
            if error_status(exc) == 404:
                raise InvalidUrl(
                    f"the bucket of {self.url} does not exist",
                    hint="Create it, or correct the target's URL, endpoint_url and region.",
                ) from exc
            raise mapped(exc, self.url) from exc
