"""Metrics for Prometheus, in a registry of their own; docs/METRICS.md lists them, docs/RUNBOOKS.md has the alerts.

Times are UNIX timestamps in seconds, 0 for never: an alert on the age of the last success then fires, instead of
finding nothing to compare.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from service.job import ENDED, Job, JobKind
from service.secret import redact

_DURATIONS = (1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 28800)


class Metrics:
    """What is measured of the service. Every method is quick, raises nothing and may be called at any time."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._running_jobs: dict[str, JobKind] = {}
        self._targets: set[str] = set()
        self._define_jobs()
        self._define_backups()
        self._define_schedules()
        self._define_surroundings()
        self._define_service()
        for kind in get_args(JobKind):
            self._running.labels(kind).set(0)
            for result in ENDED:
                self._runs.labels(kind, result)  # from 0, or an alert on the increase would miss the first failure
        self._build.labels(version("deviceon-backup")).set(1)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"deviceon_backup_{name}", text, labels, registry=self.registry)

    def _define_jobs(self) -> None:
        self._runs = Counter(
            "deviceon_backup_runs_total",
            "Jobs that ended since the service started.",
            ("kind", "result"),
            registry=self.registry,
        )
        self._durations = Histogram(
            "deviceon_backup_run_duration_seconds",
            "How long jobs ran that ended since the service started, whatever their result.",
            ("kind",),
            buckets=_DURATIONS,
            registry=self.registry,
        )
        self._last_run = self._gauge(
            "last_run_timestamp_seconds", "When the last job of this kind and result ended.", ("kind", "result")
        )
        self._last_duration = self._gauge(
            "last_run_duration_seconds", "How long the last job of this kind ran.", ("kind",)
        )
        self._running = self._gauge("running_jobs", "Jobs that are running now.", ("kind",))

    def _define_backups(self) -> None:
        self._last_success = self._gauge(
            "last_success_timestamp_seconds",
            "When the last backup ended whose archive was read back and verified; known across restarts, 0 for never.",
        )
        self._raw = self._gauge("last_backup_raw_bytes", "Bytes of data in the last successful backup.")
        self._stored = self._gauge("last_backup_stored_bytes", "Bytes of the last successful backup's archive.")
        self._stages = self._gauge(
            "last_backup_stage_duration_seconds", "How long each stage of the last successful backup took.", ("stage",)
        )
        self._no_recovery = self._gauge(
            "recovery_missing", "1 when archives open on this TPM only: its loss is the loss of all backups. Else 0."
        )
        self._last_selftest = self._gauge(
            "last_selftest_success_timestamp_seconds",
            "When the last self-test of the newest archives' keys succeeded; known across restarts, 0 for never.",
        )
        self._last_drill = self._gauge(
            "last_drill_success_timestamp_seconds",
            "When the last drill ended that restored an archive for practice; known across restarts, 0 for never.",
        )

    def _define_schedules(self) -> None:
        self._next_run = self._gauge("next_run_timestamp_seconds", "When the next backup is due, 0 for never.")
        self._next_drill = self._gauge("next_drill_timestamp_seconds", "When the next drill is due, 0 for never.")
        self._schedule = self._gauge("schedule_enabled", "1 when backups are made by a schedule, else 0.")
        self._pause = self._gauge(
            "schedule_longest_pause_seconds",
            "Longest time that the schedule of this kind leaves between two runs; absent without a schedule.",
            ("kind",),
        )
        self._missed = self._gauge(
            "last_missed_timestamp_seconds",
            "When it was last told that a job of this kind was due and did not begin; known across restarts.",
            ("kind",),
        )

    def _define_surroundings(self) -> None:
        self._archives = self._gauge(
            "archives", "Archives in the target, by what is known of their worth.", ("target", "evidence")
        )
        self._bytes = self._gauge("archives_bytes", "Bytes of all archives in the target.", ("target",))
        self._newest = self._gauge(
            "newest_verified_archive_timestamp_seconds",
            "When the newest verified archive in the target was made, 0 when there is none.",
            ("target",),
        )
        self._newest_restorable = self._gauge(
            "newest_restorable_archive_timestamp_seconds",
            "When the newest archive in the target was made that a drill has restored, 0 when there is none.",
            ("target",),
        )
        self._up = self._gauge("target_up", "1 when the target could be used the last time, else 0.", ("target",))
        self._free = self._gauge(
            "target_free_bytes", "Bytes that the target still takes; absent where it cannot tell.", ("target",)
        )
        self._owed = self._gauge(
            "copies_owed", "Archives that the target has missed and that are still to be copied there.", ("target",)
        )

        self._of_targets = (
            self._archives,
            self._bytes,
            self._newest,
            self._newest_restorable,
            self._up,
            self._free,
            self._owed,
        )

    def _define_service(self) -> None:
        self._restore_pending = self._gauge(
            "restore_pending_timestamp_seconds",
            "Since when a restore keeps the state before it and waits for commit or rollback, 0 when none does.",
        )
        self._clock = self._gauge(
            "clock_suspect", "1 when the clock was set within the last day, so that nothing is pruned by age; else 0."
        )
        self._aside = self._gauge(
            "state_files_set_aside",
            "Files in the state directory that could not be used any more and were kept: history or settings.",
            ("what",),
        )
        self._state_free = self._gauge("state_free_bytes", "Bytes that are free where the state directory is.")
        self._state_size = self._gauge("state_size_bytes", "Size in bytes of the file system of the state directory.")
        self._certificate = self._gauge(
            "certificate_expiry_timestamp_seconds",
            "When the certificate of the TLS socket expires; 0 without a TLS socket.",
        )
        ProcessCollector(registry=self.registry)
        self._build = self._gauge("build_info", "Always 1; the label tells the version of the service.", ("version",))

    def seed(self, *ended: Job) -> None:
        """Tell, when the service starts, the last job of each kind and result, so that their age is known."""
        for job in ended:
            self._note_end(job)
            self._note_success(job)

    def job_started(self, job: Job) -> None:
        """Count a job as running."""
        self._running_jobs[job.id] = job.kind
        self._count_running(job.kind)

    def job_ended(self, job: Job) -> None:
        """Count a job that has ended, whether it ever ran or not."""
        if not job.done:
            return
        self._running_jobs.pop(job.id, None)
        self._count_running(job.kind)
        self._runs.labels(job.kind, job.state).inc()
        self._note_end(job)
        if job.seconds is not None:
            self._durations.labels(job.kind).observe(job.seconds)
            self._last_duration.labels(job.kind).set(job.seconds)
        self._note_success(job)

    def archives(
        self,
        target: str,
        by_evidence: Mapping[str, int],
        newest: datetime | None,
        newest_restorable: datetime | None,
        total_bytes: int,
    ) -> None:
        """Tell what is in a target: archives by evidence, and when the newest proven ones were made."""
        target = redact(target)
        self._archives.remove_by_labels({"target": target})  # an evidence that no archive has any more
        for evidence, count in by_evidence.items():
            self._archives.labels(target, evidence).set(count)
        self._newest.labels(target).set(newest.timestamp() if newest else 0)
        self._newest_restorable.labels(target).set(newest_restorable.timestamp() if newest_restorable else 0)
        self._bytes.labels(target).set(total_bytes)

    def recovery_missing(self, missing: bool) -> None:
        """Note whether archives are sealed without a recovery key."""
        self._no_recovery.set(missing)

    def keep_targets(self, targets: Collection[str]) -> None:
        """Forget the targets that are no longer configured."""
        kept = {redact(target) for target in targets}
        for target in self._targets - kept:
            for metric in self._of_targets:
                metric.remove_by_labels({"target": target})
        self._targets = kept

    def target_up(self, target: str, up: bool) -> None:
        """Tell whether a target could be used."""
        self._up.labels(redact(target)).set(up)

    def target_free(self, target: str, free: int | None) -> None:
        """Tell how much a target still takes; None when it cannot say."""
        target = redact(target)
        self._free.remove_by_labels({"target": target})
        if free is not None:
            self._free.labels(target).set(free)

    def copies_owed(self, owed: Mapping[str, int]) -> None:
        """Tell for each target how many archives it has missed."""
        for target, count in owed.items():
            self._owed.labels(redact(target)).set(count)

    def next_run(self, when: datetime | None) -> None:
        """Tell when the next backup is due; None for never."""
        self._next_run.set(when.timestamp() if when else 0)

    def next_drill(self, when: datetime | None) -> None:
        """Tell when the next drill is due; None for never."""
        self._next_drill.set(when.timestamp() if when else 0)

    def schedule_enabled(self, enabled: bool) -> None:
        """Tell whether backups are made by a schedule."""
        self._schedule.set(enabled)

    def longest_pause(self, kind: JobKind, pause: timedelta | None) -> None:
        """Tell how long the schedule of a kind pauses at most; None without a schedule."""
        self._pause.remove_by_labels({"kind": kind})
        if pause is not None:
            self._pause.labels(kind).set(pause.total_seconds())

    def missed(self, kind: str, told: datetime) -> None:
        """Tell that a job was due and did not begin."""
        self._missed.labels(kind).set(told.timestamp())

    def restore_pending(self, since: datetime | None) -> None:
        """Tell since when a restore waits for commit or rollback; None when none does."""
        self._restore_pending.set(since.timestamp() if since else 0)

    def clock_suspect(self, suspect: bool) -> None:
        """Tell whether the clock is doubted."""
        self._clock.set(suspect)

    def state_directory(self, *, free: int, size: int, set_aside: Mapping[str, int]) -> None:
        """Tell the room of the state directory in bytes, and how many files of each kind were set aside in it."""
        self._state_free.set(free)
        self._state_size.set(size)
        for what, count in set_aside.items():
            self._aside.labels(what).set(count)

    def certificate_expires(self, when: datetime | None) -> None:
        """Tell when the certificate of the TLS socket expires; None when there is no such socket."""
        self._certificate.set(when.timestamp() if when else 0)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)

    def _count_running(self, kind: JobKind) -> None:
        self._running.labels(kind).set(list(self._running_jobs.values()).count(kind))

    def _note_end(self, job: Job) -> None:
        if job.ended:
            self._last_run.labels(job.kind, job.state).set(job.ended.timestamp())

    def _note_success(self, job: Job) -> None:
        if job.state != "succeeded" or job.ended is None:
            return
        if job.kind == "selftest":
            self._last_selftest.set(job.ended.timestamp())
        if job.kind == "drill":
            self._last_drill.set(job.ended.timestamp())
        if job.kind != "backup":
            return
        self._last_success.set(job.ended.timestamp())
        result = job.result or {}
        self._raw.set(result.get("raw_bytes", 0))
        self._stored.set(result.get("size", 0))
        self._stages.clear()
        for stage, seconds in result.get("stages", {}).items():
            self._stages.labels(stage).set(seconds)
