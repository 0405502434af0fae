"""Faults between the S3 target and a real server, and of the server: each is planned, met, and counted.

Whatever happens, either `put` succeeds and the object is whole, or it fails and there is none; and nothing is left
that `sweep` does not find.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from demo.s3_server import CephServer
from storage_backends import (
    AccessDenied,
    ObjectChanged,
    ObjectExists,
    StorageBackend,
    TargetFull,
    TargetUnavailable,
    open_target,
)
from storage_backends.s3 import S3Backend
from tests import s3_servers
from tests.s3_proxy import WHILE, Asked, HttpFault, S3Proxy
from tests.scoreboard import counted
from tests.sizes import SEED, size
from tests.tcp_proxy import Fault, TcpProxy

LOST_ANSWERS = size("LOST_ANSWERS", 1)
STORM = size("STORM", 4)
"""Objects that are put, refused and read while a third of all requests fail."""

MIB = 1 << 20
CONTENT = os.urandom(12 * MIB)


async def pieces(content: bytes, size: int = MIB) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def read(target: StorageBackend, key: str, **options: Any) -> bytes:
    async with aclosing(target.get(key, **options)) as data:
        return b"".join([piece async for piece in data])


async def keys(target: StorageBackend) -> list[str]:
    return [info.key async for info in target.list_objects()]


def opened(options: Mapping[str, Any], prefix: str | None = None, bucket: str = s3_servers.BUCKET) -> S3Backend:
    target = open_target(f"s3://{bucket}/{prefix or s3_servers.new_prefix()}", options)
    assert isinstance(target, S3Backend)
    return target


def own_options(server: CephServer) -> dict[str, Any]:
    return {"endpoint_url": server.endpoint, "key": server.access_key, "secret": server.secret_key}


def left(target: S3Backend, server: CephServer | None = None) -> list[str]:
    """Name unfinished uploads and hidden objects, seen from elsewhere."""
    client, place = (server or s3_servers.ceph()).client(), target.connection.options
    where = {"Bucket": place.bucket, "Prefix": place.prefix}
    names = [item["Key"] for item in client.list_multipart_uploads(**where).get("Uploads", [])]
    names += [item["Key"] for item in client.list_objects_v2(**where).get("Contents", []) if "/." in item["Key"]]
    client.close()
    return names


def of_object(operation: str) -> Callable[[Asked], bool]:
    """Match the requests of an operation on the object, not on hidden ones."""
    return lambda asked: asked.operation == operation and asked.path.endswith("/object")


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("after", [0, 1000, 2 * MIB, 11 * MIB])
async def test_a_reset_at_any_byte_of_an_upload_is_survived(after: int, *, tls: bool) -> None:
    server = s3_servers.ceph()
    faults = [Fault("reset", after=after), Fault("reset", after=after + 500_000)]
    async with (
        TcpProxy(server.tls_endpoint if tls else server.endpoint, faults) as proxy,
        opened(s3_servers.ceph_options(tls=tls, endpoint_url=proxy.endpoint)) as target,
    ):
        info = await target.put("object", pieces(CONTENT))
        assert await target.stat("object") == info
        assert await read(target, "object") == CONTENT
        assert await target.sweep(datetime.now(UTC) + timedelta(minutes=1)) == 0


@pytest.mark.parametrize("kind", ["reset", "close", "stall"])
async def test_a_stream_that_breaks_while_reading_goes_on_where_it_was(kind: str) -> None:
    faults = [Fault(kind, after=after, to_server=False) for after in (100_000, 5 * MIB, 9 * MIB)]
    prefix = s3_servers.new_prefix()
    async with opened(s3_servers.ceph_options(), prefix) as direct:
        info = await direct.put("object", pieces(CONTENT))
    async with (
        TcpProxy(s3_servers.ceph().endpoint, faults) as proxy,
        opened(s3_servers.ceph_options(endpoint_url=proxy.endpoint, timeout=1.5), prefix) as target,
    ):
        assert await read(target, "object", offset=7, etag=info.etag) == CONTENT[7:]


async def test_another_object_is_not_joined_to_a_stream_that_broke() -> None:
    prefix = s3_servers.new_prefix()
    async with opened(s3_servers.ceph_options(), prefix) as direct:
        await direct.put("object", pieces(CONTENT))
        async with (
            TcpProxy(s3_servers.ceph().endpoint, [Fault("reset", after=5 * MIB, to_server=False)]) as proxy,
            opened(s3_servers.ceph_options(endpoint_url=proxy.endpoint), prefix) as target,
            aclosing(target.get("object")) as data,
        ):
            got = await anext(data)
            await direct.put("object", pieces(os.urandom(12 * MIB)), overwrite=True)
            with pytest.raises(ObjectChanged):
                async for piece in data:
                    got += piece
        assert got == CONTENT[: len(got)]


async def test_an_upload_that_stalls_is_ended_by_our_own_watch_and_sent_again() -> None:
    async with (
        TcpProxy(s3_servers.ceph().endpoint, [Fault("stall", after=2 * MIB)]) as proxy,
        opened(s3_servers.ceph_options(endpoint_url=proxy.endpoint, timeout=1.5)) as target,
    ):
        await target.put("object", pieces(CONTENT))
        assert await read(target, "object") == CONTENT


async def test_a_line_that_stalls_for_ever_fails_in_bounded_time() -> None:
    async with TcpProxy(s3_servers.ceph().endpoint, [Fault("stall", after=2 * MIB, times=1000)]) as proxy:
        options = s3_servers.ceph_options(endpoint_url=proxy.endpoint, timeout=1, retry_seconds=1)
        async with opened(options) as target, asyncio.timeout(120):
            with pytest.raises(TargetUnavailable, match="does not answer") as caught:
                await target.put("object", pieces(CONTENT))
            assert caught.value.hint
    async with opened(s3_servers.ceph_options(), target.connection.options.prefix.rstrip("/")) as direct:
        assert await keys(direct) == []
        assert await direct.sweep(datetime.now(UTC) + timedelta(minutes=1)) == len(left(direct)) + 1
        assert left(direct) == []


@pytest.mark.parametrize("after", [0, 1400, 6 * MIB])
async def test_a_line_that_breaks_tls_is_tried_again(after: int) -> None:
    """In the handshake of either side, and in the middle of an upload: an SSLError that is not about certificates."""
    for to_server in (True, False) if after < MIB else (True,):
        options = s3_servers.ceph_options(tls=True)
        fault = Fault("corrupt", after, to_server=to_server)
        async with (
            TcpProxy(options["endpoint_url"], [fault]) as proxy,
            opened(options | {"endpoint_url": proxy.endpoint, "timeout": 5}) as target,
        ):
            content = os.urandom(11 * MIB)
            await target.put("object", pieces(content))
            assert await read(target, "object") == content


async def test_a_slow_line_is_not_taken_for_a_stalled_one() -> None:
    """Sending a part takes twice as long as the server may be silent."""
    content = os.urandom(16 * MIB)
    async with TcpProxy(s3_servers.ceph().endpoint, rate=3e6) as proxy:
        options = s3_servers.ceph_options(endpoint_url=proxy.endpoint, timeout=3, part_bytes=16 * MIB)
        async with opened(options) as target:
            await target.put("object", pieces(content))
            assert await read(target, "object") == content


@pytest.mark.parametrize("amazon", [False, True])
async def test_a_storm_of_errors_on_a_third_of_all_requests_is_survived(record_property: Any, *, amazon: bool) -> None:
    dice = random.Random(SEED)
    faults = [
        HttpFault("answer", lambda _: dice.random() < 0.1, status, code, times=10**6)
        for status, code in ((500, "InternalError"), (503, "ServiceUnavailable"), (503, "SlowDown"))
    ]
    upstream = s3_servers.amazon() if amazon else s3_servers.ceph().endpoint
    async with (
        S3Proxy(upstream, faults) as proxy,
        opened(s3_servers.ceph_options(endpoint_url=proxy.endpoint)) as target,
    ):
        for number in range(STORM):
            content = CONTENT[: (number % 4 + 1) * 3 * MIB]
            await target.put(f"object{number}", pieces(content))
            with pytest.raises(ObjectExists):
                await target.put(f"object{number}", pieces(content))
            assert await read(target, f"object{number}") == content
        assert len(await keys(target)) == STORM
        await target.delete("object0")
        assert "object0" not in await keys(target)
        assert len(await keys(target)) == STORM - 1
        assert await target.sweep(datetime.now(UTC) + timedelta(minutes=1)) == 0
    refused = sum(fault.hits for fault in faults)
    record_property(
        "counted", counted(len(proxy.asked), seed=SEED, refused=refused, let_through=len(proxy.asked) - refused)
    )


@pytest.mark.parametrize("again", range(LOST_ANSWERS))
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("amazon", [False, True])
@pytest.mark.parametrize("kind", ["lose", "answer-after"])
@pytest.mark.parametrize(
    ("operation", "size"),
    [("CompleteMultipartUpload", 12 * MIB), ("PutObject", MIB), ("UploadPart", 12 * MIB)],
)
async def test_a_lost_answer_or_an_error_after_success_is_one_object_reported_once(
    operation: str, size: int, kind: str, again: int, *, amazon: bool, overwrite: bool
) -> None:
    upstream = s3_servers.amazon() if amazon else s3_servers.ceph().endpoint
    async with (
        S3Proxy(upstream, [HttpFault(kind, of_object(operation))]) as proxy,
        opened(s3_servers.ceph_options(endpoint_url=proxy.endpoint)) as target,
    ):
        info = await target.put("object", pieces(CONTENT[:size]), overwrite=overwrite)
        assert await keys(target) == ["object"]
        assert await target.stat("object") == info
        assert await read(target, "object") == CONTENT[:size]
        assert left(target) == []


@pytest.mark.parametrize("amazon", [False, True])
@pytest.mark.parametrize(("operation", "size"), [("CompleteMultipartUpload", 12 * MIB), ("PutObject", MIB)])
async def test_a_request_that_is_carried_out_late_is_still_ours(operation: str, size: int, *, amazon: bool) -> None:
    """The connection breaks, HEAD finds nothing, the request is sent again, and only then both are carried out."""
    upstream = s3_servers.amazon() if amazon else s3_servers.ceph().endpoint
    async with (
        S3Proxy(upstream, [HttpFault("late", of_object(operation))]) as proxy,
        opened(s3_servers.ceph_options(endpoint_url=proxy.endpoint)) as target,
    ):
        await target.put("object", pieces(CONTENT[:size]))
        await asyncio.sleep(WHILE + 0.2)  # the late one has come
        assert await keys(target) == ["object"]
        assert await read(target, "object") == CONTENT[:size]
        assert left(target) == []


@pytest.mark.parametrize("carried_out", [False, True])
async def test_an_error_with_status_200_is_an_error(*, carried_out: bool) -> None:
    kind = "answer-after" if carried_out else "answer"
    fault = HttpFault(kind, of_object("CompleteMultipartUpload"), status=200)
    async with (
        S3Proxy(s3_servers.ceph().endpoint, [fault]) as proxy,
        opened(s3_servers.ceph_options(endpoint_url=proxy.endpoint)) as target,
    ):
        await target.put("object", pieces(CONTENT))
        assert await read(target, "object") == CONTENT
        assert proxy.operations.count("CompleteMultipartUpload") == (1 if carried_out else 2) + 1  # and the probe's


async def test_the_lost_answer_to_a_begun_upload_leaves_what_sweep_finds() -> None:
    async with (
        S3Proxy(s3_servers.ceph().endpoint, [HttpFault("lose", of_object("CreateMultipartUpload"))]) as proxy,
        opened(s3_servers.ceph_options(endpoint_url=proxy.endpoint)) as target,
    ):
        await target.put("object", pieces(CONTENT))
        assert len(left(target)) == 1
        assert await target.sweep(datetime.now(UTC) + timedelta(minutes=1)) == 1
        assert left(target) == []
        assert await read(target, "object") == CONTENT


async def test_errors_that_do_not_end_fail_and_leave_nothing() -> None:
    for operation in ("UploadPart", "CompleteMultipartUpload"):
        fault = HttpFault("answer", of_object(operation), 503, "SlowDown", times=10**6)
        async with (
            S3Proxy(s3_servers.ceph().endpoint, [fault]) as proxy,
            opened(s3_servers.ceph_options(endpoint_url=proxy.endpoint, retry_seconds=1)) as target,
        ):
            with pytest.raises(TargetUnavailable, match="SlowDown") as caught:
                await target.put("object", pieces(CONTENT))
            assert caught.value.transient
            assert await keys(target) == []
            assert left(target) == []


async def test_a_part_that_the_line_corrupted_is_sent_again() -> None:
    """Ceph compares Content-MD5."""

    class Corrupting(S3Proxy):
        corrupted = 0

        def ask(self, request: Any, body: bytes) -> Any:
            if len(body) == 5 * MIB and self.corrupted < 2:
                self.corrupted += 1
                body = body[:1000] + bytes([body[1000] ^ 1]) + body[1001:]
            return super().ask(request, body)

    async with Corrupting(s3_servers.ceph().endpoint) as proxy:
        # Unsigned, as over https: else the signature would not fit, which is no reason to try again.
        options = s3_servers.ceph_options(
            endpoint_url=proxy.endpoint, config_kwargs={"s3": {"payload_signing_enabled": False}}
        )
        async with opened(options) as target:
            await target.put("object", pieces(CONTENT))
            assert await read(target, "object") == CONTENT
    assert proxy.corrupted == 2


@pytest.mark.parametrize(
    ("operation", "which"),
    [
        ("PutObject", 0),
        ("PutObject", 1),
        ("CreateMultipartUpload", 0),
        ("UploadPart", 0),
        ("CompleteMultipartUpload", 0),
        ("AbortMultipartUpload", 0),
        ("DeleteObject", 0),
    ],
)
async def test_cancelled_while_the_endpoint_is_tried_leaves_nothing(operation: str, which: int) -> None:
    asked, met = asyncio.Event(), 0

    def noticed(request: Asked) -> bool:
        nonlocal met
        matches = request.operation == operation and request.path.endswith(".probe")
        met += matches
        if matches and met == which + 1:
            asked.set()
            return True
        return False

    await _cancelled_at(noticed, asked, s3_servers.ceph().endpoint, CONTENT)


@pytest.mark.parametrize("amazon", [False, True])
@pytest.mark.parametrize(
    ("operation", "size"),
    [("CreateMultipartUpload", 12 * MIB), ("CompleteMultipartUpload", 12 * MIB), ("PutObject", MIB)],
)
async def test_cancelled_while_the_server_begins_or_publishes_leaves_nothing(
    operation: str, size: int, *, amazon: bool
) -> None:
    """The server goes on although nobody waits for its answer any more."""
    upstream = s3_servers.amazon() if amazon else s3_servers.ceph().endpoint
    asked = asyncio.Event()

    def noticed(request: Asked) -> bool:
        if matches := of_object(operation)(request):
            asked.set()
        return matches

    await _cancelled_at(noticed, asked, upstream, CONTENT[:size])


async def _cancelled_at(noticed: Callable[[Asked], bool], asked: asyncio.Event, upstream: str, content: bytes) -> None:
    """Cancel a put when `asked`, while the server takes its time for what is `noticed`; nothing may be left."""
    async with (
        S3Proxy(upstream, [HttpFault("slow", noticed)]) as proxy,
        opened(s3_servers.ceph_options(endpoint_url=proxy.endpoint)) as target,
    ):
        task = asyncio.create_task(target.put("object", pieces(content)))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(2 * WHILE)
        assert await keys(target) == []
        assert left(target) == []


async def test_the_server_killed_midway_is_waited_for_or_given_up() -> None:
    with CephServer() as server:
        server.create_bucket("bucket")
        options: dict[str, Any] = own_options(server) | {"part_bytes": 5 * MIB, "retry_seconds": 60}

        async def data(*, comes_back: bool) -> AsyncIterator[bytes]:
            yield CONTENT
            await asyncio.to_thread(server.kill_gateway)
            yield CONTENT
            if comes_back:
                await asyncio.to_thread(server.start_gateway)
            yield CONTENT

        async with opened(options, bucket="bucket") as target:
            await target.put("object", data(comes_back=True))
            assert await read(target, "object") == CONTENT * 3
        async with opened(options | {"retry_seconds": 1}, bucket="bucket") as target:
            with pytest.raises(TargetUnavailable) as caught:
                await target.put("object", data(comes_back=False))
            assert caught.value.hint
            await asyncio.to_thread(server.start_gateway)
            assert await keys(target) == []
            assert len(left(target, server)) == 1
            assert await target.sweep(datetime.now(UTC) + timedelta(minutes=1)) == 1
            assert left(target, server) == []


async def test_the_server_stopped_is_not_waited_for_without_end() -> None:
    with CephServer() as server:
        server.create_bucket("bucket")
        options = own_options(server)
        impatient = options | {"timeout": 1, "retry_seconds": 1}
        async with opened(options, "at", "bucket") as patient, opened(impatient, "at", "bucket") as target:
            await patient.put("object", pieces(b"x"))
            os.kill(server.pid("ceph-osd"), 19)  # SIGSTOP: the gateway takes requests and waits
            async with asyncio.timeout(100):
                for work in (
                    lambda: target.stat("object"),
                    lambda: target.put("other", pieces(b"x")),
                    lambda: keys(target),
                ):
                    with pytest.raises(TargetUnavailable):
                        await work()
            os.kill(server.pid("ceph-osd"), 18)
            assert (await patient.stat("object")).size == 1


async def test_nobody_listening_is_said_soon() -> None:
    options = s3_servers.ceph_options(endpoint_url="http://127.0.0.1:1", retry_seconds=0.5)
    async with opened(options) as target:
        with pytest.raises(TargetUnavailable, match=r"[Cc]onnect") as caught:
            await target.stat("object")
        assert "endpoint" in caught.value.hint


async def test_credentials_revoked_midway_are_told_and_nothing_appears() -> None:
    server, key, secret = s3_servers.ceph(), f"AK{secrets.token_hex(6)}", secrets.token_hex(12)
    bucket = f"revoked-{secrets.token_hex(4)}"
    server.add_user(bucket, key, secret)
    server.create_bucket(bucket, access_key=key, secret_key=secret)

    async def data() -> AsyncIterator[bytes]:
        yield CONTENT
        await asyncio.to_thread(server.remove_key, bucket, key)
        yield CONTENT

    async with opened(s3_servers.ceph_options(key=key, secret=secret), bucket=bucket) as target:
        with pytest.raises(AccessDenied) as caught:
            await target.put("object", data())
        assert "key" in caught.value.hint
        assert secret not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("size", [2 * MIB, 12 * MIB])
async def test_a_full_quota_is_told_and_nothing_half_made_is_left(size: int) -> None:
    server, key, secret = s3_servers.ceph(), f"AK{secrets.token_hex(6)}", secrets.token_hex(12)
    bucket = f"full-{secrets.token_hex(4)}"
    server.add_user(bucket, key, secret, quota_bytes=MIB)
    server.create_bucket(bucket, access_key=key, secret_key=secret)
    async with opened(s3_servers.ceph_options(key=key, secret=secret), bucket=bucket) as target:
        with pytest.raises(TargetFull) as caught:
            await target.put("object", pieces(CONTENT[:size]))
        assert "quota" in caught.value.hint
        assert await keys(target) == []
        assert await target.sweep(datetime.now(UTC) + timedelta(minutes=1)) == 0
