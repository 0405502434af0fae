"""The benchmarks' pure parts: medians, ratios, goals, the document. What they measure is never asserted."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import report, tables
from benchmarks.commands import BACKUPS, RESTORES, SHAPE_BACKUPS, SHAPE_RESTORES, SLOW_RESTORES, TITLES, rotated
from benchmarks.load import parse_log, summary
from benchmarks.measure import CommandFailed, measure
from benchmarks.results import MIB, TARGET_PEERS, Results, Run, cpu_limit_share, goals, middle, published, ratio, ratios
from benchmarks.target_commands import KINDS, OURS, WAYS

PLAIN = Run("backup", "ours", "backup", "devices", 1.0, 1, 10.0, 8.0, 10.0, 100 * MIB, 90 * MIB, 1_000, {})
STAGES = {"dump": 8.0, "read back": 1.5}


def results() -> Results:
    """Three rounds of two ways, and restores of both."""
    found = Results(
        cores=2,
        facts={"Processor": "Z80"},
        datasets={"devices-1": {"dump_bytes": 10**9, "relations": 321}},
        sections={name: {"size": 1.0, "rounds": 3, "made": "2026-11-24 02:00Z"} for name in ("backup", "restore")},
    )
    for number, wall in enumerate((12.0, 10.0, 50.0), 1):
        found.runs.append(replace(PLAIN, round=number, wall=wall, stages=STAGES))
        found.runs.append(replace(PLAIN, way="streaming", round=number, wall=wall * 3, archive_bytes=1_100))
    restored = replace(PLAIN, section="restore", direction="restore")
    found.runs.append(replace(restored, wall=20.0, peak_bytes=120 * MIB, stages={"rows": 5.0, "stage": 19.0}))
    found.runs.append(replace(restored, way="default", wall=30.0))
    found.runs.append(replace(restored, way="data-phase", wall=8.0))
    put = replace(PLAIN, section="targets", direction="put", shape="s3-https", wall=6.0, archive_bytes=10**9)
    found.runs += [put, replace(put, way="aws", wall=12.0)]
    found.runs.append(replace(put, size=4.0, wall=90.0, archive_bytes=4 * 10**9, peak_bytes=255 * MIB))
    found.runs.append(replace(put, way="archive", size=4.0, wall=120.0, archive_bytes=4 * 10**9, peak_bytes=300 * MIB))
    put = replace(put, shape="smb", wall=8.0, stages={"publish": 5.0})
    found.runs += [put, replace(put, way="smbclient", wall=4.0, stages={})]
    return found


def test_ratios_are_of_medians_and_above_1_when_ours_is_faster() -> None:
    assert ratios(results()) == {
        "backup_vs_streaming": 3.0,
        "backup_vs_restic": None,
        "backup_vs_borg": None,
        "backup_vs_default": None,
        "published_vs_streaming": 3.429,
        "restore_vs_streaming": None,
        "restore_vs_pg_restore": 1.5,
        "cpu_limit_share": 1.333,
        "peak_mib": 120.0,
        "size_ratio": 0.909,
        "s3_https_put_vs_aws": 2.0,
        "s3_https_get_vs_aws": None,
        "s3_https_put_vs_rclone": None,
        "s3_https_get_vs_rclone": None,
        "smb_put_vs_smbclient": 0.5,
        "smb_get_vs_smbclient": None,
        "smb_put_vs_rclone": None,
        "smb_get_vs_rclone": None,
        "local_put_vs_dd": None,
        "local_get_vs_dd": None,
    }


def test_a_ratio_of_what_was_not_measured_is_none() -> None:
    assert ratio(None, 1.0) is None
    assert ratio(1.0, None) is None
    assert ratio(1.0, 0.0) is None
    assert middle([]) is None
    assert set(ratios(Results()).values()) == {None}


def test_the_limit_is_all_cpu_seconds_over_the_cores() -> None:
    assert cpu_limit_share([PLAIN], 2) == pytest.approx(10 / 9)
    assert cpu_limit_share([PLAIN], 1) == pytest.approx(10 / 18)


def test_published_is_before_the_reading_back() -> None:
    assert published(replace(PLAIN, stages=STAGES)) == 8.5
    assert published(PLAIN) == 10.0


def test_goals_are_met_or_not_or_not_measured() -> None:
    verdicts = {goal.what: goal.verdict for goal in goals(results())}
    assert verdicts["backup, times faster than `pg_dump -Fp | zstd -1 | age`"] == "met"
    assert verdicts["backup, wall time over (CPU seconds / cores)"] == "NOT met"
    assert verdicts["backup, times faster than `pg_dump -Fp | borg`"] == "not measured"
    assert verdicts["restore's data phase, times faster than `pg_restore -j2`'s"] == "NOT met"
    assert verdicts["backup's peak memory, largest size over smallest"] == "not measured"
    assert verdicts["peak memory of all our puts into targets, MiB"] == "met"
    assert verdicts["peak memory of all our gets from targets, MiB"] == "not measured"
    assert verdicts["peak memory of the largest archive into S3, MiB"] == "NOT met"
    assert {goal.met for goal in goals(Results())} == {None}


def test_memory_grows_by_the_largest_size_over_the_smallest() -> None:
    found = Results(cores=2)
    for size, peak in ((0.5, 100), (8.0, 130), (2.0, 400)):
        found.runs.append(replace(PLAIN, section="growth", size=size, peak_bytes=peak * MIB))
    (goal,) = (goal for goal in goals(found) if goal.what.startswith("backup's peak memory, largest"))
    assert (goal.value, goal.verdict) == (1.3, "NOT met")


def test_results_are_the_same_when_read_again_and_sections_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "docs" / "performance.json"
    assert Results.load(path) == Results()
    written = results()
    written.save(path)
    read = Results.load(path)
    assert read == written
    read.forget("backup")
    assert {run.section for run in read.runs} == {"restore", "targets"}
    assert list(read.sections) == ["restore"]


def test_the_document_has_numbers_verdicts_and_what_was_not_measured() -> None:
    text = report.document(results(), ["performance-backup-wall"])
    assert "![performance backup wall](images/performance-backup-wall.svg)" in text
    assert "| deviceon-backup | 12.00 | 10.00 to 50.00 | 1.00 | 83 | 8.0 | 10.0 | 100 | 0.0 |" in text
    assert r"| pg_dump -Fp \| zstd -1 \| age | 36.00 |" in text
    assert "| deviceon-backup, until published | 10.50 |  | 0.88 |" in text
    assert "Backup of `devices`: 1.00 GB as text, 321 tables and indexes" in text
    assert "**NOT met**" in text
    assert "**Not measured yet.**" in text
    assert "* Processor: Z80" in text
    assert text.count("```") % 2 == 0
    assert "$verdict" not in text
    assert "Put of 1 GB, SMB 3.1.1 (Samba), encrypted:" in text


def test_a_document_of_nothing_can_be_written() -> None:
    assert report.document(Results()).count("**Not measured yet.**") == 8


def test_transfers_of_another_size_are_in_a_table_of_their_own_and_in_no_ratio() -> None:
    small, large, smb = tables.of_section(results(), "targets")
    assert [row[:5] for row in small.rows] == [
        ["deviceon-backup's target", "6.00", "one round", "1.00", "167"],
        ["aws s3 cp", "12.00", "one round", "2.00", "83"],
    ]
    assert large.title == "Put of 4 GB, S3 (Ceph), https"
    assert [row[1] for row in large.rows] == ["90.00", "120.00"]
    assert [row[:4] for row in smb.rows] == [
        ["deviceon-backup's target", "8.00", "one round", "1.00"],
        ["deviceon-backup's target, until the last byte", "3.00", "", "0.38"],
        ["smbclient", "4.00", "one round", "0.50"],
    ]


def test_every_row_is_as_wide_as_its_header() -> None:
    found = results()
    for section in ("backup", "restore", "memory", "targets"):
        for table in tables.of_section(found, section):
            assert {len(row) for row in table.rows} == {len(table.header)}, table.title


def test_everybody_is_first_once() -> None:
    assert [rotated(BACKUPS, number)[0] for number in range(1, len(BACKUPS) + 1)] == list(BACKUPS)
    assert {way.name for way in rotated(BACKUPS, 3)} == {way.name for way in BACKUPS}


def test_every_way_has_what_its_section_needs() -> None:
    for way in (*BACKUPS, *SHAPE_BACKUPS):
        assert way.back_up
        assert way.archive
    for way in (*RESTORES, *SLOW_RESTORES, *SHAPE_RESTORES):
        assert way.restore
        assert TITLES["restore"][way.name]


def test_every_kind_of_target_has_ours_and_peers() -> None:
    assert list(WAYS) == list(KINDS)
    for kind, peer in TARGET_PEERS:
        assert peer in {way.name for way in WAYS[kind]}
    for ways in WAYS.values():
        assert ways[0] is OURS
        assert len({way.name for way in ways}) == len(ways) > 1
        assert all(way.put and way.get for way in ways)


def test_latencies_are_of_transactions_that_ended_in_a_window() -> None:
    lines = [f"0 {number} {number * 1000} 0 {100 + number} 0 0" for number in range(1, 11)]
    transactions = list(parse_log([*lines, "0 11 skipped 0 111 0 0", "1 5"]))
    assert transactions[0] == (101.0, 1.0)
    assert summary(transactions, [(102, 104), (108, 109)]) == {
        "seconds": 1.5,
        "transactions": 5.0,
        "tps": 1.7,
        "p50_ms": 4.0,
        "p95_ms": 9.0,
        "p99_ms": 9.0,
        "max_ms": 9.0,
    }
    assert summary([], [])["tps"] == 0


def test_a_command_is_measured_with_all_its_processes(tmp_path: Path) -> None:
    half = f"{sys.executable} -c 'import time; b = bytearray(60 << 20); time.sleep(2)'"
    with subprocess.Popen(["sleep", "60"]) as server:
        measured = measure(f"{half} | {half}", {}, log=tmp_path / "log", servers=[server.pid])
        server.kill()
    assert measured.wall >= 2
    assert measured.client_cpu > 0
    assert measured.server_cpu == 0
    assert measured.biggest_bytes > 60 * MIB
    assert measured.peak_bytes > 110 * MIB


def test_the_cpu_of_every_server_is_counted(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as idle, subprocess.Popen(["bash", "-c", "while :; do :; done"]) as busy:
        servers = ([idle.pid], [idle.pid, busy.pid])
        used = [measure("sleep 1", {}, log=tmp_path / "log", servers=pids).server_cpu for pids in servers]
        idle.kill()
        busy.kill()
    assert used[0] == 0
    assert used[1] > 0


def test_a_command_that_fails_anywhere_in_its_pipeline_says_why(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as server:
        with pytest.raises(CommandFailed, match="no such luck"):
            measure("(echo no such luck; exit 3) >&2 | cat", {}, log=tmp_path / "log", servers=[server.pid])
        server.kill()
