"""The experiments: what each one claims, the tests that try it, and its sizes. How to add one: CONTRIBUTING.md.

Every experiment is some tests of `make test`. There they have the small sizes of the tier `ci`, which are the defaults
in the tests; the sizes of the tier `nightly` are environment variables here. All take DEVICEON_BACKUP_SEED.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

INVARIANTS = {
    "I1": "an archive that is listed is complete and verifies",
    "I2": "an archive that was once reported good stays until retention takes it, and nobody replaces it; "
    "R5 and R27 compare it byte by byte with what it was",
    "I3": "what was reported done is there afterwards; that it is durable shows only where the power is cut (R4, R5)",
    "I4": "nothing is left over, at the latest after the next start",
    "I5": "live data are entirely old or entirely new",
    "I6": "what is wrong (a byte, an archive, a TPM, a PIN) is refused; R27 sees that it changes no live data",
    "I7": "no secret leaves",
    "I8": "whatever fails or means harm takes no more than a bounded time, memory and number of descriptors",
}


@dataclass(frozen=True, slots=True)
class Experiment:
    """One line of the scoreboard. `tests` are files or tests below tests/, `only` is pytest's -k."""

    id: str
    claim: str
    holds: str
    tests: tuple[str, ...]
    minutes: float
    """What the tier `nightly` takes, on one core of the machine that it was measured on."""
    only: str = ""
    nightly: Mapping[str, str] = field(default_factory=dict)
    by_name_only: bool = False


def _sizes(**values: object) -> dict[str, str]:
    return {f"DEVICEON_BACKUP_{name}": str(value) for name, value in values.items()}


EXPERIMENTS = (
    Experiment(
        "R1",
        "kill -9 at every system call of publishing on a local target",
        "I1 I3 I4",
        ("integration/test_local_kill_sweep.py",),
        only="no_fault_at_any_system_call and SIGKILL",
        nightly=_sizes(SWEEP_MIB="1,3,17"),
        minutes=2,
    ),
    Experiment(
        "R2",
        "kill -9 of the service, or of a backup or restore, at random moments and at steps",
        "I1 I2 I3 I4",
        ("acceptance/test_service_kills.py", "acceptance/test_kill.py", "integration/test_settle.py"),
        only="kill",
        nightly=_sizes(KILLS=20, KILL_TARGETS="local,smb,ceph"),
        minutes=14,
    ),
    Experiment(
        "R3",
        "EIO, ENOSPC, EDQUOT at every system call of publishing",
        "I1 I3 I4",
        ("integration/test_local_kill_sweep.py", "integration/test_pipeline_pack.py"),
        only="(no_fault_at_any_system_call and not SIGKILL) or fails_at_any_byte",
        nightly=_sizes(SWEEP_MIB="1,3,17"),
        minutes=4,
    ),
    Experiment(
        "R4",
        'one fsync fails, the next ones succeed, and what it was for is gone ("fsyncgate"); then the power is cut',
        "I1 I3 I5",
        ("acceptance/test_power_cut.py",),
        only="failed_fsync",
        nightly=_sizes(FAILED_SYNCS=200),
        minutes=3,
    ),
    Experiment(
        "R5",
        "the power is cut in backups, retention, restores: unsynced names, pages and torn pages are lost",
        "I1 I2 I3 I4 I5",
        ("acceptance/test_power_cut.py",),
        only="power_cut_at_any",
        nightly=_sizes(POWER_CUTS=500),
        minutes=6,
    ),
    Experiment(
        "R6",
        "every single bit of an archive, a key slot, a restore PIN, a signing key is flipped",
        "I6",
        (
            "integration/test_pipeline_unpack.py",
            "integration/test_open_archive.py",
            "integration/test_tpm_slots.py",
            "integration/test_restore_pin.py",
            "integration/test_tpm_signing.py",
            "unit/test_chunk.py",
            "unit/test_suite.py",
        ),
        only="flipped",
        nightly=_sizes(FLIPS="all"),
        minutes=4,
    ),
    Experiment(
        "R7",
        "random bytes of an archive of 100 MB are changed: reading it finds all",
        "I6",
        ("integration/test_random_bytes.py",),
        nightly=_sizes(ARCHIVE_MIB=100, RANDOM_BYTES=400),
        minutes=4,
    ),
    Experiment(
        "R8",
        "an archive cut at every length, appended to, spliced, with its catalogue reordered",
        "I6",
        ("integration/test_pipeline_unpack.py", "integration/test_open_archive.py", "unit/test_zip64.py"),
        only="cut_at or appended or overlapping or foreign_files or elsewhere or other_streams or another_archive",
        minutes=1,
    ),
    Experiment(
        "R9",
        "mutants for every reader; whole archives that pass every checksum, judged by both readers and by ZIP programs",
        "I6 I8",
        ("properties/test_fuzzing.py",),
        nightly=_sizes(MUTANTS=40_000, ARCHIVE_MUTANTS=6_000),
        minutes=4,
    ),
    Experiment(
        "R10",
        "a fault at every step of a backup (disk, SQL, connection, program): raise, cancel, hang, kill -9",
        "I1 I2 I3 I4",
        ("acceptance/test_backup_faults.py",),
        nightly=_sizes(BACKUP_FAULTS="all"),
        minutes=3,
    ),
    Experiment(
        "R11",
        "a fault at numbered steps of a restore, of its rollback, of its commit: raise, cancel, kill -9",
        "I4 I5",
        (
            "acceptance/test_restore_faults.py::test_a_fault_at_any_step_leaves_one_whole_state_after_the_next_start",
            "integration/test_restore_hooks.py",
            "integration/test_exchange.py",
        ),
        only="fault_at_any_step or killed_at_every_step",
        nightly=_sizes(FAULTS=50),
        minutes=20,
    ),
    Experiment(
        "R12",
        "kill -9 of PostgreSQL in a dump, while copies are made, around the exchange, in a drill",
        "I1 I4 I5",
        (
            "acceptance/test_restore_faults.py",
            "integration/test_postgresql_backup.py",
            "integration/test_postgresql_restore.py",
            "integration/test_drill.py",
        ),
        only="postgresql_killed or whose_server_is_killed",
        nightly=_sizes(POSTGRESQL_KILLS=60),
        minutes=6,
    ),
    Experiment(
        "R13",
        "SMB: client or server killed, connection reset at each message, half-closed, silent",
        "I1 I3 I4",
        ("integration/test_smb_faults.py",),
        nightly=_sizes(SMB_KILLS=150),
        minutes=4,
    ),
    Experiment(
        "R14",
        "S3: 500, 503, SlowDown on a third of all requests; resets, stalls, a dying server, revoked keys, full quota",
        "I1 I3 I4",
        ("integration/test_s3_faults.py",),
        only="not lost_answer",
        nightly=_sizes(STORM=40),
        minutes=6,
    ),
    Experiment(
        "R15",
        "S3: the answer to a request that was carried out is lost, late or an error",
        "I1 I3",
        ("integration/test_s3_faults.py",),
        only="lost_answer or carried_out_late",
        nightly=_sizes(LOST_ANSWERS=4),
        minutes=2,
    ),
    Experiment(
        "R16",
        "two and three writers race for one name: tasks, processes, services; on each kind of target",
        "I2",
        ("conformance/test_targets.py", "integration/test_smb_faults.py", "integration/test_exclusive.py"),
        only="racing or same_moment or exclusive",
        nightly=_sizes(RACES_TIMES=2),
        minutes=8,
    ),
    Experiment(
        "R17",
        "another TPM, a cleared one, an altered slot: the exact code, and nothing is touched",
        "I6",
        ("integration/test_tpm.py", "integration/test_tpm_slots.py", "integration/test_tpm_parents.py"),
        minutes=1,
    ),
    Experiment(
        "R18",
        "the TPM fails or hangs at each of its commands, with each of its codes",
        "I4 I8",
        ("integration/test_tpm_faults.py",),
        only="not cycles",
        minutes=1,
    ),
    Experiment(
        "R19",
        "wrong restore PINs up to the lockout and back; archives without a PIN do not mind",
        "I6",
        ("integration/test_restore_pin.py", "integration/test_tpm_parents.py"),
        only="lockout or wrong_pin or changed_pin",
        minutes=1,
    ),
    Experiment(
        "R20",
        "cycles of sealing and unsealing leave nothing in the TPM and in the process",
        "I4 I8",
        ("integration/test_tpm_faults.py",),
        only="cycles",
        nightly=_sizes(TPM_CYCLES=5000),
        minutes=5,
    ),
    Experiment(
        "R21",
        "random rows, schemas, trees and streams come back equal",
        "I1",
        (
            "properties/test_postgresql_round_trip.py",
            "properties/test_schema_round_trip.py",
            "properties/test_tree_roundtrip.py",
            "properties/test_pipeline_round_trip.py",
            "properties/test_format_round_trip.py",
        ),
        nightly=_sizes(EXAMPLES_TIMES=4),
        minutes=8,
    ),
    Experiment(
        "R22",
        "clock jumps, zone changes, the same minute again: order by number, never fewer kept than the policy says",
        "I2",
        (
            "properties/test_schedule.py",
            "properties/test_retention.py",
            "unit/test_clock_guard.py",
            "unit/test_retention.py",
            "integration/test_clock_jumps.py",
        ),
        nightly=_sizes(CLOCK_LIVES=150),
        minutes=5,
    ),
    Experiment(
        "R23",
        "hostile clients: endless lines, dripping lines, 1,000 silent connections, listeners that never read",
        "I8",
        ("integration/rpc/test_hostile.py", "acceptance/test_service.py"),
        only="hostile or memory_stays",
        minutes=1,
    ),
    Experiment(
        "R24",
        "canaries of every secret through backups that succeed and fail: logs, argv, environ, files, messages",
        "I7",
        ("integration/test_secrets_canary.py",),
        minutes=1,
    ),
    Experiment(
        "R25",
        "soak: a backup each minute of a fast clock, chaos on, retention on; memory and descriptors stay",
        "I1 I2 I3 I4 I8",
        ("acceptance/test_soak.py",),
        minutes=120,
        by_name_only=True,
    ),
    Experiment(
        "R26",
        "archives and state of every earlier format are read, also by the stand-alone reader and foreign ZIP programs",
        "I1",
        (
            "integration/test_recovery_vectors.py",
            "integration/test_foreign_readers.py",
            "integration/test_upgrade.py",
            "integration/test_pipeline_unpack.py::test_the_published_vectors_are_read",
        ),
        minutes=1,
    ),
    Experiment(
        "R27",
        "random lives against a model: backup, kill, delete, prune, clock, bit rot, TPM swap, verify, restore, hold",
        "I1 I2 I3 I4 I5 I6",
        ("acceptance/test_random_lives.py",),
        nightly=_sizes(LIVES=60, STEPS=40),
        minutes=10,
    ),
)


def by_id(identifier: str) -> Experiment:
    """Return one experiment. Raises KeyError."""
    return {one.id: one for one in EXPERIMENTS}[identifier.upper()]


def by_name_only(identifier: str) -> bool:
    """Tell whether an experiment runs only when it is named; false for one that there is not."""
    return any(one.by_name_only for one in EXPERIMENTS if one.id == identifier.upper())
