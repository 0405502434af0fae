"""Archives that a recovery key opens: on another machine, on one without a TPM, offline, and not with a wrong key."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from demo.software_tpm import SoftwareTpm
from service.archive.parts import Manifest
from service.backup import backup
from service.catalog import opened, origin_proven, verify
from service.config import Config
from service.errors import DamagedSlot, NoMatchingIdentity, NotAuthentic, RestoreRefused, SealError
from service.ledger import NoLedger
from service.opening import Opening
from service.pipeline.sidecar import KEYS_SUFFIX, read_sidecar, write_sidecar
from service.pipeline.signature import signer_of
from service.pipeline.unpack import read_slots
from service.progress import Progress
from service.recovery import ARMOR, BadRecoveryKey, RecoveryKey, is_recipient, recovery_key
from service.recovery_choice import ChosenRecovery, recovery_choice, save_choice
from service.restore import restore
from service.restore_plan import plan_restore
from service.sealing import age
from service.sealing.slots import try_slots
from storage_backends import open_target
from tests.cheap_passphrase import protect
from tests.service_parts import Place

NO_TPM = "device:/dev/there-is-no-tpm"


@pytest.fixture
def other_tpm() -> Iterator[SoftwareTpm]:
    with SoftwareTpm() as tpm:
        yield tpm


def place(root: Path, tcti: str, **sealing: Any) -> Place:
    root.mkdir(exist_ok=True)
    return Place(root, settings={"sealing": {"mode": "tpm", "tcti": tcti, **sealing}})


def elsewhere(here: Place, root: Path, tcti: str, key: RecoveryKey | None = None, **sealing: Any) -> Config:
    """Another machine that has the archives: its own state, its own TPM or none."""
    there = place(root, tcti, **sealing)
    target = {"url": f"file://{here.target}"}
    config = Config.model_validate(there.document | {"target": target})
    return config.opened_with(Opening(recovery=key))


async def sealed_for(root: Path, tpm: SoftwareTpm) -> tuple[Place, str, RecoveryKey]:
    """Make an archive for the TPM and a new recovery key."""
    identity, recipient = age.generate()
    here = place(root / "here", tpm.tcti, recovery=[recipient])
    return here, await here.backup(NoLedger()), recovery_key(identity)


def with_work(file: str, factor: int) -> str:
    """Return an age file with another work factor."""
    kind, _, before = age.stanzas(file)[0]
    assert kind == "scrypt"
    body = base64.b64decode("".join(file.splitlines()[1:-1]))
    text = base64.b64encode(body.replace(f" {before}\n".encode(), f" {factor}\n".encode(), 1)).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join([ARMOR, *lines, "-----END AGE ENCRYPTED FILE-----", ""])


def recipient_of(here: Place) -> str:
    (recipient,) = recovery_choice(here.file).recipients
    return recipient


async def test_another_machine_opens_it_with_the_recovery_key_and_says_that_origin_is_not_proven(
    software_tpm: SoftwareTpm, other_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    here, name, key = await sealed_for(tmp_path, software_tpm)
    there = elsewhere(here, tmp_path / "there", other_tpm.tcti, key)
    plan = await plan_restore(there, name)
    assert [obstacle.code for obstacle in plan.obstacles] == ["ORIGIN_NOT_PROVEN"]
    with pytest.raises(RestoreRefused):
        await restore(there, name, progress=Progress())
    live = tmp_path / "there" / "etc" / "server.conf"
    live.write_text("changed")
    await restore(there, name, allow=frozenset({"ORIGIN_NOT_PROVEN"}), progress=Progress())
    assert live.read_text().startswith("port = 80")


async def test_a_machine_without_a_tpm_opens_it_with_the_recovery_key(
    software_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    here, name, key = await sealed_for(tmp_path, software_tpm)
    there = elsewhere(here, tmp_path / "there", NO_TPM, key)
    await verify(there, name, progress=Progress())
    with pytest.raises(SealError) as caught:
        await verify(there.opened_with(Opening()), name, progress=Progress())
    assert caught.value.code == "TPM_UNAVAILABLE"


async def test_a_signature_of_a_trusted_tpm_proves_the_origin(
    software_tpm: SoftwareTpm, other_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    here, name, key = await sealed_for(tmp_path, software_tpm)
    async with opened(here.config, name) as reader:
        signer = reader.signer
    assert signer is not None
    there = elsewhere(here, tmp_path / "there", other_tpm.tcti, key, trusted_signers=[signer])
    assert (await plan_restore(there, name)).obstacles == []
    async with opened(there, name) as reader:
        assert origin_proven(there, reader)
        assert reader.signer == signer
        other = there.model_copy(update={"sealing": there.sealing.model_copy(update={"trusted_signers": []})})
        assert not origin_proven(other, reader)


async def test_a_wrong_recovery_key_is_told_as_one(
    software_tpm: SoftwareTpm, other_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    here, name, _ = await sealed_for(tmp_path, software_tpm)
    wrong = recovery_key(age.generate()[0])
    with pytest.raises(NoMatchingIdentity, match="this recovery key is not the one"):
        await verify(elsewhere(here, tmp_path / "there", other_tpm.tcti, wrong), name, progress=Progress())


async def test_the_slot_opens_offline_with_the_age_program(software_tpm: SoftwareTpm, tmp_path: Path) -> None:
    here, name, key = await sealed_for(tmp_path, software_tpm)
    slots = json.loads(subprocess.check_output(["unzip", "-p", str(here.target / name), "keyslots.json"]))["slots"]
    (slot,) = [slot for slot in slots if slot["type"] == "age"]
    (tmp_path / "key.txt").write_text(f"{key.identities[0]}\n")
    (tmp_path / "slot.age").write_text(slot["file"])
    data_key = subprocess.check_output(["age", "-d", "-i", str(tmp_path / "key.txt"), str(tmp_path / "slot.age")])
    assert len(data_key) == 32
    assert data_key == await age.AgeIdentity(key).unwrap(slot, b"")


async def test_a_generated_passphrase_opens_it_and_nothing_else_is_needed(
    software_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    identity, recipient = age.generate()
    passphrase = age.generate_passphrase()
    here = place(tmp_path / "here", software_tpm.tcti)
    protected = age.protect(identity, passphrase)
    save_choice(here.state_dir, ChosenRecovery(recipients=[recipient], protected=protected))
    name = await here.backup(NoLedger())
    typed = passphrase.upper().replace("-", " ")
    there = elsewhere(here, tmp_path / "there", NO_TPM, recovery_key(passphrase=typed))
    await verify(there, name, progress=Progress())
    wrong = there.opened_with(Opening(recovery=recovery_key(passphrase=age.generate_passphrase())))
    with pytest.raises(NoMatchingIdentity, match="passphrase is not the one"):
        await verify(wrong, name, progress=Progress())


async def test_a_passphrase_slot_that_would_eat_the_memory_is_not_tried(tmp_path: Path) -> None:
    identity, recipient = age.generate()
    file = age.encrypt(bytes(32), recipient)
    text = with_work(protect(identity, "a"), 30)
    with pytest.raises(DamagedSlot, match="work factor"):
        await age.AgeIdentity(recovery_key(passphrase="a")).unwrap({"type": "age", "file": file, "identity": text}, b"")


async def test_a_protected_key_file_opens_with_its_passphrase_and_a_needless_one_does_no_harm() -> None:
    identity, recipient = age.generate()
    slot = await age.AgeRecipient(recipient, protected=protect(identity, "another")).wrap(bytes(32), b"")
    protected = protect(identity, "right")
    for text, passphrase in ((protected, "right"), (identity, "needless")):
        assert await age.AgeIdentity(recovery_key(text, passphrase=passphrase)).unwrap(slot, b"") == bytes(32)
    with pytest.raises(age.WrongRecoveryKey):
        await age.AgeIdentity(recovery_key(protected, passphrase="wrong")).unwrap(slot, b"")
    with pytest.raises(BadRecoveryKey, match="protected by a passphrase"):
        recovery_key(protected)


async def test_a_passphrase_that_takes_this_machine_too_long_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    _, recipient = age.generate()
    file = age.encrypt(bytes(32), recipient)
    monkeypatch.setattr(age, "MOST_WORK", 40)
    with pytest.raises(age.WrongRecoveryKey, match="too slow"):
        await age.AgeIdentity(recovery_key(passphrase="a")).unwrap(
            {"type": "age", "file": file, "identity": with_work(protect("x", "a"), 30)}, b""
        )


async def test_no_end_of_hostile_passphrase_slots_is_tried(tmp_path: Path) -> None:
    _, recipient = age.generate()
    file = age.encrypt(bytes(32), recipient)
    protected = protect("AGE-SECRET-KEY-1", "another")
    identity = age.AgeIdentity(recovery_key(passphrase="a"))
    identity._tries = age.MOST_TRIES - 1
    for reason in ("passphrase is not the one", "more slots"):
        with pytest.raises(age.WrongRecoveryKey, match=reason):
            await identity.unwrap({"type": "age", "file": file, "identity": protected}, b"")


async def test_a_damaged_slot_is_passed_over_for_a_good_one(software_tpm: SoftwareTpm, tmp_path: Path) -> None:
    here, name, key = await sealed_for(tmp_path, software_tpm)
    async with open_target(here.config.target.url) as target:
        _, own = await read_slots(target, name)
        chip, recovery = own
        await write_sidecar(target, name, [chip | {"private": chip["private"][:-2] + "00"}, recovery])
        assert (await read_sidecar(target, name))[1] == recovery
    await verify(elsewhere(here, tmp_path / "there", NO_TPM, key), name, progress=Progress())


async def test_a_hostile_sidecar_costs_nothing(
    software_tpm: SoftwareTpm, other_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    here, name, key = await sealed_for(tmp_path, software_tpm)
    recipient = recipient_of(here)
    sidecar = here.target / (name + KEYS_SUFFIX)
    foreign = await age.AgeRecipient(recipient).wrap(bytes(32), b"")
    for content in (b"", b"{}", b"x" * 100_000, json.dumps({"slots": [foreign] * 64}).encode()):
        sidecar.write_bytes(content)
        assert list(await here.archives()) == [name]
        await verify(here.config, name, progress=Progress())
        await verify(elsewhere(here, tmp_path / "there", NO_TPM, key), name, progress=Progress())
        with pytest.raises(SealError) as caught:
            await verify(elsewhere(here, tmp_path / "there", other_tpm.tcti), name, progress=Progress())
        assert caught.value.code == "TPM_WRONG"


async def test_a_slot_with_another_key_does_not_keep_a_good_one_from_being_tried(
    software_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    here, name, key = await sealed_for(tmp_path, software_tpm)
    wrong = dict(await age.AgeRecipient(recipient_of(here)).wrap(bytes(32), b""))
    async with open_target(here.config.target.url) as target:
        _, own = await read_slots(target, name)
        second = dict(own[1])
    identity = age.AgeIdentity(key)

    def belongs(data_key: bytes) -> None:
        if data_key == bytes(32):
            raise NotAuthentic("another archive's")

    found = await try_slots([wrong, second], [identity], b"", belongs=belongs)
    assert found.data_key == await identity.unwrap(second, b"")


async def test_an_altered_signature_is_found(software_tpm: SoftwareTpm, tmp_path: Path) -> None:
    here, name, _ = await sealed_for(tmp_path, software_tpm)
    async with opened(here.config, name) as reader:
        manifest = reader.manifest
    raw = subprocess.check_output(["unzip", "-p", str(here.target / name), "header.json"])
    content = manifest.to_bytes()
    assert signer_of(content, manifest, raw) == reader.signer
    with pytest.raises(NotAuthentic):
        signer_of(content, manifest, raw + b" ")
    altered = manifest.model_copy(update={"warnings": ["another"]})
    with pytest.raises(NotAuthentic):
        signer_of(altered.to_bytes(), Manifest.from_bytes(altered.to_bytes()), raw)


async def test_a_choice_that_cannot_be_read_stops_backups_and_is_not_taken_as_none(
    software_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    here = place(tmp_path / "here", software_tpm.tcti)
    here.state_dir.mkdir()
    (here.state_dir / "recovery.json").write_text('{"version": 1, "recipients": ["age1no"]}')
    with pytest.raises(SealError, match="damaged"):
        await here.backup(NoLedger())
    assert here.names() == set()


@pytest.mark.parametrize("text", ["", "# only a comment\n", "hello", "AGE-SECRET-KEY-1QQQQQQQQQQQ", "RECIPIENT"])
def test_what_is_no_recovery_key_is_refused_without_being_repeated(text: str) -> None:
    given = age.generate()[1] if text == "RECIPIENT" else text
    with pytest.raises(BadRecoveryKey) as caught:
        age.AgeIdentity(recovery_key(given))
    assert not given or given not in str(caught.value) + caught.value.hint


def test_a_mistyped_recipient_is_none() -> None:
    _, recipient = age.generate()
    assert is_recipient(recipient)
    for at in range(4, len(recipient)):
        other = "q" if recipient[at] != "q" else "p"
        assert not is_recipient(recipient[:at] + other + recipient[at + 1 :]), at
    assert not is_recipient(recipient.upper())
    assert not is_recipient(recipient[:-1])


async def test_no_repr_shows_a_recovery_key() -> None:
    identity, _ = age.generate()
    key = recovery_key(identity, passphrase="the passphrase")
    assert identity not in repr(key) + repr(Opening(recovery=key)) + repr(replace(key)) + repr(age.AgeIdentity(key))
    assert "the passphrase" not in repr(key) + repr(Opening(recovery=key))


async def test_a_backup_that_is_weaker_than_the_one_before_says_so(software_tpm: SoftwareTpm, tmp_path: Path) -> None:
    here = place(tmp_path / "here", software_tpm.tcti)
    save_choice(here.state_dir, ChosenRecovery(recipients=[age.generate()[1]]))

    async def warnings() -> list[str]:
        here.clock.now += timedelta(days=1)
        return (await backup(here.config, progress=Progress(), clock=here.clock)).warnings

    assert await warnings() == []
    (here.state_dir / "recovery.json").unlink()
    (told,) = await warnings()
    assert "opens on this TPM only" in told
    save_choice(here.state_dir, ChosenRecovery(recipients=[age.generate()[1]]))
    (here.state_dir / "tpm-signing-key.json").write_text("{}")
    (told,) = await warnings()
    assert "not signed" in told
    assert "tpm-signing-key.json" in told
    save_choice(here.state_dir, ChosenRecovery())  # somebody has said so
    (here.state_dir / "tpm-signing-key.json").unlink()
    assert await warnings() == []
