"""A local target whose file system does not answer, and one that is to keep some space free."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storage_backends import InvalidUrl, StorageBackend, TargetFull, TargetUnavailable, local, open_target
from tests.hanging_mounts import dead_mount, disk

MIB = 1 << 20
SHORT = 0.3


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def read(target: StorageBackend, key: str) -> bytes:
    async with aclosing(target.get(key)) as data:
        return b"".join([piece async for piece in data])


async def keys(target: StorageBackend) -> list[str]:
    return [info.key async for info in target.list_objects()]


CALLS: dict[str, Callable[[StorageBackend], Awaitable[object]]] = {
    "put": lambda target: target.put("object", pieces(b"x")),
    "get": lambda target: read(target, "object"),
    "stat": lambda target: target.stat("object"),
    "list": keys,
    "delete": lambda target: target.delete("object"),
    "sweep": lambda target: target.sweep(datetime.now(UTC)),
    "free_bytes": lambda target: target.free_bytes(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("auto_mkdir", [True, False])
async def test_a_dead_mount_is_unavailable_at_the_deadline(
    tmp_path: Path, call: Callable[[StorageBackend], Awaitable[object]], *, auto_mkdir: bool
) -> None:
    with dead_mount(tmp_path / "nas") as directory:
        target = open_target(f"file://{directory}/backups", {"timeout": SHORT, "auto_mkdir": auto_mkdir})
        async with asyncio.timeout(60):
            with pytest.raises(TargetUnavailable, match=r"did not answer within 0.3 s") as caught:
                await call(target)
        assert "left behind" in caught.value.hint


def test_a_thread_that_hangs_does_not_keep_the_program_from_ending(tmp_path: Path) -> None:
    script = "import asyncio, sys, storage_backends as s\n"
    script += "async def main():\n"
    script += "    try: await s.open_target(sys.argv[1], {'timeout': 0.3}).stat('object')\n"
    script += "    except s.TargetUnavailable as exc: print(exc.code)\n"
    script += "asyncio.run(main())"
    with dead_mount(tmp_path / "nas") as directory:
        command = [sys.executable, "-c", script, f"file://{directory}/backups"]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == "TARGET_UNAVAILABLE\n"


@pytest.mark.parametrize("unnamed", [True, False])
async def test_a_disk_that_stops_meanwhile_gives_control_back_and_is_clean_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, unnamed: bool
) -> None:
    monkeypatch.setattr(local, "WRITE_TIMES", 1)
    with disk(tmp_path / "disk") as stopped:
        target = local.LocalBackend(stopped.directory, timeout=2 * SHORT, unnamed=unnamed)

        async def data() -> AsyncIterator[bytes]:
            yield bytes(MIB)
            stopped.freeze()
            for _ in range(20):
                yield bytes(MIB)

        async with asyncio.timeout(60):
            with pytest.raises(TargetUnavailable, match="did not answer"):
                await target.put("object", data())
        stopped.thaw()
        async with asyncio.timeout(60):
            while [path.name for path in stopped.directory.iterdir()] != ["lost+found"]:
                await asyncio.sleep(0.02)
        await target.put("object", pieces(bytes(MIB)))
        assert await keys(target) == ["object"]
        # Nor is what was written without a name kept by a descriptor that nobody closes.
        async with asyncio.timeout(60):
            while (await target.free_bytes() or 0) < 40 * MIB:
                await asyncio.sleep(0.02)


async def test_a_put_to_a_stopped_disk_can_be_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "WRITE_TIMES", 1)
    with disk(tmp_path / "disk") as stopped:
        target = local.LocalBackend(stopped.directory, timeout=1.0)
        frozen = asyncio.Event()

        async def data() -> AsyncIterator[bytes]:
            yield bytes(MIB)
            stopped.freeze()
            frozen.set()
            for _ in range(20):
                yield bytes(MIB)

        putting = asyncio.create_task(target.put("object", data()))
        await frozen.wait()
        putting.cancel()
        async with asyncio.timeout(60):
            with pytest.raises(asyncio.CancelledError):
                await putting
        stopped.thaw()
        assert await keys(target) == []


async def test_a_disk_that_pauses_for_less_than_the_deadline_is_only_slow(tmp_path: Path) -> None:
    with disk(tmp_path / "disk") as stopped:
        target = local.LocalBackend(stopped.directory, timeout=30)

        async def data() -> AsyncIterator[bytes]:
            yield bytes(MIB)
            stopped.freeze()
            asyncio.get_running_loop().call_later(0.3, stopped.thaw)
            yield bytes(MIB)

        assert (await target.put("object", data())).size == 2 * MIB


@pytest.mark.parametrize("unnamed", [True, False])
async def test_min_free_stays_free(tmp_path: Path, *, unnamed: bool) -> None:
    with disk(tmp_path / "disk") as small:
        free = await local.LocalBackend(small.directory).free_bytes()
        assert free is not None
        target = local.LocalBackend(small.directory, min_free=free - 30 * MIB, unnamed=unnamed)
        await target.put("fits", pieces(*[bytes(MIB)] * 10))
        with pytest.raises(TargetFull, match="are to stay free") as caught:
            await target.put("big", pieces(*[bytes(MIB)] * 45))
        assert "min_free" in caught.value.hint
        assert await keys(target) == ["fits"]
        greedy = local.LocalBackend(small.directory, min_free=free, unnamed=unnamed)
        pulled = []

        async def data() -> AsyncIterator[bytes]:
            pulled.append(True)
            yield b""

        with pytest.raises(TargetFull):
            await greedy.put("small", data())
        assert not pulled, "it is looked at before anything is made"
        assert await keys(greedy) == ["fits"]
        assert await greedy.sweep(datetime.now(UTC) + timedelta(days=1)) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"min_free": -1},
        {"min_free": "1G"},
        {"min_free": True},
        {"timeout": 0},
        {"timeout": "1"},
        {"timeout": -1.0},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"timeout": 1e9},
        {"min_free": float("nan")},
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidUrl, match=next(iter(options))):
        open_target("file:///x", options)
