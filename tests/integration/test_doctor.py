"""What doctor says of the TPM and the keys, of clocks, and of what is missing where the service runs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from demo.software_tpm import SoftwareTpm
from service.cli.app import command_line
from service.doctor import examine
from service.finding import Finding
from service.restore_pin import set_pin
from service.target_test import _clock
from tests.integration.tpm_wire import Tools
from tests.service_parts import Place


@pytest.fixture
def place(software_tpm: SoftwareTpm, tmp_path: Path) -> Place:
    return Place(tmp_path, settings={"sealing": {"tcti": software_tpm.tcti}})


async def found(place: Place) -> dict[str, Finding]:
    return {finding.name: finding for finding in await examine(place.config)}


async def test_a_good_machine_is_green_and_tells_all_there_is(place: Place) -> None:
    before = await found(place)
    assert before["TPM"].ok is True
    assert "no TPM is pinned yet" in before["TPM pin"].message
    assert list(place.state_dir.rglob("*")) == [], "to look at a TPM is not to trust it"
    async with place.app() as app:
        await place.backup(app.archives)
    told = await found(place)
    assert [name for name, finding in told.items() if finding.ok is False] == []
    assert "derived" in told["TPM"].message
    assert told["TPM lockout"].message == "0 of 3 wrong passwords, one is forgiven in 1000 s"
    assert told["TPM kind"].ok is None
    assert told["TPM pin"].ok is True
    assert "loss of this TPM is loss of all backups" in told["recovery key"].message
    assert told["recovery key"].remedy
    assert told["target guarantees"].message
    assert "restore PIN" not in told


async def test_keys_and_counters_are_told(place: Place, software_tpm: SoftwareTpm, tmp_path: Path) -> None:
    tools = Tools(software_tpm.tcti, tmp_path / "tools")
    async with place.app() as app:
        await place.backup(app.archives)
    await set_pin(place.config, "a good pin", clock=place.clock)
    assert "3 wrong tries are left" in (await found(place))["restore PIN"].message
    tools.lock_out()
    told = await found(place)
    assert told["TPM"].ok is True, "backups go on in lockout"
    assert told["TPM lockout"].ok is None
    assert "LOCKED: 3 of 3" in told["TPM lockout"].message
    assert "tpm2_dictionarylockout" in told["TPM lockout"].remedy
    (place.state_dir / "restore-pin.json").write_text("{}")
    told = await found(place)
    assert told["restore PIN"].ok is False
    assert told["restore PIN"].remedy


async def test_a_storage_key_made_later_does_not_look_like_another_tpm(
    place: Place, software_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    async with place.app() as app:
        await place.backup(app.archives)
    Tools(software_tpm.tcti, tmp_path / "tools").persist("0x81000001", "-G", "rsa")
    assert (await found(place))["TPM pin"].ok is True


async def test_a_storage_key_that_a_lockout_stops_is_told(
    place: Place, software_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    tools = Tools(software_tpm.tcti, tmp_path / "tools")
    tools("createprimary", "-C", "o", "-c", "primary", "-G", "ecc")
    tools("evictcontrol", "-C", "o", "-c", "primary", "0x81000001")
    tools("changeauth", "-c", "owner", "password")
    told = await found(place)
    assert "no noDA" in told["TPM storage key"].message
    assert "persistent storage keys: 0x81000001" in told["TPM owner password"].message


async def test_another_tpm_and_one_that_is_off_are_red(place: Place, software_tpm: SoftwareTpm, tmp_path: Path) -> None:
    async with place.app() as app:
        await place.backup(app.archives)
    software_tpm.clear()
    told = await found(place)
    assert told["TPM"].ok is False
    assert "cleared since it was pinned" in told["TPM"].message
    assert "TPM lockout" in told, "what can be told is told all the same"
    Tools(software_tpm.tcti, tmp_path / "tools")("hierarchycontrol", "-C", "p", "shEnable", "clear")
    told = await found(place)
    assert told["TPM hierarchy"].ok is False
    software_tpm.stop()
    assert "there is no TPM at" in (await found(place))["TPM"].message


def test_the_command_is_green_or_red_by_its_exit_code(place: Place, software_tpm: SoftwareTpm) -> None:
    (place.root / "config.yaml").write_text(yaml.safe_dump(place.document))
    env = {"DEVICEON_BACKUP_CONFIG": str(place.root / "config.yaml")}
    good = CliRunner().invoke(command_line, ["doctor", "--json"], env=env)
    assert (good.exit_code, json.loads(good.stdout)["good"]) == (0, True)
    assert len(CliRunner().invoke(command_line, ["doctor"], env=env).stdout.splitlines()) < 40, "one page"
    software_tpm.stop()
    bad = CliRunner().invoke(command_line, ["doctor", "--json"], env=env)
    assert (bad.exit_code, json.loads(bad.stdout)["good"]) == (1, False)


def test_clocks_that_differ_are_told() -> None:
    now = datetime(2026, 11, 28, tzinfo=UTC)
    assert _clock(now + timedelta(seconds=100), now) == []
    assert "600 s behind" in _clock(now - timedelta(minutes=10), now)[0].message
    assert "600 s ahead" in _clock(now + timedelta(minutes=10), now)[0].message
