"""The service as a portal sees it: the real process and socket, a real server and TPM, and hostile company."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from demo import sample
from demo.postgresql_server import PostgresqlServer
from demo.software_tpm import SoftwareTpm
from service.api.schema import schema
from service.client import Client, RemoteError
from tests.integration.rpc.service import NOBODY, Raw, connect_as
from tests.scoreboard import counted
from tests.service_process import ServiceProcess, ended, idle

MIB = 1024
STRANGER = NOBODY - 1
LONGEST = 20.0
"""Seconds. Whoever waits longer is not answered."""


@pytest.fixture
def service(workspace: Path, sample_server: PostgresqlServer, software_tpm: SoftwareTpm) -> ServiceProcess:
    """Give a service that is not started, for the sample; its System Backup settings are the portal's to make."""
    return ServiceProcess(
        workspace,
        {
            "server": {"version": "5.4.1"},
            "sealing": {"mode": "tpm", "tcti": software_tpm.tcti},
            "sources": [sample_server.source_settings()],
            "service": {"readers": [NOBODY]},
        },
    )


def directory(service: ServiceProcess, name: str) -> Path:
    path = service.directory / name
    path.mkdir()
    return path


async def refused(call: Any) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        await call
    assert caught.value.hint, "every refusal says what to do"
    return caught.value


@contextlib.asynccontextmanager
async def told(service: ServiceProcess) -> AsyncIterator[list[dict[str, Any]]]:
    """Collect the events that happen while the block runs."""
    events: list[dict[str, Any]] = []
    subscribed = asyncio.Event()

    async def listen() -> None:
        async with service.client() as listener, contextlib.aclosing(listener.events()) as found:
            async for event in found:
                subscribed.set()
                events.append(event)

    task = asyncio.ensure_future(listen())
    await subscribed.wait()
    yield events
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def happened(events: list[dict[str, Any]], kind: str, job: dict[str, Any]) -> dict[str, Any]:
    """Wait for an event of a job."""
    deadline = time.monotonic() + 60
    while True:
        for event in events:
            if event["type"] == kind and event["job_id"] == job["id"]:
                return event
        assert time.monotonic() < deadline, [event["type"] for event in events]
        await asyncio.sleep(0.02)


async def test_a_portal_drives_everything_over_the_socket(
    service: ServiceProcess, sample_server: PostgresqlServer
) -> None:
    archives = directory(service, "archives")
    with service:
        async with service.client() as portal, told(service) as events:
            await _sets_it_up(portal, archives)
            archive = await _backs_up(portal, events)
            await _looks_at(portal, archive)
            await _holds(portal, archive)
            await _restores(portal, archive, sample_server)
            await _cancels(portal, service, events)
            replayed = await _replay(portal)
        numbers = [event["seq"] for event in events if event["seq"] is not None][1:]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert replayed[-1]["seq"] == numbers[-1]
        for event in events[1:]:
            jsonschema.validate(event["data"], schema()["events"][event["type"]]["data"])
        assert service.stop() == 0
    assert "Traceback" not in service.log


async def _sets_it_up(portal: Client, archives: Path) -> None:
    assert (await portal.call("settings.get"))["settings"]["target"] is None
    assert (await refused(portal.call("backup.start"))).code == "CONFIG"
    nowhere = {"url": f"file://{archives}-that-is-not-there"}
    assert (await refused(portal.call("settings.update", target=nowhere))).code == "TARGET_TEST_FAILED"
    assert (await portal.call("settings.get"))["settings"]["target"] is None
    assert (await refused(portal.call("settings.update", retention={}))).code == "CONFIG"
    assert (await refused(portal.call("settings.update", schedule={"frequency": "hourly"}))).code == "CONFIG"
    target = {"url": f"file://{archives}"}
    assert all(finding["ok"] is not False for finding in await portal.call("target.test", target=target))
    schedule = {"frequency": "daily", "at": "02:00", "timezone": "Asia/Taipei"}
    changed = await portal.call(
        "settings.update", target=target, schedule=schedule, retention={"keep_last": 2}, idempotency_key="set-up"
    )
    assert changed["settings"]["schedule"]["at"] == "02:00"
    assert changed["fixed"] == []
    runs = await portal.call("schedule.preview", count=3)
    assert [run[11:] for run in runs] == ["18:00:00Z"] * 3
    assert (await portal.call("system.info"))["next_run"] == runs[0]
    assert all(finding["ok"] is not False for finding in await portal.call("system.doctor"))


async def _backs_up(portal: Client, events: list[dict[str, Any]]) -> str:
    job = await portal.call("backup.start", idempotency_key="first")
    assert (await portal.call("backup.start", idempotency_key="first"))["id"] == job["id"]
    assert (await refused(portal.call("archive.verify", archive=NAME, idempotency_key="first"))).code == "JOB_REFUSED"
    await happened(events, "job.succeeded", job)
    done = await ended(portal, job)
    assert (done["state"], done["error"]) == ("succeeded", None)
    kinds = [event["type"] for event in events if event["job_id"] == job["id"] and event["seq"] is not None]
    assert kinds[:2] == ["job.queued", "job.running"]
    assert kinds[-1] == "job.succeeded"
    progress = [event["data"] for event in events if event["type"] == "progress" and event["job_id"] == job["id"]]
    assert {"dump", "read back"} <= {data["stage"] for data in progress}
    await idle(portal)
    return str(done["result"]["name"])


NAME = "Backup_20000101_0000Z.zip"


async def _looks_at(portal: Client, archive: str) -> None:
    (entry,) = (await portal.call("archive.list"))["archives"]
    assert (entry["name"], entry["evidence"], entry["held"]) == (archive, "verified", False)
    found = await portal.call("archive.inspect", archive=archive)
    assert sample.MAIN in found["sources"][0]["databases"]
    assert (await ended(portal, await portal.call("archive.verify", archive=archive)))["result"]["authenticated"]
    (verdict,) = (await portal.call("retention.preview"))["targets"][0]["verdicts"]
    assert verdict["keep"]


async def _holds(portal: Client, archive: str) -> None:
    await portal.call("archive.hold", archive=archive, reason="before the upgrade")
    failed = await ended(portal, await portal.call("archive.delete", archive=archive, even_the_last=True))
    assert (failed["state"], failed["error"]["code"]) == ("failed", "JOB_REFUSED")
    await portal.call("archive.release", archive=archive)
    failed = await ended(portal, await portal.call("archive.delete", archive=archive))
    assert (failed["state"], failed["error"]["code"]) == ("failed", "JOB_REFUSED")


async def _restores(portal: Client, archive: str, server: PostgresqlServer) -> None:
    count = "SELECT count(*) FROM telemetry.events"
    before = (await server.fetch(count, database=sample.MAIN))[0][0]
    await server.execute("DELETE FROM telemetry.events", database=sample.MAIN)
    spoilt = (await server.fetch(count, database=sample.MAIN))[0][0]
    assert spoilt < before
    plan = await portal.call("restore.plan", archive=archive)
    assert plan["obstacles"] == []
    for settle, expected in (("restore.rollback", spoilt), ("restore.commit", before)):
        restored = await ended(portal, await portal.call("restore.start", archive=archive))
        assert restored["state"] == "succeeded", restored["error"]
        assert (await server.fetch(count, database=sample.MAIN))[0][0] == before
        assert (await portal.call("restore.pending"))["archive"] == archive
        settled = await ended(portal, await portal.call(settle))
        assert settled["state"] == "succeeded", settled["error"]
        assert (await server.fetch(count, database=sample.MAIN))[0][0] == expected
        assert await portal.call("restore.pending") is None


async def _cancels(portal: Client, service: ServiceProcess, events: list[dict[str, Any]]) -> None:
    """Cancel a backup in the middle of its rows; into an empty target, so that it does not wait for a free minute."""
    empty = directory(service, "empty")
    await portal.call("settings.update", target={"url": f"file://{empty}"})
    service.document["sources"][0]["delay"] = 1.0  # a second for each MiB
    service.write_config()
    os.kill(service.pid, signal.SIGHUP)
    job = await portal.call("backup.start")
    deadline = time.monotonic() + 60
    while (await portal.call("job.get", id=job["id"]))["progress"] is None or not (
        await portal.call("job.get", id=job["id"])
    )["progress"]["raw_bytes"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    waiting = await portal.call("backup.start")
    assert (await portal.call("job.cancel", id=waiting["id"]))["state"] == "cancelled"
    await portal.call("job.cancel", id=job["id"])
    assert (await ended(portal, job))["state"] == "cancelled"
    await happened(events, "job.cancelled", job)
    assert (await refused(portal.call("job.cancel", id=job["id"]))).code == "TOO_LATE"
    assert list(empty.iterdir()) == []
    assert (await portal.call("archive.list"))["archives"] == []


async def _replay(portal: Client) -> list[dict[str, Any]]:
    found = []
    async with contextlib.aclosing(portal.events(since=0)) as events:
        last = (await anext(events))["seq"]
        async for event in events:
            found.append(event)
            if event["seq"] == last:
                return found
    raise AssertionError("the events ended")


async def test_a_service_that_is_told_to_stop_cleans_up_what_runs_and_tells_it_later(
    service: ServiceProcess, sample_server: PostgresqlServer
) -> None:
    archives = directory(service, "archives")
    service.document["target"] = {"url": f"file://{archives}"}
    service.document["sources"][0]["delay"] = 1.0
    with service:
        async with service.client() as portal:
            job = await portal.call("backup.start")
            while not ((await portal.call("job.get", id=job["id"]))["progress"] or {}).get("raw_bytes"):
                await asyncio.sleep(0.02)
        began = time.monotonic()
        assert service.stop(signal.SIGTERM) == 0
        assert time.monotonic() - began < 25
        assert list(archives.iterdir()) == []
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'deviceon-backup'"
        assert (await sample_server.fetch(query))[0][0] == 0
        assert not service.socket.exists()
        service.start()
        async with service.client() as portal:
            assert (await portal.call("job.get", id=job["id"]))["state"] == "interrupted"


async def test_hostile_clients_neither_feed_on_the_service_nor_keep_an_admin_out(
    service: ServiceProcess, record_property: Callable[[str, object], None]
) -> None:
    service.document["target"] = {"url": f"file://{directory(service, 'archives')}"}
    with service:
        async with service.client() as portal:
            assert (await ended(portal, await portal.call("backup.start")))["state"] == "succeeded"
            await idle(portal)
            for _ in range(20):  # what an admin's own calls take is not the hostile ones' doing
                await portal.call("system.schema")
        before = _memory(service, "VmRSS")
        Path(f"/proc/{service.pid}/clear_refs").write_text("5")  # VmHWM begins anew
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(_long_lines(service.socket))]
            for _ in range(4):  # callers and listeners that never read
                caller = stack.enter_context(await connect_as(service.socket, NOBODY))
                for number in range(8):
                    await caller.ask("system.schema", number)
                listener = stack.enter_context(await connect_as(service.socket, NOBODY))
                await listener.ask("events.subscribe", since=0)
            slow = stack.enter_context(await connect_as(service.socket, NOBODY))
            background.append(tasks.create_task(_drip(slow)))
            for number in range(1000):
                stack.enter_context(await Raw.connect(service.socket))
                if number % 4 == 0:
                    stack.enter_context(await connect_as(service.socket, STRANGER))
            times = [await _answered(service.socket) for _ in range(5)]
            after = _memory(service, "VmRSS")
            for _ in range(10):  # what stays taken, not what one line or answer takes for a moment
                await asyncio.sleep(0.2)
                after = min(after, _memory(service, "VmRSS"))
            async with service.client() as portal:
                job = await ended(portal, await portal.call("archive.verify", archive=await _newest(portal)))
                assert job["state"] == "succeeded"
            for task in background:
                task.cancel()
        assert service.stop() == 0
    grown = (after - before) / MIB
    record_property(
        "counted", counted(1, f"memory grew by {grown:.1f} MiB; an admin was answered within {max(times):.3f} s")
    )
    assert grown < 10
    assert sorted(times)[2] < 1


async def _newest(portal: Client) -> str:
    return str((await portal.call("archive.list"))["archives"][0]["name"])


async def _long_lines(path: Path) -> None:
    """Send one line of 5 MB after the other."""
    while True:
        with await connect_as(path, NOBODY) as client, contextlib.suppress(ConnectionError):
            await client.send(b"x" * 5_000_000)
        await asyncio.sleep(0.01)


async def _drip(client: Raw) -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            await client.send(b"{")
            await asyncio.sleep(1.0)


async def _answered(path: Path) -> float:
    began = time.monotonic()
    async with asyncio.timeout(LONGEST), Client.unix(path) as admin:
        await admin.call("schedule.preview")
    return time.monotonic() - began


def _memory(service: ServiceProcess, what: str) -> int:
    """Return a number of KiB of the service's memory."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{service.pid}/status").read_text())
    assert found is not None
    return int(found[1])
