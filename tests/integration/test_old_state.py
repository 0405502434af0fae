"""The state before a restore when its time is up: told, then removed if the server is well, and else kept."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.app import App
from service.backup import backup
from service.catalog import opened
from service.config_restore import RestoreSettings
from service.job import Job
from service.journal import Journal, journals
from service.old_state import OldState, due
from service.progress import Progress
from service.restore import restore, rollback
from service.rpc.peers import Peer
from tests.service_parts import START, Clock, Place

HEALTHY = {"health": {"command": ["true"], "within": 0.2}}
WEEK = RestoreSettings.model_validate({"keep_old": 7, "hooks": HEALTHY})
END = START + timedelta(days=7)


def waiting(state: Any = "swapped") -> Journal:
    return Journal(Path("/x"), "0", "Backup_20260101_0000Z.zip", "", state, [], swapped=START.isoformat())


@pytest.mark.parametrize(
    ("hours", "told", "last_try", "what"),
    [
        (6 * 24 - 1, None, None, ""),
        (6 * 24, None, None, "tell"),
        (6 * 24 + 1, 6 * 24, None, ""),
        (7 * 24, 6 * 24, None, "commit"),
        (7 * 24 + 1, 6 * 24, 7 * 24, ""),
        (8 * 24, 6 * 24, 7 * 24, "commit"),
        (30 * 24, None, None, "tell"),  # the service did not run meanwhile: it does not go without notice
        (30 * 24 + 23, 30 * 24, None, ""),
        (31 * 24, 30 * 24, None, "commit"),
    ],
)
def test_what_is_due_when(hours: int, told: int | None, last_try: int | None, what: str) -> None:
    def at(number: int | None) -> datetime | None:
        return None if number is None else START + timedelta(hours=number)

    now = START + timedelta(hours=hours)
    assert due(waiting(), WEEK, now=now, told=at(told), last_try=at(last_try))[0] == what


def test_nothing_is_ever_due_without_the_setting_or_before_the_restore_is_done() -> None:
    late = START + timedelta(days=1000)
    assert due(waiting(), RestoreSettings(), now=late, told=START, last_try=None) == ("", None)
    for state in ("swapping", "starting", "undoing", "committing"):
        assert due(waiting(state), WEEK, now=late, told=START, last_try=None) == ("", None)


def test_the_setting_needs_a_probe() -> None:
    with pytest.raises(ValidationError, match=r"keep_old needs hooks\.health"):
        RestoreSettings(keep_old=7)


@pytest.fixture
async def place(tmp_path: Path) -> Place:
    health = {"command": ["test", "-e", str(tmp_path / "well")], "within": 0.2}
    place = Place(tmp_path, Clock(), {"restore": {"keep_old": 7, "hooks": {"health": health}}})
    (tmp_path / "well").touch()
    made = await backup(place.config, progress=Progress())
    (place.tree / "server.conf").write_text("before the restore")
    await restore(place.config, made.name, progress=Progress())
    [journal] = journals(place.state_dir)
    place.clock.now = datetime.fromisoformat(journal.swapped)
    return place


async def looked(app: App, place: Place, told: list[str], **later: float) -> list[Job]:
    """Let time pass, look once, do the jobs that come of it; return these."""
    place.clock.go(**later)
    old = OldState(app.jobs, app.history, app.values, app.announcer, lambda archive, at: told.append(f"{at:%m-%d}"))
    await old.look(app.file, now=place.clock())
    done = [await app.jobs._run(job, Progress()) for job in app.jobs.waiting]
    app.jobs._queue.clear()
    return done


async def test_it_is_told_a_day_before_and_goes_when_the_server_is_well(place: Place) -> None:
    told: list[str] = []
    async with place.app() as app:
        info = await app.api.call("system.info", {}, Peer("x", "admin"))
        assert info["restore"]["expires"] == (place.clock() + timedelta(days=7)).isoformat().replace("+00:00", "Z")
        assert await looked(app, place, told, days=5) == []
        assert await looked(app, place, told, days=1) == []
        assert await looked(app, place, told, hours=23) == []
        assert len(told) == 1
        assert [e["type"] for e in await app.history.events() if e["type"].startswith("restore")] == ["restore.expires"]
        (place.root / "well").unlink()
        [failed] = await looked(app, place, told, hours=1)
        assert failed.state == "failed" and failed.error is not None and failed.error["code"] == "RESTORE_UNHEALTHY"
        assert journals(place.state_dir)[0].state == "swapped"
        (place.root / "well").touch()
        assert await looked(app, place, told, hours=1) == []
        [done] = await looked(app, place, told, hours=23)
        assert done.state == "succeeded"
    assert journals(place.state_dir) == []
    assert (place.tree / "server.conf").read_text().startswith("port = 80")
    assert [path.name for path in place.root.iterdir() if path.name.startswith(".deviceon")] == []


async def test_until_then_rollback_returns_to_it_and_nothing_is_due_any_more(place: Place) -> None:
    told: list[str] = []
    async with place.app() as app:
        await looked(app, place, told, days=6, hours=1)
        await rollback(place.config, progress=Progress())
        assert await looked(app, place, told, days=30) == []
    assert (place.tree / "server.conf").read_text() == "before the restore"


async def test_a_backup_meanwhile_has_what_was_restored_and_not_the_state_before(place: Place) -> None:
    (place.tree.parent / "target2").mkdir()
    place.settings["target"] = {"url": f"file://{place.tree.parent}/target2"}
    made = await backup(place.config, progress=Progress())
    async with opened(place.config, made.name) as reader:
        [tree] = reader.sources()
        assert tree.facts["files"] == 1 and tree.facts["bytes"] == len("port = 80\n") * 10
