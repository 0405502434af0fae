"""What the overview says: pure decisions out of what the socket tells."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest
from babel import Locale

from service.portal.attention import Notice, last_proven, notices, verdict
from service.portal.calendar import calendar
from service.portal.translation import locale_of

GOOD_JOB: dict[str, Any] = {"id": "1" * 16, "state": "succeeded", "error": None, "result": {}}
FAILED = GOOD_JOB | {"state": "failed", "error": {"message": "it is full", "hint": "make room"}}
UNOPENED = GOOD_JOB | {"state": "failed", "error": {"code": "PIN_REQUIRED", "message": "m", "hint": "h"}}
INFO: dict[str, Any] = {
    "restore": None,
    "active": None,
    "not_ready": None,
    "recovery": {"warning": None},
    "clock_doubted_since": None,
    "last_drill": GOOD_JOB,
}
SETTINGS: dict[str, Any] = {"target": {"url": "file:///x"}, "enabled": True, "schedule": {"timezone": "UTC"}}


def say(text: str, /, **values: object) -> str:
    return text % values if values else text


def days(*states: str) -> list[dict[str, Any]]:
    return [{"state": state} for state in states]


def told(info: dict[str, Any] | None = None, settings: dict[str, Any] | None = None, *states: str) -> list[Notice]:
    last = (info or {}).get("last_backup", GOOD_JOB)
    return notices(
        INFO | (info or {}), SETTINGS | (settings or {}), days(*(states or ("succeeded",))), last, GOOD_JOB, say
    )


def test_when_all_is_well_nothing_is_said_and_the_verdict_is_good() -> None:
    assert told() == []
    assert verdict([], INFO, SETTINGS, GOOD_JOB, say).kind == "good"


@pytest.mark.parametrize(
    ("info", "settings", "states", "kind", "title"),
    [
        ({"last_backup": FAILED}, {}, (), "bad", "The last backup failed"),
        ({"last_backup": FAILED | {"state": "interrupted"}}, {}, (), "bad", "The last backup was interrupted"),
        ({"last_backup": FAILED | {"state": "partial"}}, {}, (), "warn", "The last backup was not done completely"),
        ({"last_backup": FAILED | {"state": "cancelled"}}, {}, (), "warn", "The last backup was cancelled"),
        ({}, {}, ("succeeded", "missed", "missed", "none"), "bad", "Backups have stopped coming"),
        ({}, {}, ("succeeded", "missed", "none"), "warn", "A backup was missed"),
        ({}, {"enabled": False}, (), "warn", "Scheduled backups are switched off"),
        ({}, {"schedule": None}, (), "warn", "No schedule is set"),
        ({"restore": {"archive": "x.zip"}}, {}, (), "warn", "A restore waits for your decision"),
        ({"recovery": {"warning": "loss"}}, {}, (), "warn", "If this machine dies, its archives die with it"),
        ({"clock_doubted_since": "2026-01-01"}, {}, (), "warn", "The server's clock has jumped"),
        ({"last_drill": FAILED}, {}, (), "bad", "The last drill failed: that archive would not have restored"),
        (
            {"last_drill": UNOPENED},
            {},
            (),
            "warn",
            "The last drill did not try its archive: it opens with the restore PIN",
        ),
        ({"last_drill": None}, {}, (), "info", "Nobody has tried yet whether an archive restores"),
        ({"not_ready": "starting"}, {}, (), "info", "The service is starting"),
    ],
)
def test_each_trouble_is_told_once_with_a_verdict_that_fits(
    info: dict[str, Any], settings: dict[str, Any], states: tuple[str, ...], kind: str, title: str
) -> None:
    (notice,) = told(info, settings, *states)
    assert (notice.kind, notice.title) == (kind, title)
    expected = "good" if kind == "info" else kind
    assert verdict([notice], INFO | info, SETTINGS | settings, GOOD_JOB, say).kind == expected


def test_a_failure_says_why_and_what_to_do_and_lets_people_act() -> None:
    (notice,) = told({"last_backup": FAILED})
    assert (notice.text, notice.hint) == ("it is full", "make room")
    assert [(action.path, action.method) for action in notice.actions] == [
        ("/jobs/backup", "backup.start"),
        (f"/jobs/{'1' * 16}", ""),
    ]


def test_the_worst_comes_first() -> None:
    found = told({"last_backup": FAILED, "last_drill": None, "clock_doubted_since": "now"})
    assert [notice.kind for notice in found] == ["bad", "warn", "info"]


def test_days_missed_before_a_backup_that_went_well_are_history() -> None:
    assert told({}, {}, "missed", "missed", "failed", "succeeded", "none") == []
    assert told({}, {}, "missed", "succeeded") == []


def test_without_a_target_and_before_the_first_backup_it_is_new_not_broken() -> None:
    fresh = INFO | {"last_drill": None}
    empty = SETTINGS | {"target": None, "schedule": None}
    found = notices(fresh, empty, days("none"), None, None, say)
    assert [notice.title for notice in found] == ["No destination is set"]
    assert verdict(found, fresh, empty, None, say).kind == "new"
    found = notices(fresh, SETTINGS, days("none"), None, None, say)
    assert [notice.title for notice in found] == ["No backup was made yet"]
    assert verdict(found, fresh, SETTINGS, None, say).title == "Everything is ready for the first backup"
    at_work = fresh | {"active": {"kind": "backup"}}
    assert verdict(found, at_work, SETTINGS, None, say).title == "The first backup is at work"


def test_a_backup_counts_as_made_where_one_place_at_least_has_it_proven() -> None:
    def job(*evidence: str | None) -> dict[str, Any]:
        return {"result": {"targets": [{"evidence": each} for each in evidence]}}

    unproven, partial, older = job("written", None), job(None, "verified"), job("restorable")
    assert last_proven([unproven, partial, older]) is partial
    assert last_proven([unproven, {"result": None}, {"result": {"unproven": True}}]) is None


def answer(count: int, *, last: date = date(2026, 11, 28), since: str | None = "2026-11-20T10:00:00+00:00") -> Any:
    told = [
        {"day": (last - timedelta(days=back)).isoformat(), "state": "none", "counts": {}, "jobs": []}
        for back in reversed(range(count))
    ]
    return {"timezone": "UTC", "recorded_since": since, "days": told}


def test_the_calendar_has_every_day_once_in_its_week_and_row() -> None:
    found = calendar(answer(90), Locale("en"))
    cells = [cell for _, row in found.rows for cell in row if cell is not None]
    assert len({cell.day for cell in cells}) == len(cells) == 90
    assert [name for name, _ in found.rows] == ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
    assert {len(row) for _, row in found.rows} == {sum(weeks for _, weeks in found.months)}
    assert [cell.day for cell in found.rows[5][1] if cell][-1] == date(2026, 11, 28)
    assert [cell.day for cell in cells if cell.today] == [date(2026, 11, 28)]


def test_days_before_the_first_record_are_unknown_and_not_without_a_backup() -> None:
    found = calendar(answer(14), Locale("en"))
    states = {cell.day: cell.state for _, row in found.rows for cell in row if cell is not None}
    assert states[date(2026, 11, 19)] == "unknown"
    assert states[date(2026, 11, 20)] == "none"
    assert found.recorded
    assert not calendar(answer(14, since=None), Locale("en")).recorded


def test_troubled_days_are_listed_the_newest_first() -> None:
    told = answer(10)
    for at, state in ((2, "failed"), (5, "missed"), (7, "succeeded")):
        told["days"][at]["state"] = state
    found = calendar(told, locale_of("zh_TW"))
    assert [cell.state for cell in found.troubled] == ["missed", "failed"]
    assert "2026" in found.troubled[0].name
    assert found.rows[0][0] == "週一"
