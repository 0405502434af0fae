"""Reading a range of one object, over as many connections as it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from storage_backends.base import ObjectChanged, ObjectNotFound, TargetUnavailable
from storage_backends.s3.connection import Connection
from storage_backends.s3.errors import FAILURES, error_code, error_status, mapped
from storage_backends.s3.head import head

READ_BYTES = 1 << 20


async def read_range(
    connection: Connection, key: str, *, offset: int, length: int | None, etag: str | None
) -> AsyncGenerator[bytes, None]:
    """Yield a range; see `StorageBackend.get`. A stream that breaks goes on where it was, and only of the same object.

    The budget of retries begins anew whenever a mebibyte has come.
    """
    if length == 0:
        await _check(connection, key, etag)
    position, end = offset, None if length is None else offset + length
    retries, proved = connection.retries(), offset
    while end is None or position < end:
        try:
            answer = await _open(connection, key, position, end, etag)
            if answer is None:
                return
            etag = str(answer["ETag"]).strip('"')
            total = _total(answer)
            end = total if end is None else min(end, total)
            async with answer["Body"] as body:
                while position < end:
                    async with asyncio.timeout(connection.options.timeout):
                        piece: bytes = await body.read(min(READ_BYTES, end - position))
                    if not piece:
                        raise ConnectionResetError("the answer ended too soon")
                    position += len(piece)
                    yield piece
        except FAILURES as exc:
            if position - proved >= READ_BYTES:
                retries, proved = connection.retries(), position
            if not await retries.again(exc):
                raise mapped(exc, connection.where(key)) from exc


async def _open(
    connection: Connection, key: str, position: int, end: int | None, etag: str | None
) -> dict[str, Any] | None:
    """Ask for a range; None when it begins beyond the object's end."""
    condition: dict[str, Any] = {} if etag is None else {"IfMatch": f'"{etag}"'}
    last = "" if end is None else end - 1
    try:
        answer = await connection.once(
            "get_object", Key=connection.path(key), Range=f"bytes={position}-{last}", **condition
        )
    except FAILURES as exc:
        if error_code(exc) == "InvalidRange" or error_status(exc) == 416:
            await _check(connection, key, etag)
            return None
        if error_status(exc) == 412:
            raise ObjectChanged(f"{connection.where(key)} is not the object that was looked at before") from exc
        raise
    if position and "ContentRange" not in answer:
        answer["Body"].close()
        raise TargetUnavailable(
            f"{connection.where(key)}: the endpoint does not give ranges of objects",
            hint="A proxy between here and the endpoint may remove the header Range.",
        )
    return answer


def _total(answer: dict[str, Any]) -> int:
    """Return the object's size; an answer without Content-Range is the whole object."""
    given = answer.get("ContentRange")
    return int(answer["ContentLength"]) if given is None else int(str(given).rpartition("/")[2])


async def _check(connection: Connection, key: str, etag: str | None) -> None:
    """See that the object is there, and the one that was pinned."""
    found = await head(connection, key)
    if found is None:
        raise ObjectNotFound(f"{connection.where(key)} does not exist")
    if etag is not None and found.info.etag != etag:
        raise ObjectChanged(f"{connection.where(key)} is not the object that was looked at before")
