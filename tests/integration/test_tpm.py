"""An archive's key opens on the TPM that sealed it, and four plain errors tell why it does not."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.software_tpm import SoftwareTpm, SoftwareTpmFailed, SoftwareTpmMissing
from service.errors import (
    NoMatchingIdentity,
    SealError,
    TpmChanged,
    TpmCleared,
    TpmUnavailable,
    WrongTpm,
)
from service.sealing.slots import no_key, try_slots
from service.sealing.tpm import TpmGate, TpmIdentity, TpmPin, TpmRecipient, describe, load_pin, read_pin, save_pin
from service.sealing.tpm.surroundings import surroundings
from tests.integration.tpm_wire import CREATE, LOAD, START_AUTH_SESSION, UNSEAL, Tools, wired

ARCHIVE = bytes(range(16))


@pytest.fixture
def other_tpm() -> Iterator[SoftwareTpm]:
    with SoftwareTpm() as tpm:
        yield tpm


async def sealed(tpm: SoftwareTpm) -> tuple[bytes, dict[str, object], TpmPin]:
    """Seal a new key as a first backup does: the key, its slot as it stands in an archive, the pin."""
    gate = TpmGate(tpm.tcti, owner_auth=None)
    pin = await read_pin(gate)
    key = secrets.token_bytes(32)
    slot = await TpmRecipient(gate, pin).wrap(key, ARCHIVE)
    return key, json.loads(json.dumps(slot)), pin


def identity(tpm: SoftwareTpm) -> TpmIdentity:
    return TpmIdentity(TpmGate(tpm.tcti, owner_auth=None))


async def test_what_a_tpm_sealed_it_opens(software_tpm: SoftwareTpm) -> None:
    key, slot, pin = await sealed(software_tpm)
    assert slot["type"] == "tpm2"
    assert slot["fingerprint"] == pin.fingerprint
    assert slot["parent"] == "derived"
    assert key.hex() not in json.dumps(slot)
    assert await identity(software_tpm).unwrap(slot, ARCHIVE) == key


async def test_two_slots_of_one_key_have_nothing_secret_in_common(software_tpm: SoftwareTpm) -> None:
    gate = TpmGate(software_tpm.tcti)
    recipient = TpmRecipient(gate, await read_pin(gate))
    first, second = [await recipient.wrap(bytes(32), bytes([n]) * 16) for n in (1, 2)]
    assert all(first[member] != second[member] for member in ("private", "public", "ek_salted"))


async def test_a_power_cycle_changes_nothing(software_tpm: SoftwareTpm) -> None:
    key, slot, pin = await sealed(software_tpm)
    software_tpm.restart()
    assert await identity(software_tpm).unwrap(slot, ARCHIVE) == key
    assert await read_pin(TpmGate(software_tpm.tcti)) == pin


async def test_a_plug_pulled_out_changes_nothing(software_tpm: SoftwareTpm) -> None:
    key, slot, _ = await sealed(software_tpm)
    software_tpm.kill()
    software_tpm.start()
    assert await identity(software_tpm).unwrap(slot, ARCHIVE) == key


async def test_another_tpm_is_told_with_both_fingerprints(software_tpm: SoftwareTpm, other_tpm: SoftwareTpm) -> None:
    _, slot, pin = await sealed(software_tpm)
    other = await read_pin(TpmGate(other_tpm.tcti))
    with pytest.raises(WrongTpm) as caught:
        await identity(other_tpm).unwrap(slot, ARCHIVE)
    assert str(caught.value) == f"this archive was made on {pin.fingerprint}, this machine has {other.fingerprint}"
    assert "Restore on the machine whose TPM made the archive" in caught.value.hint


async def test_a_cleared_tpm_is_told_from_another_one(software_tpm: SoftwareTpm) -> None:
    _, slot, pin = await sealed(software_tpm)
    software_tpm.clear()
    now = await read_pin(TpmGate(software_tpm.tcti))
    with pytest.raises(TpmCleared) as caught:
        await identity(software_tpm).unwrap(slot, ARCHIVE)
    assert pin.fingerprint in str(caught.value)
    assert now.fingerprint in str(caught.value)
    assert "cannot be undone" in caught.value.hint


async def test_an_archive_made_after_a_clear_opens(software_tpm: SoftwareTpm) -> None:
    software_tpm.clear()
    key, slot, _ = await sealed(software_tpm)
    assert await identity(software_tpm).unwrap(slot, ARCHIVE) == key


async def test_an_absent_tpm_is_told_at_once(software_tpm: SoftwareTpm) -> None:
    _, slot, _ = await sealed(software_tpm)
    software_tpm.stop()
    with pytest.raises(TpmUnavailable, match="there is no TPM at") as caught:
        await identity(software_tpm).unwrap(slot, ARCHIVE)
    assert caught.value.hint


async def test_an_absent_device_names_the_ways_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(TpmUnavailable, match="there is no TPM at") as caught:
        await read_pin(TpmGate(f"device:{tmp_path}/tpmrm0"))
    assert caught.value.hint == surroundings().let_in(tmp_path / "tpmrm0")


async def test_a_socket_without_a_tpm_behind_it_is_told(software_tpm: SoftwareTpm) -> None:
    os.kill(software_tpm.pid, 9)  # the socket's name stays, as after a crash
    os.waitid(os.P_PID, software_tpm.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(TpmUnavailable, match="nobody listens"):
        await read_pin(TpmGate(software_tpm.tcti))


async def test_a_device_that_is_no_tpm_is_told(tmp_path: Path) -> None:
    device = tmp_path / "tpmrm0"
    device.write_bytes(b"")
    with pytest.raises(TpmUnavailable, match="does not answer"):
        await read_pin(TpmGate(f"device:{device}"))


def test_a_denied_device_says_which_group_to_join(workspace: Path) -> None:
    """As the service's user: root may use everything."""
    device = workspace / "tpmrm0"
    device.write_bytes(b"")
    device.chmod(0o660)
    if os.geteuid() == 0:
        os.chown(device, 0, 4711)
        expected = ["group 4711 (4711)", surroundings().let_use(device, 4711, user="nobody", group="4711")]
    else:
        device.chmod(0o000)
        expected = ["mode 0000", "chmod 0660"]
    script = (
        "import asyncio, os, sys, json\n"
        "from service.sealing.tpm import TpmGate, describe\n"
        "if os.geteuid() == 0:\n    os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"print(json.dumps(asyncio.run(describe(TpmGate('device:{device}')))))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    told = json.loads(done.stdout)
    assert told["problem"].startswith("no permission to use the TPM: ")
    assert str(device) in told["node"]
    for words in expected:
        assert words in told["problem"] + told["hint"]
    assert done.stderr == ""


async def test_the_pinned_tpm_is_remembered(software_tpm: SoftwareTpm, tmp_path: Path) -> None:
    path = tmp_path / "state" / "tpm-pin.json"
    assert load_pin(path) is None
    pin = await read_pin(TpmGate(software_tpm.tcti))
    save_pin(path, pin)
    assert load_pin(path) == pin
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]
    assert pin.kind == "virtual"
    assert json.loads(path.read_text())["fingerprint"] == pin.fingerprint


async def test_a_damaged_pin_is_refused(software_tpm: SoftwareTpm, tmp_path: Path) -> None:
    path = tmp_path / "tpm-pin.json"
    save_pin(path, await read_pin(TpmGate(software_tpm.tcti)))
    whole = path.read_text()
    stored = json.loads(whole)
    wrong = [
        "",
        "[]",
        whole[:-10],
        *(json.dumps(stored | change) for change in ({"kind": "other"}, {"version": 2}, {"firmware": 1})),
        *(json.dumps(stored | {name: stored[name][:-1] + "0g"}) for name in ("srk_name", "srk_public", "ek_name")),
        json.dumps(stored | {"srk_name": "000b" + "00" * 32}),
        json.dumps(stored | {"fingerprint": "TPM AAAA-AAAA-AAAA-AAAA"}),
    ]
    for text in wrong:
        path.write_text(text)
        with pytest.raises(SealError, match="is damaged") as caught:
            load_pin(path)
        assert "fingerprint" in caught.value.hint


async def test_nothing_is_sealed_to_a_tpm_that_is_not_pinned(software_tpm: SoftwareTpm, other_tpm: SoftwareTpm) -> None:
    """No session may be salted to a key of unknown origin: the data key would be encrypted for whoever offers it."""
    pin = await read_pin(TpmGate(software_tpm.tcti))
    with wired(other_tpm) as wire:
        with pytest.raises(TpmChanged, match="this is not the TPM that was pinned") as caught:
            await TpmRecipient(TpmGate(wire.tcti), pin).wrap(bytes(32), ARCHIVE)
        assert pin.fingerprint in str(caught.value)
        assert "provision --new-tpm" in caught.value.hint
        assert wire.commands
        assert START_AUTH_SESSION not in wire.commands
        assert CREATE not in wire.commands


async def test_a_slot_was_opened_once_before_it_is_returned(software_tpm: SoftwareTpm) -> None:
    pin = await read_pin(TpmGate(software_tpm.tcti))
    with wired(software_tpm) as wire:
        recipient = TpmRecipient(TpmGate(wire.tcti), pin)
        await recipient.wrap(bytes(32), ARCHIVE)
        assert [code for code in wire.commands if code in (CREATE, LOAD, UNSEAL)] == [CREATE, LOAD, UNSEAL]
        wire.plan = lambda _number, code: 0x1DF if code == UNSEAL else None
        with pytest.raises(SealError):
            await recipient.wrap(bytes(32), ARCHIVE)


async def test_a_cleared_tpm_is_not_pinned_again_by_itself(software_tpm: SoftwareTpm) -> None:
    _, _, pin = await sealed(software_tpm)
    software_tpm.clear()
    with pytest.raises(TpmChanged, match="has been cleared since it was pinned"):
        await TpmRecipient(TpmGate(software_tpm.tcti), pin).wrap(bytes(32), ARCHIVE)


async def test_only_tpm_slots_are_judged(software_tpm: SoftwareTpm) -> None:
    assert not identity(software_tpm).accepts({"type": "age"})
    nothing = await try_slots([{"type": "age"}], [identity(software_tpm)], ARCHIVE, belongs=len)
    assert (nothing.data_key, nothing.reasons) == (None, [])
    assert isinstance(no_key([{"type": "age"}], nothing.reasons), NoMatchingIdentity)
    key, slot, _ = await sealed(software_tpm)
    found = await try_slots([{"type": "age"}, slot], [identity(software_tpm)], ARCHIVE, belongs=len)
    assert found.data_key == key


async def test_a_data_key_has_32_bytes(software_tpm: SoftwareTpm) -> None:
    gate = TpmGate(software_tpm.tcti)
    with pytest.raises(ValueError, match="32 bytes"):
        await TpmRecipient(gate, await read_pin(gate)).wrap(bytes(16), ARCHIVE)


async def test_doctor_learns_what_there_is_to_know(software_tpm: SoftwareTpm) -> None:
    pin = await read_pin(TpmGate(software_tpm.tcti))
    told = await describe(TpmGate(software_tpm.tcti))
    assert told["problem"] is None
    assert told["manufacturer"] == "IBM"
    assert told["kind"] == "virtual"
    assert told["fingerprint"] == pin.fingerprint
    assert told["persistent_storage_keys"] == []
    assert told["lockout"] == {
        "active": False,
        "failures": 0,
        "max_failures": 3,
        "interval_seconds": 1000,
        "recovery_seconds": 1000,
    }
    assert told["free_object_slots"] == 3
    assert 0 < told["seal_and_unseal_ms"] < 30_000
    json.dumps(told)


async def test_doctor_sees_a_persistent_storage_key(software_tpm: SoftwareTpm, tmp_path: Path) -> None:
    Tools(software_tpm.tcti, tmp_path).persist("0x81000002", "-G", "ecc")
    told = await describe(TpmGate(software_tpm.tcti))
    assert told["persistent_storage_keys"] == ["0x81000002"]
    assert told["parent"] == "0x81000002"


async def test_doctor_explains_an_absent_tpm(tmp_path: Path) -> None:
    told = await describe(TpmGate(f"swtpm:path={tmp_path}/none"))
    assert "there is no TPM at" in told["problem"]
    assert told["hint"]
    assert told["node"] is None


def test_a_software_tpm_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SoftwareTpmMissing, match="apt-get install swtpm"):
        SoftwareTpm(tmp_path).start()


def test_a_software_tpm_that_does_not_start_says_why(tmp_path: Path) -> None:
    tpm = SoftwareTpm(tmp_path)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "tpm2-00.permall").write_bytes(b"no state of a TPM")
    with pytest.raises(SoftwareTpmFailed, match="swtpm did not start"):
        tpm.start()


def test_leaving_a_software_tpm_leaves_nothing_behind() -> None:
    with SoftwareTpm() as tpm:
        pid, directory = tpm.pid, tpm.directory
    assert not directory.exists()
    assert not Path(f"/proc/{pid}").exists()
