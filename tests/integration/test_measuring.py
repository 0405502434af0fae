"""What the service tells its metrics of itself: what it remembers, its schedules, its directory and its targets."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from service.app import App
from service.job import Job, JobState
from service.journal import Journal
from service.measuring import measure, seed
from service.metrics import Metrics
from tests.integration.rpc.certificates import Authority
from tests.service_parts import START, Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"deviceon_backup_{name}", labels)


async def measured(app: App) -> Metrics:
    metrics = Metrics()
    await measure(app, metrics)
    return metrics


async def test_the_last_job_of_each_result_and_what_was_missed_are_known_after_a_restart(place: Place) -> None:
    def ended(identifier: str, state: JobState, days: int) -> Job:
        job = Job(id=identifier, kind="backup", origin="schedule", state=state, created=START + timedelta(days=days))
        return job.but(started=job.created, ended=job.created)

    async with place.app() as app:
        for number, (state, days) in enumerate((("failed", 0), ("failed", 1), ("succeeded", 2))):
            await app.history.add_job(ended(f"j-{number}", state, days))  # type: ignore[arg-type]
        for kind, made_up in (("backup", True), ("drill", False)):
            await app.announcer.tell("schedule.missed", {"kind": kind, "due": "", "made_up": made_up})
    metrics = Metrics()
    async with place.app() as app:
        await seed(app, metrics)
    last = "last_run_timestamp_seconds"
    assert value(metrics, last, kind="backup", result="failed") == (START + timedelta(days=1)).timestamp()
    assert value(metrics, last, kind="backup", result="succeeded") == (START + timedelta(days=2)).timestamp()
    assert value(metrics, last, kind="backup", result="partial") is None
    assert value(metrics, "last_missed_timestamp_seconds", kind="drill") == START.timestamp()
    assert value(metrics, "last_missed_timestamp_seconds", kind="backup") is None, "it was made up for"


async def test_how_long_a_schedule_pauses_is_told_for_the_kinds_that_have_one(place: Place) -> None:
    place.settings["schedule"] = {"frequency": "weekly", "at": "02:00", "weekdays": ["monday"]}
    async with place.app() as app:
        metrics = await measured(app)
    assert value(metrics, "schedule_longest_pause_seconds", kind="backup") == 7 * 86400
    assert value(metrics, "schedule_longest_pause_seconds", kind="drill") is None
    assert value(metrics, "schedule_longest_pause_seconds", kind="selftest") is None, "nothing is sealed"


async def test_room_and_copies_that_are_owed_are_told_of_each_target(place: Place, tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    copies = f"file://{tmp_path}/copies"
    place.settings["copies"] = [{"url": copies}]
    async with place.app() as app:
        await app.pending.add("Backup_20260302_1200Z.zip", [copies])
        metrics = await measured(app)
    assert value(metrics, "copies_owed", target=copies) == 1
    assert value(metrics, "copies_owed", target=f"file://{place.target}") == 0
    assert value(metrics, "target_free_bytes", target=copies)
    assert value(metrics, "state_free_bytes")
    assert (value(metrics, "state_size_bytes") or 0) > (value(metrics, "state_free_bytes") or 0)


async def test_files_that_were_set_aside_are_counted_until_somebody_takes_them_away(place: Place) -> None:
    async with place.app() as app:
        metrics = await measured(app)
    assert value(metrics, "state_files_set_aside", what="history") == 0
    database = place.state_dir / "state.db"
    database.write_bytes(b"no database at all" * 1000)
    (place.state_dir / "settings.json.rejected-20260302T120000Z").write_text("{}")
    async with place.app() as app:
        metrics = await measured(app)
        (aside,) = place.state_dir.glob("state.db.damaged-*")
        aside.with_name(aside.name + "-wal").write_bytes(b"")  # what belongs to it is no damage of its own
        assert value(await measured(app), "state_files_set_aside", what="history") == 1
        aside.unlink()
        gone = await measured(app)
    assert value(metrics, "state_files_set_aside", what="history") == 1
    assert value(metrics, "state_files_set_aside", what="settings") == 1
    assert value(gone, "state_files_set_aside", what="history") == 0


async def test_a_restore_that_waits_is_told_since_when(place: Place) -> None:
    async with place.app() as app:
        assert value(await measured(app), "restore_pending_timestamp_seconds") == 0
        journal = Journal.begin(place.state_dir, archive="Backup_20260302_1200Z.zip", started=START.isoformat())
        journal.swapped = (START + timedelta(hours=1)).isoformat()
        await journal.save("swapped")
        waiting = await measured(app)
    assert value(waiting, "restore_pending_timestamp_seconds") == (START + timedelta(hours=1)).timestamp()


async def test_when_the_certificate_of_the_socket_expires_is_told(place: Place, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = authority.sign("server")
    files = {"certificate_file": server.certificate, "key_file": server.key, "client_ca_file": authority.file}
    place.settings["service"] = {"tls": {"listen": "127.0.0.1:1"} | {name: str(path) for name, path in files.items()}}
    async with place.app() as app:
        expires = value(await measured(app), "certificate_expiry_timestamp_seconds")
        server.certificate.write_text("none")
        assert value(await measured(app), "certificate_expiry_timestamp_seconds") == 0
    assert expires and expires > START.timestamp()


async def test_a_clock_that_was_set_is_told(place: Place) -> None:
    async with place.app() as app:
        await app.scheduler.look()
        assert value(await measured(app), "clock_suspect") == 0
        place.clock.go(days=-3)
        await app.scheduler.look()
        assert value(await measured(app), "clock_suspect") == 1
