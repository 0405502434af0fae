"""One stream into several targets: each gets all of it or nothing, and none stops another."""

from __future__ import annotations

import asyncio
import contextlib
import tracemalloc
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from storage_backends import ObjectInfo, StorageBackend, StorageError, TargetUnavailable
from storage_backends.fan_out import AHEAD_BYTES, FanOut
from storage_backends.local import LocalBackend

KEY = "Backup_20260101_0200Z.zip"
MIB = 1024 * 1024


@pytest.fixture
def targets(tmp_path: Path) -> list[LocalBackend]:
    directories = [tmp_path / name for name in ("one", "two", "three")]
    for directory in directories:
        directory.mkdir()
    return [LocalBackend(directory) for directory in directories]


class Slow(LocalBackend):
    """A local target that takes each piece only when its gate is open."""

    gate: asyncio.Event
    pulled = 0

    async def put(self, key: str, data: AsyncIterable[bytes | bytearray], **options: Any) -> ObjectInfo:
        async def slowly() -> AsyncIterator[bytes | bytearray]:
            async for piece in data:
                await self.gate.wait()
                self.pulled += len(piece)
                yield piece

        return await super().put(key, slowly(), **options)


def slow(directory: Path) -> Slow:
    directory.mkdir(exist_ok=True)
    target = Slow(directory)
    target.gate = asyncio.Event()
    return target


async def pieces(count: int = 40, size: int = MIB) -> AsyncIterator[bytes]:
    for number in range(count):
        yield bytes([number % 256]) * size


async def content(target: StorageBackend) -> bytes | None:
    try:
        async with contextlib.aclosing(target.get(KEY)) as found:
            return b"".join([piece async for piece in found])
    except StorageError:
        return None


EXPECTED = b"".join(bytes([number]) * MIB for number in range(40))


async def test_every_target_gets_all_of_it(targets: list[LocalBackend]) -> None:
    fan_out = FanOut(targets)
    info = await fan_out.put(KEY, pieces())
    assert info.size == len(EXPECTED)
    assert [outcome.size for outcome in fan_out.outcomes if isinstance(outcome, ObjectInfo)] == [len(EXPECTED)] * 3
    assert [await content(target) == EXPECTED for target in targets] == [True] * 3


async def test_a_target_that_fails_at_once_or_midway_does_not_stop_the_others(
    tmp_path: Path, targets: list[LocalBackend]
) -> None:
    absent = LocalBackend(tmp_path / "absent")
    disk = tmp_path / "disk"
    disk.mkdir()
    await run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk))
    try:
        fan_out = FanOut([absent, targets[0], LocalBackend(disk), targets[1]])
        info = await fan_out.put(KEY, pieces())
        assert info.size == len(EXPECTED)
        kinds = [type(outcome).__name__ for outcome in fan_out.outcomes]
        assert kinds == ["TargetUnavailable", "ObjectInfo", "TargetFull", "ObjectInfo"]
        assert await content(targets[0]) == await content(targets[1]) == EXPECTED
        assert list(disk.iterdir()) == []
    finally:
        await run("umount", str(disk))


async def run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0


async def test_a_target_that_is_too_slow_is_given_up_in_bounded_memory(
    tmp_path: Path, targets: list[LocalBackend]
) -> None:
    hanging = slow(tmp_path / "slow")
    tracemalloc.start()
    fan_out = FanOut([hanging, targets[0]], patience=0.3)
    info = await fan_out.put(KEY, pieces(100))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert info.size == 100 * MIB
    outcome = fan_out.outcomes[0]
    assert isinstance(outcome, TargetUnavailable)
    assert "too slow" in str(outcome)
    assert outcome.hint
    assert await content(hanging) is None
    assert list((tmp_path / "slow").iterdir()) == []
    assert peak < 2 * AHEAD_BYTES + 8 * MIB  # of 100 MiB


async def test_a_target_that_is_slow_but_alone_is_waited_for(tmp_path: Path) -> None:
    only = slow(tmp_path / "slow")
    putting = asyncio.ensure_future(FanOut([only], patience=0.05).put(KEY, pieces()))
    await asyncio.sleep(0.5)
    assert not putting.done()
    only.gate.set()
    assert (await putting).size == len(EXPECTED)


async def test_a_target_that_is_left_alone_is_waited_for_again(tmp_path: Path) -> None:
    only = slow(tmp_path / "slow")
    fan_out = FanOut([LocalBackend(tmp_path / "absent"), only], patience=5)
    putting = asyncio.ensure_future(fan_out.put(KEY, pieces()))
    await asyncio.sleep(0.3)
    only.gate.set()
    assert (await putting).size == len(EXPECTED)


async def test_when_none_has_it_the_first_targets_error_is_raised(tmp_path: Path) -> None:
    absent = [LocalBackend(tmp_path / name) for name in ("first", "second")]
    with pytest.raises(TargetUnavailable, match="first"):
        await FanOut(absent).put(KEY, pieces())


async def test_when_the_data_fails_no_target_has_anything(targets: list[LocalBackend]) -> None:
    async def failing() -> AsyncIterator[bytes]:
        async for piece in pieces(20):
            yield piece
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        await FanOut(targets).put(KEY, failing())
    assert [await content(target) for target in targets] == [None] * 3


async def test_when_it_is_cancelled_no_target_has_anything(tmp_path: Path, targets: list[LocalBackend]) -> None:
    waiting = slow(tmp_path / "slow")
    putting = asyncio.ensure_future(FanOut([*targets, waiting]).put(KEY, pieces(200)))
    while waiting.pulled == 0:
        await asyncio.sleep(0.05)
        waiting.gate.set()
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert [await content(target) for target in (*targets, waiting)] == [None] * 4
    assert [path for target in targets for path in Path(target.url.removeprefix("file://")).iterdir()] == []


class Paced(LocalBackend):
    """A local target that takes one MiB in so many seconds."""

    seconds = 0.02

    async def put(self, key: str, data: AsyncIterable[bytes | bytearray], **options: Any) -> ObjectInfo:
        async def paced() -> AsyncIterator[bytes | bytearray]:
            async for piece in data:
                await asyncio.sleep(self.seconds)
                yield piece

        return await super().put(key, paced(), **options)


async def test_targets_that_are_equally_slow_are_not_given_up(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    fan_out = FanOut([Paced(tmp_path / "one"), Paced(tmp_path / "two")], patience=0.3)
    await fan_out.put(KEY, pieces(80))  # 1.6 s of waiting for room, and nobody waits for another
    assert [type(outcome).__name__ for outcome in fan_out.outcomes] == ["ObjectInfo", "ObjectInfo"]


class Broken(LocalBackend):
    """A local target with a mistake in it."""

    async def put(self, key: str, data: AsyncIterable[bytes | bytearray], **options: Any) -> ObjectInfo:
        raise KeyError("LastModified")


async def test_an_error_that_nobody_thought_of_is_that_targets_own(tmp_path: Path, targets: list[LocalBackend]) -> None:
    fan_out = FanOut([Broken(tmp_path), targets[0]])
    assert (await fan_out.put(KEY, pieces())).size == len(EXPECTED)
    assert type(fan_out.outcomes[0]) is StorageError
    assert "KeyError" in str(fan_out.outcomes[0])


class SlowToPublish(LocalBackend):
    """A local target whose object is there long before `put` returns elsewhere."""

    async def put(self, key: str, data: AsyncIterable[bytes | bytearray], **options: Any) -> ObjectInfo:
        async def held() -> AsyncIterator[bytes | bytearray]:
            async for piece in data:
                yield piece
            await asyncio.sleep(60)

        return await super().put(key, held(), **options)


async def test_cancelled_while_one_target_still_publishes_none_keeps_it(
    tmp_path: Path, targets: list[LocalBackend]
) -> None:
    (tmp_path / "late").mkdir()
    putting = asyncio.ensure_future(FanOut([targets[0], SlowToPublish(tmp_path / "late")]).put(KEY, pieces()))
    while await content(targets[0]) is None:
        await asyncio.sleep(0.01)
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert await content(targets[0]) is None
    assert list((tmp_path / "late").iterdir()) == []
