"""Results in words: plans, restores, descriptions of archives, and what `recover` asks."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from service.cli import archives, extracting, recovering, render
from service.cli.commander import _or_cancel
from service.cli.failures import Interrupted
from service.cli.mending import Mending
from service.cli.options import Shared
from service.client import RemoteError
from service.errors import ConfigError, Obstacle
from service.headroom import Space
from service.restore_estimate import Estimate
from service.restore_plan import MAY_BE_ALLOWED, RestorePlan
from service.sources.base import PlanItem
from storage_backends.base import ObjectNotFound

NAME, OLDER = "Backup_20261129_0300Z.zip", "Backup_20261129_0200Z.zip"
CREATED = datetime(2026, 11, 29, 3, tzinfo=UTC)
Lines = pytest.CaptureFixture[str]


def lines(capsys: Lines) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_plan_with_nothing_to_tell_is_one_line(capsys: Lines) -> None:
    render.plan(RestorePlan(NAME, CREATED, "DeviceOn", "5.3.12", "off", 1, 2000), can_be_allowed=MAY_BE_ALLOWED)
    assert lines(capsys) == [f"{NAME}: DeviceOn 5.3.12, 2026-11-29 03:00:00Z, 2.0 kB"]


def test_a_plan_tells_all_that_a_restore_would_do_and_what_is_in_its_way(capsys: Lines) -> None:
    plan = RestorePlan(
        NAME,
        CREATED,
        "DeviceOn",
        "5.3.12",
        "off",
        1,
        2000,
        items=[PlanItem("/etc/x", "replace"), PlanItem("db", "create", "it is not there")],
        obstacles=[Obstacle("SPACE", "full", "Make room."), Obstacle("LIVE_CONNECTIONS", "in use", "")],
        notes=[Obstacle("OWNERS", "a user is not there", "")],
        space=[Space("/var", 3000, 4000)],
        estimate=Estimate(60, 120, "the last restore"),
    )
    render.plan(plan, can_be_allowed=MAY_BE_ALLOWED)
    assert lines(capsys)[1:] == [
        "  replace /etc/x",
        "  create  db (it is not there)",
        "needs 3.0 kB at /var, 4.0 kB are free",
        "will take 1:00 to 2:00 (from the last restore)",
        "worth knowing:",
        "  OWNERS: a user is not there",
        "in the way:",
        "  SPACE: full",
        "    what to do: Make room.",
        "  LIVE_CONNECTIONS: in use",
        "can be overridden: --allow LIVE_CONNECTIONS",
    ]


def test_a_restore_tells_what_wants_attention_and_what_comes_next(capsys: Lines) -> None:
    attention = [{"code": "ROLES", "message": "a role has no password", "remedy": "Set one."}]
    attention.append({"code": "INDEX", "message": "one is slow", "remedy": ""})
    items = [{"action": "replace", "what": "/etc/x", "note": ""}]
    render.restore({"items": items, "attention": attention, "seconds": 61})
    assert lines(capsys)[:5] == [
        "  replace /etc/x",
        "note: a role has no password [ROLES]",
        "      what to do: Set one.",
        "note: one is slow [INDEX]",
        "restored in 1:01; the state before is kept beside",
    ]


HEADER: dict[str, Any] = {
    "product": "DeviceOn",
    "server_version": "5.3.12",
    "created": "2026-11-29",
    "seq": 3,
    "sealing": "tpm",
    "fingerprint": "ab12",
}
STREAM: dict[str, Any] = {"source": "pg", "bytes": 10, "details": {"rows": 5}, "labels": {"database": "d"}}
MANIFEST: dict[str, Any] = {
    "tool": {"name": "deviceon-backup", "version": "1"},
    "sources": [
        {"name": "pg", "type": "postgresql", "facts": {}},
        {"name": "etc", "type": "tree", "facts": {"path": "/etc/x"}},
    ],
    "streams": [
        STREAM,
        STREAM | {"labels": {}, "details": {}},
        STREAM | {"source": "etc", "labels": {}, "details": {}},
    ],
    "excluded": [{}],
    "warnings": [],
}
FOUND: dict[str, Any] = {"name": NAME, "size": 5, "header": HEADER, "footer": {"raw_bytes": 30}}


@pytest.mark.parametrize(
    ("more", "signed", "origin"),
    [
        ({"signer": "ab12", "origin_proven": True}, "ab12", "proven"),
        ({}, "nobody", "not proven: a recovery key does not tell who made it"),
    ],
)
def test_an_archive_that_opens_is_described_with_its_content(
    capsys: Lines, more: dict[str, Any], signed: str, origin: str
) -> None:
    render.inspection(FOUND | {"manifest": MANIFEST} | more)
    assert lines(capsys) == [
        f"archive     {NAME}",
        "server      DeviceOn 5.3.12",
        "created     2026-11-29 (number 3)",
        "size        5 B for 30 B",
        "sealed to   ab12",
        "written by  deviceon-backup 1",
        f"signed by   {signed}",
        f"origin      {origin}",
        "source pg (postgresql): 20 B in 2 streams, 5 rows",
        "  database d: 1 streams",
        "source etc (tree): 10 B in 1 streams, /etc/x",
        "left out: ?: ?",
    ]


def test_an_archive_that_does_not_open_is_described_by_its_own_claims(capsys: Lines) -> None:
    render.inspection(FOUND | {"manifest": None, "closed": "another TPM"})
    assert lines(capsys)[-2:] == [
        "its content cannot be read here: another TPM",
        "what is shown are the archive's own claims, not authenticated",
    ]


def test_an_archive_that_is_not_sealed_is_signed_by_nobody_and_needs_no_words_for_it(capsys: Lines) -> None:
    render.inspection(FOUND | {"manifest": MANIFEST, "header": HEADER | {"sealing": "off"}})
    told = lines(capsys)
    assert "sealed to   nobody: not sealed" in told
    assert not any(line.startswith(("signed by", "origin")) for line in told)


def test_archives_are_listed_with_what_is_wrong_with_each(capsys: Lines) -> None:
    good = {"name": NAME, "created": CREATED.isoformat(), "size": 1, "raw_bytes": 2, "server_version": "5.3.12"}
    good |= {"evidence": "verified", "held": True, "problem": None, "sealing": "off", "fingerprint": None}
    bad = good | {"name": OLDER, "problem": "it is cut off", "held": False, "evidence": "damaged"}
    render.archives([bad, good], "file:///a")
    assert [line.split("  ")[-1].strip() for line in lines(capsys)] == [
        "SEALED TO",
        "cannot be used: it is cut off",
        "not sealed",
    ]
    render.table([])
    assert lines(capsys) == []


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"closed": "no key", "authenticated": False, "origin_proven": False}, "undamaged, but it was not opened"),
        ({"closed": None, "authenticated": False, "origin_proven": False}, "undamaged (not sealed"),
        ({"closed": None, "authenticated": True, "origin_proven": True}, "authentic"),
        ({"closed": None, "authenticated": True, "origin_proven": False}, "authentic for this recovery key"),
    ],
)
def test_what_a_verification_proves_is_told_without_promising_more(found: dict[str, Any], told: str) -> None:
    assert archives._how(found).partition(",")[0].startswith(told.partition(",")[0])
    assert archives._how(found).startswith(told)


def test_a_long_list_of_tables_is_cut_and_says_so(capsys: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extracting, "_SHOWN", 1)
    table = {"schema": "public", "table": "device", "rows": 3, "bytes": 10}
    databases = [{"name": "d", "tables": [table, table, table]}, {"name": "e", "tables": []}]
    extracting._show(
        [
            {"name": "etc", "type": "tree", "path": "/etc/x", "files": 2, "bytes": 5},
            {"name": "pg", "type": "postgresql", "bytes": 30, "databases": databases},
        ]
    )
    assert lines(capsys) == [
        "source etc (tree): /etc/x, 2 files, 5 B",
        "source pg (postgresql), 30 B",
        "  database d: 3 tables",
        "    public.device: 3 rows, 10 B",
        "    and 2 more; --json shows all",
        "  database e: 0 tables",
    ]


def test_an_archive_is_found_as_terminals_and_file_managers_write_its_path(tmp_path: Path) -> None:
    (directory := tmp_path / "a b").mkdir()
    (archive := directory / NAME).touch()
    for said in (
        str(archive),
        f" '{archive}' ",
        f"file://{archive}".replace(" ", "%20"),
        str(archive).replace(" ", "\\ "),
    ):
        assert recovering._found(said, Shared()) == str(archive)
    assert recovering._found("s3://bucket/x/A.zip", Shared()) == "s3://bucket/x/A.zip"


def test_what_is_no_archive_is_told_with_what_to_do(tmp_path: Path) -> None:
    (renamed := tmp_path / "mine.zip").touch()
    with pytest.raises(ConfigError, match="no path was given"):
        recovering._found(" ", Shared())
    with pytest.raises(ConfigError, match=r"mine\.zip is not the name of an archive"):
        recovering._found(str(renamed), Shared())
    with pytest.raises(ObjectNotFound, match="there is no file"):
        recovering._found(str(tmp_path / NAME), Shared())
    with pytest.raises(ObjectNotFound, match="is not a file"):
        recovering._found("/dev/null", Shared())
    with pytest.raises(ObjectNotFound, match="is a directory without any archive"):
        recovering._found(str(tmp_path), Shared())


def test_a_directory_leads_to_its_newest_archive_or_to_a_choice(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for name in (NAME, OLDER):
        (tmp_path / name).touch()
    with pytest.raises(ObjectNotFound) as refused:
        recovering._found(str(tmp_path), Shared())
    assert refused.value.hint == f"Its newest archive is {tmp_path / NAME}."
    request.getfixturevalue("somebody")
    chosen: list[str] = []
    result = asked(lambda: chosen.append(recovering._found(str(tmp_path), Shared())), "3\n2\n")
    assert chosen == [str(tmp_path / OLDER)]
    assert f"   1  {NAME}  0 B\n   2  {OLDER}  0 B\n" in result.stderr


def asked(conversation: Any, typed: str) -> Result:
    """Have a conversation as a command has it."""
    result = CliRunner().invoke(click.Command("x", callback=conversation), input=typed)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


def mending(**options: Any) -> Mending:
    names = ("pg_host", "pg_port", "pg_user", "pg_password_file", "recovery_key", "server_version", "signers")
    return Mending(Shared(), NAME, dict.fromkeys(names) | options, set())


def test_another_server_is_asked_for_only_where_no_configuration_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "before")
    for name in ("PGHOST", "PGPORT", "PGUSER", "DEVICEON_BACKUP_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    talk = mending(pg_password_file=tmp_path)
    for typed, password, given in (
        ("n\n", "before", (None, None, None, tmp_path)),
        ("y\ndb\n\n\n\n", "before", ("db", 5432, "postgres", tmp_path)),
        ("y\n\n99999\n5433\nadmin\nnew\n", "new", ("db", 5433, "admin", None)),
    ):
        asked(talk._server, typed)
        names = ("pg_host", "pg_port", "pg_user", "pg_password_file")
        assert (tuple(talk.options[name] for name in names), os.environ["PGPASSWORD"]) == (given, password)
    talk.shared.config = tmp_path / "config.yaml"
    assert "The configuration names the server; it is read again" in asked(talk._server, "").stderr


def test_only_what_may_be_overridden_is_asked_about_and_only_a_yes_counts() -> None:
    talk = mending()
    result = asked(lambda: talk._gone_ahead({"SPACE", "LOCALE_MISSING", "EXTENSION_VERSION"}), "n\ny\n")
    assert "SPACE" not in result.stderr
    assert talk.allowed == {"LOCALE_MISSING"}


def test_what_was_mistyped_is_corrected_and_enter_leaves_it() -> None:
    talk = mending(server_version="5.2", signers=("KEY A",))
    asked(talk._version, "\n")
    assert talk.options["server_version"] == "5.2"
    asked(talk._version, " 5.3 \n")
    asked(talk._signer, "KEY B\n")
    asked(talk._recovery_key, "/k\n")
    assert [talk.options[name] for name in ("server_version", "signers", "recovery_key")] == ["5.3", ("KEY B",), "/k"]
    asked(talk._signer, "\n")
    assert talk.options["signers"] is None


def test_giving_up_a_recovery_says_that_nothing_was_touched_and_why_in_its_exit_code() -> None:
    for blocking, code in (([], 1), ([Obstacle("SPACE", "", "")], 3), ([Obstacle("TPM_WRONG", "", "")], 5)):
        result = asked(lambda blocking=blocking: mending()._wait(blocking), "quit\n")
        assert (result.exit_code, result.stderr.endswith("Nothing was touched.\n")) == (code, True)
    assert asked(lambda: mending()._wait([]), "\n").exit_code == 0


@pytest.mark.parametrize("refused", [False, True])
async def test_a_command_that_is_stopped_cancels_its_job_and_waits_for_its_end(refused: bool) -> None:
    end: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    cancelled = []

    async def cancel() -> None:
        cancelled.append(True)
        if refused:
            raise RemoteError("it commits already", {"code": "TOO_LATE"})
        asyncio.get_running_loop().call_later(0.01, end.set_result, {})

    waiting = asyncio.create_task(_or_cancel(end, cancel()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(Interrupted if refused else asyncio.CancelledError) as told:
        await waiting
    assert (cancelled, end.done()) == ([True], True)
    assert str(told.value) == ("it commits already; the service goes on with it" if refused else "")
