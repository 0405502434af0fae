"""Which archive a drill is of, by example."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from service.catalog import CatalogEntry
from service.drill_choice import pick
from service.ledger import Evidence

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


def archive(day: int, evidence: Evidence, *, drilled: datetime | None = None) -> CatalogEntry:
    return CatalogEntry(
        name=f"Backup_202611{day:02}_0200Z.zip",
        size=1,
        seq=day,
        sealing="tpm",
        evidence=evidence,
        evidence_since=drilled,
    )


def picked(*entries: CatalogEntry, sealing: bool = True) -> int | None:
    found = pick({"file:///a": entries}, sealing=sealing)
    return None if found is None else int(found[1][13:15])


def test_it_is_the_newest_verified_one_that_no_drill_has_restored() -> None:
    assert picked(archive(1, "verified"), archive(2, "verified"), archive(3, "restorable"), archive(4, "written")) == 2
    assert picked(archive(1, "restorable"), archive(2, "restorable"), archive(3, "damaged")) == 2, "once more"
    assert picked(archive(1, "unknown"), archive(2, "damaged")) is None
    assert picked() is None


def test_what_cannot_be_used_or_proves_nothing_is_not_taken() -> None:
    unreadable = replace(archive(3, "verified"), problem="its end is missing")
    unsealed = replace(archive(4, "verified"), sealing="off")
    assert picked(archive(2, "verified"), unreadable, unsealed) == 2
    assert picked(archive(2, "verified"), unreadable, unsealed, sealing=False) == 4


def test_targets_take_turns_the_one_whose_last_proof_is_the_oldest_first() -> None:
    day = timedelta(days=1)
    one = [archive(1, "restorable", drilled=NOW - 3 * day), archive(2, "verified")]
    other = [archive(1, "restorable", drilled=NOW - 9 * day), archive(2, "restorable", drilled=NOW - 2 * day)]
    assert pick({"file:///a": one, "file:///b": other}, sealing=True) == ("file:///a", one[1].name)
    one[1] = replace(one[1], evidence="restorable", evidence_since=NOW)
    assert pick({"file:///a": one, "file:///b": other}, sealing=True) == ("file:///b", other[1].name)
    assert pick({"file:///a": one, "file:///b": [archive(1, "verified")]}, sealing=True) == (
        "file:///b",
        "Backup_20261101_0200Z.zip",
    ), "one that was never proved"
    assert pick({"file:///a": one, "file:///b": [archive(1, "damaged")]}, sealing=True) == ("file:///a", one[1].name)
