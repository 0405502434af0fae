"""Metrics: what jobs leave behind, what a restart keeps, and that the documentation tells the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service import secret
from service.job import ENDED, Job, JobKind, JobState
from service.metrics import Metrics
from service.secret import remember

DOCUMENT = (Path(__file__).parents[2] / "docs/METRICS.md").read_text()
NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
RESULT = {"raw_bytes": 5000, "size": 1000, "stages": {"dump": 1.5, "read back": 0.5}, "warnings": []}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    yield
    secret._remembered.clear()


def ended(state: JobState = "succeeded", kind: JobKind = "backup", *, at: datetime = NOON, **more: Any) -> Job:
    result = RESULT if kind == "backup" and state == "succeeded" else None
    job = Job(id="j-1", kind=kind, origin="schedule", state=state, created=at, result=result)
    return job.but(started=at - timedelta(seconds=90), ended=at, **more)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"deviceon_backup_{name}", labels)


def test_a_successful_backup_is_counted_timed_and_measured(metrics: Metrics) -> None:
    metrics.job_ended(ended())
    assert value(metrics, "runs_total", kind="backup", result="succeeded") == 1
    assert value(metrics, "last_success_timestamp_seconds") == NOON.timestamp()
    assert value(metrics, "last_run_timestamp_seconds", kind="backup", result="succeeded") == NOON.timestamp()
    assert value(metrics, "last_run_duration_seconds", kind="backup") == 90
    assert value(metrics, "run_duration_seconds_sum", kind="backup") == 90
    assert value(metrics, "run_duration_seconds_bucket", kind="backup", le="60.0") == 0
    assert value(metrics, "run_duration_seconds_bucket", kind="backup", le="300.0") == 1
    assert value(metrics, "last_backup_raw_bytes") == 5000
    assert value(metrics, "last_backup_stored_bytes") == 1000
    assert value(metrics, "last_backup_stage_duration_seconds", stage="read back") == 0.5


@pytest.mark.parametrize("state", sorted(set(ENDED) - {"succeeded"}))
def test_what_is_no_success_leaves_the_last_success_as_it_was(metrics: Metrics, state: JobState) -> None:
    metrics.job_ended(ended())
    metrics.job_ended(ended(state, at=NOON + timedelta(days=1)))
    assert value(metrics, "last_success_timestamp_seconds") == NOON.timestamp()
    assert value(metrics, "last_backup_raw_bytes") == 5000
    assert value(metrics, "runs_total", kind="backup", result=state) == 1
    later = (NOON + timedelta(days=1)).timestamp()
    assert value(metrics, "last_run_timestamp_seconds", kind="backup", result=state) == later


@pytest.mark.parametrize("kind", sorted(set(get_args(JobKind)) - {"backup"}))
def test_only_a_backup_is_a_success_of_backups(metrics: Metrics, kind: JobKind) -> None:
    metrics.job_ended(ended(kind=kind))
    assert value(metrics, "last_success_timestamp_seconds") == 0
    assert value(metrics, "runs_total", kind=kind, result="succeeded") == 1


def test_a_job_that_has_not_ended_is_not_counted(metrics: Metrics) -> None:
    metrics.job_ended(ended().but(state="verifying"))
    assert value(metrics, "last_success_timestamp_seconds") == 0
    assert value(metrics, "runs_total", kind="backup", result="succeeded") == 0
    assert b"verifying" not in metrics.text()


def test_the_last_success_is_known_after_a_restart_and_never_is_0(metrics: Metrics) -> None:
    assert value(metrics, "last_success_timestamp_seconds") == 0
    metrics.seed()
    assert value(metrics, "last_success_timestamp_seconds") == 0
    metrics.seed(ended("partial"))
    assert value(metrics, "last_success_timestamp_seconds") == 0
    metrics.seed(ended())
    assert value(metrics, "last_success_timestamp_seconds") == NOON.timestamp()
    assert value(metrics, "last_backup_raw_bytes") == 5000
    assert value(metrics, "runs_total", kind="backup", result="succeeded") == 0, "counters begin anew"


def test_the_last_self_test_is_known_after_a_restart(metrics: Metrics) -> None:
    assert value(metrics, "last_selftest_success_timestamp_seconds") == 0
    metrics.seed(ended("failed", kind="selftest"))
    assert value(metrics, "last_selftest_success_timestamp_seconds") == 0
    metrics.seed(ended(kind="selftest"))
    assert value(metrics, "last_selftest_success_timestamp_seconds") == NOON.timestamp()
    assert value(metrics, "last_success_timestamp_seconds") == 0


def test_stages_that_the_last_backup_does_not_have_are_gone(metrics: Metrics) -> None:
    metrics.job_ended(ended())
    metrics.job_ended(ended(result={"stages": {"seal": 1.0}}))
    assert value(metrics, "last_backup_stage_duration_seconds", stage="dump") is None
    assert value(metrics, "last_backup_stage_duration_seconds", stage="seal") == 1
    assert value(metrics, "last_backup_raw_bytes") == 0


def test_running_jobs_are_counted_by_kind_and_one_that_never_ran_is_none_less(metrics: Metrics) -> None:
    metrics.job_started(ended().but(id="a"))
    metrics.job_started(ended(kind="verify").but(id="b"))
    assert value(metrics, "running_jobs", kind="backup") == 1
    metrics.job_ended(ended("cancelled").but(id="c", started=None))
    assert value(metrics, "running_jobs", kind="backup") == 1
    assert value(metrics, "run_duration_seconds_count", kind="backup") is None
    metrics.job_ended(ended().but(id="a"))
    assert value(metrics, "running_jobs", kind="backup") == 0
    assert value(metrics, "running_jobs", kind="verify") == 1


def test_archives_are_told_by_target_and_what_is_gone_is_gone(metrics: Metrics) -> None:
    metrics.archives("a", {"verified": 2, "damaged": 1}, NOON, None, 12)
    metrics.archives("b", {"damaged": 3}, None, None, 3)
    metrics.archives("a", {"verified": 1}, NOON, NOON, 8)
    assert value(metrics, "archives", target="a", evidence="verified") == 1
    assert value(metrics, "archives", target="a", evidence="damaged") is None
    assert value(metrics, "archives", target="b", evidence="damaged") == 3
    assert value(metrics, "archives_bytes", target="a") == 8
    assert value(metrics, "newest_verified_archive_timestamp_seconds", target="a") == NOON.timestamp()
    assert value(metrics, "newest_verified_archive_timestamp_seconds", target="b") == 0


def test_target_and_schedule_are_told(metrics: Metrics) -> None:
    metrics.target_up("a", True)
    metrics.target_up("b", False)
    metrics.next_run(NOON)
    metrics.schedule_enabled(True)
    assert value(metrics, "target_up", target="a") == 1
    assert value(metrics, "target_up", target="b") == 0
    assert value(metrics, "next_run_timestamp_seconds") == NOON.timestamp()
    assert value(metrics, "schedule_enabled") == 1
    metrics.next_run(None)
    metrics.schedule_enabled(False)
    assert value(metrics, "next_run_timestamp_seconds") == 0
    assert value(metrics, "schedule_enabled") == 0


def test_no_label_has_a_secret(metrics: Metrics) -> None:
    remember("canary-Zx81")
    metrics.archives("s3://canary-Zx81@x", {"verified": 1}, NOON, None, 1)
    metrics.target_up("s3://canary-Zx81@x", True)
    assert b"canary" not in metrics.text()
    assert value(metrics, "target_up", target="s3://***@x") == 1


def test_two_are_apart() -> None:
    one, other = Metrics(), Metrics()
    one.schedule_enabled(True)
    assert value(other, "schedule_enabled") == 0


def filled(metrics: Metrics) -> Metrics:
    """Fill every metric, so that all are told."""
    metrics.job_ended(ended())
    metrics.archives("a", {"verified": 2}, NOON, None, 12)
    metrics.target_up("a", True)
    metrics.target_free("a", 10)
    metrics.copies_owed({"a": 1})
    metrics.longest_pause("backup", timedelta(days=1))
    metrics.missed("backup", NOON)
    metrics.state_directory(free=1, size=2, set_aside={"history": 0})
    return metrics


def test_the_text_is_what_prometheus_reads(metrics: Metrics) -> None:
    families = {family.name: family for family in text_string_to_metric_families(filled(metrics).text().decode())}
    assert all(name.startswith(("deviceon_backup_", "process_")) for name in families)
    assert families["deviceon_backup_archives"].samples[0].labels == {"target": "a", "evidence": "verified"}
    assert len(metrics.text()) < 50_000, "one scrape"


def test_the_document_names_the_same_metrics_with_type_labels_and_help(metrics: Metrics) -> None:
    rows = re.findall(r"^\| `(deviceon_backup_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", DOCUMENT, re.M)
    told = {}
    for family in filled(metrics).registry.collect():
        if family.name.startswith("process_"):
            continue
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        told[name] = (family.type, labels, family.documentation)
    documented = {
        name: (kind, set(filter(None, labels.strip().split(", "))), text) for name, kind, labels, text in rows
    }
    assert documented == told


def test_what_a_schedule_a_target_or_a_restore_no_longer_has_is_no_longer_told(metrics: Metrics) -> None:
    filled(metrics)
    metrics.keep_targets({"a"})
    metrics.restore_pending(NOON)
    metrics.certificate_expires(NOON)
    assert value(metrics, "target_free_bytes", target="a") == 10
    assert value(metrics, "copies_owed", target="a") == 1
    assert value(metrics, "schedule_longest_pause_seconds", kind="backup") == 86400
    assert value(metrics, "restore_pending_timestamp_seconds") == NOON.timestamp()
    assert value(metrics, "certificate_expiry_timestamp_seconds") == NOON.timestamp()
    metrics.target_free("a", None)
    metrics.longest_pause("backup", None)
    metrics.restore_pending(None)
    metrics.certificate_expires(None)
    assert value(metrics, "target_free_bytes", target="a") is None
    assert value(metrics, "schedule_longest_pause_seconds", kind="backup") is None
    assert value(metrics, "restore_pending_timestamp_seconds") == 0
    assert value(metrics, "certificate_expiry_timestamp_seconds") == 0
    metrics.keep_targets(set())
    assert value(metrics, "copies_owed", target="a") is None


def test_how_each_kind_of_job_ended_last_is_known_after_a_restart(metrics: Metrics) -> None:
    metrics.seed(ended("failed", kind="drill"), ended(kind="drill", at=NOON - timedelta(days=1)))
    assert value(metrics, "last_run_timestamp_seconds", kind="drill", result="failed") == NOON.timestamp()
    assert value(metrics, "last_drill_success_timestamp_seconds") == (NOON - timedelta(days=1)).timestamp()
