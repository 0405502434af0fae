"""Bytes that change on their way to an S3 server: each dialect refuses them, by the checksum that it knows."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

import pytest

from storage_backends import TargetUnavailable, open_target
from storage_backends.s3 import S3Backend
from storage_backends.s3.body import PartBody
from tests import s3_servers

MIB = 1 << 20
CONTENT = os.urandom(12 * MIB)
# As over https, where the signature says nothing of the body.
UNSIGNED: dict[str, Any] = {"config_kwargs": {"s3": {"payload_signing_enabled": False}}}
DIALECTS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "ceph, https": lambda: s3_servers.ceph_options(tls=True),
    "ceph, signed": s3_servers.ceph_options,
    "swift": lambda: s3_servers.swift_options(**UNSIGNED),
    "amazon": lambda: s3_servers.ceph_options(endpoint_url=s3_servers.amazon(), **UNSIGNED),
}
SIZES = {"parts": 12 * MIB, "whole": 2 * MIB}


class Corrupting:
    """Sends another last byte of request bodies, `times` times, after their checksums were made."""

    def __init__(self, times: int, patch: pytest.MonkeyPatch) -> None:
        self.left = times
        self.sent = 0
        honest = PartBody.__aiter__

        async def sending(body: PartBody) -> AsyncIterator[memoryview]:
            pieces = [piece async for piece in honest(body)]
            if len(body) >= 2 * MIB:  # not what tries the endpoint
                self.sent += 1
                if self.left:
                    self.left -= 1
                    pieces[-1] = memoryview(bytes(pieces[-1][:-1]) + bytes([pieces[-1][-1] ^ 1]))
            for piece in pieces:
                yield piece

        patch.setattr(PartBody, "__aiter__", sending)


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), MIB):
        yield content[start : start + MIB]


def opened(dialect: str, **more: Any) -> S3Backend:
    target = open_target(f"s3://{s3_servers.BUCKET}/{s3_servers.new_prefix()}", DIALECTS[dialect]() | more)
    assert isinstance(target, S3Backend)
    return target


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_bytes_that_changed_on_their_way_are_refused_and_sent_again(
    dialect: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupting = Corrupting(1, monkeypatch)
    async with opened(dialect) as target:
        await target.put("object", pieces(CONTENT[:size]))
        assert (corrupting.left, corrupting.sent) == (0, -(-size // (5 * MIB)) + 1)
        async with aclosing(target.get("object")) as data:
            assert b"".join([piece async for piece in data]) == CONTENT[:size]


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_way_that_changes_bytes_every_time_ends_a_put_with_nothing_left(
    dialect: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Corrupting(1000, monkeypatch)
    async with opened(dialect, retry_seconds=0.3) as target:
        with pytest.raises(TargetUnavailable) as caught:
            await target.put("object", pieces(CONTENT[:size]))
        assert caught.value.hint
        assert [info async for info in target.list_objects()] == []
        client = await target.connection.client()
        place = {"Bucket": s3_servers.BUCKET, "Prefix": target.connection.options.prefix}
        assert not (await client.list_multipart_uploads(**place)).get("Uploads")
