"""`sealing.require_signature`: what a holder of a recovery key puts behind the TPM's slot is told apart and refused."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from demo.software_tpm import SoftwareTpm
from service import sources
from service.archive.parts import KeySlots
from service.catalog import opened, origin_proven, verify
from service.config import Config
from service.drill import drill
from service.errors import RestoreRefused, SealError
from service.extract import extract
from service.ledger import NoLedger
from service.pipeline.pack import pack
from service.pipeline.unpack import read_slots
from service.progress import Progress
from service.recovery import RecoveryKey, recovery_key
from service.restore import restore
from service.restore_plan import plan_restore
from service.sealing import age
from service.sealing.age import AgeIdentity
from service.sealing.slots import try_slots
from service.sealing.suite import ArchiveKeys
from service.selection import EVERYTHING
from service.state import Archives, Database
from service.verification import verified
from storage_backends import open_target
from tests.service_parts import Place


async def made(root: Path, tpm: SoftwareTpm) -> tuple[Place, str, RecoveryKey]:
    """Make a genuine archive, for the TPM and a recovery key."""
    identity, recipient = age.generate()
    place = Place(root, settings={"sealing": {"mode": "tpm", "tcti": tpm.tcti, "recovery": [recipient]}})
    return place, await place.backup(NoLedger()), recovery_key(identity)


def strict(place: Place) -> Config:
    document = place.document
    return Config.model_validate(document | {"sealing": document["sealing"] | {"require_signature": True}})


async def forge(place: Place, name: str, key: RecoveryKey) -> None:
    """Do what a holder of the recovery key can do who can write to the target: other content behind the same slots."""
    evil = place.root / "evil"
    evil.mkdir()
    (evil / "server.conf").write_text("port = 666\n")
    [settings] = place.config.sources
    source = sources.source(settings.model_copy(update={"path": evil}), place.config)
    (place.root / "forged").mkdir()
    async with open_target(place.config.target.url) as target, open_target(f"file://{place.root}/forged") as workshop:
        header, slots = await read_slots(target, name)
        archive_id = bytes.fromhex(header.archive_id)
        got = await try_slots(slots, [AgeIdentity(key)], archive_id, belongs=lambda _: None)
        assert got.data_key is not None
        keys = ArchiveKeys(got.data_key, archive_id=archive_id, header=header.to_bytes())
        async with source.snapshot() as snapshot:
            await pack(
                workshop,
                header,
                KeySlots(slots=slots),
                keys,
                [(settings.name, "tree", snapshot)],
                compression=place.config.compression,
                progress=Progress(),
                clock=lambda: datetime.now(UTC),
                tool_version="0.1.0",
            )
    (place.root / "forged" / name).replace(place.target / name)


async def test_a_genuine_archive_is_restored_where_signatures_are_required(
    software_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    place, name, _ = await made(tmp_path, software_tpm)
    assert [each.code for each in (await plan_restore(strict(place), name)).obstacles] == []
    (place.tree / "server.conf").write_text("changed")
    await restore(strict(place), name, progress=Progress())
    assert (place.tree / "server.conf").read_text().startswith("port = 80")


async def test_a_forged_archive_opens_on_the_tpm_and_is_restored_only_where_that_is_enough(
    software_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    place, name, key = await made(tmp_path, software_tpm)
    await forge(place, name, key)
    async with opened(place.config, name) as reader:
        assert reader.opened_by is not None and reader.opened_by.proves_origin
        assert reader.signer is None
        assert origin_proven(place.config, reader)
        assert not origin_proven(strict(place), reader)
    assert (await plan_restore(place.config, name)).obstacles == []
    with pytest.raises(RestoreRefused, match="require_signature is set; it is not signed") as refused:
        await restore(strict(place), name, progress=Progress())
    assert [each.code for each in refused.value.obstacles] == ["ORIGIN_NOT_PROVEN"]
    assert (place.tree / "server.conf").read_text().startswith("port = 80")
    await restore(strict(place), name, allow=frozenset({"ORIGIN_NOT_PROVEN"}), progress=Progress())
    assert (place.tree / "server.conf").read_text() == "port = 666\n"


async def test_verifying_drilling_and_extracting_tell_that_nothing_proves_a_forged_archive(
    software_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    place, name, key = await made(tmp_path, software_tpm)
    await forge(place, name, key)
    database = Database.open(place.state_dir)
    ledger = Archives(database, place.clock)
    try:
        await verify(strict(place), name, progress=Progress(), ledger=ledger)
        assert (await place.archives(ledger))[name].evidence == "unknown"
        await verify(place.config, name, progress=Progress(), ledger=ledger)
        assert (await place.archives(ledger))[name].evidence == "verified"
    finally:
        database.close()
    assert (await verified(strict(place), name, name, progress=Progress()))["origin_proven"] is False
    done = await extract(strict(place), name, tmp_path / "found", select=EVERYTHING, progress=Progress())
    assert any("Nothing proves" in warning for warning in done.warnings)
    with pytest.raises(RestoreRefused) as refused:
        await drill(strict(place), name, progress=Progress(), ledger=NoLedger())
    assert "ORIGIN_NOT_PROVEN" in [each.code for each in refused.value.obstacles]


async def test_a_backup_that_cannot_be_signed_fails_where_signatures_are_required(
    software_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    place, _, _ = await made(tmp_path, software_tpm)
    (place.state_dir / "tpm-signing-key.json").write_text("{}")
    place.settings["sealing"]["require_signature"] = True
    before = place.names()
    with pytest.raises(SealError):
        await place.backup(NoLedger())
    assert place.names() == before
    place.settings["sealing"]["require_signature"] = False
    await place.backup(NoLedger())
