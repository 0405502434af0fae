"""What `status`, `job` and `schedule` tell people of each answer of the service."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.laid_out_service import ID, INFO, START, LaidOut, Refusal, Turns, a_job

LATER = "2026-11-30T03:04:05Z"


def lines(text: str) -> dict[str, str]:
    """Return a table of names and values."""
    return {line.split("  ")[0]: line.partition("  ")[2].strip() for line in text.splitlines()}


RESTORE: dict[str, Any] = {
    "id": "r",
    "archive": "A.zip",
    "started": START,
    "state": "swapped",
    "sources": [],
    "expires": None,
}
RECOVERY = {"recipients": [], "passphrase": False, "decided": True, "fixed": False, "warning": "none is set"}


@pytest.mark.parametrize(
    ("facts", "name", "told"),
    [
        ({}, "service", "runs since 2026-11-29 02:00:00Z"),
        ({}, "next backup", "never"),
        ({"next_run": LATER}, "next backup", "2026-11-30 03:04:05Z"),
        ({"not_ready": "starting"}, "service", "does not run"),
        ({"not_ready": "starting", "next_run": LATER}, "next backup", "not while the service does not run"),
        ({"not_ready": "no target"}, "service", "runs since 2026-11-29 02:00:00Z"),
        ({}, "last success", "never"),
        (
            {"last_success": a_job(ended=LATER, result={"name": "B.zip"})},
            "last success",
            "2026-11-30 03:04:05Z succeeded: B.zip",
        ),
        (
            {"last_drill": a_job(ended=LATER, result={"archive": "C.zip"})},
            "last drill",
            "2026-11-30 03:04:05Z succeeded: C.zip",
        ),
        ({"last_backup": a_job(state="cancelled")}, "last backup", "2026-11-29 02:00:00Z cancelled"),
        (
            {"last_backup": a_job(state="failed", error={"message": "disk full"})},
            "last backup",
            "2026-11-29 02:00:00Z failed: disk full",
        ),
        ({"next_drill": LATER}, "next drill", "2026-11-30 03:04:05Z"),
        ({"restore": RESTORE}, "restore", "A.zip of 2026-11-29 02:00:00Z waits for commit or rollback"),
        (
            {"restore": RESTORE | {"expires": LATER}},
            "restore",
            "A.zip of 2026-11-29 02:00:00Z waits for commit or rollback; commits itself at 2026-11-30 03:04:05Z, if the"
            " server works then",
        ),
        ({"recovery": RECOVERY}, "WARNING", "none is set"),
        ({"active": a_job(state="running")}, "running", f"backup {ID}"),
        ({"waiting": 2}, "waiting", "2 jobs"),
        ({"clock_doubted_since": LATER}, "clock", "jumped; pruning by age waits, since 2026-11-30 03:04:05Z"),
    ],
)
def test_status_tells(service: LaidOut, facts: dict[str, Any], name: str, told: str) -> None:
    assert lines(service.good("status", system_info=INFO | facts))[name] == told


def test_status_leaves_out_what_there_is_not(service: LaidOut) -> None:
    facts = {"not_ready": "starting", "next_drill": LATER, "recovery": RECOVERY | {"warning": None}}
    told = lines(service.good("status", system_info=INFO | facts))
    assert list(told) == ["service", "next backup", "last success", "last backup", "last drill"]


def test_jobs_are_listed_with_what_they_made_or_why_they_failed(service: LaidOut) -> None:
    jobs = [
        a_job(result={"name": "A.zip"}),
        a_job(state="failed", error={"message": "disk \x1b[2Jfull"}),
        a_job(kind="prune", state="running"),
    ]
    told = service.good("job", "list", "-n", "3", job_list={"jobs": jobs, "more": False}).splitlines()
    assert service.asked[-1] == ("job.list", {"limit": 3})
    assert [line.split("Z  ")[-1].split() for line in told[1:]] == [
        ["succeeded", "A.zip"],
        ["failed", "disk", "\N{REPLACEMENT CHARACTER}[2Jfull"],
        ["running"],
    ]
    assert service.good("job", "list", job_list={"jobs": [], "more": False}) == "no jobs yet\n"


def test_a_job_that_runs_is_shown_with_how_far_it_is(service: LaidOut) -> None:
    progress = {"stage": "dump", "raw_bytes": 1_500_000, "rate": 2_000, "eta_seconds": 61}
    told = lines(service.good("job", "show", ID, job_get=a_job(state="running", started=LATER, progress=progress)))
    assert told == {
        "job": ID,
        "kind": "backup",
        "asked by": "socket",
        "state": "running",
        "created": "2026-11-29 02:00:00Z",
        "started": "2026-11-30 03:04:05Z",
        "progress": "dump: 1.5 MB, 2.0 kB/s, 1:01 to go",
    }
    unknown = a_job(state="running", progress=progress | {"eta_seconds": None})
    assert lines(service.good("job", "show", ID, job_get=unknown))["progress"] == "dump: 1.5 MB, 2.0 kB/s"


def test_a_job_that_has_ended_is_shown_with_its_error_and_the_plain_part_of_its_result(service: LaidOut) -> None:
    ended = a_job(
        state="partial",
        ended=LATER,
        error={"message": "one target is full", "hint": "Make room."},
        result={"name": "A.zip", "rows": 7, "targets": [{"url": "file:///a"}], "note": ""},
    )
    told = lines(service.good("job", "show", ID, job_get=ended))
    assert [told[name] for name in ("error", "what to do", "name", "rows")] == [
        "one target is full",
        "Make room.",
        "A.zip",
        "7",
    ]
    assert not {"targets", "note"} & set(told)


def said(number: int, text: str, level: str = "info") -> dict[str, Any]:
    return {"number": number, "time": START, "level": level, "stage": "dump", "text": text}


def test_the_log_of_a_job_is_read_to_its_end_and_tells_what_was_not_kept(service: LaidOut) -> None:
    pages = Turns(
        [
            {"lines": [said(1, "begins"), said(4, "slow", "warning")], "omitted": 2, "more": True},
            {"lines": [said(5, "failed", "error")], "omitted": 2, "more": False},
        ]
    )
    assert service.good("job", "log", ID, job_log=pages).splitlines() == [
        "2026-11-29 02:00:00Z  begins",
        "(2 lines were not kept)",
        "2026-11-29 02:00:00Z  WARNING: slow",
        "2026-11-29 02:00:00Z  ERROR: failed",
    ]
    assert [params["after"] for method, params in service.asked if method == "job.log"] == [0, 4]


def test_a_job_that_said_nothing_is_told_as_one(service: LaidOut) -> None:
    told = service.good("job", "log", ID, job_log={"lines": [], "omitted": 0, "more": False})
    assert told == "nothing is remembered of what this job said\n"


def test_a_cancelled_job_and_the_schedule_are_told_in_words(service: LaidOut) -> None:
    assert service.good("job", "cancel", ID, job_cancel=a_job(kind="drill")) == f"drill {ID} is being cancelled\n"
    assert service.good("schedule", schedule_preview=[START, LATER]).split("\n") == [
        "2026-11-29 02:00:00Z",
        "2026-11-30 03:04:05Z",
        "",
    ]
    assert "no schedule is in force" in service.good("schedule", schedule_preview=[])


@pytest.mark.parametrize(
    ("command", "method", "answer", "printed"),
    [
        (["status"], "system.info", INFO, INFO),
        (["job", "list"], "job.list", {"jobs": [a_job()], "more": False}, None),
        (["job", "show", ID], "job.get", a_job(), None),
        (["job", "cancel", ID], "job.cancel", a_job(), None),
        (
            ["job", "log", ID],
            "job.log",
            {"lines": [said(1, "a")], "omitted": 0, "more": False},
            {"lines": [said(1, "a")], "omitted": 0},
        ),
        (["schedule"], "schedule.preview", [START], {"runs": [START]}),
    ],
)
def test_json_is_what_the_service_answered(
    service: LaidOut, command: list[str], method: str, answer: Any, printed: Any
) -> None:
    service.answers[method] = answer
    assert json.loads(service.good(*command, "--json")) == (answer if printed is None else printed)


def test_what_the_service_refuses_is_told_in_its_words(service: LaidOut) -> None:
    service.answers["job.get"] = Refusal("NOT_FOUND", "there is no such job")
    result = service.run("job", "show", ID)
    assert (result.exit_code, result.stderr) == (8, "error: there is no such job\n")


def test_a_parameter_that_the_service_refuses_is_told_as_an_option_of_the_command(service: LaidOut) -> None:
    service.answers["job.get"] = Refusal("INVALID_PARAMS", "job.get: id is no id of a job")
    result = service.run("job", "show", ID)
    assert result.exit_code == 2
    assert result.stderr == "error: id is no id of a job\n  what to do: See the command's --help.\n"
