"""From wherever a restore stands: which ways are open, and what is said of those that are not."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from service.backup import backup
from service.errors import HookFailed, JobRefused, RestoreError, SwapFailed, Unhealthy
from service.journal import Journal, State, journals
from service.progress import Progress
from service.restore import commit, pending, recover, restore, rollback
from service.restore_table import restore_tables
from tests.integration.test_restore_hooks import NEW, OLD, Server
from tests.service_parts import Place


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """A server with an archive, whose configuration was spoilt since."""
    server = Server(Place(tmp_path))
    server.place.settings["restore"] = {"hooks": server.hooks()}
    asyncio.run(backup(server.place.config, progress=Progress()))
    server.reset()
    return server


async def restored(server: Server) -> Journal:
    [archive] = server.place.names()
    await restore(server.place.config, archive, progress=Progress())
    server.log()
    [journal] = journals(server.place.state_dir)
    return journal


async def test_where_no_restore_waits_there_is_nothing_to_keep_or_to_return_to(server: Server) -> None:
    assert pending(server.place.config) is None
    for way in (commit, rollback):
        with pytest.raises(JobRefused, match="no restore waits"):
            await way(server.place.config, progress=Progress())
    assert server.live() == OLD


async def test_while_the_old_state_is_kept_no_other_restore_begins(server: Server) -> None:
    journal = await restored(server)
    for again in (
        restore(server.place.config, journal.archive, progress=Progress()),
        restore_tables(
            server.place.config, journal.archive, database="x", tables=["t"], into="beside", progress=Progress()
        ),
    ):
        with pytest.raises(JobRefused, match="still keeps the state before it") as caught:
            await again
        assert "commit" in caught.value.hint
        assert "rollback" in caught.value.hint
    assert (server.live(), server.waiting()) == (NEW, "swapped")


@pytest.mark.parametrize("state", ["swapping", "starting", "undoing"])
async def test_a_restore_that_did_not_finish_can_only_be_taken_back(server: Server, state: State) -> None:
    await (await restored(server)).save(state)
    with pytest.raises(RestoreError, match=f"did not finish .it was {state}.") as caught:
        await commit(server.place.config, progress=Progress())
    assert "rollback" in caught.value.hint
    await rollback(server.place.config, progress=Progress())
    assert (server.live(), server.waiting()) == (OLD, None)


@pytest.mark.parametrize("ended_by", ["commit", "the next start"])
async def test_a_commit_that_was_begun_can_only_be_ended(server: Server, ended_by: str) -> None:
    await (await restored(server)).save("committing")
    with pytest.raises(RestoreError, match="already being removed") as caught:
        await rollback(server.place.config, progress=Progress())
    assert "commit" in caught.value.hint
    if ended_by == "commit":
        await commit(server.place.config, progress=Progress())
    else:
        assert len(await recover(server.place.config, progress=Progress())) == 1
    assert (server.live(), server.waiting()) == (NEW, None)
    assert [path for path in server.root.rglob(".deviceon-backup-*") if path.is_dir()] == []


async def test_a_commit_of_a_server_that_does_not_work_keeps_the_old_state(server: Server) -> None:
    await restored(server)
    server.fail("health")
    with pytest.raises(Unhealthy):
        await commit(server.place.config, only_if_healthy=True, progress=Progress())
    assert (server.live(), server.waiting()) == (NEW, "swapped")
    server.mend()
    await commit(server.place.config, only_if_healthy=True, progress=Progress())
    assert (server.live(), server.waiting()) == (NEW, None)


async def test_a_rollback_that_leaves_the_server_half_stopped_says_so(server: Server) -> None:
    await restored(server)
    server.fail("stop")
    server.fail("start")
    with pytest.raises(HookFailed) as caught:
        await rollback(server.place.config, progress=Progress())
    assert "The server was not started again" in "".join(caught.value.__notes__)
    assert (server.live(), server.waiting()) == (NEW, "swapped")


async def test_when_the_way_back_fails_too_both_reasons_are_told_and_a_rollback_goes_on_there(server: Server) -> None:
    """The stop hook lets the state directory become read-only, as a disk with errors does."""
    script, restores = server.root / "stop", server.place.state_dir / "restores"
    whole = script.read_text()
    script.write_text(f"{whole}mount --bind {restores} {restores} && mount -o remount,bind,ro {restores}; exit 1\n")
    try:
        with pytest.raises(SwapFailed, match=r"the restore failed .*stop failed.*, and so did the way back") as caught:
            await restored(server)
    finally:
        subprocess.run(["umount", restores], check=True)
    assert "rollback" in caught.value.hint
    script.write_text(whole)
    assert (server.live(), server.waiting()) == (OLD, "stopping")
    await rollback(server.place.config, progress=Progress())
    assert (server.live(), server.runs_on(), server.waiting()) == (OLD, OLD, None)
