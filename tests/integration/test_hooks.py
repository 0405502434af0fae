"""Hooks and the health probe: real programs, real ports."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.config_restore import HealthSettings, HookSettings, RestoreHooks
from service.doctor import examine
from service.errors import HookFailed, Unhealthy
from service.health import wait_until_healthy
from service.hooks import ServerHooks, obstacles, run_hook
from service.progress import Progress
from service.secret import remember
from tests.service_parts import Place


async def run(script: str, *, seconds: float = 20, env: dict[str, str] | None = None) -> str:
    return await run_hook(["sh", "-c", script], env=env or {}, timeout=seconds, progress=Progress())


async def test_a_hook_gives_the_end_of_what_it_said_without_secrets() -> None:
    remember("hunter2-hunter2")
    said = await run("seq 1 10000; echo the password is hunter2-hunter2; echo aside >&2")
    assert said.splitlines()[-3:] == ["10000", "the password is ***", "aside"]
    assert len(said.splitlines()) == 20


async def test_a_hook_has_its_own_environment_and_none_of_the_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "secret")
    said = await run("echo $0:$PGPASSWORD:$DEVICEON_BACKUP_HOOK; cat", env={"DEVICEON_BACKUP_HOOK": "stop"})
    assert said == "sh::stop"


async def test_a_hook_runs_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> None:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr("service.hooks.tempfile.TemporaryFile", nowhere)
    assert await run("echo said") == "said"
    start = RestoreHooks.model_validate({"start": {"command": ["touch", str(tmp_path / "started")]}})
    await ServerHooks(start, "", "0", tmp_path / "not there").start("rollback", Progress())
    assert (tmp_path / "started").exists()


async def test_a_hook_that_fails_says_how_and_what_it_said() -> None:
    with pytest.raises(HookFailed, match=r"failed with exit status 3: no such unit") as caught:
        await run("echo no such unit >&2; exit 3")
    assert "restore.hooks" in caught.value.hint
    with pytest.raises(HookFailed, match="cannot run /nowhere/stop"):
        await run_hook(["/nowhere/stop"], env={}, timeout=1, progress=Progress())


async def test_a_hook_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    with pytest.raises(HookFailed, match=r"did not end within 0\.3 seconds; it said: waiting"):
        await run(f"echo waiting; (sleep 1.5; touch {tmp_path}/late) & sleep 60", seconds=0.3)
    await asyncio.sleep(2)
    assert not (tmp_path / "late").exists()


async def test_a_cancelled_hook_is_ended_before_that_is_told(tmp_path: Path) -> None:
    hook = asyncio.create_task(run(f"touch {tmp_path}/begun; (sleep 1; touch {tmp_path}/late) & sleep 60"))
    while not (tmp_path / "begun").exists():
        await asyncio.sleep(0.01)
    hook.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hook
    await asyncio.sleep(1.3)
    assert not (tmp_path / "late").exists()


async def test_what_a_start_hook_leaves_running_lives_on_and_is_not_waited_for(tmp_path: Path) -> None:
    begun = time.monotonic()
    await run(f"(for n in 1 2 3 4 5 6 7 8; do sleep 0.2; echo $n; done; touch {tmp_path}/alive) & echo started")
    assert time.monotonic() - begun < 1.4
    async with asyncio.timeout(20):
        while not (tmp_path / "alive").exists():
            await asyncio.sleep(0.05)


STOPPING = """
import asyncio, json, sys
from pathlib import Path
from service.config_restore import RestoreHooks
from service.hooks import ServerHooks
from service.progress import Progress

place, stop = Path(sys.argv[1]), json.loads(sys.argv[2])
hooks = RestoreHooks.model_validate({"stop": stop, "start": {"command": ["true"]}})
asyncio.run(ServerHooks(hooks, "", "0", place).stop("restore", Progress()))
"""


async def test_a_start_hook_waits_for_a_stop_hook_that_outlived_a_killed_service(tmp_path: Path) -> None:
    stop = {"command": ["sh", "-c", f"touch {tmp_path}/begun; sleep 0.7; echo stop >> {tmp_path}/log"], "timeout": 20}
    start = {"command": ["sh", "-c", f"echo start >> {tmp_path}/log"]}
    hooks = ServerHooks(RestoreHooks.model_validate({"stop": stop, "start": start}), "", "0", tmp_path)
    arguments = [sys.executable, "-c", STOPPING, str(tmp_path), json.dumps(stop)]
    child = await asyncio.create_subprocess_exec(*arguments, cwd=Path(__file__).parents[2])
    while not (tmp_path / "begun").exists():
        await asyncio.sleep(0.01)
    child.kill()
    await child.wait()
    await hooks.start("rollback", Progress())
    assert (tmp_path / "log").read_text().split() == ["stop", "start"]


def test_hooks_that_cannot_be_run_are_named(tmp_path: Path) -> None:
    script = tmp_path / "start"
    script.write_text("#!/bin/sh\n")
    hooks = RestoreHooks(
        stop=HookSettings(command=["true"]),
        start=HookSettings(command=[str(script)]),
        health=HealthSettings(command=["no-such-program-anywhere"]),
    )
    found = obstacles(hooks)
    assert [(each.code, each.message.split()[1]) for each in found] == [
        ("HOOK_NOT_EXECUTABLE", "start"),
        ("HOOK_NOT_EXECUTABLE", "health"),
    ]
    script.chmod(0o755)
    assert len(obstacles(hooks)) == 1


async def test_doctor_looks_at_the_hooks_before_the_day_they_are_needed(tmp_path: Path) -> None:
    place = Place(tmp_path, settings={"restore": {"hooks": {"start": {"command": ["true"]}}}})
    assert [each.message for each in await examine(place.config) if each.name == "restore hooks"] == [
        "these could be run: start"
    ]
    place.settings["restore"] = {"hooks": {"start": {"command": ["/nowhere/start"]}}}
    [wrong] = [each for each in await examine(place.config) if each.name == "restore hooks"]
    assert wrong.ok is False and "/nowhere/start is not there" in wrong.message
    place.settings["restore"] = {}
    assert [each for each in await examine(place.config) if each.name == "restore hooks"] == []


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[int]:
    """A server on a port of this machine that gives these answers, the last one for ever."""
    left = list(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readline()
        if asked:
            assert asked == b"GET /health?deep=1 HTTP/1.1\r\n"
            writer.write(left.pop(0) if len(left) > 1 else left[0])
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def healthy(within: float = 20, **settings: object) -> None:
    hooks = RestoreHooks(health=HealthSettings.model_validate({"within": within, **settings}))
    await ServerHooks(hooks, "Backup_20260101_0000Z.zip", "0", Path("/nowhere")).health("restore", Progress())


GOOD, BUSY = b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 503 Service Unavailable\r\n\r\n"


async def test_a_server_that_needs_a_moment_is_waited_for(tmp_path: Path) -> None:
    async with answering(BUSY, GOOD) as port:
        await healthy(
            command=["sh", "-c", f"test -e {tmp_path}/seen || {{ touch {tmp_path}/seen; exit 1; }}"],
            url=f"http://127.0.0.1:{port}/health?deep=1",
            tcp=f"127.0.0.1:{port}",
        )
    assert (tmp_path / "seen").exists()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (BUSY, "answers with status 503 instead of 200"),
        (b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n", "answers with status 302 instead of 200"),
        (b"220 mail ready\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK" * 10_000, "cannot be reached"),
        (b"", "does not speak HTTP"),
    ],
)
async def test_another_answer_than_the_one_expected_is_not_healthy(answer: bytes, told: str) -> None:
    async with answering(answer) as port:
        with pytest.raises(Unhealthy, match=f"did not work within 0.2 seconds: .*{told}"):
            await healthy(0.2, url=f"http://127.0.0.1:{port}/health?deep=1")


async def test_all_that_is_given_must_hold_and_the_last_reason_is_told() -> None:
    async with answering(GOOD) as port:
        url = f"http://127.0.0.1:{port}/health?deep=1"
        await healthy(url=url)
        with pytest.raises(Unhealthy, match="exit status 1: queue is stuck"):
            await healthy(0.3, url=url, command=["sh", "-c", "echo queue is stuck; exit 1"])
        with pytest.raises(Unhealthy, match=r"127\.0\.0\.1 port 1 cannot be reached"):
            await healthy(0.3, url=url, tcp="127.0.0.1:1")


async def test_a_server_that_is_silent_or_a_probe_that_hangs_costs_only_its_time() -> None:
    silent = asyncio.Event()

    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silent.wait()
        writer.close()

    async with await asyncio.start_server(nothing, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        settings = HealthSettings(url=f"http://127.0.0.1:{port}/", timeout=0.1, within=0.3)
        with pytest.raises(Unhealthy, match=r"does not answer within 0\.1 seconds"):
            await wait_until_healthy(settings, None, Progress())
        silent.set()
    begun = time.monotonic()
    with pytest.raises(Unhealthy, match=r"did not work within 0\.3 seconds"):
        await healthy(0.3, command=["sleep", "60"])
    assert time.monotonic() - begun < 10
