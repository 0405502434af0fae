"""Two machines keep their archives in one place: what one does after a crash hurts nothing that the other is doing."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterable, AsyncIterator
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from demo.smb_server import SambaServer
from service.progress import Progress
from service.settle import settle
from service.targets import Targets
from storage_backends import ObjectInfo, open_target
from tests import s3_servers
from tests.ftp_server import FtpServer
from tests.service_parts import Clock, Place

MIB = 1 << 20


@pytest.fixture(params=["smb", "ftp", "ceph", "swift"])
def shared(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Give the target of both machines, as the configuration names it."""
    name = uuid4().hex
    match request.param:
        case "smb":
            samba: SambaServer = request.getfixturevalue("samba")
            (samba.share / name).mkdir()
            url, options = f"{samba.url}/{name}", samba.storage_options
        case "ftp":
            ftp: FtpServer = request.getfixturevalue("ftp_server")
            (ftp.directory / name).mkdir()
            url, options = f"{ftp.url}/{name}", {"password": ftp.password}
        case kind:
            options = s3_servers.swift_options() if kind == "swift" else s3_servers.ceph_options()
            url = f"s3://{s3_servers.BUCKET}/{name}"
    variables = {key: f"SHARED_TARGET_{key.upper()}" for key in ("password", "key", "secret") if key in options}
    os.environ.update({variable: str(options[key]) for key, variable in variables.items()})
    given = {key: {"env": variables[key]} if key in variables else value for key, value in options.items()}
    return {"url": url, "storage_options": given}


def machine(root: Path, target: dict[str, Any]) -> Place:
    """Return an installation with a tree that makes an upload of several parts."""
    root.mkdir()
    place = Place(root, Clock(datetime.now(UTC)), {"target": target})
    (place.tree / "data").write_bytes(os.urandom(16 * MIB))
    return place


def _back_up_and_stand_still(place: Place, underway: Event) -> None:
    """Back up, and stop for ever in the middle: where the test kills this process."""
    honest = Targets.put

    async def put(self: Targets, key: str, data: AsyncIterable[bytes | bytearray]) -> ObjectInfo:
        async def slow() -> AsyncIterator[bytes | bytearray]:
            count = 0
            async for piece in data:
                yield piece
                count += len(piece)
                if count > 12 * MIB:
                    underway.set()
                    await asyncio.sleep(3600)

        return await honest(self, key, slow())

    Targets.put = put  # type: ignore[method-assign]

    async def run() -> None:
        async with place.app() as app:
            await place.backup(app.archives)

    asyncio.run(run())


async def test_a_start_after_a_crash_removes_what_is_ours_and_nothing_that_another_machine_writes(
    tmp_path: Path, shared: dict[str, Any]
) -> None:
    crashed, other = machine(tmp_path / "crashed", shared), machine(tmp_path / "other", shared)
    context = multiprocessing.get_context("spawn")
    underway = context.Event()
    process = context.Process(target=_back_up_and_stand_still, args=(crashed, underway))
    process.start()
    assert await asyncio.to_thread(underway.wait, 60)
    await asyncio.sleep(0.5)  # what was pulled is on its way
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    process.close()

    going_on, writing = asyncio.Event(), asyncio.Event()

    async def data() -> AsyncIterator[bytes]:
        for _ in range(8):
            yield bytes(MIB)
        writing.set()
        await going_on.wait()
        yield b"end"

    async with open_target(shared["url"], other.config.target.options()) as target:
        uploading = asyncio.create_task(target.put("Backup_20260101_0000Z.zip", data()))
        await writing.wait()
        async with crashed.app() as app:
            (intent,) = await app.archives.intents()
            assert intent.unfinished
            crashed.clock.now = datetime.now(UTC)
            result = await settle(crashed.config, archives=app.archives, clock=crashed.clock, progress=Progress())
            assert result.swept == 1
            assert await app.archives.intents() == []
        going_on.set()
        assert (await uploading).size == 8 * MIB + 3
        assert await target.sweep(datetime.now(UTC) + timedelta(minutes=1)) == 0, "neither has left anything"
        assert [info.key async for info in target.list_objects()] == ["Backup_20260101_0000Z.zip"]
