"""What HEAD tells of one object, and whether it is the one that we have just written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from storage_backends.base import ObjectInfo
from storage_backends.s3.connection import Connection
from storage_backends.s3.errors import FAILURES, error_status, mapped, no_s3

UPLOAD_ID = "deviceon-backup-upload"


@dataclass(frozen=True, slots=True)
class Head:
    """One object as the server describes it."""

    info: ObjectInfo
    upload_id: str
    """Our own mark on each object that we write; empty on others'."""
    version: str | None
    lock_mode: str | None
    locked_until: datetime | None
    legal_hold: bool

    def locked(self, now: datetime) -> bool:
        """Say whether Object Lock keeps this version from being removed."""
        return self.legal_hold or (self.locked_until is not None and self.locked_until > now)


async def head(connection: Connection, key: str) -> Head | None:
    """Describe one object of the target; None when there is none."""
    retries = connection.retries()
    while True:
        try:
            operation = "get_object" if connection.heads_break else "head_object"
            answer = await connection.once(operation, Key=connection.path(key))
        except FAILURES as exc:
            if error_status(exc) == 404:
                return None
            if not await retries.again(exc):
                raise mapped(exc, connection.where(key)) from exc
        else:
            if "Body" in answer:
                answer["Body"].close()
            return _parsed(key, answer, connection.where(key))


def object_info(key: str, *, size: int, etag: str, modified: datetime) -> ObjectInfo:
    """Return an ObjectInfo that is the same from HEAD, which knows whole seconds, and from a listing."""
    return ObjectInfo(
        key=key, size=size, etag=etag.strip('"'), modified=modified.astimezone(UTC).replace(microsecond=0)
    )


def _parsed(key: str, answer: Mapping[str, Any], where: str) -> Head:
    if not {"ContentLength", "LastModified"} <= answer.keys():
        raise no_s3(where)
    until = answer.get("ObjectLockRetainUntilDate")
    return Head(
        info=object_info(
            key, size=answer["ContentLength"], etag=answer.get("ETag", ""), modified=answer["LastModified"]
        ),
        upload_id=answer.get("Metadata", {}).get(UPLOAD_ID, ""),
        version=answer.get("VersionId"),
        lock_mode=answer.get("ObjectLockMode"),
        locked_until=None if until is None else until.astimezone(UTC),
        legal_hold=answer.get("ObjectLockLegalHoldStatus") == "ON",
    )
