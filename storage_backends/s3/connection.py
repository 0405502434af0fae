"""Requests to one bucket: one client, a watch over each request, and retries within a budget of seconds.

aiobotocore's own read time-out does not fire while an upload is stalled, so each request is watched here: it fails
when for `timeout` seconds no byte of its body was taken and no answer came.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore import UNSIGNED
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from storage_backends.base import InvalidUrl
from storage_backends.s3.body import PartBody
from storage_backends.s3.errors import FAILURES, is_retriable, mapped
from storage_backends.s3.options import S3Options

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
UNKNOWN_SECONDS = 10.0
CONNECT_SECONDS = 10.0
MOST_CONNECTIONS = 100


class Connection:
    """The client for `options.bucket`, made when first used. Of one event loop; used by many tasks."""

    def __init__(self, options: S3Options) -> None:
        self.options = options
        self.session = AioSession(profile=options.profile)
        self._config = _config(options)
        self._stack = AsyncExitStack()
        self._lock = asyncio.Lock()
        self._client: Any = None
        self.heads_break = False
        """The server breaks HTTP, as Swift does: it sends a body with its 404 to HEAD, which the next answer meets."""
        self._answered = False
        self._closed = False

    async def client(self) -> Any:
        """Return aiobotocore's client."""
        if self._client is None:
            async with self._lock:
                if self._closed:
                    raise RuntimeError("the target was closed")
                if self._client is None:
                    self._client = await self._stack.enter_async_context(self._create())
        return self._client

    def _create(self) -> Any:
        return self.session.create_client("s3", config=self._config, **self.options.client)

    async def endpoint_host(self) -> str:
        """Return the name of the host that is spoken to; AWS has a default, and settings outside of ours."""
        client = await self.client()
        return (urlsplit(client.meta.endpoint_url).hostname or "").lower()

    def where(self, key: str = "") -> str:
        """Return the URL of an object, for messages; of the target without a key."""
        return f"{self.options.url}/{key}" if key else self.options.url

    def path(self, name: str) -> str:
        """Return the key in the bucket of what the target calls `name`."""
        return f"{self.options.prefix}{name}"

    def retries(self) -> Retries:
        """Return a budget for one request. An endpoint that never answered is given up sooner."""
        seconds = self.options.retry_seconds
        return Retries(seconds if self._answered else min(seconds, UNKNOWN_SECONDS))

    async def once(self, operation: str, /, *, seconds: float | None = None, **parameters: Any) -> dict[str, Any]:
        """Send one request about the bucket, without a retry. Raises what is in `errors.FAILURES`.

        `seconds` without progress are its end, by default the option `timeout`.
        """
        loop = asyncio.get_running_loop()
        patience = seconds or self.options.timeout
        body = parameters.get("Body")
        try:
            async with asyncio.timeout(patience) as watch:
                if isinstance(body, PartBody):
                    body.seek(0)
                    body.progress = lambda: watch.reschedule(loop.time() + patience)
                client = await self.client()
                answer: dict[str, Any] = await getattr(client, operation)(Bucket=self.options.bucket, **parameters)
        except ClientError:
            self._answered = True
            raise
        except HTTPClientError as exc:
            if isinstance(exc.kwargs.get("error"), aiohttp.ClientResponseError):
                self.heads_break = True
            raise
        finally:
            if isinstance(body, PartBody):
                body.progress = lambda: None
        self._answered = True
        return answer

    async def call(self, operation: str, /, *, key: str = "", **parameters: Any) -> dict[str, Any]:
        """Send a request that may be sent twice, with retries. Raises a StorageError about `key`."""
        retries = self.retries()
        while True:
            try:
                return await self.once(operation, **parameters)
            except FAILURES as exc:
                if not await retries.again(exc):
                    raise mapped(exc, self.where(key)) from exc

    async def aclose(self) -> None:
        """Close all connections."""
        async with self._lock:
            self._closed = True
            self._client = None
            await self._stack.aclose()


class Retries:
    """How often something is tried: with pauses that double, until `seconds` after its first failure."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline: float | None = None
        self._pause = FIRST_PAUSE

    async def again(self, exc: BaseException) -> bool:
        """Return True, after a pause, when what failed with `exc` is to be tried again."""
        if not is_retriable(exc):
            return False
        now = asyncio.get_running_loop().time()
        if self._deadline is None:
            self._deadline = now + self._seconds
        if now >= self._deadline:
            return False
        pause = self._pause * random.uniform(0.5, 1)  # noqa: S311  spreads clients, protects nothing
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        await asyncio.sleep(min(pause, self._deadline - now))
        return True


def _config(options: S3Options) -> AioConfig:
    given = dict(options.config)
    s3 = {"addressing_style": options.addressing_style, **given.pop("s3", {})}
    if str(options.client.get("endpoint_url", "https:")).startswith("https:"):
        # Content-MD5 or a CRC is always sent, so a hash of each part for the signature adds only time.
        s3.setdefault("payload_signing_enabled", False)
    settings: dict[str, Any] = {
        "connect_timeout": min(CONNECT_SECONDS, options.timeout),
        "read_timeout": options.timeout,
        "max_pool_connections": MOST_CONNECTIONS,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        # The default adds a trailer that R2, B2, Ceph and older MinIO refuse.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    if options.anonymous:
        settings["signature_version"] = UNSIGNED
    try:
        return AioConfig(**(settings | given | {"s3": s3}))
    except (TypeError, ValueError, BotoCoreError) as exc:
        raise InvalidUrl(f"storage_options: config_kwargs: {exc}") from exc
