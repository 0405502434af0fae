"""When each alert of helm/deviceon-backup/files/alerts.yaml fires and when it does not, as tests for promtool.

Every case begins with a server that is well, and changes some of its series. `NOW` is the time that is looked at, in
seconds since the tests' beginning; timestamps are constants around it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

HOUR, DAY = 3600, 86400
NOW = 12 * DAY
EVERY = 7200
"""Seconds between two evaluations of the rules: seldom, since there are many servers."""
OFTEN = 900
"""Seconds between two samples; a divisor of EVERY."""


def ago(seconds: float) -> str:
    return str(NOW - seconds)


def last_run(kind: str, result: str) -> str:
    return f'deviceon_backup_last_run_timestamp_seconds{{kind="{kind}",result="{result}"}}'


def pause(kind: str) -> str:
    return f'deviceon_backup_schedule_longest_pause_seconds{{kind="{kind}"}}'


def constant(value: str) -> str:
    return f"{value}x{NOW // OFTEN}"


def step(before: float, after: float | str, *, seconds_ago: float) -> str:
    """Samples that change once."""
    late = int(seconds_ago / OFTEN)
    return f"{before}x{NOW // OFTEN - late - 1} {after}x{late}"


def grows(start: float, by: float) -> str:
    """Samples that go up, or down, by so much in each step, from `start`; the last is the 1,152nd after it."""
    return f"{start}{by:+}x{NOW // OFTEN}"


LAST_SUCCESS = "deviceon_backup_last_success_timestamp_seconds"
LAST_DRILL = "deviceon_backup_last_drill_success_timestamp_seconds"
LAST_SELFTEST = "deviceon_backup_last_selftest_success_timestamp_seconds"
NEWEST = 'deviceon_backup_newest_verified_archive_timestamp_seconds{target="file:///b"}'
SECOND = 'deviceon_backup_newest_verified_archive_timestamp_seconds{target="s3://c"}'
FREE, SIZE = "deviceon_backup_state_free_bytes", "deviceon_backup_state_size_bytes"
RAW = "deviceon_backup_last_backup_raw_bytes"
PENDING = "deviceon_backup_restore_pending_timestamp_seconds"
CERTIFICATE = "deviceon_backup_certificate_expiry_timestamp_seconds"
DAMAGED = 'deviceon_backup_archives{target="file:///b",evidence="damaged"}'
OWED = 'deviceon_backup_copies_owed{target="s3://c"}'
UP = 'deviceon_backup_target_up{target="file:///b"}'
ROOM = 'deviceon_backup_target_free_bytes{target="file:///b"}'
RUNNING = 'deviceon_backup_running_jobs{kind="backup"}'
MISSED = 'deviceon_backup_last_missed_timestamp_seconds{kind="drill"}'
ASIDE = 'deviceon_backup_state_files_set_aside{what="history"}'
START = "process_start_time_seconds"
BUILD = 'deviceon_backup_build_info{version="1"}'

POD = 'deviceon_backup_build_info{version="1",namespace="plants",service="gone"}'
NEXT_POD = 'deviceon_backup_build_info{version="1",namespace="plants",service="replaced",instance="10.0.0.2:9847"}'

WELL: dict[str, str] = {
    "up": "1",
    BUILD: "1",
    START: "0",
    FREE: "10000000000",
    SIZE: "20000000000",
    ASIDE: "0",
    "deviceon_backup_clock_suspect": "0",
    CERTIFICATE: str(NOW + 90 * DAY),
    LAST_SUCCESS: ago(HOUR),
    pause("backup"): str(DAY),
    last_run("backup", "succeeded"): ago(HOUR),
    last_run("backup", "failed"): ago(5 * DAY),
    "deviceon_backup_schedule_enabled": "1",
    RUNNING: "0",
    RAW: "1000",
    "deviceon_backup_last_backup_stored_bytes": "100",
    'deviceon_backup_archives{target="file:///b",evidence="verified"}': "7",
    DAMAGED: "0",
    NEWEST: ago(HOUR),
    OWED: "0",
    UP: "1",
    ROOM: "10000",
    PENDING: "0",
    LAST_DRILL: ago(2 * DAY),
    pause("drill"): str(7 * DAY),
    last_run("drill", "succeeded"): ago(2 * DAY),
    last_run("drill", "failed"): ago(9 * DAY),
    LAST_SELFTEST: ago(10 * HOUR),
    pause("selftest"): str(DAY),
    last_run("selftest", "succeeded"): ago(10 * HOUR),
    "deviceon_backup_recovery_missing": "0",
}
UNSCHEDULED = {pause("backup"): None}
MANUAL = UNSCHEDULED | {"deviceon_backup_schedule_enabled": None}


@dataclass(frozen=True, slots=True)
class Case:
    """A state of a server, and the alerts that fire in it: all of them, besides which none does."""

    of: str
    """The alert, without its prefix, whose edge this is."""
    what: str
    changes: dict[str, str | None]
    fires: bool = True
    also: frozenset[str] = field(default_factory=frozenset)


def quiet(of: str, what: str, changes: dict[str, str | None], *also: str) -> Case:
    return Case(of, what, changes, fires=False, also=frozenset(also))


def loud(of: str, what: str, changes: dict[str, str | None], *also: str) -> Case:
    return Case(of, what, changes, also=frozenset(also))


NOT_OF_AN_INSTANCE = {"ServiceAbsent", "ServiceGone"}

NOTHING: dict[str, str | None] = dict.fromkeys(WELL)

CASES = [
    loud("ServiceDown", "for longer than an upgrade", {"up": step(1, 0, seconds_ago=EVERY)}),
    quiet("ServiceDown", "just now", {"up": step(1, 0, seconds_ago=0)}),
    quiet("ServiceDown", "another job's server", {'up{job="postgres"}': "0"}),
    loud("ServiceAbsent", "nothing is scraped", NOTHING),
    quiet("ServiceAbsent", "scraped until ten minutes ago", {BUILD: step(1, 1, seconds_ago=0)}),
    loud(
        "ServiceGone",
        "its pod waits for a node, others are there",
        {BUILD: None, POD: step(1, "_", seconds_ago=6 * HOUR)},
    ),
    quiet(
        "ServiceGone",
        "its pod was replaced",
        {BUILD: None, POD.replace("gone", "replaced"): step(1, "_", seconds_ago=6 * HOUR), NEXT_POD: "1"},
    ),
    quiet("ServiceGone", "just now", {BUILD: None, POD.replace("gone", "late"): step(1, "_", seconds_ago=0)}),
    quiet(
        "ServiceGone",
        "removed two days ago",
        {BUILD: None, POD.replace("gone", "old"): step(1, "_", seconds_ago=2 * DAY)},
    ),
    quiet("ServiceGone", "no cluster: ServiceDown tells it", {BUILD: step(1, "_", seconds_ago=6 * HOUR)}),
    loud("ServiceRestarts", "at every look", {START: grows(0, 60)}),
    quiet("ServiceRestarts", "an upgrade and one more", {START: f"0+0x{NOW // OFTEN - 3} 1 1 2"}),
    quiet("ServiceRestarts", "another program's restarts", {'process_start_time_seconds{job="x"}': grows(0, 60)}),
    loud("StateDiskFull", "a twentieth, and less than 256 MiB", {FREE: "200000000"}),
    quiet("StateDiskFull", "less than 256 MiB of a small disk, but half of it", {FREE: "200000000", SIZE: "400000000"}),
    quiet("StateDiskFull", "a twentieth of a big disk", {FREE: "900000000"}),
    loud("StateDiskFull", "nothing of a tiny disk", {FREE: "9000000", SIZE: "20000000"}),
    loud("StateDiskFull", "tomorrow", {FREE: grows(61_100_000_000, -50_000_000)}),
    quiet("StateDiskFull", "in a month", {FREE: grows(4_652_000_000, -1_000_000)}),
    loud("StateDamaged", "one file", {ASIDE: "1"}),
    quiet("StateDamaged", "taken away", {ASIDE: step(1, 0, seconds_ago=EVERY)}),
    loud("ClockJumped", "today", {"deviceon_backup_clock_suspect": "1"}),
    quiet("ClockJumped", "yesterday", {"deviceon_backup_clock_suspect": step(1, 0, seconds_ago=EVERY)}),
    loud("CertificateExpires", "in 13 days", {CERTIFICATE: str(NOW + 13 * DAY)}),
    loud("CertificateExpires", "it has", {CERTIFICATE: ago(DAY)}),
    quiet("CertificateExpires", "in 15 days", {CERTIFICATE: str(NOW + 15 * DAY)}),
    quiet("CertificateExpires", "no TLS socket", {CERTIFICATE: "0"}),
    loud("Never", "for days", {LAST_SUCCESS: "0", last_run("backup", "failed"): None}),
    quiet(
        "Never",
        "a machine that is being set up",
        {LAST_SUCCESS: f"_x{NOW // OFTEN} 0"} | {last_run("backup", "failed"): None},
    ),
    loud("TooOld", "daily: 31 hours", {LAST_SUCCESS: ago(31 * HOUR)}),
    quiet("TooOld", "daily: 28 hours", {LAST_SUCCESS: ago(28 * HOUR)}),
    quiet("TooOld", "weekly: 7 days", {LAST_SUCCESS: ago(7 * DAY), pause("backup"): str(7 * DAY)}, "Failed"),
    loud("TooOld", "weekly: 8 days", {LAST_SUCCESS: ago(8 * DAY), pause("backup"): str(7 * DAY)}, "Failed"),
    quiet("TooOld", "without a schedule: 7 days", MANUAL | {LAST_SUCCESS: ago(7 * DAY)}, "Failed"),
    loud("TooOld", "without a schedule: 9 days", MANUAL | {LAST_SUCCESS: ago(9 * DAY)}, "Failed"),
    loud("Failed", "after the last success", {last_run("backup", "failed"): ago(HOUR / 2)}),
    loud("Failed", "partial", {last_run("backup", "partial"): ago(HOUR / 2)}),
    loud(
        "Failed",
        "interrupted, nothing ever failed",
        {last_run("backup", "failed"): None, last_run("backup", "interrupted"): ago(60)},
    ),
    quiet("Failed", "cancelled", {last_run("backup", "cancelled"): ago(HOUR / 2)}),
    quiet("Failed", "a success came after it", {last_run("backup", "partial"): ago(2 * HOUR)}),
    loud("Missed", "none has ended since", {MISSED: ago(HOUR)}),
    loud(
        "Missed",
        "none of the kind has ever ended",
        {
            'deviceon_backup_last_missed_timestamp_seconds{kind="selftest"}': ago(HOUR),
            last_run("selftest", "succeeded"): None,
        },
    ),
    quiet("Missed", "one has ended since", {MISSED: ago(3 * DAY)}),
    loud("NotScheduled", "switched off", UNSCHEDULED | {"deviceon_backup_schedule_enabled": "0"}),
    quiet("NotScheduled", "for a moment", {"deviceon_backup_schedule_enabled": step(1, 0, seconds_ago=0)}),
    loud("RunsLong", "14 hours", {RUNNING: step(0, 1, seconds_ago=14 * HOUR)}),
    quiet("RunsLong", "10 hours", {RUNNING: step(0, 1, seconds_ago=10 * HOUR)}),
    loud("Shrank", "to a third", {RAW: step(1000, 333, seconds_ago=DAY)}),
    quiet("Shrank", "to two thirds", {RAW: step(1000, 666, seconds_ago=DAY)}),
    quiet("Shrank", "more than a week ago", {RAW: step(1000, 333, seconds_ago=8 * DAY)}),
    quiet("Shrank", "the size is not known", {RAW: step(1000, 0, seconds_ago=DAY)}),
    loud("JobFailed", "a restore", {last_run("restore", "failed"): ago(HOUR)}),
    loud(
        "JobFailed",
        "a prune after one that succeeded",
        {last_run("prune", "partial"): ago(HOUR), last_run("prune", "succeeded"): ago(DAY)},
    ),
    quiet(
        "JobFailed",
        "one succeeded since",
        {last_run("copy", "failed"): ago(HOUR), last_run("copy", "succeeded"): ago(60)},
    ),
    quiet("JobFailed", "two days ago", {last_run("restore", "failed"): ago(2 * DAY)}),
    quiet("JobFailed", "cancelled", {last_run("restore", "cancelled"): ago(HOUR)}),
    loud("ArchiveDamaged", "one", {DAMAGED: "1"}),
    quiet("ArchiveDamaged", "removed", {DAMAGED: step(1, 0, seconds_ago=EVERY)}),
    loud("TargetBehind", "one of two", {SECOND: ago(3 * DAY)}),
    loud("TargetBehind", "it has none", {SECOND: "0"}),
    quiet("TargetBehind", "it missed one night", {SECOND: ago(2 * DAY)}),
    loud("TargetBehind", "without a schedule", MANUAL | {SECOND: ago(10 * DAY)}),
    quiet("TargetBehind", "without a schedule, a week", MANUAL | {SECOND: ago(8 * DAY)}),
    loud("CopiesOwed", "since yesterday", {OWED: step(0, 2, seconds_ago=DAY)}),
    quiet("CopiesOwed", "for an evening", {OWED: step(0, 2, seconds_ago=4 * HOUR)}),
    loud("TargetDown", "for an hour", {UP: step(1, 0, seconds_ago=EVERY)}),
    quiet("TargetDown", "one look", {UP: step(1, 0, seconds_ago=0)}),
    loud("TargetFullSoon", "room for two", {ROOM: "299"}),
    quiet("TargetFullSoon", "room for three", {ROOM: "300"}),
    quiet("TargetFullSoon", "it cannot tell", {ROOM: None}),
    loud("RestorePending", "three days", {PENDING: ago(3 * DAY)}),
    quiet("RestorePending", "since this morning", {PENDING: ago(4 * HOUR)}),
    loud("DrillFailed", "after the last that passed", {last_run("drill", "failed"): ago(DAY)}),
    quiet("DrillFailed", "cancelled", {last_run("drill", "cancelled"): ago(DAY)}),
    loud("DrillOverdue", "weekly: 9 days", {LAST_DRILL: ago(9 * DAY), last_run("drill", "failed"): None}),
    loud("DrillOverdue", "before the first", {LAST_DRILL: "0", last_run("drill", "failed"): None}),
    quiet("DrillOverdue", "weekly: 8 days", {LAST_DRILL: ago(8 * DAY), last_run("drill", "failed"): None}),
    quiet(
        "DrillOverdue",
        "no schedule of drills",
        {LAST_DRILL: "0", pause("drill"): None, last_run("drill", "failed"): None},
    ),
    loud("KeyDoesNotOpen", "since an hour", {last_run("selftest", "failed"): ago(HOUR)}),
    quiet("KeyDoesNotOpen", "interrupted", {last_run("selftest", "interrupted"): ago(HOUR)}),
    loud("SelfTestOverdue", "four days", {LAST_SELFTEST: ago(4 * DAY)}),
    quiet("SelfTestOverdue", "three days", {LAST_SELFTEST: ago(3 * DAY)}),
    quiet("SelfTestOverdue", "nothing is sealed", {LAST_SELFTEST: "0", pause("selftest"): None}),
    loud("NoRecoveryKey", "for two days", {"deviceon_backup_recovery_missing": "1"}),
    quiet(
        "NoRecoveryKey", "while it is set up", {"deviceon_backup_recovery_missing": step(0, 1, seconds_ago=20 * HOUR)}
    ),
]


def as_promtool(rules: str) -> dict[str, Any]:
    """Return the file that `promtool test rules` reads.

    Every case is a server of one fleet, so that rules which mix servers up show, too. Cases of the alert on nothing
    being scraped have a world of their own.
    """
    fleet = [Case("nothing", "a server that is well", {}, fires=False)]
    fleet += [case for case in CASES if case.of != "ServiceAbsent"]
    alone = [[case] for case in CASES if case.of == "ServiceAbsent"]
    return {"rule_files": [rules], "evaluation_interval": f"{EVERY}s", "tests": [_test(fleet), *map(_test, alone)]}


def _test(servers: list[Case]) -> dict[str, Any]:
    return {
        "interval": f"{OFTEN}s",
        "input_series": [series for case in servers for series in _series(case)],
        "promql_expr_test": [
            {
                "expr": 'count by (instance, alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{NOW}s",
                "exp_samples": [sample for case in servers for sample in _firing(case)],
            }
        ],
    }


def _series(case: Case) -> Iterator[dict[str, str]]:
    for name, samples in (WELL | case.changes).items():
        if samples is not None:
            metric, _, labels = name.partition("{")
            known = {"instance": f'"{_name(case)}"', "job": '"deviceon-backup"'}
            known |= dict(label.split("=", 1) for label in labels.rstrip("}").split(",") if label)
            text = ",".join(f"{label}={value}" for label, value in known.items())
            yield {"series": f"{metric}{{{text}}}", "values": samples if "x" in samples else constant(samples)}


def _firing(case: Case) -> Iterator[dict[str, Any]]:
    for alert in sorted(case.also | ({case.of} if case.fires else set())):
        instance = "" if alert in NOT_OF_AN_INSTANCE else f', instance="{_name(case)}"'
        yield {"labels": f'{{alertname="DeviceOnBackup{alert}"{instance}}}', "value": 1}


def _name(case: Case) -> str:
    return f"{case.of}: {case.what}"
