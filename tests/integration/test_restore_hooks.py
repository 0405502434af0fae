"""Hooks around the exchange: what is live is wholly old or wholly new, and the server runs on it, whatever fails."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from service import restore as recipe
from service.backup import backup
from service.errors import HookFailed, RestoreRefused, ServerNotStarted, Unhealthy
from service.journal import journals
from service.progress import Progress
from service.restore import commit, recover, restore, rollback
from service.restore_plan import plan_restore
from tests.kills import killed_at
from tests.scoreboard import counted
from tests.service_parts import Place

OLD, NEW = "spoilt", "port = 80\n" * 10


@dataclass
class Server:
    """What the hooks stand for: a server that is up or down, and remembers on which configuration it was started."""

    place: Place
    fails: dict[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.place.root

    @property
    def conf(self) -> Path:
        return self.place.tree / "server.conf"

    def hook(self, name: str, does: str) -> dict[str, Any]:
        """A program that notes that it ran and on what, and fails when a file says so: always, or on one state."""
        script = self.root / name
        script.write_text(
            f"#!/bin/sh\nstate=$(head -c 4 {self.conf})\n"
            f'echo "{name} $state $DEVICEON_BACKUP_PURPOSE" >> {self.root}/log\n'
            f'why=$(cat {self.root}/{name}.fails 2>/dev/null)\n[ "$why" = always ] || [ "$why" = "$state" ] && exit 1\n'
            f"{does}\n"
        )
        script.chmod(0o755)
        return {"command": [str(script)], "timeout": 20}

    def hooks(self) -> dict[str, Any]:
        return {
            "stop": self.hook("stop", f"rm -f {self.root}/running"),
            "start": self.hook("start", f"cp {self.conf} {self.root}/running"),
            "health": self.hook("health", f"test -e {self.root}/running") | {"within": 0.3},
        }

    def fail(self, name: str, when: str = "always") -> None:
        (self.root / f"{name}.fails").write_text(when)

    def mend(self) -> None:
        for path in self.root.glob("*.fails"):
            path.unlink()

    def log(self) -> list[str]:
        """What ran since the last call."""
        path = self.root / "log"
        said = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return said

    def live(self) -> str:
        return self.conf.read_text()

    def runs_on(self) -> str | None:
        """The configuration that the running server was started with; None when it is down."""
        running = self.root / "running"
        return running.read_text() if running.exists() else None

    def waiting(self) -> str | None:
        found = journals(self.place.state_dir)
        return found[0].state if found else None

    def reset(self) -> None:
        """A spoilt configuration on which the server runs."""
        self.mend()
        self.conf.write_text(OLD)
        (self.root / "running").write_text(OLD)
        self.log()


@pytest.fixture
def server(tmp_path: Path) -> Server:
    place = Place(tmp_path)
    server = Server(place)
    place.settings["restore"] = {"hooks": server.hooks()}
    asyncio.run(backup(place.config, progress=Progress()))
    server.reset()
    return server


@pytest.fixture
def archive(server: Server) -> str:
    return next(iter(server.place.names()))


async def put_back(server: Server, archive: str) -> None:
    await restore(server.place.config, archive, progress=Progress())


async def test_the_server_is_stopped_started_and_looked_at_around_the_exchange(server: Server, archive: str) -> None:
    await put_back(server, archive)
    assert server.log() == ["stop spoi restore", "start port restore", "health port restore"]
    assert (server.live(), server.runs_on(), server.waiting()) == (NEW, NEW, "swapped")
    await rollback(server.place.config, progress=Progress())
    assert server.log() == ["stop port rollback", "start spoi rollback", "health spoi rollback"]
    assert (server.live(), server.runs_on(), server.waiting()) == (OLD, OLD, None)
    await put_back(server, archive)
    server.log()
    await commit(server.place.config, progress=Progress())
    assert (server.log(), server.live(), server.runs_on()) == ([], NEW, NEW)


async def test_a_failed_stop_hook_means_that_nothing_was_exchanged_and_the_server_is_started_again(
    server: Server, archive: str
) -> None:
    server.fail("stop")
    with pytest.raises(HookFailed, match="stop failed with exit status 1") as caught:
        await put_back(server, archive)
    assert server.log() == ["stop spoi restore", "start spoi rollback", "health spoi rollback"]
    assert (server.live(), server.runs_on(), server.waiting()) == (OLD, OLD, None)
    assert "The state before the restore is back." in caught.value.__notes__


@pytest.mark.parametrize(("name", "error"), [("start", HookFailed), ("health", Unhealthy)])
async def test_a_restored_server_that_does_not_start_or_work_is_rolled_back(
    server: Server, archive: str, name: str, error: type[Exception]
) -> None:
    server.fail(name, "port")
    with pytest.raises(error):
        await put_back(server, archive)
    said = list(dict.fromkeys(server.log()))  # the probe is tried more than once
    assert said[-3:] == ["stop port rollback", "start spoi rollback", "health spoi rollback"]
    assert (server.live(), server.runs_on(), server.waiting()) == (OLD, OLD, None)


async def test_a_stop_hook_that_fails_on_the_way_back_does_not_keep_the_old_state_away(
    server: Server, archive: str
) -> None:
    server.fail("health", "port")
    server.fail("stop", "port")
    with pytest.raises(Unhealthy):
        await put_back(server, archive)
    assert (server.live(), server.runs_on(), server.waiting()) == (OLD, OLD, None)


async def test_a_server_that_does_not_come_up_on_its_old_state_is_told_and_that_state_is_back(
    server: Server, archive: str
) -> None:
    server.fail("start")
    with pytest.raises(ServerNotStarted, match=r"the restore failed .* is in place, but the server was not started"):
        await put_back(server, archive)
    assert (server.live(), server.runs_on(), server.waiting()) == (OLD, None, None)


async def test_a_server_that_did_not_work_before_either_is_rolled_back_all_the_same(
    server: Server, archive: str
) -> None:
    await put_back(server, archive)
    server.fail("health")
    said: list[str] = []
    await rollback(server.place.config, progress=Progress(on_step=said.append))
    assert (server.live(), server.runs_on(), server.waiting()) == (OLD, OLD, None)
    assert any("The state before the restore is in place, but the server did not work" in each for each in said)


async def test_a_rollback_that_cannot_stop_the_server_leaves_it_as_it_is(server: Server, archive: str) -> None:
    await put_back(server, archive)
    server.fail("stop")
    with pytest.raises(HookFailed):
        await rollback(server.place.config, progress=Progress())
    assert (server.live(), server.runs_on(), server.waiting()) == (NEW, NEW, "swapped")
    server.mend()
    await rollback(server.place.config, progress=Progress())
    assert (server.live(), server.runs_on(), server.waiting()) == (OLD, OLD, None)


async def test_hooks_that_cannot_be_run_refuse_the_restore(server: Server, archive: str) -> None:
    (server.root / "start").chmod(0o644)
    plan = await plan_restore(server.place.config, archive)
    assert [each.code for each in plan.obstacles] == ["HOOK_NOT_EXECUTABLE"]
    with pytest.raises(RestoreRefused):
        await put_back(server, archive)
    assert server.log() == []


async def test_a_restore_that_fails_before_the_server_was_stopped_runs_no_hook(
    server: Server, archive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> None:
        raise HookFailed("staging failed")

    monkeypatch.setattr(recipe, "_stage", fails)
    with pytest.raises(HookFailed):
        await put_back(server, archive)
    assert server.log() == []


@pytest.mark.parametrize("doing", ["stop", "start", "health"])
async def test_cancelled_while_a_hook_runs_the_old_state_is_back_and_the_server_runs_on_it(
    server: Server, archive: str, doing: str
) -> None:
    script = server.root / doing
    state = "spoi" if doing == "stop" else "port"
    script.write_text(script.read_text() + f'if [ "$state" = {state} ]; then sleep 60; fi\n')
    work = asyncio.create_task(put_back(server, archive))
    path = server.root / "log"
    while not (path.exists() and f"{doing} " in path.read_text()):
        await asyncio.sleep(0.01)
        assert not work.done(), work.result()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert (server.live(), server.runs_on(), server.waiting()) == (OLD, OLD, None)


@pytest.mark.parametrize("doing", ["restore", "rollback"])
def test_killed_at_every_step_the_next_start_has_the_server_run_on_one_whole_state(
    server: Server, archive: str, doing: str, record_property: Any
) -> None:
    config = server.place.config
    hooks_ran_before_the_kill: set[str] = set()

    async def work() -> None:
        if doing == "restore":
            await restore(config, archive, progress=Progress())
        else:
            await rollback(config, progress=Progress())

    killed, step = True, 0
    while killed:
        step += 1
        if server.waiting():
            asyncio.run(rollback(config, progress=Progress()))
        server.reset()
        if doing == "rollback":
            asyncio.run(put_back(server, archive))
            server.log()
        killed = killed_at(step, work)
        hooks_ran_before_the_kill.add(" ".join(line.split()[0] for line in server.log()))
        asyncio.run(recover(config, progress=Progress()))
        kept = server.waiting() == "swapped"
        assert server.waiting() in (None, "swapped")
        assert server.live() == (NEW if kept else OLD)
        assert server.runs_on() == server.live()
        assert step < 400
    assert hooks_ran_before_the_kill >= {"", "stop", "stop start health"}
    record_property(
        "counted", counted(step - 1, f"a {doing} with hooks; server on half a state: 0", killed_around_hooks=step - 1)
    )
