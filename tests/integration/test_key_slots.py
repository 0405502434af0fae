"""Key slots of archives that are there: a second TPM, another recovery key, a replaced TPM, and what is lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.software_tpm import SoftwareTpm
from service.catalog import opened, verify
from service.config import Config
from service.copying import copy
from service.errors import NoMatchingIdentity, NotFound, PinRequired, PinWrong, SealError
from service.holding import delete
from service.key_slots import KeyChanges, add_slots, prove_recovery, remove_slots, slots_of
from service.keys import identities
from service.ledger import NoLedger
from service.opening import NOTHING, Opening
from service.pipeline.sidecar import KEYS_SUFFIX, write_sidecar
from service.pipeline.unpack import read_slots
from service.progress import Progress
from service.prune import prune
from service.recovery import RecoveryKey, recovery_key
from service.recovery_choice import ChosenRecovery, save_choice
from service.restore_pin import pin_status, remove_pin, set_pin
from service.sealing import age
from service.sealing.slots import try_slots
from storage_backends import open_target
from tests.cheap_passphrase import protect
from tests.integration.test_recovery_keys import elsewhere, place
from tests.service_parts import Place

NO_TPM = "device:/dev/there-is-no-tpm"


@pytest.fixture
def other_tpm() -> Iterator[SoftwareTpm]:
    with SoftwareTpm() as tpm:
        yield tpm


async def made(root: Path, tpm: SoftwareTpm, count: int = 1) -> tuple[Place, list[str], RecoveryKey]:
    identity, recipient = age.generate()
    here = place(root / "here", tpm.tcti, recovery=[recipient])
    names = [await here.backup(NoLedger()) for _ in range(count)]
    return here, names, recovery_key(identity)


async def added(config: Config, name: str | None, **what: object) -> KeyChanges:
    return await add_slots(config, name, ledger=NoLedger(), progress=Progress(), **what)  # type: ignore[arg-type]


def outcomes(result: KeyChanges) -> list[str]:
    return [change.outcome for change in result.changes]


def of_signer(config: Config, here: Place) -> Config:
    """The configuration that trusts the signer of `here`."""
    fingerprint = json.loads((here.state_dir / "tpm-signing-key.json").read_text())["fingerprint"]
    return config.model_copy(
        update={"sealing": config.sealing.model_copy(update={"trusted_signers": [fingerprint]})}
    ).opened_with(config.opening)


async def test_a_stand_by_machine_adds_its_own_tpm_and_opens_the_archive_alone_from_then_on(
    software_tpm: SoftwareTpm, other_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    here, (name,), key = await made(tmp_path, software_tpm)
    content = (here.target / name).read_bytes()
    there = of_signer(elsewhere(here, tmp_path / "there", other_tpm.tcti, key), here)
    assert outcomes(await added(there, name, tpm=True)) == ["added"]
    await verify(there.opened_with(NOTHING), name, progress=Progress())
    await verify(here.config, name, progress=Progress())
    assert (here.target / name).read_bytes() == content
    assert outcomes(await added(there.opened_with(NOTHING), name, tpm=True)) == ["there already"]
    assert list(await here.archives()) == [name]  # the sidecar is no archive


async def test_a_tpm_does_not_vouch_for_what_only_a_recovery_key_opens(
    software_tpm: SoftwareTpm, other_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    here, (name,), key = await made(tmp_path, software_tpm)
    there = elsewhere(here, tmp_path / "there", other_tpm.tcti, key)
    result = await added(there, name, tpm=True)
    assert outcomes(result) == ["failed"]
    assert result.changes[0].error
    assert "does not prove who made it" in result.changes[0].error["message"]
    assert here.names() == {name}
    assert outcomes(await added(there, name, tpm=True, allow=frozenset({"ORIGIN_NOT_PROVEN"}))) == ["added"]


async def test_another_recovery_key_is_added_and_removed(software_tpm: SoftwareTpm, tmp_path: Path) -> None:
    here, (name,), _ = await made(tmp_path, software_tpm)
    identity, recipient = age.generate()
    assert outcomes(await added(here.config, name, recipients=[recipient])) == ["added"]
    assert outcomes(await added(here.config, name, recipients=[recipient])) == ["added"]
    (told,) = await slots_of(here.config, name, ledger=NoLedger())
    assert [(slot.type, slot.place) for slot in told.slots] == [
        ("tpm2", "archive"),
        ("age", "archive"),
        ("age", "beside"),
    ]
    there = elsewhere(here, tmp_path / "there", NO_TPM, recovery_key(identity))
    await verify(there, name, progress=Progress())
    removed = await remove_slots(here.config, name, whom=[recipient], ledger=NoLedger(), progress=Progress())
    assert outcomes(removed) == ["removed"]
    assert here.names() == {name}
    with pytest.raises(NoMatchingIdentity):
        await verify(there, name, progress=Progress())
    again = await remove_slots(here.config, name, whom=[recipient], ledger=NoLedger(), progress=Progress())
    assert outcomes(again) == ["not there"]


async def test_all_archives_open_on_a_replaced_tpm_after_a_rewrap_that_can_be_repeated(
    software_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    here, names, key = await made(tmp_path, software_tpm, 3)
    with SoftwareTpm() as new:
        (here.state_dir / "tpm-pin.json").unlink()  # as provisioning does when it is told of a new TPM
        config = here.config.model_copy(update={"sealing": here.config.sealing.model_copy(update={"tcti": new.tcti})})
        with pytest.raises(SealError) as caught:
            await verify(config, names[0], progress=Progress())
        assert caught.value.code == "TPM_WRONG"
        with_key = config.opened_with(Opening(recovery=key))
        assert outcomes(await added(with_key, None, tpm=True, apply=False)) == ["would be added"] * 3
        assert here.names() == set(names)
        task = asyncio.create_task(added(with_key, None, tpm=True))
        while not list(here.target.glob("*.keys")):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        result = outcomes(await added(with_key, None, tpm=True))
        assert set(result) <= {"added", "there already"}
        assert "there already" in result
        for name in names:
            await verify(config, name, progress=Progress())


async def test_a_rewrap_with_a_wrong_key_says_so_and_goes_on(
    software_tpm: SoftwareTpm, other_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    here, names, _ = await made(tmp_path, software_tpm, 2)
    wrong = recovery_key(age.generate()[0])
    result = await added(elsewhere(here, tmp_path / "there", other_tpm.tcti, wrong), None, tpm=True)
    assert outcomes(result) == ["failed", "failed"]
    assert result.changes[0].archive == names[-1]


async def test_a_lost_sidecar_loses_its_slots_and_nothing_else(
    software_tpm: SoftwareTpm, other_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    here, (name,), key = await made(tmp_path, software_tpm)
    there = of_signer(elsewhere(here, tmp_path / "there", other_tpm.tcti, key), here)
    await added(there, name, tpm=True)
    (here.target / (name + KEYS_SUFFIX)).unlink()
    await verify(here.config, name, progress=Progress())
    with pytest.raises(SealError):
        await verify(there.opened_with(NOTHING), name, progress=Progress())


async def test_a_sidecar_of_another_archive_opens_nothing(
    software_tpm: SoftwareTpm, other_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    here, (first, second), key = await made(tmp_path, software_tpm, 2)
    there = of_signer(elsewhere(here, tmp_path / "there", other_tpm.tcti, key), here)
    await added(there, first, tpm=True)
    (here.target / (first + KEYS_SUFFIX)).rename(here.target / (second + KEYS_SUFFIX))
    with pytest.raises(SealError):
        await verify(there.opened_with(NOTHING), second, progress=Progress())
    await verify(here.config, second, progress=Progress())


async def test_a_claim_beside_the_archive_keeps_no_real_slot_from_being_added(
    software_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    here, (name,), _ = await made(tmp_path, software_tpm)
    identity, recipient = age.generate()
    claim = dict(await age.AgeRecipient(recipient).wrap(bytes(32), b""))
    (here.target / (name + KEYS_SUFFIX)).write_text(json.dumps({"slots": [claim]}))
    assert outcomes(await added(here.config, name, recipients=[recipient])) == ["added"]
    there = elsewhere(here, tmp_path / "there", NO_TPM, recovery_key(identity))
    await verify(there, name, progress=Progress())


async def test_slots_go_with_their_archive(software_tpm: SoftwareTpm, tmp_path: Path) -> None:
    here, (name,), _ = await made(tmp_path, software_tpm)
    await added(here.config, name, recipients=[age.generate()[1]])
    assert len(here.names()) == 2
    await delete(here.config, name, even_the_last=True, ledger=NoLedger())
    assert here.names() == set()


async def test_slots_go_with_their_archive_also_when_it_is_pruned(software_tpm: SoftwareTpm, tmp_path: Path) -> None:
    here, names, _ = await made(tmp_path, software_tpm, 2)
    await added(here.config, None, recipients=[age.generate()[1]])
    assert len(here.names()) == 4
    here.settings["retention"] = {"keep_last": 1}
    async with here.app() as app:
        for name in names:
            await verify(here.config, name, progress=Progress(), ledger=app.archives)
        result = await prune(here.config, ledger=app.archives, clock=here.clock, progress=Progress())
    assert result.removed == names[:1]
    assert here.names() == {names[1], names[1] + KEYS_SUFFIX}


async def test_a_copy_has_the_slots_too_and_opens_with_them(
    software_tpm: SoftwareTpm, other_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    here, (name,), key = await made(tmp_path, software_tpm)
    there = of_signer(elsewhere(here, tmp_path / "there", other_tpm.tcti, key), here)
    await added(there, name, tpm=True)
    (tmp_path / "copy").mkdir()
    second = {"url": f"file://{tmp_path / 'copy'}"}
    both = Config.model_validate(there.model_dump(mode="json", exclude_unset=True) | {"copies": [second]})
    result = await copy(both, name, target=second["url"], source=None, ledger=NoLedger(), progress=Progress())
    assert result.copied
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {name, name + KEYS_SUFFIX}


async def test_the_recovery_key_is_proven_on_the_newest_archive_without_the_tpm(
    software_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    here, names, key = await made(tmp_path, software_tpm, 2)
    (proof,) = await prove_recovery(here.config.opened_with(Opening(recovery=key)), ledger=NoLedger())
    assert proof.archive == names[-1]
    wrong = here.config.opened_with(Opening(recovery=recovery_key(age.generate()[0])))
    with pytest.raises(SealError, match="not the one"):
        await prove_recovery(wrong, ledger=NoLedger())
    with pytest.raises(NotFound):
        await slots_of(here.config, "Backup_20200101_0000Z.zip", ledger=NoLedger())


async def test_a_wrong_pin_is_tried_once_however_many_slots_there_are(
    software_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    here = place(tmp_path / "here", software_tpm.tcti, recovery="none")
    await set_pin(here.config, "1234-5678", clock=here.clock)
    name = await here.backup(NoLedger())
    async with open_target(here.config.target.url) as target:
        _, own = await read_slots(target, name)
        await write_sidecar(target, name, own * 8)
    before = (await pin_status(here.config)).tries_left
    assert before is not None
    with pytest.raises(PinWrong):
        await verify(here.config.opened_with(Opening(pin="0000-0000")), name, progress=Progress())
    assert (await pin_status(here.config)).tries_left == before - 1
    await verify(here.config.opened_with(Opening(pin="1234-5678")), name, progress=Progress())
    with pytest.raises(PinRequired):
        async with opened(here.config, name):
            pass


async def test_who_gives_no_key_is_told_that_a_recovery_key_would_open_it(
    software_tpm: SoftwareTpm, other_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    here, (name,), _ = await made(tmp_path, software_tpm)
    for tcti in (other_tpm.tcti, NO_TPM):
        with pytest.raises(SealError) as caught:
            await verify(elsewhere(here, tmp_path / "there", tcti), name, progress=Progress())
        assert "--recovery-key" in caught.value.hint


async def test_a_passphrase_that_was_chosen_later_opens_older_archives_alone(
    software_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    here = place(tmp_path / "here", software_tpm.tcti)
    name = await here.backup(NoLedger())
    identity, recipient = age.generate()
    protected = protect(identity, "a phrase")
    save_choice(here.state_dir, ChosenRecovery(recipients=[recipient], protected=protected))
    assert outcomes(await added(here.config, None, recipients=[recipient])) == ["added"]
    there = elsewhere(here, tmp_path / "there", NO_TPM, recovery_key(passphrase="a phrase"))
    await verify(there, name, progress=Progress())


async def test_archives_with_a_pin_are_rewrapped_for_another_tpm(
    software_tpm: SoftwareTpm, other_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    identity, recipient = age.generate()
    here = place(tmp_path / "here", software_tpm.tcti, recovery=[recipient])
    await set_pin(here.config, "1234-5678", clock=here.clock)
    name = await here.backup(NoLedger())
    there = of_signer(elsewhere(here, tmp_path / "there", other_tpm.tcti, recovery_key(identity)), here)
    assert outcomes(await added(there, None, tpm=True)) == ["added"]  # the PIN is that of another TPM
    await verify(there.opened_with(NOTHING), name, progress=Progress())
    assert outcomes(await added(here.config, None, tpm=True)) == ["there already"]  # its own, but for the PIN


async def test_one_wrong_pin_is_one_try_however_many_archives_there_are(
    software_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    here = place(tmp_path / "here", software_tpm.tcti, recovery="none")
    await set_pin(here.config, "1234-5678", clock=here.clock)
    for _ in range(3):
        await here.backup(NoLedger())
    before = (await pin_status(here.config)).tries_left
    assert before is not None
    recipients = [age.generate()[1]]
    wrong = here.config.opened_with(Opening(pin="0000-0000"))
    assert outcomes(await added(wrong, None, recipients=recipients, tpm=True)) == ["failed"] * 3
    assert (await pin_status(here.config)).tries_left == before - 1
    right = here.config.opened_with(Opening(pin="1234-5678"))
    assert outcomes(await added(right, None, recipients=recipients, tpm=True)) == ["added"] * 3


async def test_a_slot_of_a_former_pin_keeps_the_right_pin_from_nothing(
    software_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    here = place(tmp_path / "here", software_tpm.tcti, recovery="none")
    await set_pin(here.config, "8765-4321", clock=here.clock)
    former = await here.backup(NoLedger())
    await remove_pin(here.config.opened_with(Opening(pin="8765-4321")))
    await set_pin(here.config, "1234-5678", clock=here.clock)
    name = await here.backup(NoLedger())
    async with open_target(here.config.target.url) as target:
        _, foreign = await read_slots(target, former)
        header, own = await read_slots(target, name)
    right = identities(here.config.opened_with(Opening(pin="1234-5678")))
    attempt = await try_slots([*foreign, *own], right, bytes.fromhex(header.archive_id), belongs=bool)
    assert attempt.data_key is not None
    before = (await pin_status(here.config)).tries_left
    assert before is not None
    many = [
        {**foreign[0], "pin": {**foreign[0]["pin"], "salt": f"{number:032x}"}} for number in range(8)
    ]  # as whoever can write the target may make them
    attempt = await try_slots(many, right, bytes.fromhex(header.archive_id), belongs=bool)
    assert attempt.data_key is None
    assert (await pin_status(here.config)).tries_left == before - 1
