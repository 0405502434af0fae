"""What killed writers left: unfinished uploads, and hidden objects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from storage_backends.base import KEY_PATTERN, ObjectNotFound
from storage_backends.s3 import exclusive
from storage_backends.s3.connection import Connection
from storage_backends.s3.errors import no_s3
from storage_backends.s3.head import head
from storage_backends.s3.unfinished import CLAIM_SUFFIX, HIDDEN_NAME, HIDDEN_PREFIX, parse_unfinished


async def sweep(connection: Connection, before: datetime) -> int:
    """Remove what was last touched before `before`, and no claim that still counts; return how many.

    S3 does not tell who began an upload: all that are unfinished under the target's prefix, for keys that the target
    may hold, count as ours. Ages go by the server's clock, so that nothing is old because this machine's is ahead.
    """
    now = await _server_time(connection)
    before = min(before, before + (now - datetime.now(UTC)))
    removed = 0
    uploads = [upload async for upload in _uploads(connection)]
    for upload in uploads:
        if upload["Initiated"] < before and await _touched(connection, upload) < before:
            removed += await _abort(connection, upload["Key"], upload["UploadId"])
    async for item in pages(connection, "list_objects_v2", "Contents", prefix=HIDDEN_PREFIX):
        name = item["Key"].removeprefix(connection.options.prefix)
        held = name.endswith(CLAIM_SUFFIX) and now - item["LastModified"] < exclusive.LEASE
        if HIDDEN_NAME.fullmatch(name) and item["LastModified"] < before and not held:
            await connection.call("delete_object", key=name, Key=item["Key"])
            removed += 1
    return removed


async def discard(connection: Connection, unfinished: str) -> bool:
    """Remove what was announced; see `StorageBackend.discard`."""
    parsed = parse_unfinished(unfinished)
    if parsed is None:
        return False
    name, upload_id = parsed
    path = connection.path(name)
    if upload_id:
        return await _abort(connection, path, upload_id) > 0
    if await head(connection, name) is None:
        return False
    await connection.call("delete_object", key=name, Key=path)
    return True


async def _server_time(connection: Connection) -> datetime:
    """Return the server's time, not before it is: its header cuts off what is less than a second."""
    answer = await connection.call("list_objects_v2", Prefix=connection.path(HIDDEN_PREFIX), MaxKeys=1)
    try:
        told = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return told.astimezone(UTC) + timedelta(seconds=1)
    except (KeyError, ValueError):
        return datetime.now(UTC)


async def pages(
    connection: Connection, operation: str, what: str, *, prefix: str, **more: Any
) -> AsyncIterator[dict[str, Any]]:
    """Yield every item of a listing of objects directly below the target's prefix."""
    token: dict[str, str] = {}
    while True:
        page = await connection.call(operation, Prefix=connection.path(prefix), Delimiter="/", **more, **token)
        if "IsTruncated" not in page:
            raise no_s3(connection.where(prefix))  # an empty listing would be believed
        for item in page.get(what, []):
            yield item
        if not page["IsTruncated"]:
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


async def _uploads(connection: Connection) -> AsyncIterator[dict[str, Any]]:
    markers: dict[str, str] = {}
    while True:
        page = await connection.call("list_multipart_uploads", Prefix=connection.path(""), **markers)
        for upload in page.get("Uploads", []):
            name = upload["Key"].removeprefix(connection.options.prefix)
            if KEY_PATTERN.fullmatch(name) or HIDDEN_NAME.fullmatch(name):
                yield upload
        if not page.get("IsTruncated"):
            return
        markers = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


async def _touched(connection: Connection, upload: dict[str, Any]) -> datetime:
    """Return when an upload got its last part: one that began long ago may still be on its way."""
    touched: datetime = upload["Initiated"]
    marker: dict[str, Any] = {}
    while True:
        try:
            page = await connection.call("list_parts", Key=upload["Key"], UploadId=upload["UploadId"], **marker)
        except ObjectNotFound:
            return touched
        touched = max([touched, *(part["LastModified"] for part in page.get("Parts", []))])
        if not page.get("IsTruncated"):
            return touched
        marker = {"PartNumberMarker": page["NextPartNumberMarker"]}


async def _abort(connection: Connection, path: str, upload_id: str) -> int:
    try:
        await connection.call("abort_multipart_upload", Key=path, UploadId=upload_id)
    except ObjectNotFound:
        return 0
    return 1
