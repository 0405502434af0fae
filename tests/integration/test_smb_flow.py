"""Several writes and reads of one file on their way at once: in bounds, and each byte where it belongs."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from smbprotocol.connection import Connection
from smbprotocol.open import Open

from demo.smb_server import SambaServer
from storage_backends import StorageBackend
from storage_backends.smb.flow import WINDOW_BYTES
from tests.conformance.target_place import SmbPlace, smb_place

MIB = 1 << 20
CONTENT = os.urandom(9 * MIB + 4321)
LARGE = 512 << 10


@pytest.fixture
def place(samba: SambaServer) -> SmbPlace:
    return smb_place(samba)


async def pieces() -> AsyncIterator[bytes]:
    for start in range(0, len(CONTENT), 3_000_000):
        yield CONTENT[start : start + 3_000_000]


async def read(target: StorageBackend, *, offset: int = 0, length: int | None = None) -> bytes:
    async with aclosing(target.get("object", offset=offset, length=length)) as data:
        return b"".join([piece async for piece in data])


@pytest.fixture
def most(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The most requests of half a mebibyte and more that had no answer yet, and their bytes."""
    counted = {"requests": 0, "bytes": 0}
    waiting: dict[int, int] = {}
    send, receive = Connection.send, Connection.receive

    def sending(self: Connection, message: Any, *args: Any, **options: Any) -> Any:
        sent = send(self, message, *args, **options)
        size = message["length"].get_value() if "length" in message.fields else 0
        if size >= LARGE:
            waiting[id(sent)] = size
            counted["requests"] = max(counted["requests"], len(waiting))
            counted["bytes"] = max(counted["bytes"], sum(waiting.values()))
        return sent

    def receiving(self: Connection, request: Any, *args: Any, **options: Any) -> Any:
        waiting.pop(id(request), None)
        return receive(self, request, *args, **options)

    monkeypatch.setattr(Connection, "send", sending)
    monkeypatch.setattr(Connection, "receive", receiving)
    return counted


async def test_several_requests_are_on_their_way_within_the_window(place: SmbPlace, most: dict[str, int]) -> None:
    async with place.open() as target:
        await target.put("object", pieces())
        assert most["requests"] >= 3
        assert most["bytes"] <= WINDOW_BYTES
        most.update(requests=0, bytes=0)
        assert await read(target) == CONTENT
        assert most["requests"] >= 3
        assert most["bytes"] <= WINDOW_BYTES
    assert (place.directory / "object").read_bytes() == CONTENT


@pytest.mark.parametrize("credit", [3, 20, 40])
async def test_a_server_that_grants_little_credit_gets_and_gives_every_byte(credit: int) -> None:
    """Of a request's mebibyte, each 64 KiB cost one."""
    with SambaServer(settings={"smb2 max credits": str(credit)}) as server:
        place = smb_place(server)
        async with place.open() as target:
            await target.put("object", pieces())
            assert await read(target) == CONTENT
        assert (place.directory / "object").read_bytes() == CONTENT


async def test_what_a_server_takes_or_gives_only_in_part_is_asked_for_again(
    place: SmbPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Injected: Samba takes all. Of every large request it gets, and answers, only the first two thirds."""
    write, ask = Open.write, Open.read
    cut: list[str] = []

    def less(length: int, what: str) -> int:
        if length < LARGE:
            return length
        cut.append(what)
        return length * 2 // 3

    def writing(self: Open, data: bytes, offset: int, **options: Any) -> Any:
        return write(self, data[: less(len(data), "write")], offset, **options)

    def reading(self: Open, offset: int, length: int, **options: Any) -> Any:
        return ask(self, offset, less(length, "read"), **options)

    monkeypatch.setattr(Open, "write", writing)
    monkeypatch.setattr(Open, "read", reading)
    async with place.open() as target:
        await target.put("object", pieces())
        assert (place.directory / "object").read_bytes() == CONTENT
        assert await read(target) == CONTENT
        assert await read(target, offset=MIB + 1, length=5 * MIB) == CONTENT[MIB + 1 : 6 * MIB + 1]
    assert {*cut} == {"write", "read"}


async def test_what_nobody_took_does_not_stay_with_the_connection(place: SmbPlace) -> None:
    async with place.open() as target:
        await target.put("object", pieces())
        async with aclosing(target.get("object")) as data:
            async for piece in data:
                assert piece == CONTENT[: len(piece)]
                break
        [line] = target._pool._idle  # type: ignore[attr-defined]
        [connection] = line.connection._cache.values()
        assert not connection.outstanding_requests
        assert await read(target, offset=8 * MIB) == CONTENT[8 * MIB :]
