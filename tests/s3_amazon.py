"""Ceph with what Amazon's own S3 has and Ceph 16 has not, as documented: for what no server at hand can do.

    python -m tests.s3_amazon UPSTREAM KEY SECRET

prints its address and runs until its standard input ends. It adds

* `If-None-Match: *` of CompleteMultipartUpload, atomic with PutObject;
* full-object CRC-32 of uploads of parts: announced when one begins, checked in each part and over the whole.
"""

from __future__ import annotations

import asyncio
import base64
import re
import sys
import zlib
from collections import defaultdict
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from aiohttp import web
from botocore.exceptions import ClientError

from tests.s3_proxy import Asked, S3Proxy


class AmazonDialect(S3Proxy):
    """The proxy; `key` and `secret` are for looking whether an object is there."""

    def __init__(self, upstream: str, key: str, secret: str) -> None:
        super().__init__(upstream)
        self._credentials = {"aws_access_key_id": key, "aws_secret_access_key": secret}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._parts: dict[str, dict[int, bytes]] = {}

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        config = AioConfig(s3={"addressing_style": "path"})
        self._client = await self._stack.enter_async_context(
            AioSession().create_client(
                "s3", endpoint_url=self.upstream, region_name="us-east-1", config=config, **self._credentials
            )
        )
        return await super().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, value, trace)
        await self._stack.aclose()

    async def answer(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        """Add to the server's abilities, or pass on."""
        self.asked.clear()
        match asked.operation:
            case "CreateMultipartUpload" if asked.headers.get("x-amz-checksum-type") == "FULL_OBJECT":
                return await self._begin(request, asked)
            case "UploadPart" if (upload := request.query["uploadId"]) in self._parts:
                if asked.headers.get("x-amz-checksum-crc32") != crc32(asked.body):
                    return refused(400, "BadDigest")
                self._parts[upload][int(request.query["partNumber"])] = asked.body
            case "CompleteMultipartUpload":
                upload = request.query["uploadId"]
                if upload in self._parts and not self._checksums_fit(upload, asked):
                    return refused(400, "BadDigest")
        if asked.headers.get("if-none-match") == "*":
            async with self._locks[asked.path]:
                if await self._exists(asked.path):
                    return refused(412, "PreconditionFailed")
                return await super().answer(request, asked)
        return await super().answer(request, asked)

    async def _begin(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        async with self.ask(request, asked.body) as answer:
            text = await answer.text()
            if answer.status == 200:
                self._parts[re.search("<UploadId>(.*)</UploadId>", text)[1]] = {}  # type: ignore[index]
            headers = {"x-amz-checksum-algorithm": "CRC32", "x-amz-checksum-type": "FULL_OBJECT"}
            return web.Response(status=answer.status, text=text, headers=headers, content_type="application/xml")

    def _checksums_fit(self, upload: str, asked: Asked) -> bool:
        parts = self._parts[upload]
        named = re.findall(rb"<ChecksumCRC32>(.*?)</ChecksumCRC32>", asked.body)
        whole = b"".join(parts[number] for number in sorted(parts))
        return (
            [each.decode() for each in named] == [crc32(parts[number]) for number in sorted(parts)]
            and asked.headers.get("x-amz-checksum-crc32") == crc32(whole)
            and asked.headers.get("x-amz-checksum-type") == "FULL_OBJECT"
        )

    async def _exists(self, path: str) -> bool:
        bucket, _, key = path.removeprefix("/").partition("/")
        try:
            await self._client.head_object(Bucket=bucket, Key=key)
        except ClientError:
            return False
        return True


def crc32(content: bytes) -> str:
    """Return a CRC-32 as S3's headers have it."""
    return base64.b64encode(zlib.crc32(content).to_bytes(4, "big")).decode()


def refused(status: int, code: str) -> web.Response:
    """Return an error as S3 words it."""
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>refused</Message></Error>"
    return web.Response(status=status, text=text, content_type="application/xml")


async def main(upstream: str, key: str, secret: str) -> None:
    """Run until whoever started this is gone."""
    async with AmazonDialect(upstream, key, secret) as proxy:
        print(proxy.endpoint, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
