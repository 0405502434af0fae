"""What an SMB target does when the network, the server or this process fails, at each moment that can be planned.

The share is also looked at past the server: what is under a final name must be whole, and what `put` said is stored
must be there.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from typing import Any

import pytest

from demo.smb_server import SambaServer
from storage_backends import ObjectExists, ObjectInfo, StorageBackend, TargetUnavailable, open_target
from storage_backends.smb import backend
from storage_backends.temporary import is_temporary
from tests.conformance.target_place import SmbPlace, smb_place
from tests.fault_proxy_smb import ANSWER, REQUEST, Direction, Fault, FaultProxy
from tests.integration import smb_writer
from tests.integration.local_writer import start_server
from tests.scoreboard import counted
from tests.sizes import SEED, size
from tests.tracing import attached

MIB = 1 << 20
TIMEOUT = 20.0
SHORT = 1.0
KILLS = size("SMB_KILLS", 25)
CONTENT = b"".join(b"%015d\n" % number for number in range(200_000))  # 3.2 MB, no two blocks alike


@pytest.fixture
def place(samba: SambaServer) -> SmbPlace:
    return smb_place(samba)


@pytest.fixture
def own_samba() -> Iterator[SambaServer]:
    with SambaServer() as server:
        yield server


async def pieces(content: bytes = CONTENT) -> AsyncIterator[bytes]:
    for start in range(0, len(content), MIB):
        yield content[start : start + MIB]


def names(place: SmbPlace) -> list[str]:
    """Look at all that is there, past the server."""
    return sorted(path.name for path in place.directory.iterdir())


async def keys(target: StorageBackend) -> list[str]:
    return [info.key async for info in target.list_objects()]


async def sweep_all(target: StorageBackend) -> None:
    await target.sweep(datetime.now(UTC) + timedelta(minutes=1))


async def read(target: StorageBackend, key: str) -> bytes:
    async with aclosing(target.get(key)) as data:
        return b"".join([piece async for piece in data])


@asynccontextmanager
async def through(proxy: FaultProxy, place: SmbPlace, *, timeout: float = TIMEOUT) -> AsyncIterator[StorageBackend]:
    """Open the place by way of the proxy, which listens by then."""
    host_and_port = place.url.split("/")[2]
    url = place.url.replace(host_and_port, f"127.0.0.1:{proxy.port}")
    async with open_target(url, place.options | {"timeout": timeout}) as target:
        yield target


async def messages_of_a_put(place: SmbPlace, samba: SambaServer) -> int:
    """Count the requests of connecting and of one `put`. There are as many answers, and some that only say: wait."""
    async with FaultProxy(samba.port) as proxy, through(proxy, place) as target:
        await target.put("measure", pieces())
        total = proxy.counts[REQUEST]
        await target.delete("measure")
    return total


@pytest.mark.parametrize(("direction", "part"), [(REQUEST, 0.5), (ANSWER, 0.0)])
async def test_a_reset_at_any_message_of_a_put_leaves_nothing(
    place: SmbPlace, samba: SambaServer, direction: Direction, part: float
) -> None:
    """Also at the one where the server has given the name and its answer is lost."""
    messages = await messages_of_a_put(place, samba)
    assert messages > 20
    for number in range(1, messages + 1):
        fault = Fault("reset", direction, number, part)
        async with FaultProxy(samba.port, fault) as proxy, through(proxy, place) as target:
            with pytest.raises(TargetUnavailable) as caught:
                await target.put("object", pieces())
            assert caught.value.hint
            assert names(place) == [], fault
            await target.put("object", pieces(b"again"))
            await target.delete("object")


async def test_a_server_that_is_gone_leaves_at_most_a_hidden_file_or_the_whole_object(
    place: SmbPlace, samba: SambaServer
) -> None:
    """Nobody can clean up then; the error says so at the moment when the name may have been given."""
    messages = await messages_of_a_put(place, samba)
    doubtful = 0
    for number in range(1, messages + 1):
        async with FaultProxy(samba.port, Fault("reset", ANSWER, number)) as proxy, through(proxy, place) as target:
            proxy.refuse_after_fault = True
            with pytest.raises(TargetUnavailable) as caught:
                await target.put("object", pieces())
        finished = place.directory / "object"
        if finished.exists():
            assert finished.read_bytes() == CONTENT
            assert "may be there" in caught.value.hint
            doubtful += 1
            finished.unlink()
        async with place.open() as target:
            await sweep_all(target)
        assert names(place) == []
    assert doubtful > 0


@pytest.mark.parametrize("direction", [REQUEST, ANSWER])
async def test_a_reset_while_reading_is_said_and_the_next_read_is_right(
    place: SmbPlace, samba: SambaServer, direction: Direction
) -> None:
    async with FaultProxy(samba.port) as proxy, through(proxy, place) as target:
        await target.put("object", pieces())
    async with FaultProxy(samba.port) as proxy, through(proxy, place) as target:
        assert await read(target, "object") == CONTENT
        messages = proxy.counts[REQUEST]
    for number in range(1, messages):  # the last one closes what was read
        fault = Fault("reset", direction, number, 0.5)
        async with FaultProxy(samba.port, fault) as proxy, through(proxy, place) as target:
            with pytest.raises(TargetUnavailable):
                await read(target, "object")
            assert await read(target, "object") == CONTENT


async def test_a_server_that_closes_its_end_is_said(place: SmbPlace, samba: SambaServer) -> None:
    for number in (3, 12):
        fault = Fault("half-close", ANSWER, number)
        async with FaultProxy(samba.port, fault) as proxy, through(proxy, place) as target:
            with pytest.raises(TargetUnavailable):
                await target.put("object", pieces())
            assert names(place) == []


STALLS = {
    "negotiate": 1, "log in": 3, "share": 4, "create": 8, "write": 10, "flush": 13, "link": 16, "unlink": 17,
    "look": 23,
}  # fmt: skip


@pytest.mark.parametrize("number", STALLS.values(), ids=STALLS)
async def test_a_server_that_falls_silent_ends_a_put_at_its_deadline(
    place: SmbPlace, samba: SambaServer, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library itself waits for ever. The server does not know that the connection is gone, and holds its file."""
    monkeypatch.setattr(backend, "FLUSH_TIMES", 2)
    fault = Fault("stall", REQUEST, number)
    async with FaultProxy(samba.port, fault) as proxy, through(proxy, place, timeout=SHORT) as target:
        began = time.monotonic()
        with pytest.raises(TargetUnavailable, match=r"did not answer within [12] s") as caught:
            await target.put("object", pieces())
        assert time.monotonic() - began >= SHORT
    finished = place.directory / "object"
    if "may be there" in caught.value.hint:
        assert finished.read_bytes() == CONTENT
    async with asyncio.timeout(30):
        while finished.exists() and "may be there" not in caught.value.hint:
            await asyncio.sleep(0.05)  # deleted, but held by the connection that the server only now sees closed
    async with place.open() as target:
        await target.put("object", pieces(), overwrite=True)
        await sweep_all(target)
    assert names(place) == ["object"]


async def test_a_server_that_takes_nothing_more_ends_a_put_at_its_deadline(
    place: SmbPlace, samba: SambaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread then hangs in sending, with the lock in its hand that the library's own closing waits for.

    So it does only where the kernel keeps less than a request: here it is told to, on other machines it is.
    """
    connect = socket.create_connection

    def narrow(*args: Any, **options: Any) -> socket.socket:
        connected = connect(*args, **options)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return connected

    monkeypatch.setattr(socket, "create_connection", narrow)
    proxy = FaultProxy(samba.port, Fault("deaf", REQUEST, 9), narrow=True)
    async with proxy, through(proxy, place, timeout=SHORT) as target:
        with pytest.raises(TargetUnavailable, match="did not answer within 1 s") as caught:
            await target.put("object", pieces())
        assert "left behind" not in caught.value.hint
    assert [name for name in names(place) if not is_temporary(name)] == []


async def test_every_call_has_a_deadline(place: SmbPlace, samba: SambaServer) -> None:
    async with place.open() as target:
        await target.put("object", pieces(b"x"))
    calls: list[Callable[[StorageBackend], Awaitable[object]]] = [
        lambda target: target.stat("object"),
        keys,
        lambda target: read(target, "object"),
        lambda target: target.delete("object"),
        sweep_all,
        lambda target: target.free_bytes(),
    ]

    async def ends(call: Callable[[StorageBackend], Awaitable[object]]) -> None:
        fault = Fault("stall", REQUEST, 5)
        async with FaultProxy(samba.port, fault) as proxy, through(proxy, place, timeout=SHORT) as target:
            with pytest.raises(TargetUnavailable, match="did not answer"):
                await call(target)

    await asyncio.gather(*map(ends, calls))


async def test_a_cancelled_put_to_a_silent_server_returns_within_the_deadline(
    place: SmbPlace, samba: SambaServer
) -> None:
    fault = Fault("stall", REQUEST, 9)
    async with FaultProxy(samba.port, fault) as proxy, through(proxy, place, timeout=SHORT) as target:
        putting = asyncio.create_task(target.put("object", pieces()))
        while not proxy.hit:
            await asyncio.sleep(0.01)
        putting.cancel()
        async with asyncio.timeout(60):
            with pytest.raises(asyncio.CancelledError):
                await putting
    assert [name for name in names(place) if not is_temporary(name)] == []


async def test_a_paused_server_that_goes_on_in_time_is_only_slow(own_samba: SambaServer) -> None:
    place = smb_place(own_samba)

    async def data() -> AsyncIterator[bytes]:
        yield CONTENT
        own_samba.pause()
        asyncio.get_running_loop().call_later(1.0, own_samba.resume)
        yield CONTENT

    async with place.open() as target:
        assert (await target.put("object", data())).size == 2 * len(CONTENT)
        assert await read(target, "object") == 2 * CONTENT


async def test_a_server_killed_meanwhile_ends_the_put_and_serves_again_after_its_start(own_samba: SambaServer) -> None:
    place = smb_place(own_samba)

    async def data() -> AsyncIterator[bytes]:
        yield CONTENT
        own_samba.kill()
        own_samba.start()
        yield CONTENT

    async with place.open() as target:
        await target.put("before", pieces())
        with pytest.raises(TargetUnavailable):
            await target.put("object", data())
        assert await keys(target) == ["before"]
        own_samba.kill()
        own_samba.start()
        assert await read(target, "before") == CONTENT, "a connection that was kept is dead and must not be used"
        await sweep_all(target)
        assert names(place) == ["before"]
        own_samba.kill()
        with pytest.raises(TargetUnavailable) as caught:
            await target.stat("before")
        assert "reached" in caught.value.hint


def test_a_client_killed_at_any_moment_leaves_whole_objects_only(
    place: SmbPlace, record_property: Callable[[str, object], None]
) -> None:
    start_server()
    context = get_context("forkserver")
    chance = random.Random(SEED)
    said: list[str] = []
    stored = 0
    for _ in range(KILLS):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=smb_writer.store_for_ever, args=(place.url, place.options, there))
        process.start()
        there.close()
        assert here.recv() == "ready"
        time.sleep(chance.random() * 0.25)
        process.kill()
        process.join()
        process.close()
        with suppress(EOFError):
            while True:
                said.append(here.recv())
        here.close()
        present = [name for name in names(place) if not is_temporary(name)]
        assert set(said) <= set(present)
        for name in present:
            content = (place.directory / name).read_bytes()
            assert content == (b"x" if name == "warm" else smb_writer.content())
            (place.directory / name).unlink()
        stored += len(said)
        said.clear()
    left = len(names(place))
    removed = asyncio.run(swept_after_a_while(place, left))
    assert removed == left
    assert names(place) == []
    record_property("counted", counted(KILLS, seed=SEED, kills=KILLS, objects_reported=stored, hidden_and_swept=left))


async def swept_after_a_while(place: SmbPlace, left: int) -> int:
    """Sweep until the server has noticed that all its clients are gone."""
    removed = 0
    async with place.open() as target, asyncio.timeout(60):
        while removed < left:
            removed += await target.sweep(datetime.now(UTC) + timedelta(minutes=1))
            await asyncio.sleep(0.05)
    return removed


async def test_of_two_writers_in_the_same_moment_one_wins_and_the_other_is_told(own_samba: SambaServer) -> None:
    """Samba's own rename looks and then renames: slowed down in between, it lets the second replace the first."""
    place = smb_place(own_samba)
    slow = ["-e", "trace=linkat,renameat,renameat2", "-e", "inject=linkat,renameat,renameat2:delay_enter=500000"]
    trace = own_samba.directory / "trace"
    command = ["strace", "-f", "-qq", *slow, "-o", str(trace), "-p", str(own_samba.pid)]
    everybody = asyncio.Barrier(3)

    async def data(mark: bytes) -> AsyncIterator[bytes]:
        await everybody.wait()
        yield mark * 1000

    with attached(command, own_samba.pid):
        async with place.open() as target:
            results = await asyncio.gather(
                *(target.put("object", data(mark)) for mark in (b"a", b"b", b"c")), return_exceptions=True
            )
    assert trace.read_text().count("DELAYED") >= 2, "no two were at it at the same time"
    won = [mark for mark, result in zip((b"a", b"b", b"c"), results, strict=True) if isinstance(result, ObjectInfo)]
    assert len(won) == 1
    assert sum(isinstance(result, ObjectExists) for result in results) == 2
    assert (place.directory / "object").read_bytes() == won[0] * 1000
    assert names(place) == ["object"]
