"""A process that stores one object after another on a share, for tests that kill it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

from storage_backends import open_target

MIB = 1 << 20


@cache
def content() -> bytes:
    """Return what is stored: no two blocks are alike."""
    return b"".join(b"%015d\n" % number for number in range(200_000))


async def _pieces(whole: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(whole), MIB):
        yield whole[start : start + MIB]


def store_for_ever(url: str, options: dict[str, Any], pipe: Connection) -> None:
    """Say "ready", then store object0, object1, ... and say each when it is stored."""

    async def run() -> None:
        async with open_target(url, options) as target:
            await target.put("warm", _pieces(b"x"))
            pipe.send("ready")
            number = 0
            while True:
                await target.put(f"object{number}", _pieces(content()))
                pipe.send(f"object{number}")
                number += 1

    asyncio.run(run())
