"""The key that a machine signs with: made once, of use on its TPM alone, replaced only when the TPM was."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.software_tpm import SoftwareTpm
from service.config import Config, SealingSettings
from service.errors import NotAuthentic, SealError, TpmChanged, TpmUnavailable
from service.keys import signer
from service.sealing.signature import verify
from service.sealing.tpm import TpmGate, TpmSigner, open_signer, read_pin, signing
from service.sealing.tpm.signing import load_signing_key
from tests.integration.tpm_wire import CREATE, Tools, wired

MESSAGE = b"what is signed"


@pytest.fixture
def other_tpm() -> Iterator[SoftwareTpm]:
    with SoftwareTpm() as tpm:
        yield tpm


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "tpm-signing-key.json"


async def opened(tpm: SoftwareTpm, path: Path) -> TpmSigner:
    gate = TpmGate(tpm.tcti)
    return await open_signer(gate, await read_pin(gate), path)


async def test_a_signature_of_the_tpm_is_good_for_its_purpose_only(software_tpm: SoftwareTpm, path: Path) -> None:
    signer_ = await opened(software_tpm, path)
    signature = await signer_.sign("report", MESSAGE)
    verify(signer_.public_key, "report", MESSAGE, signature)
    with pytest.raises(NotAuthentic):
        verify(signer_.public_key, "archive", MESSAGE, signature)
    assert signature != await signer_.sign("report", MESSAGE)


async def test_the_key_is_made_once_and_survives_a_power_cycle(software_tpm: SoftwareTpm, path: Path) -> None:
    first = await opened(software_tpm, path)
    software_tpm.restart()
    with wired(software_tpm) as wire:
        gate = TpmGate(wire.tcti)
        second = await open_signer(gate, await read_pin(gate), path)
        verify(first.public_key, "report", MESSAGE, await second.sign("report", MESSAGE))
        assert CREATE not in wire.commands
    assert second.fingerprint == first.fingerprint
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


async def test_who_makes_the_key_first_makes_it_for_all(software_tpm: SoftwareTpm, path: Path) -> None:
    gate = TpmGate(software_tpm.tcti)
    pin = await read_pin(gate)
    signers = await asyncio.gather(*(open_signer(gate, pin, path) for _ in range(4)))
    assert len({one.public_key for one in signers}) == 1
    for one in signers:
        verify(signers[0].public_key, "report", MESSAGE, await one.sign("report", MESSAGE))
    assert list(path.parent.iterdir()) == [path]


async def test_another_tpm_does_not_sign(software_tpm: SoftwareTpm, other_tpm: SoftwareTpm, path: Path) -> None:
    pin = await read_pin(TpmGate(software_tpm.tcti))
    key = await opened(software_tpm, path)
    here = await open_signer(TpmGate(other_tpm.tcti), pin, path)
    assert here.public_key == key.public_key
    with pytest.raises(TpmChanged, match="not the TPM that was pinned"):
        await here.sign("report", MESSAGE)
    software_tpm.clear()
    with pytest.raises(TpmChanged, match="has been cleared"):
        await key.sign("report", MESSAGE)


async def test_a_tpm_that_was_pinned_anew_gets_a_key_of_its_own_and_the_old_one_is_kept(
    software_tpm: SoftwareTpm, other_tpm: SoftwareTpm, path: Path
) -> None:
    old = await opened(software_tpm, path)
    new = await opened(other_tpm, path)
    verify(new.public_key, "report", MESSAGE, await new.sign("report", MESSAGE))
    assert new.fingerprint != old.fingerprint
    former = path.with_name(f"tpm-signing-key-{old.fingerprint[4:]}.json")
    kept = load_signing_key(former)
    assert kept is not None
    assert kept.public_key == old.public_key


async def test_every_flipped_byte_of_the_file_is_told_and_nothing_is_signed(
    software_tpm: SoftwareTpm, path: Path, tmp_path: Path
) -> None:
    Tools(software_tpm.tcti, tmp_path).persist("0x81000001", "-G", "ecc")  # else each try derives the key again
    await opened(software_tpm, path)
    gate = TpmGate(software_tpm.tcti)
    pin = await read_pin(gate)
    stored = json.loads(path.read_text())
    for member in ("private", "public"):
        for at in range(0, len(stored[member]), 2):
            byte = int(stored[member][at : at + 2], 16) ^ 0x40
            path.write_text(json.dumps(stored | {member: f"{stored[member][:at]}{byte:02x}{stored[member][at + 2 :]}"}))
            with pytest.raises(SealError, match="damaged") as caught:
                await (await open_signer(gate, pin, path)).sign("report", MESSAGE)
            assert "a new key is made" in caught.value.hint
    for text in ("", "[]", json.dumps(stored | {"more": 1}), json.dumps(stored | {"version": 2})):
        path.write_text(text)
        with pytest.raises(SealError, match="is damaged"):
            load_signing_key(path)


async def test_a_lost_file_is_a_new_key(software_tpm: SoftwareTpm, path: Path) -> None:
    first = await opened(software_tpm, path)
    path.unlink()
    second = await opened(software_tpm, path)
    assert second.public_key != first.public_key


async def test_a_wrong_signature_is_not_given_away(
    software_tpm: SoftwareTpm, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await opened(software_tpm, path)
    monkeypatch.setattr(signing, "signed_digest", lambda _purpose, _message: secrets.token_bytes(32))
    with pytest.raises(SealError, match="wrongly"):
        await key.sign("report", MESSAGE)


async def test_signing_works_with_an_owner_password_and_in_lockout(
    software_tpm: SoftwareTpm, path: Path, tmp_path: Path
) -> None:
    tools = Tools(software_tpm.tcti, tmp_path)
    key = await opened(software_tpm, path)
    tools.lock_out()
    verify(key.public_key, "report", MESSAGE, await key.sign("report", MESSAGE))
    tools("changeauth", "-c", "owner", "password")
    gate = TpmGate(software_tpm.tcti, owner_auth=b"password")
    again = await open_signer(gate, await read_pin(gate), path)
    verify(key.public_key, "report", MESSAGE, await again.sign("report", MESSAGE))


async def test_the_configuration_says_whether_there_is_a_signer(software_tpm: SoftwareTpm, tmp_path: Path) -> None:
    here = Config.model_validate(
        {
            "server": {"version": "1"},
            "target": {"url": f"file://{tmp_path}/archives"},
            "state_dir": str(tmp_path / "state"),
            "sealing": {"tcti": software_tpm.tcti},
            "sources": [{"type": "tree", "path": str(tmp_path)}],
        },
        strict=False,
    )
    one = await signer(here)
    assert one is not None
    verify(one.public_key, "report", MESSAGE, await one.sign("report", MESSAGE))
    again = await signer(here)
    assert again is not None
    assert again.public_key == one.public_key
    off = here.model_copy(update={"sealing": SealingSettings(mode="off")})
    assert await signer(off) is None
    software_tpm.stop()
    with pytest.raises(TpmUnavailable):
        await one.sign("report", MESSAGE)
