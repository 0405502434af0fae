"""After a restore: secrets are given anew on other hardware, and a report says what needs attention."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from demo.software_tpm import SoftwareTpm
from service.config import Config
from service.config_restore import HookSettings, RestoreHooks
from service.errors import HookFailed
from service.journal import journals
from service.ledger import NoLedger
from service.opening import Opening
from service.progress import Progress
from service.recovery import recovery_key
from service.restore import RestoreResult, restore, rollback
from service.restore_report import Attention, attention
from service.sealing import age
from service.sources.base import StoredSource
from tests.service_parts import Place

SNAPSHOT = datetime(2026, 3, 2, 2, 0, tzinfo=UTC)
MONGODB = {"path": "db/WiredTiger", "reason": "MongoDB data"}


def hook(root: Path, does: str = "") -> dict[str, Any]:
    """A program that gives passwords anew, and says what it was told and what is live then."""
    script = root / "reissue"
    script.write_text(
        f'#!/bin/sh\necho "$DEVICEON_BACKUP_HOOK $DEVICEON_BACKUP_HARDWARE $(head -c 4 {root}/etc/server.conf)"'
        f" >> {root}/log\n{does}\n"
    )
    script.chmod(0o755)
    return {"hooks": {"reissue_secrets": {"command": [str(script)], "timeout": 20}}}


def log(root: Path) -> list[str]:
    path = root / "log"
    return path.read_text().splitlines() if path.exists() else []


async def restored(config: Config, archive: str, **options: Any) -> RestoreResult:
    return await restore(config, archive, progress=Progress(), **options)


def codes(result: RestoreResult) -> list[str]:
    return [each.code for each in result.attention]


async def test_secrets_are_given_anew_after_the_exchange_and_only_on_other_hardware(
    tmp_path: Path, software_tpm: SoftwareTpm
) -> None:
    identity, recipient = age.generate()
    here = Place(
        tmp_path,
        settings={
            "sealing": {"mode": "tpm", "tcti": software_tpm.tcti, "recovery": [recipient]},
            "restore": hook(tmp_path),
        },
    )
    archive = await here.backup(NoLedger())
    (here.tree / "server.conf").write_text("spoilt")
    same = await restored(here.config, archive)
    assert log(tmp_path) == [], "this TPM made it: its secrets are good here"
    assert "SECRETS_REISSUED" not in codes(same)
    await rollback(here.config, progress=Progress())
    with SoftwareTpm() as another:
        document = here.document | {
            "sealing": {"mode": "tpm", "tcti": another.tcti},
            "state_dir": str(tmp_path / "new"),
        }
        there = Config.model_validate(document).opened_with(Opening(recovery=recovery_key(identity)))
        result = await restored(there, archive, allow=frozenset({"ORIGIN_NOT_PROVEN"}))
    assert log(tmp_path) == ["reissue_secrets other port"], "once, when the restored files were live"
    assert codes(result)[0] == "SECRETS_REISSUED"


async def test_when_they_cannot_be_given_anew_the_old_state_comes_back(tmp_path: Path) -> None:
    place = Place(tmp_path, settings={"restore": hook(tmp_path, "exit 1")})
    archive = await place.backup(NoLedger())
    (place.tree / "server.conf").write_text("spoilt")
    with pytest.raises(HookFailed, match="reissue"):
        await restored(place.config, archive)
    assert log(tmp_path) == ["reissue_secrets unknown port"], "an archive that is not sealed names no hardware"
    assert (place.tree / "server.conf").read_text() == "spoilt"
    assert journals(place.state_dir) == []


async def test_the_report_is_kept_as_json_and_to_read_and_disturbs_no_journal(tmp_path: Path) -> None:
    place = Place(tmp_path, settings={"sources": [{"type": "tree", "path": f"{tmp_path}/etc", "exclude": ["cache"]}]})
    (place.tree / "cache").write_text("written just now, and not MongoDB's")
    database = place.tree / "db"
    database.mkdir()
    for name in ("WiredTiger", "WiredTiger.wt", "collection-1.wt"):
        (database / name).write_text("data")
    archive = await place.backup(NoLedger())
    later = place.clock.now + timedelta(days=2, hours=3)
    for path in database.iterdir():
        moment = (later if path.name == "collection-1.wt" else place.clock.now).timestamp()
        os.utime(path, (moment, moment))
    result = await restored(place.config, archive)
    reports = place.state_dir / "restores"
    told = json.loads((reports / f"{result.restore_id}-report.json").read_bytes())
    assert told["mongodb_written"] == later.isoformat()
    assert told["hardware"] == "unknown"
    assert timedelta(seconds=told["seconds_apart"]) == later - place.clock.now.replace(microsecond=0)
    assert [each["code"] for each in told["attention"]] == codes(result)
    assert {"SECRETS_TO_REISSUE", "NOT_IN_ARCHIVE", "OLD_STATE_KEPT"} <= set(codes(result))
    readable = (reports / f"{result.restore_id}-report.txt").read_text()
    assert "db/WiredTiger" in readable
    assert "What to do: " in readable
    assert [journal.id for journal in journals(place.state_dir)] == [result.restore_id], "reports are no journals"
    await rollback(place.config, progress=Progress())
    assert (reports / f"{result.restore_id}-report.txt").exists()
    again = await restored(place.config, archive)
    assert again.restore_id != result.restore_id


async def test_a_report_that_cannot_be_written_does_not_undo_the_restore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import service.restore as recipe  # noqa: PLC0415

    def full(*_: object) -> Path:
        raise OSError("no space left")

    monkeypatch.setattr(recipe, "write", full)
    place = Place(tmp_path)
    archive = await place.backup(NoLedger())
    (place.tree / "server.conf").write_text("spoilt")
    await restored(place.config, archive)
    assert (place.tree / "server.conf").read_text() != "spoilt"
    assert journals(place.state_dir)[0].state == "swapped"


def told(*, superuser: bool = True, **changes: Any) -> list[Attention]:
    facts = {"server": {"superuser": superuser}, "databases": [{"name": "app"}]}
    values: dict[str, Any] = {
        "wanted": [StoredSource(name="pg", type="postgresql", facts=facts, streams=())],
        "snapshot": SNAPSHOT,
        "written": None,
        "now": SNAPSHOT + timedelta(hours=30),
        "hardware": "same",
        "hooks": RestoreHooks(),
        "excluded": [],
        "archived_warnings": [],
        "said": [],
    }
    return attention(**values | changes)


def found(code: str, things: list[Attention]) -> Attention:
    [one] = [each for each in things if each.code == code]
    return one


def test_it_says_how_far_mongodb_and_the_restored_databases_are_apart() -> None:
    assert "up to 1 days 6 hours newer" in found("MONGODB_APART", told()).message
    seen = found("MONGODB_APART", told(written=SNAPSHOT + timedelta(minutes=130)))
    assert "2 hours 10 minutes later" in seen.message
    before = found("MONGODB_APART", told(written=SNAPSHOT - timedelta(days=1)))
    assert ", 1 days 0 hours before that" in before.message
    tree = StoredSource(name="etc", type="tree", facts={}, streams=())
    roles = StoredSource(
        name="pg", type="postgresql", facts={"server": {"superuser": True}, "databases": []}, streams=(), whole=False
    )
    for part in (tree, roles):
        assert "MONGODB_APART" not in [each.code for each in told(wanted=[part])], "no database was restored"


def test_it_tells_each_thing_that_somebody_has_to_know() -> None:
    everything = told(
        superuser=False,
        hardware="other",
        excluded=[{"path": f"cache{number}", "reason": "excluded by cache*"} for number in range(7)],
        archived_warnings=["subscriptions of database 'a' are not in this backup: s"],
        said=["materialized view v stays empty", "materialized view v stays empty"],
    )
    assert [each.code for each in everything] == [
        "SECRETS_TO_REISSUE",
        "MONGODB_APART",
        "PASSWORDS_NOT_RESTORED",
        "RESTORE_WARNING",
        "ARCHIVE_WARNING",
        "NOT_IN_ARCHIVE",
        "OLD_STATE_KEPT",
    ]
    assert "and 2 more" in found("NOT_IN_ARCHIVE", everything).message
    hooks = RestoreHooks(reissue_secrets=HookSettings(command=["/bin/true"]))
    assert told(hardware="unknown", hooks=hooks)[0].code == "SECRETS_REISSUED"
    assert "SECRETS" not in "".join(each.code for each in told(hooks=hooks))
