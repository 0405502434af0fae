"""Every system call of storing an object on a local target, killed or made to fail: nothing half-made, nothing lost.

strace attaches to a writer that is about to call `put`. Its counters are per thread and per system call, and the
thread that writes is new, so `when=N` hits the N-th such call of the path exactly.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from storage_backends import StorageBackend
from storage_backends.local import LocalBackend
from storage_backends.temporary import is_temporary
from tests.integration.local_writer import Task, Writer, content
from tests.scoreboard import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = """
    openat newfstatat writev sync_file_range fadvise64 fsync
    link linkat rename renameat renameat2 unlink unlinkat
""".split()  # noqa: SIM905  three times as long as a list
OLD = b"what was there before"

MODES = {
    "unnamed": {"unnamed": True},
    "named": {"unnamed": False},
    "unnamed-overwrite": {"unnamed": True, "overwrite": True},
    "named-overwrite": {"unnamed": False, "overwrite": True},
}
FAULTS = {"SIGKILL": "signal=KILL", "EIO": "error=EIO", "ENOSPC": "error=ENOSPC"}
SIZES = [int(mib) for mib in os.environ.get("DEVICEON_BACKUP_SWEEP_MIB", "3").split(",")]
if len(SIZES) > 1:
    FAULTS["EDQUOT"] = "error=EDQUOT"


@contextmanager
def traced(writer: Writer, log: Path, *options: str) -> Iterator[None]:
    """Have strace follow the writer; it ends with it."""
    command = ["strace", "-f", "-o", str(log), "-e", f"trace={','.join(PATH)}", *options, "-p", str(writer.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        attached = strace.stderr.readline()
        assert "attached" in attached, attached
        try:
            yield
        finally:
            strace.stderr.read()


def calls(log: Path, pid: int) -> list[str]:
    """Return the system calls of the thread that writes, in their order."""
    found = []
    for line in log.read_text(errors="replace").splitlines():
        match = re.match(r"(\d+) +(\w+)\(", line)
        if match and int(match[1]) != pid and match[2] in PATH:
            found.append(match[2])
    return found


def run(task: Task, log: Path, *options: str) -> tuple[str, list[str]]:
    """Store once under strace; return what the writer said and the calls it made."""
    with Writer(task) as writer:
        with traced(writer, log, *options):
            said = writer.finish()
        return said, calls(log, writer.pid)


@pytest.fixture
def memory() -> Iterator[Path]:
    """Give a directory in memory: what a kill leaves is the same, and an fsync costs nothing."""
    with TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


class Outcome:
    """Counts what may not happen, over all runs of one sweep."""

    def __init__(self) -> None:
        self.runs = 0
        self.said: Counter[str] = Counter()
        self.partial = 0
        self.leftovers = 0
        self.lost = 0
        self.after_sweep = 0
        self.acknowledged_but_absent = 0

    @property
    def counts(self) -> dict[str, object]:
        return counted(
            self.runs,
            f"{self.partial} partial visible, {self.lost} old objects lost, "
            f"{self.acknowledged_but_absent} acknowledged but absent, "
            f"{self.leftovers} hidden leftovers, {self.after_sweep} of them after sweep",
            self.said,
        )


async def look(outcome: Outcome, task: Task, said: str) -> None:
    """Compare what is in the directory with what the writer said."""
    directory = task.directory
    whole = content(task.key, task.mib)
    outcome.runs += 1
    outcome.said[said.split(maxsplit=1)[0]] += 1
    visible = [path for path in directory.iterdir() if not path.name.startswith(".")]
    for path in visible:
        stored = path.read_bytes()
        if path.name != task.key or stored not in ((whole, OLD) if task.overwrite else (whole,)):
            outcome.partial += 1
    if task.overwrite and not visible:
        outcome.lost += 1
    if said == "stored" and [path.read_bytes() for path in visible] != [whole]:
        outcome.acknowledged_but_absent += 1
    if said.startswith("refused") and not task.overwrite:
        assert not visible, f"{said}, but {visible} is there"
    hidden = [path for path in directory.iterdir() if path.name.startswith(".")]
    assert all(is_temporary(path.name) for path in hidden)
    outcome.leftovers += len(hidden)
    async with LocalBackend(directory) as target:
        await sweep_everything(target)
    outcome.after_sweep += sum(path.name.startswith(".") for path in directory.iterdir())


async def sweep_everything(target: StorageBackend) -> int:
    return await target.sweep(datetime.now(UTC) + timedelta(minutes=1))


@pytest.mark.parametrize("mib", SIZES)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("mode", MODES)
async def test_no_fault_at_any_system_call_leaves_a_partial_or_loses_an_object(
    mode: str, fault: str, mib: int, memory: Path, record_property: Callable[[str, object], None]
) -> None:
    def prepare(name: str) -> Task:
        directory = memory / name
        directory.mkdir()
        task = Task(directory, mib=mib, **MODES[mode])  # type: ignore[arg-type]  # a table of keyword arguments
        if task.overwrite:
            (directory / task.key).write_bytes(OLD)
        return task

    said, path = run(prepare("reference"), memory / "reference.log")
    assert said == "stored"
    assert {"openat", "writev", "fsync"} <= set(path), path
    assert "sync_file_range" in path or mib < 3
    outcome = Outcome()
    numbers: Counter[str] = Counter()
    for position, call in enumerate(path):
        numbers[call] += 1
        task = prepare(f"{position}-{call}")
        log = memory / f"{position}.log"
        said, made = run(task, log, "-e", f"inject={call}:{FAULTS[fault]}:when={numbers[call]}")
        assert made[: position + 1] == path[: position + 1], "the fault did not hit the call it was meant for"
        if fault == "SIGKILL":
            assert said == "killed"
            assert len(made) == position + 1
        else:
            assert "(INJECTED)" in log.read_text(errors="replace"), "the planned fault was never hit"
        await look(outcome, task, said)
        shutil.rmtree(task.directory)
    record_property("counted", outcome.counts)
    assert (outcome.partial, outcome.lost, outcome.acknowledged_but_absent, outcome.after_sweep) == (0, 0, 0, 0)
    if mode == "unnamed":
        assert outcome.leftovers == 0
    if fault != "SIGKILL":
        # A failing unlink of the hidden name itself is the one case that sweep is for.
        assert outcome.leftovers <= (0 if mode == "unnamed" else 1)
        assert outcome.said["refused"] >= outcome.runs - 3, "errors were passed over"


async def test_a_file_system_without_unnamed_files_is_noticed_and_served(memory: Path) -> None:
    for number, code in enumerate(("EOPNOTSUPP", "EISDIR", "EINVAL")):
        task = Task(memory / code)
        task.directory.mkdir()
        # The first openat is that of the directory, the second the one with O_TMPFILE.
        said, made = run(task, memory / f"{number}.log", "-e", f"inject=openat:error={code}:when=2")
        assert said == "stored"
        assert "renameat2" in made
        assert [path.name for path in task.directory.iterdir()] == [task.key]
        assert (task.directory / task.key).read_bytes() == content(task.key, task.mib)


@pytest.mark.parametrize("code", ["EINVAL", "ENOSYS"])
async def test_a_file_system_without_a_refusing_rename_is_served_by_a_link(code: str, memory: Path) -> None:
    task = Task(memory / "target", unnamed=False)
    task.directory.mkdir()
    said, made = run(task, memory / "log", "-e", f"inject=renameat2:error={code}")
    assert said == "stored"
    assert made.index("renameat2") < made.index("linkat")
    assert [path.name for path in task.directory.iterdir()] == [task.key]


async def test_a_file_system_that_cannot_publish_safely_is_refused(memory: Path) -> None:
    task = Task(memory / "target", unnamed=False)
    task.directory.mkdir()
    faults = ("-e", "inject=renameat2:error=EINVAL", "-e", "inject=linkat:error=EPERM")
    said, _ = run(task, memory / "log", *faults)
    assert said == "refused TARGET_INVALID_URL"
    assert list(task.directory.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("EDQUOT", "FULL"),
        ("EFBIG", "FULL"),
        ("EROFS", "ACCESS_DENIED"),
        ("EACCES", "ACCESS_DENIED"),
        ("EIO", "UNAVAILABLE"),
    ],
)
async def test_an_error_of_the_system_becomes_one_of_the_contract(error: str, code: str, memory: Path) -> None:
    task = Task(memory / "target")
    task.directory.mkdir()
    said, _ = run(task, memory / "log", "-e", f"inject=writev:error={error}:when=2")
    assert said == f"refused TARGET_{code}"
    assert list(task.directory.iterdir()) == []


@pytest.mark.parametrize("mode", MODES)
def test_bytes_are_durable_before_the_name_and_the_name_before_success(mode: str, memory: Path) -> None:
    """Nothing a test can do shows a missing fsync but a power cut, so the order itself is the claim."""
    directory = memory / "target"
    directory.mkdir()
    said, made = run(Task(directory, **MODES[mode]), memory / "log")  # type: ignore[arg-type]  # keyword arguments
    assert said == "stored"
    order = [call for call in made if call in {"writev", "fsync", "linkat", "rename", "renameat", "renameat2"}]
    naming = {"unnamed": ["linkat"], "named": ["renameat2"], "unnamed-overwrite": ["linkat", "renameat"]}
    assert order == ["writev"] * 3 + ["fsync", *naming.get(mode, ["renameat"]), "fsync"]


async def test_a_failed_fsync_is_never_tried_again(memory: Path) -> None:
    task = Task(memory / "target")
    task.directory.mkdir()
    said, made = run(task, memory / "log", "-e", "inject=fsync:error=EIO:when=1")
    assert said == "refused TARGET_UNAVAILABLE"
    assert made.count("fsync") == 1
    assert "linkat" not in made
