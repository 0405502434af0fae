"""The self-test of keys: it passes while a restore would get the key, and says why when it would not."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from demo.software_tpm import SoftwareTpm
from service.app import App
from service.cli.app import command_line
from service.job import Job
from service.opening import Opening
from service.progress import Progress
from service.restore_pin import set_pin
from tests.service_parts import Place

PIN = "canary-pin-Zx94"


@pytest.fixture
def place(software_tpm: SoftwareTpm, tmp_path: Path) -> Place:
    return Place(tmp_path, settings={"sealing": {"tcti": software_tpm.tcti}})


async def outcome(app: App, opening: Opening | None = None) -> Job:
    return await app.jobs.run_now("selftest", {}, Progress(), opening=opening or Opening())


def error_of(job: Job) -> dict[str, Any]:
    assert job.error is not None, job
    return job.error


async def test_the_newest_archives_key_is_opened(place: Place) -> None:
    async with place.app() as app:
        job = await outcome(app)
        assert (job.state, job.result) == ("succeeded", {"tested": []})
        await place.backup(app.archives)
        newest = await place.backup(app.archives)
        job = await outcome(app)
        assert job.state == "succeeded"
        assert job.result is not None
        (found,) = job.result["tested"]
        assert (found["archive"], found["opened"], found["note"]) == (newest, True, "")


async def test_what_a_tpm_no_longer_opens_is_told_with_its_reason(place: Place, software_tpm: SoftwareTpm) -> None:
    async with place.app() as app:
        name = await place.backup(app.archives)
        software_tpm.stop()
        assert error_of(await outcome(app))["code"] == "TPM_UNAVAILABLE"
        software_tpm.start()
        assert (await outcome(app)).state == "succeeded"
        content = (place.target / name).read_bytes()
        slot = content.index(b'"private":"') + 60
        (place.target / name).write_bytes(content[:slot] + b"0" * 4 + content[slot + 4 :])
        job = await outcome(app)
        assert job.state == "failed"
        assert error_of(job)["code"].startswith(("SEAL", "ARCHIVE"))
        (place.target / name).write_bytes(content)
        software_tpm.clear()
        job = await outcome(app)
        assert (job.state, error_of(job)["code"]) == ("failed", "TPM_CLEARED")
        assert error_of(job)["notes"] == [f"in file://{place.target}"]


async def test_a_target_that_is_gone_does_not_hide_a_key_that_opens(place: Place) -> None:
    other = place.root / "other"
    place.settings |= {"copies": [{"url": f"file://{other}"}]}
    other.mkdir()
    async with place.app() as app:
        await place.backup(app.archives)
        for path in other.iterdir():
            path.unlink()
        other.rmdir()
        job = await outcome(app)
        assert job.state == "partial"
        assert error_of(job)["code"].startswith("TARGET")
        assert job.result is not None
        assert [each["opened"] for each in job.result["tested"]] == [True]


async def test_with_a_restore_pin_all_but_the_last_step_is_done(place: Place, software_tpm: SoftwareTpm) -> None:
    async with place.app() as app:
        await set_pin(place.config, PIN, clock=place.clock)
        await place.backup(app.archives)
        job = await outcome(app)
        assert job.state == "succeeded"
        assert job.result is not None
        assert job.result["tested"][0]["opened"] is False
        assert "needs the PIN" in job.result["tested"][0]["note"]
        job = await outcome(app, Opening(pin=PIN))
        assert job.result is not None
        assert job.result["tested"][0]["opened"] is True
        assert error_of(await outcome(app, Opening(pin="another pin")))["code"] == "PIN_WRONG"
        software_tpm.clear()
        assert error_of(await outcome(app))["code"] == "TPM_CLEARED"


async def test_it_comes_every_day_by_itself_and_never_without_a_tpm(place: Place) -> None:
    place.settings["sealing"]["self_test"] = {"frequency": "daily", "at": "05:00"}
    async with place.app() as app:
        await app.scheduler.look()
        due = app.scheduler.next_run("selftest")
        assert due is not None
        place.clock.now = due + timedelta(seconds=30)
        await app.scheduler.look()
        assert [(job.kind, job.origin) for job in app.jobs.waiting] == [("selftest", "schedule")]
    place.settings["sealing"] = {"mode": "off"}
    async with place.app() as app:
        assert app.scheduler.next_run("selftest") is None


def test_the_command_says_what_opens(place: Place) -> None:
    async def backed_up() -> str:
        async with place.app() as app:
            return await place.backup(app.archives)

    name = asyncio.run(backed_up())
    (place.root / "config.yaml").write_text(yaml.safe_dump(place.document))
    env = {"DEVICEON_BACKUP_CONFIG": str(place.root / "config.yaml")}
    result = CliRunner().invoke(command_line, ["selftest"], env=env)
    assert result.stdout == f"{name} in file://{place.target}: its key opens\n"
    told = json.loads(CliRunner().invoke(command_line, ["selftest", "--json"], env=env).stdout)
    assert told["tested"][0]["archive"] == name


async def test_what_lies_beside_an_archive_with_a_pin_fails_no_self_test(place: Place) -> None:
    async with place.app() as app:
        await set_pin(place.config, PIN, clock=place.clock)
        name = await place.backup(app.archives)
        (place.target / f"{name}.keys").write_bytes(b"no key slots")
        job = await outcome(app)
        assert job.state == "succeeded", job.error
