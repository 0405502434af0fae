"""The S3 target against real servers: what it sends, finds, refuses and leaves, where no fault is planned."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Self

import pytest
from aiohttp import web

from storage_backends import (
    AccessDenied,
    InvalidUrl,
    ObjectExists,
    ObjectInfo,
    ObjectNotFound,
    StorageBackend,
    TargetFull,
    TargetUnavailable,
    open_target,
)
from storage_backends.s3 import S3Backend, exclusive, stale
from storage_backends.s3.unfinished import HIDDEN_PREFIX
from tests import s3_servers
from tests.s3_proxy import Asked, HttpFault, S3Proxy

MIB = 1 << 20


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def read(target: StorageBackend, key: str, **options: Any) -> bytes:
    async with aclosing(target.get(key, **options)) as data:
        return b"".join([piece async for piece in data])


async def keys(target: StorageBackend) -> list[str]:
    return [info.key async for info in target.list_objects()]


def opened(options: Mapping[str, Any], prefix: str | None = None, bucket: str = s3_servers.BUCKET) -> S3Backend:
    target = open_target(f"s3://{bucket}/{prefix or s3_servers.new_prefix()}", options)
    assert isinstance(target, S3Backend)
    return target


def uploads(target: S3Backend) -> list[str]:
    client = s3_servers.ceph().client()
    found = client.list_multipart_uploads(Bucket=target.connection.options.bucket, Prefix=target.connection.path(""))
    client.close()
    return [upload["Key"] for upload in found.get("Uploads", [])]


ENDPOINTS: dict[str, Callable[[], dict[str, Any]]] = {
    "ceph": s3_servers.ceph_options,
    "ceph-tls": lambda: s3_servers.ceph_options(tls=True),
    "amazon": lambda: s3_servers.ceph_options(endpoint_url=s3_servers.amazon()),
    "swift": s3_servers.swift_options,
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("size", [5 * MIB, 5 * MIB + 1, 17 * MIB])
async def test_an_object_of_parts_is_the_same_for_put_stat_and_list(endpoint: str, size: int) -> None:
    content = os.urandom(size)
    async with opened(ENDPOINTS[endpoint]()) as target:
        step = 3 * MIB
        info = await target.put("parts", pieces(*(content[at : at + step] for at in range(0, size, step))))
        assert info.size == size
        assert await target.stat("parts") == info
        assert [each async for each in target.list_objects()] == [info]
        assert await read(target, "parts", etag=info.etag) == content
        with pytest.raises(ObjectExists):
            await target.put("parts", pieces(content))


@pytest.mark.parametrize(
    ("endpoint", "known"), [("ceph", False), ("ceph-tls", False), ("amazon", True), ("swift", False)]
)
async def test_whether_the_endpoint_refuses_to_replace_is_found_out_and_leaves_nothing(
    endpoint: str, *, known: bool
) -> None:
    async with opened(ENDPOINTS[endpoint]()) as target:
        assert await target.conditional_writes() is known
        assert await target.sweep(datetime.now(UTC) + timedelta(minutes=1)) == 0


async def test_amazon_itself_is_not_asked() -> None:
    async with open_target("s3://bucket", {"region": "eu-central-1"}) as target:
        assert isinstance(target, S3Backend)
        assert await target.conditional_writes()


async def test_a_small_object_does_not_slip_in_while_one_of_parts_is_published() -> None:
    """Ceph refuses to replace by small objects only: the writer of parts must hold those off until it is done."""
    publishing = asyncio.Event()

    def noticed(asked: Asked) -> bool:
        if matches := asked.operation == "CompleteMultipartUpload" and asked.path.endswith("/object"):
            publishing.set()
        return matches

    async def small() -> AsyncIterator[bytes]:
        await publishing.wait()
        yield b"small"

    async with (
        S3Proxy(s3_servers.ceph().endpoint, [HttpFault("slow", noticed)]) as proxy,
        opened(s3_servers.ceph_options(endpoint_url=proxy.endpoint)) as target,
    ):
        content = os.urandom(6 * MIB)
        of_parts, refused = await asyncio.gather(
            target.put("object", pieces(content)), target.put("object", small()), return_exceptions=True
        )
        assert isinstance(of_parts, ObjectInfo)
        assert isinstance(refused, ObjectExists)
        assert await read(target, "object") == content
        assert uploads(target) == []


async def test_the_claim_of_a_killed_writer_holds_others_off_until_it_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(s3_servers.ceph_options()) as target:
        name = f"{HIDDEN_PREFIX}object.{'0' * 32}.lock"
        await exclusive.put_hidden(target.connection, name)
        monkeypatch.setattr(exclusive, "WAIT_SECONDS", 0.5)
        with pytest.raises(TargetUnavailable, match="another writer"):
            await target.put("object", pieces(b"x"))
        assert await keys(target) == []
        await target.put("object.zip", pieces(b"x"))  # the claim is to another key
        assert await target.sweep(datetime.now(UTC) + timedelta(minutes=1)) == 0, "it still counts"
        monkeypatch.setattr(exclusive, "LEASE", timedelta(0))
        await target.put("object", pieces(b"x"))
        assert await target.sweep(datetime.now(UTC) + timedelta(minutes=1)) == 1


async def test_sweep_counts_by_the_last_part_and_leaves_others_alone() -> None:
    prefix = s3_servers.new_prefix()
    async with opened(s3_servers.ceph_options(), prefix) as target:
        client, bucket = s3_servers.ceph().client(), s3_servers.BUCKET
        old, fed = (
            client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/{key}")["UploadId"] for key in ("old", "fed")
        )
        client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/below/foreign")
        client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/.foreign")
        client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}x")
        await asyncio.sleep(1.1)
        between = datetime.now(UTC)
        await asyncio.sleep(1.1)
        client.upload_part(Bucket=bucket, Key=f"{prefix}/fed", UploadId=fed, PartNumber=1, Body=b"x")
        client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/new")
        client.close()
        assert await target.sweep(between) == 1
        assert sorted(uploads(target)) == [f"{prefix}/{key}" for key in (".foreign", "below/foreign", "fed", "new")]
        assert await target.sweep(between) == 0
        assert await target.sweep(datetime.now(UTC) + timedelta(minutes=1)) == 2
        assert old != fed


async def test_a_clock_that_is_ahead_makes_nobodys_upload_old(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + timedelta(days=3)

    prefix = s3_servers.new_prefix()
    async with opened(s3_servers.ceph_options(), prefix) as target:
        client = s3_servers.ceph().client()
        client.create_multipart_upload(Bucket=s3_servers.BUCKET, Key=f"{prefix}/object")
        client.close()
        with monkeypatch.context() as patched:
            patched.setattr(stale, "datetime", Ahead)
            assert await target.sweep(Ahead.now(UTC) - timedelta(hours=24)) == 0
        assert await target.sweep(datetime.now(UTC) + timedelta(minutes=1)) == 1


async def test_what_lies_deeper_or_is_no_key_is_not_listed() -> None:
    prefix = s3_servers.new_prefix()
    client = s3_servers.ceph().client()
    for name in ("object", "below/object", "ä", ".hidden", "with space", ""):
        client.put_object(Bucket=s3_servers.BUCKET, Key=f"{prefix}/{name}", Body=b"x")
    client.put_object(Bucket=s3_servers.BUCKET, Key=f"{prefix}x", Body=b"x")
    client.close()
    async with opened(s3_servers.ceph_options(), prefix) as target:
        assert await keys(target) == ["object"]


async def test_a_bucket_without_a_prefix_and_a_listing_of_many_pages() -> None:
    bucket = f"pages-{secrets.token_hex(4)}"
    s3_servers.ceph().create_bucket(bucket)
    async with opened(s3_servers.ceph_options(), bucket=bucket, prefix="/") as target:
        names = [f"object-{number:04}" for number in range(1005)]
        client = s3_servers.ceph().client()
        for name in names:
            client.put_object(Bucket=bucket, Key=name, Body=b"")
        client.close()
        assert await keys(target) == names


async def test_parts_grow_where_they_may_and_the_end_is_told_where_not() -> None:
    """With 10 parts at most, the third is twice as large, and the seventh four times."""
    content = os.urandom(5 * MIB)
    async with opened(s3_servers.ceph_options(max_parts=10)) as target:
        info = await target.put("grown", pieces(*[content] * 12))
        assert info.etag.endswith("-7")
        assert await read(target, "grown") == content * 12
    async with opened(s3_servers.ceph_options(max_parts=3, equal_parts=True)) as target:
        assert (await target.put("fits", pieces(*[content] * 3))).size == 15 * MIB
        with pytest.raises(TargetFull, match="more than 15728640 bytes") as caught:
            await target.put("large", pieces(*[content] * 3, b"x"))
        assert "part_bytes" in caught.value.hint
        assert await keys(target) == ["fits"]
        assert uploads(target) == []


async def test_full_object_checksums_are_sent_where_they_are_known() -> None:
    """The Amazon of the tests refuses an upload without them, once it was begun with them; Ceph is sent Content-MD5."""
    async with (
        S3Proxy(s3_servers.amazon()) as proxy,
        opened(s3_servers.ceph_options(endpoint_url=proxy.endpoint)) as target,
    ):
        await target.put("object", pieces(os.urandom(12 * MIB)))
        parts = [asked.headers for asked in proxy.asked if asked.operation == "UploadPart"]
        (completed,) = [
            asked for asked in proxy.asked if asked.operation == "CompleteMultipartUpload" and "object" in asked.path
        ]
        assert all("x-amz-checksum-crc32" in headers for headers in parts[1:])  # the first is of the probe
        assert completed.headers["x-amz-checksum-type"] == "FULL_OBJECT"
        assert completed.headers["if-none-match"] == "*"
    async with (
        S3Proxy(s3_servers.ceph().endpoint) as proxy,
        opened(s3_servers.ceph_options(endpoint_url=proxy.endpoint)) as target,
    ):
        await target.put("object", pieces(os.urandom(12 * MIB)))
        parts = [asked.headers for asked in proxy.asked if asked.operation == "UploadPart"]
        assert all("content-md5" in headers and "x-amz-checksum-crc32" not in headers for headers in parts)
        assert all("x-amz-trailer" not in asked.headers for asked in proxy.asked)


async def test_encryption_is_asked_for_and_a_server_that_cannot_is_told() -> None:
    options: dict[str, Any] = {"server_side_encryption": "aws:kms", "sse_kms_key_id": "alias/backup"}
    async with (
        S3Proxy(s3_servers.ceph().endpoint) as proxy,
        opened(s3_servers.ceph_options(endpoint_url=proxy.endpoint, **options)) as target,
    ):
        for size in (1, 6 * MIB):
            with pytest.raises(InvalidUrl) as caught:  # this Ceph has no key server
                await target.put("object", pieces(bytes(size)))
            assert caught.value.hint
        asked = [
            each
            for each in proxy.asked
            if each.path.endswith("/object") and "x-amz-meta-deviceon-backup-upload" in each.headers
        ]
        assert {each.operation for each in asked} == {"PutObject", "CreateMultipartUpload"}
        for each in asked:
            assert each.headers["x-amz-server-side-encryption"] == "aws:kms"
            assert each.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/backup"
        assert uploads(target) == []
        assert await keys(target) == []


@pytest.fixture
def lock_bucket() -> str:
    name = f"lock-{secrets.token_hex(4)}"
    s3_servers.ceph().create_bucket(name, object_lock=True)
    return name


@pytest.mark.parametrize("size", [1, 6 * MIB])
@pytest.mark.parametrize("mode", ["GOVERNANCE", "COMPLIANCE"])
async def test_a_locked_object_is_proved_and_kept(lock_bucket: str, mode: str, size: int) -> None:
    options = s3_servers.ceph_options(tls=True, object_lock_mode=mode, object_lock_days=3)
    async with opened(options, bucket=lock_bucket) as target:
        await target.put("object.zip", pieces(bytes(size)))
        client = s3_servers.ceph().client()
        described = client.head_object(Bucket=lock_bucket, Key=target.connection.path("object.zip"))
        client.close()
        assert described["ObjectLockMode"] == mode
        until = described["ObjectLockRetainUntilDate"].astimezone(UTC)
        assert abs(until - datetime.now(UTC) - timedelta(days=3)) < timedelta(minutes=5)
        with pytest.raises(AccessDenied, match="is locked by Object Lock") as caught:
            await target.delete("object.zip")
        assert f"{mode} until {until:%F}" in str(caught.value)
        assert len(await read(target, "object.zip")) == size
    async with opened(
        s3_servers.ceph_options(), prefix=target.connection.options.prefix.rstrip("/"), bucket=lock_bucket
    ) as plain:
        with pytest.raises(AccessDenied, match="is locked"):  # a delete marker would hide it
            await plain.delete("object.zip")
        assert await keys(plain) == ["object.zip"]


async def test_a_lock_that_has_ended_lets_every_version_go(lock_bucket: str) -> None:
    options = s3_servers.ceph_options(object_lock_mode="GOVERNANCE", object_lock_days=2 / 86400)
    async with opened(options, bucket=lock_bucket) as target:
        await target.put("object.zip", pieces(b"first"))
        await target.put("object.zip", pieces(b"second"), overwrite=True)
        deadline = time.monotonic() + 60
        while True:
            try:
                await target.delete("object.zip")
                break
            except AccessDenied:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.5)
        await target.delete("object.zip")
        client = s3_servers.ceph().client()
        left = client.list_object_versions(Bucket=lock_bucket, Prefix=target.connection.path("object.zip"))
        client.close()
        assert left.get("Versions", []) == []


@pytest.mark.parametrize("size", [1, 6 * MIB])
async def test_a_lock_that_the_bucket_does_not_keep_is_a_failure_and_leaves_nothing(size: int) -> None:
    options = s3_servers.ceph_options(object_lock_mode="COMPLIANCE", object_lock_days=1)
    async with opened(options) as target:
        with pytest.raises(InvalidUrl) as caught:
            await target.put("object.zip", pieces(bytes(size)))
        assert caught.value.hint
        assert await keys(target) == []
        assert uploads(target) == []


async def test_what_is_no_archive_is_not_locked(lock_bucket: str) -> None:
    options = s3_servers.ceph_options(object_lock_mode="COMPLIANCE", object_lock_days=3)
    async with opened(options, bucket=lock_bucket) as target:
        for key in ("deviceon-backup-probe-1", "Backup_20260101_0000Z.zip.hold"):
            await target.put(key, pieces(b"x"))
            await target.delete(key)
        assert await keys(target) == []


async def test_a_bucket_that_does_not_exist_is_no_matter_of_the_object() -> None:
    async with opened(s3_servers.ceph_options(), bucket="no-such-bucket") as target:
        for work in (target.stat("object"), keys(target), target.put("object", pieces(b"x")), read(target, "object")):
            with pytest.raises(InvalidUrl) as caught:
                await work
            assert "Create" in caught.value.hint
            assert not caught.value.transient


@pytest.mark.parametrize("wrong", ["secret", "key"])
@pytest.mark.parametrize("size", [1, 6 * MIB])
async def test_wrong_credentials_are_told_at_once_and_not_repeated(wrong: str, size: int) -> None:
    async with S3Proxy(s3_servers.ceph().endpoint) as proxy:
        secret = "hunter2-hunter2"
        options = s3_servers.ceph_options(endpoint_url=proxy.endpoint) | {wrong: secret}
        async with opened(options) as target:
            for work in (target.stat("object"), keys(target), target.put("object", pieces(bytes(size)))):
                with pytest.raises(AccessDenied) as caught:
                    await work
                assert caught.value.hint
                assert secret not in f"{caught.value} {caught.value.hint} {caught.value.__cause__}"
        assert len(proxy.asked) <= 4


async def test_credentials_of_the_usual_chain_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = s3_servers.ceph_options()
    key, secret = options.pop("key"), options.pop("secret")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    async with opened(options) as target:
        with pytest.raises(AccessDenied, match="no credentials"):
            await target.stat("object")
    (tmp_path / "credentials").write_text(f"[backup]\naws_access_key_id={key}\naws_secret_access_key={secret}\n")
    async with opened(options | {"profile": "backup"}) as target:
        assert await keys(target) == []
    async with opened(options | {"profile": "absent"}) as target:
        with pytest.raises(AccessDenied, match="absent"):
            await target.stat("object")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    async with opened(options) as target:
        assert await keys(target) == []


@pytest.mark.parametrize("where", ["instance", "container"])
async def test_the_role_of_an_instance_or_a_container_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    """A service on loopback that answers as Amazon's does to machines and containers."""
    options = s3_servers.ceph_options()
    expires = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    role = {"AccessKeyId": options.pop("key"), "SecretAccessKey": options.pop("secret")}
    role |= {"Code": "Success", "Token": "", "Expiration": expires}
    asked: list[str] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        texts = {"/latest/api/token": "token", "/latest/meta-data/iam/security-credentials/": "backup"}
        return web.Response(text=texts.get(request.path, json.dumps(role)))

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    if where == "instance":
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)
    else:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{address}/role")
    try:
        async with opened(options) as target:
            await target.put("object", pieces(b"x"))
            assert await keys(target) == ["object"]
    finally:
        await runner.cleanup()
    assert asked[-1] == ("/role" if where == "container" else "/latest/meta-data/iam/security-credentials/backup")


async def test_no_credentials_at_all_are_nobody() -> None:
    options = s3_servers.ceph_options(anon=True)
    del options["key"], options["secret"]
    async with opened(options) as target:
        with pytest.raises(AccessDenied):
            await keys(target)


async def test_a_certificate_of_an_unknown_authority_is_refused() -> None:
    options = s3_servers.ceph_options(tls=True)
    del options["verify"]
    async with opened(options) as target:
        with pytest.raises(InvalidUrl, match="not trusted") as caught:
            await target.stat("object")
        assert "verify" in caught.value.hint
    async with opened(options | {"verify": False}) as target:
        with pytest.raises(ObjectNotFound):
            await target.stat("object")


@pytest.mark.parametrize(
    ("style", "host", "path"), [("virtual", "shared.localhost", "/"), ("path", "localhost", "/shared/")]
)
async def test_buckets_are_addressed_as_it_was_asked_for(style: str, host: str, path: str) -> None:
    asked: list[Any] = []

    def note(request: Any, **_: object) -> None:
        asked.append(request)

    options = s3_servers.ceph_options(addressing_style=style, retry_seconds=0, endpoint_url="http://localhost:1")
    async with opened(options) as target:
        target.connection.session.register("before-send.s3", note)
        with pytest.raises(Exception, match="s3://shared"):
            await target.stat("object")
    assert asked[0].url.startswith(f"http://{host}:1{path}test-")


async def test_the_client_is_made_once_and_not_after_the_end() -> None:
    target = opened(s3_servers.ceph_options())
    first, second = await asyncio.gather(target.connection.client(), target.connection.client())
    assert first is second
    await target.aclose()
    await target.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await target.stat("object")


def test_other_targets_do_not_import_the_libraries_of_s3() -> None:
    code = "import sys, storage_backends as s; s.open_target('/tmp'); print({'botocore', 'aiohttp'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


async def test_free_space_is_unknown() -> None:
    async with opened(s3_servers.ceph_options()) as target:
        assert await target.free_bytes() is None
