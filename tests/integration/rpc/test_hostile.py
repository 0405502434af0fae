"""Everybody who means harm at once, against a server of its own process: its memory stays, and an admin is answered."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.client import Client
from tests.integration.rpc.service import NOBODY, Raw, connect_as
from tests.scoreboard import counted

MIB = 1024 * 1024
STRANGER = NOBODY - 1
LONGEST = 20.0
"""Seconds. Whoever waits longer is not answered; on a machine with ten times too much to do it takes some two."""

MOST_MIB = 20
"""By how much the memory may grow: 8 to 15 by what is let in for a moment, as the tasks take turns."""


@pytest.fixture(params=["asyncio", "uvloop"])
def server(request: pytest.FixtureRequest, path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.integration.rpc.server_process", str(path), request.param]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.communicate("", timeout=60)
        assert process.returncode == 0


def memory(process: subprocess.Popen[str], what: str) -> float:
    """Return a number of MiB: `VmRSS` now, `VmHWM` the most there ever was."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


async def send_forever(client: Raw, piece: bytes, pause: float) -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            await client.send(piece)
            await asyncio.sleep(pause)


async def long_lines(path: Path) -> None:
    """Send one line of 5 MB after the other."""
    while True:
        with await connect_as(path, NOBODY) as client, contextlib.suppress(ConnectionError):
            await client.send(b"x" * 5_000_000)
        await asyncio.sleep(0.01)


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_memory_stays_and_an_admin_is_answered_whoever_else_comes(
    server: subprocess.Popen[str], path: Path, record_property: Callable[[str, object], None]
) -> None:
    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        async with Client.unix(path) as admin:
            await admin.call("echo")
        before = memory(server, "VmRSS")
        background = [tasks.create_task(long_lines(path))]
        for _ in range(3):  # never reading callers
            client = stack.enter_context(await connect_as(path, NOBODY))
            for number in range(8):
                await client.ask("big", number, size=900_000)
        for _ in range(4):  # never reading listeners
            client = stack.enter_context(await connect_as(path, NOBODY))
            await client.ask("events.subscribe")
        dripping = stack.enter_context(await connect_as(path, NOBODY))
        background.append(tasks.create_task(send_forever(dripping, b"{", 1.0)))
        for number in range(1000):
            stack.enter_context(await Raw.connect(path))
            if number % 4 == 0:
                stack.enter_context(await connect_as(path, STRANGER))
        async with Client.unix(path) as admin:
            for _ in range(100):  # 10 MB of events for those who do not read
                await admin.call("publish", times=100, size=1000)
        times = [await answered(path) for _ in range(5)]
        grown = memory(server, "VmHWM") - before
        for task in background:
            task.cancel()
    record_property(
        "counted", counted(1, f"memory grew by {grown:.1f} MiB; an admin was answered within {max(times):.3f} s")
    )
    assert grown < MOST_MIB
    assert min(times) < 1


async def answered(path: Path) -> float:
    """Return how long it takes an admin to connect and be answered."""
    began = time.monotonic()
    async with asyncio.timeout(LONGEST), Client.unix(path) as admin:
        assert await admin.call("command") == "done"
    return time.monotonic() - began
