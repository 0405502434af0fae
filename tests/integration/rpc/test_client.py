"""The client against services that misbehave, and what it needs to be imported."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from service.client import MAX_LINE, Client, ConnectionLost, NoAnswer, RemoteError

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def service(path: Path, behaviour: Behaviour) -> AsyncIterator[Client]:
    """Give a client that is connected to a service which behaves like that."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await behaviour(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    path.parent.mkdir()
    server = await asyncio.start_unix_server(serve, path)
    try:
        async with Client.unix(path, timeout=10) as client:
            yield client
    finally:
        server.close()
        await server.wait_closed()


def says(*lines: bytes) -> Behaviour:
    """Return the behaviour of answering the first request with these lines, then closing."""

    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        for line in lines:
            writer.write(line)
        await writer.drain()

    return behaviour


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "the service closed the connection"),
        (b'{"jsonrpc":"2.0","id":1,"res', "the service closed the connection"),
        (b"hello\n", "cannot read"),
        (b"\xff\n", "cannot read"),
        (b"[]\n", "cannot read"),
        (b"{}\n", "cannot read"),
        (b'{"id":1}\n', "cannot read"),
        (b'{"id":1,"error":"x"}\n', "cannot read"),
        (b"x" * (MAX_LINE + 2), "a line above"),
        (b'{"id":null,"error":{"code":-32002,"message":"too many","data":{"code":"BUSY"}}}\n', "too many"),
    ],
)
async def test_a_service_that_breaks_off_or_talks_nonsense_is_lost(path: Path, line: bytes, why: str) -> None:
    async with service(path, says(line)) as client:
        with pytest.raises(ConnectionLost, match=why) as lost:
            await client.call("echo")
        assert lost.value.transient
        with pytest.raises(ConnectionLost, match=why):
            await client.call("echo")
        with pytest.raises(ConnectionLost, match=why):
            await anext(client.events())


async def test_all_calls_that_wait_and_the_listener_learn_of_the_loss(path: Path) -> None:
    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):
            await reader.readline()
        writer.write(b'{"jsonrpc":"2.0","id":1,"result":{"boot_id":"b","seq":5,"gap":false}}\n')
        await reader.readline()

    async with service(path, behaviour) as client, contextlib.aclosing(client.events()) as events:
        calls = []

        async def call() -> None:
            await client.call("echo")

        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        calls = [asyncio.ensure_future(call()) for _ in range(2)]
        assert (await first)["seq"] == 5
        calls.append(asyncio.ensure_future(call()))
        with pytest.raises(ConnectionLost):
            await anext(events)
        assert all(isinstance(each, ConnectionLost) for each in await asyncio.gather(*calls, return_exceptions=True))


async def test_answers_to_nobody_are_passed_over(path: Path) -> None:
    good = b'{"jsonrpc":"2.0","id":1,"result":"good"}\n'
    other = [b'{"jsonrpc":"2.0","id":99,"result":1}\n', b'{"jsonrpc":"2.0","method":"event","params":{"seq":1}}\n']

    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await reader.readline()
            writer.write(b"".join([*other, good, good]))
        writer.write(good.replace(b'"id":1', b'"id":2'))
        await reader.readline()

    async with service(path, behaviour) as client:
        assert await client.call("echo") == "good"
        assert await client.call("echo") == "good"


async def test_an_error_without_data_is_still_an_error(path: Path) -> None:
    async with service(path, says(b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"no"}}\n')) as client:
        with pytest.raises(RemoteError, match="no") as error:
            await client.call("echo")
        assert (error.value.code, error.value.hint, error.value.transient) == ("ERROR", "", False)


async def test_a_cancelled_call_leaves_the_connection_usable(path: Path) -> None:
    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        await reader.readline()
        writer.write(b'{"jsonrpc":"2.0","id":1,"result":"late"}\n{"jsonrpc":"2.0","id":2,"result":"good"}\n')
        await reader.readline()

    async with service(path, behaviour) as client:
        call = asyncio.ensure_future(client.call("echo"))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await client.call("echo") == "good"


async def test_a_service_that_does_not_answer_is_left_in_the_end(path: Path) -> None:
    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            pass

    async with service(path, behaviour) as client:
        client._timeout = 0.2
        with pytest.raises(NoAnswer):
            await client.call("echo")
        with pytest.raises(NoAnswer):
            await anext(client.events())


async def test_a_socket_that_is_not_there_says_what_to_look_at(path: Path) -> None:
    with pytest.raises(ConnectionLost, match="cannot be reached") as lost:
        await Client.unix(path).__aenter__()
    assert "running" in lost.value.hint


async def test_when_many_stand_in_line_the_client_waits_for_its_turn(path: Path) -> None:
    """Linux answers EAGAIN then, which asyncio's own way to connect takes for success."""
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        with pytest.raises(ConnectionLost, match="no answer"):
            await Client.unix(path, timeout=0.1).__aenter__()
        opening = asyncio.ensure_future(Client.unix(path, timeout=10).__aenter__())
        await asyncio.sleep(0.05)
        assert not opening.done()
        listener.accept()[0].close()
        await (await opening).__aexit__()


def test_the_client_needs_nothing_but_python_and_the_errors() -> None:
    program = (
        "import sys; before = set(sys.modules); import service.client;"
        "print(*sorted(name for name in set(sys.modules) - before"
        " if name.partition('.')[0] not in sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["service", "service.client", "service.errors"]
