"""That nothing is replaced: of writers who race for one key, exactly one publishes.

Amazon, MinIO and others refuse a write with `If-None-Match: *` when the key is taken. Some endpoints do not know that
header (Swift), or know it for small objects and silently ignore it when an upload of parts is completed (Ceph 16).
`conditional_writes` finds out. Where it does not work, a writer publishes only while it holds a claim:

1. Put an object of its own, `.deviceon-backup-KEY.ID.lock`, then list all claims to the key.
2. Nobody else's: the claim is held. Two writers cannot both see only their own, since each lists after it has put,
   so the later one sees both: listings must show what was put before, as they do on all endpoints named above.
3. Somebody else's: the smallest ID stays and waits, the others withdraw for a moment. Whoever finds the key taken by
   then, is done: ObjectExists.

A claim is kept for minutes at most; one that is `LEASE` older than ours was left by a killed writer and counts
nothing. Swift with several replicas may show a listing late; there the promise is best effort.
"""

from __future__ import annotations

import asyncio
import random
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from storage_backends.base import Announce, StorageError, TargetUnavailable
from storage_backends.s3.body import PartBody
from storage_backends.s3.connection import Connection
from storage_backends.s3.errors import FAILURES, error_status, exists_error, is_refused_condition, is_retriable, mapped
from storage_backends.s3.head import head
from storage_backends.s3.settled import SETTLE_SECONDS, settled
from storage_backends.s3.unfinished import HIDDEN_PREFIX, hidden_object, unfinished_upload

LEASE = timedelta(minutes=15)
WAIT_SECONDS = 60.0
HOLD_SECONDS = 600.0
PROBE_SECONDS = 10.0
"""So long a cancelled probe may go on: it is a handful of requests of one byte."""
_AMAZON = (".amazonaws.com", ".amazonaws.com.cn")


async def put_hidden(connection: Connection, name: str, **more: str) -> None:
    """Write a hidden object of one byte."""
    body = PartBody([b"\n"])
    await connection.call("put_object", key=name, Key=connection.path(name), Body=body, ContentMD5=body.md5(), **more)


async def conditional_writes(connection: Connection, announce: Announce | None = None) -> bool:
    """Say whether the endpoint refuses to replace an object, also when an upload of parts is completed.

    Tries it on a hidden object, which is announced before and removed again. Amazon's own endpoints are known.
    """
    if (await connection.endpoint_host()).endswith(_AMAZON):
        return True
    name = f"{HIDDEN_PREFIX}{secrets.token_hex(16)}.probe"
    if announce is not None:
        await announce(hidden_object(name))
    # Cancelled midway, a request that was sent would be carried out after the removal.
    return await settled(_refuses_both(connection, name, announce), seconds=PROBE_SECONDS)


async def _refuses_both(connection: Connection, name: str, announce: Announce | None) -> bool:
    try:
        await put_hidden(connection, name)
        return await _put_refused(connection, name) and await _completion_refused(connection, name, announce)
    finally:
        await settled(remove_hidden(connection, name))


async def _put_refused(connection: Connection, name: str) -> bool:
    body = PartBody([b"\n"])
    return await _refused(connection, "put_object", name, Body=body, ContentMD5=body.md5(), IfNoneMatch="*")


async def _completion_refused(connection: Connection, name: str, announce: Announce | None) -> bool:
    path = connection.path(name)
    upload = (await connection.call("create_multipart_upload", key=name, Key=path))["UploadId"]
    try:
        if announce is not None:
            await announce(unfinished_upload(name, upload))
        body = PartBody([b"\n"])
        part = await connection.call(
            "upload_part", key=name, Key=path, UploadId=upload, PartNumber=1, Body=body, ContentMD5=body.md5()
        )
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        return await _refused(
            connection, "complete_multipart_upload", name, UploadId=upload, MultipartUpload=parts, IfNoneMatch="*"
        )
    finally:
        await settled(_abort(connection, name, upload))


async def _refused(connection: Connection, operation: str, name: str, **parameters: Any) -> bool:
    retries = connection.retries()
    while True:
        try:
            await connection.once(operation, Key=connection.path(name), **parameters)
        except FAILURES as exc:
            if is_refused_condition(exc):
                return True
            if await retries.again(exc):
                continue
            if is_retriable(exc) or error_status(exc) in {401, 403}:
                raise mapped(exc, connection.where(name)) from exc
            return False  # 501, 400: it does not know the header
        return False


async def _abort(connection: Connection, name: str, upload: str) -> None:
    try:
        async with asyncio.timeout(SETTLE_SECONDS):
            await connection.call("abort_multipart_upload", key=name, Key=connection.path(name), UploadId=upload)
    except (StorageError, TimeoutError):
        return  # it was completed, or `sweep` finds it


async def remove_hidden(connection: Connection, name: str) -> None:
    """Remove a hidden object of ours, if that is possible."""
    try:
        async with asyncio.timeout(SETTLE_SECONDS):
            await connection.call("delete_object", key=name, Key=connection.path(name))
    except (StorageError, TimeoutError):
        return  # `sweep` finds it


@asynccontextmanager
async def claimed(connection: Connection, key: str, announce: Announce | None = None) -> AsyncIterator[None]:
    """Hold the claim to `key` inside the block; it is announced before it is made.

    Raises ObjectExists when the key is taken, TargetUnavailable when another writer neither finishes nor goes away, or
    when the block takes longer than a claim may be kept.
    """
    claim = _Claim(connection, key)
    if announce is not None:
        await announce(hidden_object(claim.name))
    try:
        await claim.acquire()
        async with asyncio.timeout(HOLD_SECONDS):
            yield
    except TimeoutError as exc:
        raise mapped(exc, connection.where(key)) from exc
    finally:
        await settled(remove_hidden(connection, claim.name))


class _Claim:
    def __init__(self, connection: Connection, key: str) -> None:
        self._connection = connection
        self._key = key
        self._prefix = f"{HIDDEN_PREFIX}{key}."
        self.name = f"{self._prefix}{secrets.token_hex(16)}.lock"
        self._is_put = False
        self._put_at: datetime | None = None  # by the server's clock

    async def acquire(self) -> None:
        deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
        await self._put()
        while True:
            others = await self._others()
            if not others and self._is_put:
                return
            if not others:
                await self._put()
                continue
            if await head(self._connection, self._key) is not None:
                raise exists_error(self._connection.where(self._key))
            if asyncio.get_running_loop().time() > deadline:
                raise TargetUnavailable(
                    f"{self._connection.where(self._key)}: another writer has been publishing it for a minute",
                    hint="Only one may write an object. If it was killed, its claim ends after 15 minutes.",
                )
            if self._is_put and min(others) < self.name:
                await remove_hidden(self._connection, self.name)
                self._is_put = False
            await asyncio.sleep(random.uniform(0.02, 0.1))  # noqa: S311  parts writers, protects nothing

    async def _put(self) -> None:
        await put_hidden(self._connection, self.name)
        self._is_put = True

    async def _others(self) -> list[str]:
        """Name the claims of others that count."""
        found: dict[str, datetime] = {}
        token: dict[str, str] = {}
        while True:
            page = await self._connection.call(
                "list_objects_v2", key=self._key, Prefix=self._connection.path(self._prefix), **token
            )
            for item in page.get("Contents", []):
                name = item["Key"].removeprefix(self._connection.options.prefix)
                if re.fullmatch(r"[0-9a-f]{32}\.lock", name.removeprefix(self._prefix)):
                    found[name] = item["LastModified"]
            if not page.get("IsTruncated"):
                break
            token = {"ContinuationToken": page["NextContinuationToken"]}
        self._put_at = found.pop(self.name, self._put_at)
        return [name for name, at in found.items() if self._put_at is None or self._put_at - at < LEASE]
