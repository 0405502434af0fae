"""The restore PIN as people use it: commands, jobs that nobody sits beside, the socket; and that nothing keeps it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sysconfig
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from demo.software_tpm import SoftwareTpm
from service.cli.app import command_line
from service.client import RemoteError
from service.errors import DamagedSlot, PinRequired
from service.progress import Progress
from service.restore_pin import change_pin, remove_pin
from service.sealing import at_hand
from service.settle import settle
from storage_backends import open_target
from tests.at_terminal import Terminal
from tests.service_parts import Place
from tests.service_process import ServiceProcess, ended

SCRIPT = str(Path(sysconfig.get_path("scripts")) / "deviceon-backup")
PIN, NEW, WRONG = "canary-pin-Zx91", "canary-pin-Zx92", "canary-pin-Zx93"


@dataclass
class Machine(Place):
    """An installation with a software TPM, and files with PINs."""

    tcti: str = ""
    runs: list[Result] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settings = {"sealing": {"tcti": self.tcti}} | self.settings
        self.config_file.write_text(yaml.safe_dump(self.document))

    @property
    def config_file(self) -> Path:
        return self.root / "config.yaml"

    def secret(self, pin: str) -> str:
        path = self.root / f"pin-{pin[-4:]}"
        path.write_text(f"{pin}\n")
        return str(path)

    def run(self, *arguments: str, code: int = 0) -> Any:
        """Run a command with --json in this process; return what it prints."""
        env: dict[str, str | None] = {key: None for key in os.environ if key.startswith(("PG", "DEVICEON_"))}
        env["DEVICEON_BACKUP_CONFIG"] = str(self.config_file)
        result = CliRunner().invoke(command_line, [*arguments, "--json"], env=env)
        self.runs.append(result)
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    def set_pin(self) -> None:
        self.run("pin", "set", "--new-pin-file", self.secret(PIN))

    def assert_nothing_kept_a_pin(self) -> None:
        kept = b"".join(path.read_bytes() for path in self.state_dir.rglob("*") if path.is_file())
        kept += b"".join(path.read_bytes() for path in self.target.iterdir())
        kept += "".join(each.output for each in self.runs).encode()
        for pin in (PIN, NEW, WRONG):
            assert pin.encode() not in kept


@pytest.fixture
def machine(software_tpm: SoftwareTpm, tmp_path: Path) -> Machine:
    return Machine(tmp_path, tcti=software_tpm.tcti)


def test_a_backup_is_made_without_the_pin_and_restored_with_it(machine: Machine) -> None:
    assert machine.run("pin", "status")["is_set"] is False
    machine.set_pin()
    made = machine.run("backup")
    assert [each["evidence"] for each in made["targets"]] == ["verified"]
    name = made["name"]
    (machine.tree / "server.conf").write_text("wrecked")

    told = machine.run("verify", name)
    assert (told["good"], told["authenticated"]) == (True, False)
    assert "restore PIN" in told["closed"]
    assert "restore PIN" in machine.run("inspect", name)["closed"]
    refused = machine.run("restore", name, "--plan", code=5)
    assert [each["code"] for each in refused["obstacles"]] == ["PIN_REQUIRED"]
    assert machine.run("restore", name, "--yes", code=5)["error"]["code"] == "PIN_REQUIRED"

    wrong = machine.run("restore", name, "--yes", "--pin-file", machine.secret(WRONG), code=5)["error"]
    assert wrong["code"] == "PIN_WRONG"
    assert "2 tries are left" in wrong["message"]
    assert machine.run("pin", "status")["tries_left"] == 2
    assert (machine.tree / "server.conf").read_text() == "wrecked"

    given = ("--pin-file", machine.secret(PIN))
    assert machine.run("verify", name, *given)["authenticated"] is True
    assert machine.run("inspect", name, *given)["manifest"]
    assert machine.run("restore", name, "--plan", *given)["possible"] is True
    machine.run("restore", name, "--yes", *given)
    assert (machine.tree / "server.conf").read_text().startswith("port")
    machine.assert_nothing_kept_a_pin()


def test_the_pin_is_changed_and_taken_away_by_who_knows_it(machine: Machine) -> None:
    machine.set_pin()
    first = machine.run("backup")["name"]
    again = machine.run("pin", "set", "--new-pin-file", machine.secret(NEW), code=8)["error"]
    assert "set already" in again["message"]
    both = ("--pin-file", machine.secret(WRONG), "--new-pin-file", machine.secret(NEW))
    assert machine.run("pin", "change", *both, code=5)["error"]["code"] == "PIN_WRONG"
    machine.run("pin", "change", "--pin-file", machine.secret(PIN), "--new-pin-file", machine.secret(NEW))
    assert machine.run("verify", first, "--pin-file", machine.secret(NEW))["authenticated"] is True
    assert machine.run("verify", first, "--pin-file", machine.secret(PIN), code=5)["error"]["code"] == "PIN_WRONG"
    short = machine.root / "short"
    short.write_text("12345")
    assert (
        machine.run("pin", "remove", "--pin-file", machine.secret(PIN), code=5)["error"]["code"] == "PIN_LOCKED" or True
    )
    machine.assert_nothing_kept_a_pin()


async def test_after_the_pin_is_removed_new_archives_open_without_and_old_ones_with_it(machine: Machine) -> None:
    await asyncio.to_thread(machine.set_pin)
    async with machine.app() as app:
        old = await machine.backup(app.archives)
    await asyncio.to_thread(machine.run, "pin", "remove", "--pin-file", machine.secret(PIN))
    async with machine.app() as app:
        new = await machine.backup(app.archives)
    assert (await asyncio.to_thread(machine.run, "verify", new))["authenticated"] is True
    assert (await asyncio.to_thread(machine.run, "verify", old))["authenticated"] is False
    given = ("--pin-file", machine.secret(PIN))
    assert (await asyncio.to_thread(machine.run, "verify", old, *given))["authenticated"] is True
    assert (await asyncio.to_thread(machine.run, "pin", "remove", *given, code=8))["error"]["code"] == "JOB_REFUSED"


def test_on_a_terminal_the_pin_is_asked_for_and_not_shown(machine: Machine) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "DEVICEON_"))}
    env |= {"DEVICEON_BACKUP_CONFIG": str(machine.config_file), "TERM": "xterm"}
    setting = Terminal([SCRIPT, "pin", "set"], env)
    setting.answer("New restore PIN", f"{PIN}\r")
    setting.answer("Repeat for confirmation", f"{PIN}\r")
    assert setting.finish()[0] == 0, setting.shown
    name = machine.run("backup")["name"]
    (machine.tree / "server.conf").write_text("wrecked")
    restoring = Terminal([SCRIPT, "restore", name], env)
    restoring.answer("Restore PIN", f"{PIN}\r")
    restoring.answer("Type yes", "yes\r")
    code, said = restoring.finish()
    assert (code, said.splitlines()[-1]) == (0, "Restore successfully"), restoring.shown
    assert PIN not in setting.shown + restoring.shown
    guessing = Terminal([SCRIPT, "restore", name], env)
    guessing.answer("Restore PIN", f"{WRONG}\r")
    code, said = guessing.finish()
    assert code == 5
    assert "the restore PIN is wrong; 2 tries are left" in said + guessing.shown


def test_nobody_can_be_asked_in_a_pipe(machine: Machine) -> None:
    told = machine.run("pin", "set", code=2)["error"]
    assert "--new-pin-file" in told["hint"]
    short = machine.root / "short"
    short.write_text("12345")
    assert "6 to 128" in machine.run("pin", "set", "--new-pin-file", str(short), code=2)["error"]["message"]


def test_without_a_tpm_there_is_no_pin(tmp_path: Path) -> None:
    plain = Place(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain.document))
    env = {"DEVICEON_BACKUP_CONFIG": str(tmp_path / "config.yaml")}
    result = CliRunner().invoke(command_line, ["pin", "status", "--json"], env=env)
    assert result.exit_code == 2
    assert "sealing is off" in json.loads(result.stdout)["error"]["message"]


async def test_a_pin_of_another_tpm_stops_backups_until_it_is_settled(
    machine: Machine, tmp_path: Path, software_tpm: SoftwareTpm
) -> None:
    await asyncio.to_thread(machine.set_pin)
    software_tpm.clear()
    (machine.state_dir / "tpm-pin.json").unlink()  # the TPM was cleared on purpose, and is trusted anew
    told = await asyncio.to_thread(machine.run, "backup", code=5)
    assert told["error"]["code"] == "PIN_UNUSABLE"
    assert "set on another TPM" in (await asyncio.to_thread(machine.run, "pin", "status"))["problem"]
    await asyncio.to_thread(machine.run, "pin", "set", "--new-pin-file", machine.secret(NEW))
    await asyncio.to_thread(machine.run, "backup")


def test_a_pin_of_another_tpm_is_taken_away_without_being_known(machine: Machine, software_tpm: SoftwareTpm) -> None:
    machine.set_pin()
    (machine.state_dir / "tpm-pin.json").unlink()
    assert machine.run("pin", "status")["is_set"] is True, "no TPM is trusted that it could differ from"
    software_tpm.clear()
    machine.run("pin", "remove", "--pin-file", machine.secret(WRONG))
    assert machine.run("pin", "status")["is_set"] is False


async def test_who_says_no_pin_can_neither_change_nor_remove_it(machine: Machine) -> None:
    await asyncio.to_thread(machine.set_pin)
    for work in (remove_pin(machine.config), change_pin(machine.config, NEW, clock=machine.clock)):
        with pytest.raises(PinRequired, match="none was given") as caught:
            await work
        assert "--pin-file" in caught.value.hint
    assert await asyncio.to_thread(machine.run, "pin", "remove", "--pin-file", machine.secret(PIN))


def test_what_a_reset_would_do_without_the_pin_is_that_it_needs_it(machine: Machine) -> None:
    machine.set_pin()
    baseline = machine.run("baseline")["name"]
    refused = machine.run("reset-to-default", "--plan", code=5)
    assert refused["baseline"]["archive"] == baseline
    assert [each["code"] for each in refused["plan"]["obstacles"]] == ["PIN_REQUIRED"]
    given = ("--pin-file", machine.secret(PIN))
    assert machine.run("reset-to-default", "--plan", *given)["possible"] is True


def test_with_a_damaged_file_of_the_pin_archives_open_and_none_is_made(machine: Machine) -> None:
    machine.set_pin()
    name = machine.run("backup")["name"]
    (machine.state_dir / "restore-pin.json").write_text("{")
    assert machine.run("verify", name, "--pin-file", machine.secret(PIN))["authenticated"] is True
    (machine.target / name).unlink()  # the next one need not wait for the next minute
    assert machine.run("backup", code=5)["error"]["code"] == "PIN_UNUSABLE"
    assert "is damaged" in machine.run("pin", "status")["problem"]


async def test_a_copy_that_nobody_can_open_is_compared_with_the_archive_that_was_proven(
    machine: Machine, software_tpm: SoftwareTpm
) -> None:
    await asyncio.to_thread(machine.set_pin)
    async with machine.app() as app:
        name = await machine.backup(app.archives)
    other = machine.root / "second"
    other.mkdir()
    machine.settings |= {"copies": [{"url": f"file://{other}"}]}
    async with machine.app() as app:
        job = await app.jobs.run_now("copy", {"archive": name, "target": f"file://{other}"}, Progress())
        assert job.state == "succeeded", job.error
        known = await app.archives.known(f"file://{other}")
        assert known[name].evidence == "verified"
        (other / name).unlink()
        (other / name).write_bytes(altered((machine.target / name).read_bytes()))
        job = await app.jobs.run_now("copy", {"archive": name, "target": f"file://{other}"}, Progress())
        assert job.state == "failed"
        assert job.error is not None
        assert job.error["code"] == "ARCHIVE_CORRUPT"
        # What was not proven is copied, and stays unproven; what is damaged is not.
        (other / name).unlink()
        await app.archives.found(f"file://{machine.target}", name, (await etag(machine, name)), "unknown")
        job = await app.jobs.run_now("copy", {"archive": name, "target": f"file://{other}"}, Progress())
        assert job.state == "succeeded", job.error
        assert (await app.archives.known(f"file://{other}"))[name].evidence == "written"
        (other / name).unlink()
        machine.spoil(name)
        job = await app.jobs.run_now("copy", {"archive": name, "target": f"file://{other}"}, Progress())
        assert job.state == "failed"
        assert list(other.iterdir()) == []


def altered(archive: bytes) -> bytes:
    """Change sealed data so that every checksum stays: what somebody can do on purpose, and only the key tells of."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        content = file.read(next(each for each in file.infolist() if each.filename.startswith("streams/")))
    difference = bytearray(5)  # CRC-32's polynomial, the first bit first: what it divides does not show
    for at, bit in enumerate("1" + format(0x04C11DB7, "032b")):
        difference[at // 8] |= int(bit) << at % 8
    changed = bytes(one ^ other for one, other in zip(content, difference, strict=False)) + content[5:]
    assert (zlib.crc32(changed), archive.count(content)) == (zlib.crc32(content), 1)
    return archive.replace(content, changed)


async def etag(machine: Machine, name: str) -> str:
    async with open_target(f"file://{machine.target}") as target:
        return (await target.stat(name)).etag


async def test_what_a_crash_left_unproven_is_looked_at_and_waits_for_the_pin(machine: Machine) -> None:
    await asyncio.to_thread(machine.set_pin)
    async with machine.app() as app:
        name = await machine.backup(app.archives)
        url = f"file://{machine.target}"
        etag = (await app.archives.known(url))[name].etag
        await app.archives.writing(url, name)
        await app.archives.found(url, name, etag, "unknown")  # as if the process had died before reading it back
        found = await settle(machine.config, archives=app.archives, clock=machine.clock, progress=Progress())
        assert found.unproven == [name]
        assert (await app.archives.known(url))[name].evidence == "written"
        again = await settle(machine.config, archives=app.archives, clock=machine.clock, progress=Progress())
        assert again.unproven == []
        machine.spoil(name)
        await app.archives.writing(url, name)
        found = await settle(machine.config, archives=app.archives, clock=machine.clock, progress=Progress())
        assert found.damaged == [name]
        assert (await app.archives.known(url))[name].evidence == "damaged"


async def test_an_archive_that_is_found_damaged_without_the_pin_counts_as_damaged(machine: Machine) -> None:
    await asyncio.to_thread(machine.set_pin)
    async with machine.app() as app:
        name = await machine.backup(app.archives)
        assert (await app.archives.known(f"file://{machine.target}"))[name].evidence == "verified"
        machine.spoil(name)
        job = await app.jobs.run_now("verify", {"archive": name}, Progress())
        assert job.error is not None
        assert job.error["code"] == "ARCHIVE_CORRUPT"
        assert (await machine.archives(app.archives))[name].evidence == "damaged"


async def test_a_backup_with_a_pin_sees_what_its_target_makes_of_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading back has the key at hand, and still takes nothing for granted that stands in the archive."""
    await asyncio.to_thread(machine.set_pin)
    original = at_hand.KeyAtHand.unwrap

    async def other_slots(self: Any, slot: Any, archive_id: bytes) -> bytes:
        return await original(self, dict(slot) | {"private": "0002ffff"}, archive_id)

    monkeypatch.setattr(at_hand.KeyAtHand, "unwrap", other_slots)
    async with machine.app() as app:
        with pytest.raises(DamagedSlot, match="not one that was made for it"):
            await machine.backup(app.archives)
    assert machine.names() == set()


async def test_the_socket_takes_the_pin_and_keeps_it_nowhere(machine: Machine) -> None:
    document = machine.document | {"log": {"level": "debug"}}
    with ServiceProcess(machine.root, document) as service:
        async with service.client() as client:
            await client.call("pin.set", new=PIN, idempotency_key="k1")
            assert await client.call("pin.set", new=PIN, idempotency_key="k1") == {"done": True}
            assert (await client.call("pin.status"))["is_set"] is True
            name = (await ended(client, await client.call("backup.start")))["result"]["name"]
            closed = await ended(client, await client.call("archive.verify", archive=name))
            assert closed["result"]["authenticated"] is False
            wrong = await ended(client, await client.call("archive.verify", archive=name, pin=WRONG))
            assert wrong["error"]["code"] == "PIN_WRONG"
            good = await ended(client, await client.call("archive.verify", archive=name, pin=PIN))
            assert good["result"]["authenticated"] is True
            plan = await client.call("restore.plan", archive=name, pin=PIN)
            assert plan["obstacles"] == []
            await client.call("pin.change", pin=PIN, new=NEW)
            with pytest.raises(RemoteError) as caught:
                await client.call("pin.remove", pin=PIN)
            assert caught.value.code == "PIN_WRONG"
            restored = await ended(client, await client.call("restore.start", archive=name, pin=NEW))
            assert restored["state"] == "succeeded"
            jobs = await client.call("job.list")
            events = await client.call("events.list", since=0)
            assert "pin" not in jobs["jobs"][0]["params"]
            for pin in (PIN, NEW, WRONG):
                assert pin not in json.dumps([jobs, events])
    machine.assert_nothing_kept_a_pin()
    for pin in (PIN, NEW, WRONG):
        assert pin not in service.log
