"""What commands tell people and scripts of what a service has done for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from service.cli.commander import _There
from service.client import Client
from service.progress import Progress
from tests.laid_out_service import GONE, ID, INFO, START, LaidOut, Refusal, Turns, a_job, an_event, ended

A, B = "Backup_20261129_0200Z.zip", "Backup_20261129_0300Z.zip"
KEEPS = {"name": A, "keep": True, "reasons": ["newest", "held"]}
GOES = {"name": B, "keep": False, "reasons": ["no rule keeps it"]}
VERDICTS = {"target": "file:///a", "verdicts": [KEEPS, GOES], "removed": [], "kept_by_target": {}, "freed_bytes": 0}
SLOTS = [
    {"type": "tpm", "whom": "ab12", "place": "archive", "passphrase": False},
    {"type": "age", "whom": "age1x", "place": "beside", "passphrase": True},
]
BACKED_UP: dict[str, Any] = {
    "name": A,
    "size": 500,
    "raw_bytes": 2000,
    "seconds": 2,
    "streams": 3,
    "rows": 4,
    "excluded": [{"path": "/etc/x", "reason": "a socket"}],
    "warnings": ["a clock jumped"],
    "targets": [{"url": "file:///a", "error": None, "evidence": "verified"}],
    "removed": [],
}
BASELINE: dict[str, Any] = {
    "archive": A,
    "created": None,
    "server_version": "5.3.12",
    "size": 500,
    "raw_bytes": 2000,
    "fingerprint": None,
    "evidence": "verified",
    "since": None,
    "targets": ["file:///a"],
    "superseded": [],
}
DRILLED: dict[str, Any] = {
    "archive": A,
    "counts": {"databases": 2, "rows": 9, "files": 0},
    "warnings": ["slow"],
    "seconds": 61,
    "page": "/s/drill.html",
    "signed": False,
}
A_DRILL: dict[str, Any] = {
    "id": "d1",
    "result": "failed",
    "archive": A,
    "target": "file:///a",
    "started": START,
    "seconds": 1.0,
    "signed": True,
    "failure": {"message": "a row differs"},
}
NO_PIN: dict[str, Any] = {
    "is_set": False,
    "since": None,
    "problem": None,
    "hint": "",
    "tries_left": None,
    "locked": False,
    "wait_seconds": None,
}
PIN = NO_PIN | {"is_set": True, "since": START}
SETTINGS = {"settings": {"target": {"url": "file:///a"}}, "fixed": [], "copies": []}

# A command, its method, the answer, and lines that the command prints of it.
TOLD: tuple[tuple[str, str, Any, list[str]], ...] = (
    ("prune", "retention.preview", {"targets": []}, ["there is no retention policy: nothing is removed"]),
    (
        "prune",
        "retention.preview",
        {"targets": [VERDICTS | {"kept_by_target": {B: "locked until 2027"}}]},
        [
            "file:///a:",
            f"keep    {A}  newest; held",
            f"remove  {B}  no rule keeps it",
            f"the target keeps {B}: locked until 2027",
            "nothing was removed; `deviceon-backup prune --apply` removes 1",
        ],
    ),
    (
        "prune",
        "retention.preview",
        {"targets": [VERDICTS | {"verdicts": [KEEPS]}]},
        ["file:///a:", f"keep  {A}  newest; held"],
    ),
    ("prune", "retention.preview", {"targets": [VERDICTS | {"verdicts": []}]}, ["no archives in file:///a"]),
    (
        "prune --apply",
        "retention.apply",
        ended({"targets": [VERDICTS | {"removed": [B], "freed_bytes": 1500}]}),
        ["file:///a:", f"keep    {A}  newest; held", f"remove  {B}  no rule keeps it", "removed 1 archives, 1.5 kB"],
    ),
    (f"hold {A} --reason audit", "archive.hold", {"done": True}, [f"{A} is held"]),
    (f"release {A}", "archive.release", {"done": True}, [f"{A} is not held any more"]),
    (f"delete {A} --yes", "archive.delete", ended({"name": A}), [f"{A} is removed"]),
    (
        f"copy {A} --to file:///b",
        "archive.copy",
        ended({"source": "file:///a", "target": "file:///b", "copied": True}),
        [f"{A} in file:///b: copied from file:///a; read back and checked"],
    ),
    (
        f"copy {A} --to file:///b",
        "archive.copy",
        ended({"source": None, "target": "file:///b", "copied": False}),
        [f"{A} in file:///b: was there already; read back and checked"],
    ),
    (
        "key list",
        "key.list",
        {
            "archives": [
                {"target": "t", "archive": "A", "slots": SLOTS, "problem": None},
                {"target": "t", "archive": "B", "slots": [], "problem": None},
                {"target": "t", "archive": "C", "slots": [], "problem": "damaged"},
            ]
        },
        [
            "ARCHIVE  PLACE    TYPE  FOR",
            "A        archive  tpm   ab12",
            "A        beside   age   age1x (recovery passphrase)",
            "B                       not sealed",
            "C                       damaged",
        ],
    ),
    ("key add --all --tpm", "key.add", ended({"changes": []}), ["there are no archives"]),
    (
        f"key remove {A} --of age1x",
        "key.remove",
        ended({"changes": [{"archive": "A", "outcome": "removed", "target": "file:///a"}]}),
        ["A  removed  file:///a"],
    ),
    (
        "key rewrap --all",
        "key.add",
        ended({"changes": [{"archive": "A", "outcome": "would be added", "target": "file:///a"}]}),
        ["A  would be added  file:///a", "Nothing was written; --apply does that."],
    ),
    ("baseline show", "baseline.get", None, ["there is no baseline; `deviceon-backup baseline` takes one"]),
    (
        "baseline show",
        "baseline.get",
        BASELINE,
        [
            f"baseline  {A}",
            "server    5.3.12",
            "size      500 B for 2.0 kB",
            "evidence  verified",
            "held in   file:///a",
        ],
    ),
    (
        "baseline",
        "baseline.take",
        ended(BACKED_UP),
        [
            "left out: /etc/x: a socket",
            "warning: a clock jumped",
            f"{A}: 2.0 kB in 3 streams, 4 rows, as 500 B in 0:02 (1.0 kB/s); read back and checked",
            f"{A} is the baseline now, and held for ever",
        ],
    ),
    (
        "backup",
        "backup.start",
        ended(
            BACKED_UP
            | {
                "excluded": [],
                "warnings": [],
                "seconds": 0,
                "targets": [
                    {"url": "file:///a", "error": None, "evidence": "verified"},
                    {"url": "file:///b", "error": {"message": "full"}, "evidence": "unknown"},
                ],
                "removed": [B],
            }
        ),
        [
            "file:///a: verified",
            "file:///b: full",
            f"removed by retention: {B}",
            f"{A}: 2.0 kB in 3 streams, 4 rows, as 500 B in 0:00; read back and checked",
        ],
    ),
    (
        "drill",
        "drill.start",
        ended(DRILLED),
        [
            "warning: slow",
            "compared 2 databases, 9 rows in 1:01",
            "report: /s/drill.html (not signed)",
            f"{A} is restorable",
        ],
    ),
    ("drill --list", "drill.list", {"drills": [], "more": False}, ["no drill has been made yet"]),
    (
        "drill --list",
        "drill.list",
        {"drills": [A_DRILL], "more": False},
        [
            "DRILL  STARTED               RESULT  ARCHIVE                    TARGET",
            f"d1     2026-11-29 02:00:00Z  failed  {A}  file:///a  a row differs",
        ],
    ),
    ("pin status", "pin.status", NO_PIN, ["no restore PIN is set: this machine's TPM opens archives without one"]),
    (
        "pin status",
        "pin.status",
        NO_PIN | {"problem": "it is of another TPM", "hint": "Set one."},
        ["the restore PIN cannot be used: it is of another TPM", "  what to do: Set one."],
    ),
    ("pin status", "pin.status", PIN, ["a restore PIN is set, since 2026-11-29"]),
    (
        "pin status",
        "pin.status",
        PIN | {"tries_left": 4},
        ["a restore PIN is set, since 2026-11-29", "the TPM takes 4 more wrong tries before it locks"],
    ),
    (
        "pin status",
        "pin.status",
        PIN | {"locked": True, "wait_seconds": 7200},
        [
            "a restore PIN is set, since 2026-11-29",
            "the TPM is locked after wrong tries; one is allowed again after 2 hours",
        ],
    ),
    ("settings show", "settings.get", SETTINGS, ["target:", "  url: file:///a"]),
    (
        "settings show",
        "settings.get",
        SETTINGS | {"fixed": ["target", "schedule"]},
        ["target:", "  url: file:///a", "# fixed by the configuration file: target, schedule"],
    ),
    ("selftest", "selftest.start", ended({"tested": []}), ["there are no archives yet: nothing to test"]),
    (
        "selftest",
        "selftest.start",
        ended(
            {
                "tested": [
                    {"archive": A, "target": "file:///a", "opened": True, "note": ""},
                    {"archive": B, "target": "file:///a", "opened": False, "note": "it asks for a PIN"},
                ]
            }
        ),
        [f"{A} in file:///a: its key opens", f"{B} in file:///a: it asks for a PIN"],
    ),
    (
        "test-target",
        "target.test",
        [{"name": "write", "ok": True, "message": "it can", "remedy": ""}],
        ["ok    write: it can"],
    ),
)


@pytest.mark.parametrize(("command", "method", "answer", "told"), TOLD, ids=[each[0] for each in TOLD])
def test_people_are_told(service: LaidOut, command: str, method: str, answer: Any, told: list[str]) -> None:
    service.answers[method] = answer
    assert service.good(*command.split()).splitlines() == told


AS_JSON = {each[0]: each for each in TOLD if each[0] != "test-target"}


@pytest.mark.parametrize(("command", "method", "answer", "_"), AS_JSON.values(), ids=AS_JSON)
def test_scripts_are_given_what_the_service_answered(
    service: LaidOut, command: str, method: str, answer: Any, _: object
) -> None:
    service.answers[method] = answer
    given = answer["result"] if isinstance(answer, dict) and "result" in answer else answer
    assert json.loads(service.good(*command.split(), "--json")) == given


def test_a_target_that_fails_its_test_is_told_by_the_exit_code_too(service: LaidOut) -> None:
    service.answers["target.test"] = [{"name": "list", "ok": False, "message": "refused", "remedy": "Let it."}]
    result = service.run("test-target")
    assert (result.exit_code, result.stdout) == (4, "FAIL  list: refused\n      what to do: Let it.\n")
    assert json.loads(service.run("test-target", "--json").stdout)["good"] is False


def test_settings_are_changed_by_a_file_or_by_stdin(service: LaidOut, tmp_path: Path) -> None:
    file = tmp_path / "new.yaml"
    file.write_text("target: {url: file:///b}")
    service.good("settings", "set", str(file), settings_update=SETTINGS)
    service.good("settings", "set", "-", typed="retention: {count: 5}")
    sent = [params for method, params in service.asked if method == "settings.update"]
    assert sent == [{"target": {"url": "file:///b"}}, {"retention": {"count": 5}}]
    nothing = service.run("settings", "set", "-", typed="[]")
    assert (nothing.exit_code, nothing.stderr.splitlines()[0]) == (2, "error: - has no settings")


def test_removal_asks_for_the_archives_name(service: LaidOut, somebody: None) -> None:
    service.answers["archive.delete"] = ended({"name": A})
    refused = service.run("delete", A, typed="y\n")
    assert refused.exit_code == 130
    assert "that was not the archive's name: nothing was begun" in refused.stderr
    assert not service.asked
    assert service.good("delete", A, typed=f"{A}\n") == f"{A} is removed\n"


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (f"delete {A}", "nobody is there to be asked"),
        ("key add --all", "nobody was named"),
        ("key add --tpm", "say which archives"),
        ("key add A --all --tpm", "say which archives"),
        ("drill --key pyproject.toml", "--key goes with --check"),
        ("drill file:///a/A.zip", "a drill is of an archive in a target: its evidence is remembered there"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused_before_the_service_is_asked(
    service: LaidOut, command: str, why: str
) -> None:
    result = service.run(*command.split())
    assert (result.exit_code, result.stderr.splitlines()[0]) == (2, f"error: {why}")
    assert not service.asked


def test_a_list_of_archives_is_read_page_by_page_and_shown_the_oldest_first(service: LaidOut) -> None:
    entry = {"size": 10, "created": START, "sealing": "off", "evidence": "verified", "held": True, "raw_bytes": 20}
    pages = Turns(
        [
            {"target": "file:///a", "archives": [entry | {"name": B}], "total": 2, "more": True},
            {
                "target": "file:///a",
                "archives": [{"name": A, "size": 1, "problem": "cut off", "evidence": "damaged", "held": False}],
                "total": 2,
                "more": False,
            },
        ]
    )
    service.answers["archive.list"] = Turns(each for each in pages)
    found = json.loads(service.good("list", "--json"))
    assert [each["name"] for each in found["archives"]] == [A, B]
    assert [params.get("before") for method, params in service.asked if method == "archive.list"] == [None, B]
    empty = {"target": "file:///a", "archives": [], "total": 0, "more": False}
    assert service.good("list", archive_list=empty) == "no archives in file:///a\n"


def test_a_job_that_fails_is_told_with_its_notes_and_its_exit_code(service: LaidOut) -> None:
    error = {"code": "TARGET_FULL", "message": "full", "hint": "Make room.", "transient": False, "notes": ["of 2"]}
    service.answers["backup.start"] = a_job(ended=START, state="partial", error=error, result={"name": A})
    result = service.run("backup")
    assert result.exit_code == 4
    assert result.stderr.splitlines()[1:] == [
        "error: full",
        "  note: of 2",
        f"  note: {A} was made and is proven",
        "  what to do: Make room.",
    ]
    as_json = json.loads(service.run("backup", "--json").stdout)
    assert as_json == {"error": error, "result": {"name": A}}


def test_a_job_that_was_cancelled_by_another_is_told_as_interrupted(service: LaidOut) -> None:
    service.answers["backup.start"] = a_job(ended=START, state="cancelled")
    result = service.run("backup")
    assert result.exit_code == 130
    assert "error: the backup was cancelled" in result.stderr


async def test_ctrl_c_between_a_job_s_begin_and_the_next_answer_cancels_it() -> None:
    asked: list[str] = []
    hesitating, cancelled = asyncio.Event(), asyncio.Event()

    class Hesitating:
        async def call(self, method: str, **_: object) -> dict[str, Any]:
            asked.append(method)
            if method == "system.info":
                hesitating.set()
                await cancelled.wait()
            elif method == "job.cancel":
                cancelled.set()
            return INFO if method == "system.info" else a_job(state="queued")

        async def events(self) -> AsyncIterator[dict[str, Any]]:
            yield {}
            await cancelled.wait()
            yield {"job_id": ID, "type": "job", "data": a_job(ended=START, state="cancelled")}

    command = asyncio.create_task(_There(cast("Client", Hesitating())).job("backup.start", {}, Progress()))
    await hesitating.wait()
    command.cancel()
    await asyncio.wait({command})
    assert asked == ["backup.start", "system.info", "job.cancel"]


def test_a_restore_that_the_service_refuses_lists_what_is_in_its_way(service: LaidOut) -> None:
    obstacles = [{"code": "SPACE", "message": "full", "remedy": "Make room."}]
    told = {"code": "RESTORE_REFUSED", "message": "refused", "hint": "", "transient": False, "obstacles": obstacles}
    service.answers["drill.start"] = a_job(ended=START, state="failed", error=told)
    result = service.run("drill")
    assert result.exit_code == 3
    assert "  SPACE: full\n    what to do: Make room.\n" in result.stderr


def progress(stage: str, message: str | None) -> dict[str, Any]:
    told = {"stage": stage, "raw_bytes": 1, "stored_bytes": 1, "expected_raw_bytes": None}
    return an_event("progress", told if message is None else told | {"message": message})


def test_a_job_of_the_service_is_followed_to_its_end_step_by_step(service: LaidOut) -> None:
    service.events = [
        progress("dump", "Dumping"),
        progress("dump", "Half of it"),
        progress("dump", None),
        an_event("job.ended", a_job(state="failed", ended=START), job_id="another"),
        an_event("job.running", a_job(state="running")),
    ]
    service.answers |= {"selftest.start": ended({"tested": []}), "system.info": INFO | {"active": a_job(id="f" * 16)}}
    result = service.run("selftest")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        f"The service does this as job {ID}; backup {'f' * 16} has to end first",
        "Dumping",
        "Half of it",
    ]


def test_the_end_of_a_job_that_is_too_long_for_an_event_is_asked_for(service: LaidOut) -> None:
    service.events = [an_event("job.ended", {"omitted": True})]
    service.answers |= {"selftest.start": a_job(), "job.get": ended({"tested": []})}
    assert service.good("selftest") == "there are no archives yet: nothing to test\n"


def test_a_service_that_goes_away_during_a_job_leaves_word_of_how_to_learn_its_end(service: LaidOut) -> None:
    service.answers["backup.start"] = GONE
    result = service.run("backup")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[1:] == [
        "error: the service closed the connection; the job may go on",
        f"  what to do: `deviceon-backup job show {ID}` tells how it ended.",
    ]


def test_a_socket_without_a_service_and_one_that_refuses_this_user_are_told_apart(service: LaidOut) -> None:
    service.answers["system.info"] = Refusal("NOT_ALLOWED", "you may not")
    assert "error: you may not" in service.run("backup").stderr
    service.path = service.path.with_name("nobody-listens")
    result = service.run("backup")
    assert (result.exit_code, result.stderr.splitlines()[0]) == (
        2,
        f"error: no service answers on {service.path}",
    )
