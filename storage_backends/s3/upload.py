"""One object on its way: sent whole or in parts, published, proved; or taken back until nothing is left.

An answer that is lost leaves open whether the object is there. So each upload has an id of its own in the object's
metadata, and after every doubtful answer HEAD tells whether the object under the key is ours.

Each part has a checksum: full-object CRC-32 where the endpoint announces it, Content-MD5 elsewhere. CRC-64/NVME would
need awscrt, and every archive is authenticated when it is read back.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

from storage_backends.base import Announce, InvalidUrl, ObjectInfo, StorageError, TargetUnavailable
from storage_backends.s3.body import PartBody, encoded_crc32
from storage_backends.s3.connection import Connection
from storage_backends.s3.errors import FAILURES, error_code, exists_error, is_refused_condition, mapped
from storage_backends.s3.exclusive import claimed
from storage_backends.s3.head import UPLOAD_ID, Head, head
from storage_backends.s3.room import Room
from storage_backends.s3.settled import settled
from storage_backends.s3.split import Part, split
from storage_backends.s3.unfinished import unfinished_upload

COMPLETE_TIMEOUTS = 5
"""A completion may take this many times the usual time-out: the server reads all parts' records."""
_LOCK_ROUNDING = timedelta(seconds=2)
LOCKED_SUFFIX = ".zip"
"""Only objects of such names are locked: what has to go again, as the probe of a test, could not."""


class Upload:
    """The upload of one object: `send`, then `publish`; `discard` after any failure."""

    def __init__(
        self, connection: Connection, key: str, *, overwrite: bool, conditional: bool, announce: Announce | None = None
    ) -> None:
        self._connection = connection
        self._key = key
        self._path = connection.path(key)
        self._overwrite = overwrite
        self._announce = announce
        self._conditional = conditional and not overwrite
        self._id = secrets.token_hex(16)
        self._size = 0
        self._whole: PartBody | None = None
        self._upload_id: str | None = None
        self._parts: dict[int, dict[str, Any]] = {}
        self._full_crc = False
        self._crc = 0
        self._locked_until: datetime | None = None
        self._may_be_there = False

    async def send(self, data: AsyncIterable[bytes | bytearray]) -> None:
        """Pull `data` to its end. What fits one part is kept for `publish`; the rest is sent as parts."""
        options = self._connection.options
        room = Room(options.in_flight_bytes)
        failure: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as sending, aclosing(split(data, options.sizes)) as parts:
                async for part in parts:
                    self._size += len(part.body)
                    if part.last and part.number == 1:
                        self._whole = part.body
                        return
                    if self._upload_id is None:
                        await settled(self._begin())  # cancelled midway, it would leave an upload without a name
                    crc = await self._digested(part)
                    await room.take(len(part.body))
                    sending.create_task(self._send_part(part, crc, room))
                    del part  # whose bytes are to go when they are sent, not when the next ones have come
        except BaseExceptionGroup as group:
            failure = group.exceptions[0]  # the first to fail; the others were cancelled because of it
        if failure is not None:
            raise failure

    async def publish(self) -> ObjectInfo:
        """Make the object appear, and prove it. Raises ObjectExists when the key was taken meanwhile."""
        if self._overwrite or self._conditional:
            await self._appear()
        else:
            async with claimed(self._connection, self._key, self._announce):
                if await head(self._connection, self._key) is not None:
                    raise exists_error(self._connection.where(self._key))
                await self._appear()
        found = await self._found()
        if found is None:
            raise TargetUnavailable(
                f"{self._connection.where(self._key)}: the server took the object, but does not have it",
                hint="See whether somebody else writes to or deletes from this prefix.",
            )
        if found.info.size != self._size:
            raise TargetUnavailable(
                f"{self._connection.where(self._key)}: the server has {found.info.size} bytes of {self._size}",
                hint="This endpoint loses data. Nothing was kept there.",
            )
        if not self._is_locked(found):
            found = await self._locked(found)
        return found.info

    async def discard(self) -> None:
        """Leave nothing: abort the parts, and remove the object if it is there after all and replaced nothing."""
        await self._abort()
        if self._may_be_there and not self._overwrite and await self._found() is not None:
            await self._connection.call("delete_object", key=self._key, Key=self._path)

    async def _begin(self) -> None:
        parameters = self._of_object() | {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"}
        call = self._connection.call
        try:
            begun = await call("create_multipart_upload", key=self._key, Key=self._path, **parameters)
        except InvalidUrl:  # "I do not know this": once more without checksums
            begun = await call("create_multipart_upload", key=self._key, Key=self._path, **self._of_object())
        self._upload_id = begun["UploadId"]
        if self._announce is not None:
            await self._announce(unfinished_upload(self._key, begun["UploadId"]))
        # Who does not know them, ignores them and says nothing of them.
        self._full_crc = begun.get("ChecksumAlgorithm") == "CRC32" and begun.get("ChecksumType") == "FULL_OBJECT"

    async def _digested(self, part: Part) -> dict[str, str]:
        """Return the checksum that goes with a part; parts come in order."""
        if not self._full_crc:
            return {"ContentMD5": await asyncio.to_thread(part.body.md5)}
        own = await asyncio.to_thread(part.body.crc32)
        self._crc = await asyncio.to_thread(part.body.crc32, self._crc)
        return {"ChecksumCRC32": encoded_crc32(own)}

    async def _send_part(self, part: Part, checksum: dict[str, str], room: Room) -> None:
        sent = await self._connection.call(
            "upload_part",
            key=self._key,
            Key=self._path,
            UploadId=self._upload_id,
            PartNumber=part.number,
            Body=part.body,
            **checksum,
        )
        crc = {"ChecksumCRC32": checksum["ChecksumCRC32"]} if self._full_crc else {}
        self._parts[part.number] = {"PartNumber": part.number, "ETag": sent["ETag"], **crc}
        await room.give_back(len(part.body))

    async def _appear(self) -> None:
        """Publish by one request that is repeated until it is certain what became of it."""
        retries = self._connection.retries()
        self._may_be_there = True
        while True:
            try:
                await self._publish_once()
            except FAILURES as exc:
                # Ours may be there although the answer was lost, was an error, or says that the upload is gone or
                # that the key is taken: by the first of two requests.
                if await self._found() is not None:
                    return
                if is_refused_condition(exc) and await head(self._connection, self._key) is not None:
                    self._may_be_there = False
                    raise exists_error(self._connection.where(self._key)) from exc
                if error_code(exc) == "NoSuchUpload":
                    raise TargetUnavailable(
                        f"{self._connection.where(self._key)}: somebody else removed the unfinished upload",
                        hint="See the bucket's lifecycle rules, and whether another program cleans up this prefix.",
                    ) from exc
                if not await retries.again(exc):
                    raise mapped(exc, self._connection.where(self._key)) from exc
            else:
                return

    async def _publish_once(self) -> None:
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if self._conditional else {}
        if self._upload_id is None:
            assert self._whole is not None
            md5 = await asyncio.to_thread(self._whole.md5)
            await self._connection.once(
                "put_object", Key=self._path, Body=self._whole, ContentMD5=md5, **condition, **self._of_object()
            )
            return
        full = {"ChecksumCRC32": encoded_crc32(self._crc), "ChecksumType": "FULL_OBJECT"} if self._full_crc else {}
        await self._connection.once(
            "complete_multipart_upload",
            seconds=self._connection.options.timeout * COMPLETE_TIMEOUTS,
            Key=self._path,
            UploadId=self._upload_id,
            MultipartUpload={"Parts": [self._parts[number] for number in sorted(self._parts)]},
            **condition,
            **full,
        )

    async def _found(self) -> Head | None:
        """Return what is under the key when it is ours."""
        found = await head(self._connection, self._key)
        return found if found is not None and found.upload_id == self._id else None

    async def _abort(self) -> None:
        if self._upload_id is None:
            return
        try:
            await self._connection.call(
                "abort_multipart_upload", key=self._key, Key=self._path, UploadId=self._upload_id
            )
        except StorageError:
            return  # it was completed, or `sweep` finds it

    def _of_object(self) -> dict[str, Any]:
        """Return what is said of the object when it is begun."""
        options = self._connection.options
        said: dict[str, Any] = {"Metadata": {UPLOAD_ID: self._id}, "ContentType": "application/octet-stream"}
        if options.encryption:
            said["ServerSideEncryption"] = options.encryption
        if options.kms_key_id:
            said["SSEKMSKeyId"] = options.kms_key_id
        if options.lock_mode and options.lock_period and self._key.endswith(LOCKED_SUFFIX):
            self._locked_until = datetime.now(UTC).replace(microsecond=0) + options.lock_period
            said |= {"ObjectLockMode": options.lock_mode, "ObjectLockRetainUntilDate": self._locked_until}
        return said

    def _is_locked(self, found: Head) -> bool:
        """Say whether the object has the lock that was wished for. Ceph 16 forgets the wish for uploads of parts."""
        if self._locked_until is None:
            return True
        right = found.lock_mode == self._connection.options.lock_mode
        return right and found.locked_until is not None and found.locked_until >= self._locked_until - _LOCK_ROUNDING

    async def _locked(self, found: Head) -> Head:
        """Lock the object that was published; proved as well."""
        version = {"VersionId": found.version} if found.version else {}
        retention = {"Mode": self._connection.options.lock_mode, "RetainUntilDate": self._locked_until}
        reason: StorageError | None = None
        try:
            await self._connection.call(
                "put_object_retention", key=self._key, Key=self._path, Retention=retention, **version
            )
            again = await self._found()
            if again is not None and self._is_locked(again):
                return again
        except StorageError as exc:
            reason = exc
        raise InvalidUrl(
            f"{self._connection.where(self._key)}: the server took the object, but did not lock it",
            hint="Create the bucket with Object Lock, and give these credentials s3:PutObjectRetention and "
            "s3:GetObjectRetention; or remove object_lock_mode.",
        ) from reason
