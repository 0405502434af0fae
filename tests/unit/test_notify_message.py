"""Which jobs people are told of, and in which words."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from service import secret
from service.config_monitoring import DeadManSettings, NotificationSettings, NotifyOn
from service.job import Job, JobKind, JobState
from service.notify_message import LONGEST_BODY, events, expiry_message, failure_reason, job_message, missed_message
from service.secret import remember

DUE = datetime(2026, 1, 31, 2, 0, tzinfo=UTC)
EVERYTHING = get_args(NotifyOn)
RESULT = {"name": "Backup_20260131_0200Z.zip", "size": 1_400_000_000, "raw_bytes": 5_000_000_000, "warnings": []}
ERROR = {"code": "TARGET_FULL", "message": "the disk is full", "hint": "Make room.", "transient": True}


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    yield
    secret._remembered.clear()


def ended(state: JobState, kind: JobKind = "backup", **more: Any) -> Job:
    job = Job(id="j-1", kind=kind, origin="schedule", state=state, created=DUE, scheduled_for=DUE)
    job = job.but(started=DUE + timedelta(seconds=1), ended=DUE + timedelta(seconds=3724))
    return job.but(**{"result": RESULT if state == "succeeded" else None} | more)


GOOD, WARNED = ended("succeeded"), ended("succeeded", result=RESULT | {"warnings": ["one file was skipped"]})

CASES: list[tuple[Job, Job | None, list[NotifyOn]]] = [
    (ended("failed"), None, ["failure"]),
    (ended("failed"), ended("failed"), ["failure"]),
    (ended("interrupted"), GOOD, ["failure"]),
    (ended("partial"), None, ["partial"]),
    (ended("cancelled"), ended("failed"), []),
    (ended("running"), None, []),
    (GOOD, None, ["success"]),
    (GOOD, GOOD, ["success"]),
    (GOOD, WARNED, ["success"]),
    (WARNED, None, ["warning", "success"]),
    (GOOD, ended("failed"), ["recovery", "success"]),
    (GOOD, ended("interrupted"), ["recovery", "success"]),
    (WARNED, ended("partial"), ["recovery", "warning", "success"]),
]


@pytest.mark.parametrize(("job", "previous", "expected"), CASES)
def test_what_an_ended_job_is(job: Job, previous: Job | None, expected: list[NotifyOn]) -> None:
    assert events(job, previous) == expected


def test_only_what_was_asked_for_is_told_by_its_most_telling_name() -> None:
    on = NotificationSettings(urls_env="X").events
    assert on == ["failure", "partial", "missed", "recovery", "expiry"]
    assert job_message(GOOD, GOOD, on=on, server="s") is None
    assert job_message(WARNED, GOOD, on=on, server="s") is None
    recovered = job_message(WARNED, ended("failed"), on=on, server="s")
    assert recovered is not None and "works again" in recovered.title
    assert "Warning: one file was skipped" in recovered.body, "it is not lost in the good news"
    success = job_message(WARNED, ended("failed"), on=["success"], server="s")
    assert success is not None and success.title.endswith("backup succeeded")
    assert missed_message("backup", DUE, "x", on=["failure"], server="s") is None


def test_an_old_state_that_will_go_is_told_with_the_way_back() -> None:
    assert expiry_message("Backup_20260101_0000Z.zip", DUE, on=["missed"], server="s") is None
    message = expiry_message("Backup_20260101_0000Z.zip", DUE, on=EVERYTHING, server="edge-7")
    assert message is not None and message.severity == "warning"
    assert "2026" in message.body and "rollback" in message.body and "edge-7" in message.title


def test_a_failure_tells_server_times_error_hint_and_what_comes_next() -> None:
    job = ended("failed", error=ERROR, origin="catch-up")
    message = job_message(job, None, on=EVERYTHING, server="edge-7", next_run=DUE + timedelta(days=1))
    assert message is not None
    assert (message.title, message.severity) == ("edge-7: backup failed", "failure")
    assert message.body.splitlines() == [
        "The backup failed.",
        "",
        "Server: edge-7",
        "Asked for by: schedule, made up for, due 2026-01-31 02:00:00 UTC",
        "Ran: 2026-01-31 02:00:01 UTC to 2026-01-31 03:02:04 UTC, 1:02:03",
        "Error: the disk is full (TARGET_FULL)",
        "What to do: Make room.",
        "Next backup: 2026-02-01 02:00:00 UTC",
    ]


def test_a_success_tells_archive_and_sizes() -> None:
    message = job_message(GOOD, None, on=EVERYTHING, server="edge-7")
    assert message is not None and message.severity == "success"
    assert "Archive: Backup_20260131_0200Z.zip (1.4 GB stored, 5.0 GB of data)" in message.body


def test_a_missed_run_tells_when_and_why() -> None:
    message = missed_message("backup", DUE, "the machine was off", on=EVERYTHING, server="edge-7", next_run=DUE)
    assert message is not None
    assert message.title == "edge-7: backup missed"
    assert message.severity == "failure"
    assert "Due: 2026-01-31 02:00:00 UTC\nReason: the machine was off\nNext backup: " in message.body


def test_an_interrupted_job_says_so_and_one_that_never_ran_has_no_times() -> None:
    message = job_message(ended("interrupted", started=None), None, on=EVERYTHING, server="s")
    assert message is not None
    assert "Error: the service ended before the job did" in message.body
    assert "Ran:" not in message.body


@pytest.mark.parametrize("kind", get_args(JobKind))
@pytest.mark.parametrize("state", ["failed", "partial", "succeeded", "interrupted"])
def test_every_kind_of_job_has_words(kind: JobKind, state: JobState) -> None:
    message = job_message(ended(state, kind, result=None), None, on=EVERYTHING, server="s")
    assert message is not None and message.body.startswith("The ")


def test_no_secret_no_control_character_and_no_endless_text_is_told() -> None:
    remember("canary-Zx81")
    error = {"message": "canary-Zx81 \x1b[31m\r" + "x" * 10_000, "hint": "canary-Zx81"}
    job = ended("failed", error=error)
    message = job_message(job, None, on=EVERYTHING, server="canary-Zx81\nSubject: x")
    assert message is not None
    for text in (message.title, message.body, failure_reason(job)):
        assert "canary" not in text
        assert all(char.isprintable() or char == "\n" for char in text)
        assert len(text) <= LONGEST_BODY
    assert "\n" not in message.title


def test_the_reason_of_a_failure_is_its_message_and_hint() -> None:
    assert failure_reason(ended("failed", error=ERROR)) == "the disk is full\nMake room."
    assert failure_reason(ended("interrupted")) == "the backup ended as interrupted"


@pytest.mark.parametrize(
    "settings",
    [{}, {"urls_file": Path("/x"), "urls_env": "X"}, {"urls_env": "X", "on": []}, {"urls_env": "X", "on": ["x"]}],
)
def test_notifications_need_one_place_for_urls_and_something_to_tell(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NotificationSettings.model_validate(settings)


@pytest.mark.parametrize("settings", [{}, {"url_file": Path("/x"), "url_env": "X"}])
def test_a_dead_mans_switch_needs_one_place_for_its_url(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DeadManSettings.model_validate(settings)
