"""A prefix in a bucket of a real S3 server as a place for the conformance suite."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config

from storage_backends import StorageBackend, open_target
from storage_backends.s3 import S3Backend
from tests import s3_servers
from tests.conformance.target_place import Place


@dataclass(frozen=True)
class S3Place(Place):
    """A prefix. `dates` is a file with what uploads are to be older than the server says: it cannot be told."""

    bucket: str
    prefix: str
    dates: Path
    options: Mapping[str, Any] = field(repr=False)

    def open(self) -> StorageBackend:
        """Open the prefix."""
        target = open_target(f"s3://{self.bucket}/{self.prefix}", self.options)
        assert isinstance(target, S3Backend)
        target.connection.session.register("after-call.s3.ListMultipartUploads", self._backdate)
        return target

    def unfinished(self) -> list[str]:
        """Look for hidden names and for uploads of parts."""
        client, base = self._client(), f"{self.prefix}/"
        where = {"Bucket": self.bucket, "Prefix": base}
        objects = [item["Key"].removeprefix(base) for item in client.list_objects_v2(**where).get("Contents", [])]
        uploads = [item["Key"].removeprefix(base) for item in client.list_multipart_uploads(**where).get("Uploads", [])]
        return [name for name in objects if name.startswith(".")] + uploads

    def abandon_upload(self, touched: datetime) -> None:
        """Begin an upload of parts."""
        answer = self._client().create_multipart_upload(Bucket=self.bucket, Key=f"{self.prefix}/abandoned")
        self.dates.write_text(json.dumps(self._dates() | {answer["UploadId"]: touched.isoformat()}))

    def put_by_hand(self, name: str, content: bytes) -> None:
        """Put an object with another program."""
        self._client().put_object(Bucket=self.bucket, Key=f"{self.prefix}/{name}", Body=content)

    def _client(self) -> Any:
        return _client(
            self.options["endpoint_url"], self.options["key"], self.options["secret"], self.options.get("verify")
        )

    def _dates(self) -> dict[str, str]:
        found: dict[str, str] = json.loads(self.dates.read_text()) if self.dates.exists() else {}
        return found

    def _backdate(self, parsed: dict[str, Any], **_: object) -> None:
        dates = self._dates()
        for upload in parsed.get("Uploads", []):
            if upload["UploadId"] in dates:
                upload["Initiated"] = datetime.fromisoformat(dates[upload["UploadId"]])


@cache
def _client(endpoint: str, key: str, secret: str, verify: str | None) -> Any:
    return botocore.session.Session().create_client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        verify=verify,
        config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
    )


def make_s3_place(kind: str, directory: Path) -> Place:
    """Make a place on the servers that this process shares."""
    match kind:
        case "swift":
            options = s3_servers.swift_options()
        case "amazon":
            options = s3_servers.ceph_options(endpoint_url=s3_servers.amazon())
        case _:
            options = s3_servers.ceph_options(tls=kind == "ceph-tls")
    return S3Place(s3_servers.BUCKET, s3_servers.new_prefix(), directory / "dates.json", options)
