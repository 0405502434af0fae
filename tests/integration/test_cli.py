"""The command line as people and scripts use it: whole runs on a real tree and SQLite file, without PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from service.cli.app import command_line
from tests.at_terminal import Terminal

SCRIPT = str(Path(sysconfig.get_path("scripts")) / "deviceon-backup")
CANARY = "canary-Zx81-hunter2"

Completed = subprocess.CompletedProcess[str]


def clean_environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "DEVICEON_"))}
    return kept | {"TERM": "xterm", "COLUMNS": "120"} | more


@dataclass
class Machine:
    """One server's files, a configuration for them, and the program to run on it."""

    root: Path

    @property
    def tree(self) -> Path:
        return self.root / "etc"

    @property
    def target(self) -> Path:
        return self.root / "archives"

    @property
    def config_file(self) -> Path:
        return self.root / "config.yaml"

    def prepare(self) -> None:
        self.tree.mkdir(parents=True)
        (self.tree / "Server_Config.xml").write_text("<config/>")
        (self.tree / "more").mkdir()
        (self.tree / "more/secret").write_text(CANARY)
        self.target.mkdir()
        with contextlib.closing(sqlite3.connect(self.root / "grafana.db")) as database:
            database.execute("CREATE TABLE dashboard (title TEXT)")
            database.execute("INSERT INTO dashboard VALUES ('before')")
            database.commit()
        self.configure()

    def configure(self, **changes: Any) -> None:
        config: dict[str, Any] = {
            "server": {"version": "5.3.12"},
            "target": {"url": f"file://{self.target}"},
            "state_dir": str(self.root / "state"),
            "sealing": {"mode": "off"},
            "sources": [
                {"type": "tree", "path": str(self.tree)},
                {"type": "sqlite", "name": "grafana", "path": str(self.root / "grafana.db")},
            ],
        }
        self.config_file.write_text(yaml.safe_dump(config | changes))

    def run(self, *arguments: str, configured: bool = True, **environment: str) -> Completed:
        """Run the program in this process: much faster than a process each, and as real for all but signals."""
        named = {"DEVICEON_BACKUP_CONFIG": str(self.config_file) if configured else None}
        removed = {key: None for key in os.environ if key.startswith(("PG", "DEVICEON_"))}
        result = CliRunner().invoke(command_line, arguments, env=removed | named | environment)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)

    def good(self, *arguments: str, **options: Any) -> Completed:
        result = self.run(*arguments, **options)
        assert result.returncode == 0, result.stdout + result.stderr
        assert CANARY not in result.stdout + result.stderr
        return result

    def json(self, *arguments: str, **options: Any) -> Any:
        return json.loads(self.good(*arguments, "--json", **options).stdout)

    @property
    def archive(self) -> Path:
        (archive,) = self.target.glob("Backup_*.zip")
        return archive

    def wreck(self) -> None:
        (self.tree / "Server_Config.xml").write_text("wrecked")
        shutil.rmtree(self.tree / "more")

    def is_as_before(self) -> bool:
        return (self.tree / "Server_Config.xml").read_text() == "<config/>" and (self.tree / "more/secret").exists()


@pytest.fixture(scope="module")
def backed_up(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Back up once: two archives of one minute would wait for each other. Tests only read it."""
    machine = Machine(tmp_path_factory.mktemp("machine") / "root")
    machine.prepare()
    machine.good("backup")
    return machine


@pytest.fixture
def machine(backed_up: Machine, tmp_path: Path) -> Machine:
    """A machine of the test's own, with the archive and all files of the one above."""
    shutil.copytree(backed_up.root, tmp_path / "root", symlinks=True)
    mine = Machine(tmp_path / "root")
    mine.configure()
    return mine


def test_the_url_of_a_target_is_not_taken_for_an_archive(backed_up: Machine) -> None:
    result = backed_up.run("inspect", "s3://bucket")
    assert result.returncode == 2
    assert "s3://bucket is the URL of a target, not of an archive in it" in result.stderr


def test_a_backup_is_listed_inspected_and_verified(backed_up: Machine) -> None:
    (entry,) = backed_up.json("list")["archives"]
    assert entry["name"] == backed_up.archive.name
    assert entry["server_version"] == "5.3.12"
    assert entry["sealing"] == "off"
    assert entry["problem"] is None
    table = backed_up.good("list").stdout.splitlines()
    assert table[0].split() == ["NAME", "CREATED", "SIZE", "CONTENT", "SERVER", "EVIDENCE", "SEALED", "TO"]
    assert table[1].startswith(entry["name"])
    found = backed_up.json("inspect", entry["name"])
    assert [source["name"] for source in found["manifest"]["sources"]] == ["config", "grafana"]
    assert found["header"]["server_version"] == "5.3.12"
    assert str(backed_up.tree) in backed_up.good("inspect", entry["name"]).stdout
    for name in (entry["name"], str(backed_up.archive), f"file://{backed_up.archive}"):
        verified = backed_up.json("verify", name)
        assert verified["good"] is True
        assert verified["authenticated"] is False
    assert "is complete and undamaged" in backed_up.good("verify", entry["name"]).stdout


def test_results_go_to_stdout_and_progress_to_stderr(machine: Machine) -> None:
    result = machine.good("verify", machine.archive.name)
    assert result.stderr == f"Verifying {machine.archive.name}\n"
    assert machine.good("verify", machine.archive.name, "--quiet").stderr == ""
    assert machine.good("--quiet", "verify", machine.archive.name).stderr == ""


def test_backup_as_json_tells_name_and_sizes(machine: Machine) -> None:
    machine.archive.unlink()
    result = machine.json("backup")
    assert result["name"] == machine.archive.name
    assert result["size"] == machine.archive.stat().st_size
    assert result["raw_bytes"] > 0
    assert list(result["stages"]) == ["snapshot", "dump", "read back"]


def test_a_restore_ends_with_the_promised_words_and_can_be_rolled_back(machine: Machine) -> None:
    machine.wreck()
    plan = machine.json("restore", machine.archive.name, "--plan")
    assert plan["possible"] is True
    assert plan["obstacles"] == []
    assert not machine.is_as_before(), "a plan changes nothing"
    program = [SCRIPT, "restore", machine.archive.name, "--yes", "--config", str(machine.config_file)]
    result = subprocess.run(program, capture_output=True, text=True, check=True, env=clean_environment())
    assert result.stdout.endswith("\nRestore successfully\n")
    assert machine.is_as_before()
    refused = machine.run("restore", machine.archive.name, "--yes")
    assert refused.returncode == 8
    assert "rollback" in refused.stderr
    assert "is back" in machine.good("rollback", "--yes").stdout
    assert not machine.is_as_before()


def test_a_part_can_be_restored_and_what_is_not_there_is_told_with_what_is(machine: Machine) -> None:
    machine.wreck()
    with contextlib.closing(sqlite3.connect(machine.root / "grafana.db")) as database:
        database.execute("UPDATE dashboard SET title = 'after'")
        database.commit()
    plan = machine.json("restore", machine.archive.name, "--only", "config", "--plan")
    assert [item["what"] for item in plan["items"]] == [str(machine.tree)]
    assert "beside grafana of now" in plan["warnings"][0]
    machine.good("restore", machine.archive.name, "--source", "config", "--yes")
    assert machine.is_as_before()
    with contextlib.closing(sqlite3.connect(machine.root / "grafana.db")) as database:
        assert database.execute("SELECT title FROM dashboard").fetchone() == ("after",)
    machine.good("rollback", "--yes")
    refused = machine.run("restore", machine.archive.name, "--source", "nothing", "--yes")
    assert refused.returncode == 2
    assert "It has: config, grafana." in refused.stderr


def test_files_are_extracted_from_the_archive_alone(backed_up: Machine, tmp_path: Path) -> None:
    archive = str(backed_up.archive)
    listed = backed_up.good("extract", archive, "--list", configured=False).stdout.splitlines()
    assert [line.split(":")[0] for line in listed] == ["source config (tree)", "source grafana (sqlite)"]
    done = backed_up.json("extract", archive, "--to", str(tmp_path / "out"), "--path", "more", configured=False)
    assert (done["files"], done["sources"]) == (1, ["config"])
    assert (tmp_path / "out/config/more/secret").read_text() == CANARY
    again = backed_up.run("extract", archive, "--to", str(tmp_path / "out"), configured=False)
    assert (again.returncode, "there already" in again.stderr) == (1, True)
    assert backed_up.run("extract", archive, configured=False).returncode == 2


def test_a_restore_as_json_is_one_document_and_commit_ends_it(machine: Machine) -> None:
    machine.wreck()
    result = machine.json("restore", machine.archive.name, "--yes")
    assert result["message"] == "Restore successfully"
    assert result["restore_id"]
    assert list(result["stages"]) == ["plan", "stage", "swap"]
    assert machine.is_as_before()
    assert machine.json("commit", "--yes") == {"archive": machine.archive.name, "committed": True}
    again = machine.run("commit", "--yes", "--json")
    assert again.returncode == 8
    assert json.loads(again.stdout)["error"]["code"] == "JOB_REFUSED"


def test_a_restore_works_from_the_archive_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "root")
    machine.prepare()
    machine.good("backup")
    elsewhere = tmp_path / "mounted disk"
    elsewhere.mkdir()
    archive = shutil.move(machine.archive, elsewhere)
    machine.wreck()
    state = str(tmp_path / "state of a new machine")
    options = ("--yes", "--state-dir", state)
    asked = machine.run("restore", str(archive), *options, configured=False)
    assert asked.returncode == 2
    assert "--server-version" in asked.stderr
    said = machine.good("restore", str(archive), *options, configured=False, DEVICEON_BACKUP_SERVER_VERSION="5.3.12")
    assert said.stdout.endswith("\nRestore successfully\n")
    assert machine.is_as_before()
    assert "is kept" in machine.good("commit", *options, configured=False).stdout


REFUSED = {
    "another version of the server": (
        ["restore", "ARCHIVE", "--yes", "--server-version", "5.2.4"],
        3,
        "SERVER_VERSION",
    ),
    "a plan for another version": (["restore", "ARCHIVE", "--plan", "--server-version", "5.2.4"], 3, ""),
    "an obstacle that cannot be allowed": (
        ["restore", "ARCHIVE", "--yes", "--allow", "SERVER_VERSION"],
        2,
        "overridden",
    ),
    "nobody to ask": (["restore", "ARCHIVE"], 2, "--yes"),
    "no such archive": (["restore", "Backup_20200101_0000Z.zip", "--yes"], 4, "no archive"),
    "no such path": (["restore", "/no/such/Backup_20200101_0000Z.zip", "--yes"], 4, ""),
    "no such file": (["verify", "./Backup_20200101_0000Z.zip"], 4, "mounted?"),
    "no name of an archive": (["hold", "typo"], 2, "error: archive must be the name of an archive, such as Backup_2"),
    "no such file of a secret": (["verify", "ARCHIVE", "--recovery-key", "typo"], 2, "Correct the path"),
    "no such target": (["verify", "gopher://x/y.zip"], 4, "gopher"),
    "a missing configuration": (["list", "--config", "none.yaml"], 2, "none.yaml"),
}


@pytest.mark.parametrize(("arguments", "code", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_has_its_exit_code_and_changes_nothing(
    machine: Machine, arguments: list[str], code: int, words: str
) -> None:
    machine.wreck()
    result = machine.run(*(machine.archive.name if argument == "ARCHIVE" else argument for argument in arguments))
    assert result.returncode == code, result.stdout + result.stderr
    assert words in result.stderr
    assert "Restore successfully" not in result.stdout
    assert not machine.is_as_before()


def test_a_failure_is_told_once(machine: Machine) -> None:
    command = [sys.executable, "-m", "service", "--config", str(machine.config_file), "commit", "--yes"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 8
    assert process.stderr.splitlines() == [
        "error: no restore waits for commit or rollback",
        "  what to do: Nothing is to be decided. `deviceon-backup job list` tells how the last restore ended.",
    ]


def test_a_damaged_archive_is_told_apart_from_a_foreign_file(machine: Machine) -> None:
    content = bytearray(machine.archive.read_bytes())
    content[len(content) // 2] ^= 1
    machine.archive.write_bytes(content)
    damaged = machine.run("verify", machine.archive.name)
    assert (damaged.returncode, damaged.stdout) == (6, "")
    machine.archive.write_bytes(b"PK\x05\x06" + bytes(18))
    assert machine.run("restore", machine.archive.name, "--yes").returncode == 6
    assert "cannot be used" in machine.good("list").stdout


def test_config_commands_show_the_file_and_never_a_secret(machine: Machine) -> None:
    (machine.root / "password").write_text(CANARY)
    source = {"type": "postgresql", "password_file": str(machine.root / "password")}
    machine.configure(sources=[source, {"type": "postgresql", "name": "other", "password_env": "SECRET_OF_TEST"}])
    environment = {"SECRET_OF_TEST": CANARY}
    assert "is good" in machine.good("config", "check", **environment).stdout
    shown = yaml.safe_load(machine.good("config", "show", **environment).stdout)
    assert shown == machine.json("config", "show", **environment)
    assert shown["sources"][0]["password_file"] == str(machine.root / "password")
    assert json.loads(machine.good("config", "schema").stdout)["title"] == "deviceon-backup configuration"
    machine.configure(sources=[{"type": "postgresql", "password": CANARY}])
    for command in ("config check", "config show", "backup", "list --debug", "doctor"):
        wrong = machine.run(*command.split())
        assert wrong.returncode == (1 if command == "doctor" else 2)
        assert CANARY not in wrong.stdout + wrong.stderr


def test_doctor_is_green_on_a_good_machine_and_names_remedies_on_a_bad_one(machine: Machine) -> None:
    before = sorted(machine.target.iterdir())
    result = machine.json("doctor")
    assert result["good"] is True
    assert sorted(machine.target.iterdir()) == before, "what doctor writes to the target is gone again"
    names = {finding["name"] for finding in result["findings"]}
    assert names >= {"configuration", "server", "state directory", "TPM", "source config", "source grafana", "target"}
    machine.configure(
        server={"version_file": "/no/such/version"},
        target={"url": f"file://{machine.root}/not-mounted"},
        state_dir=str(machine.tree / "Server_Config.xml/state"),
        sealing={"mode": "tpm", "tcti": "device:/dev/no-such-tpm"},
        sources=[
            {"type": "tree", "path": "/no/such/tree"},
            {"type": "sqlite", "path": str(machine.tree / "Server_Config.xml")},
            {"type": "postgresql", "host": str(machine.root), "connect_timeout": 1.0},
        ],
    )
    bad = machine.run("doctor", "--json")
    assert bad.returncode == 1
    red = {finding["name"]: finding for finding in json.loads(bad.stdout)["findings"] if finding["ok"] is False}
    assert red.keys() == {
        "server", "state directory", "TPM", "source config", "source sqlite", "source postgresql", "target"
    }  # fmt: skip
    assert all(finding["remedy"] for finding in red.values())
    told = machine.run("doctor").stdout
    assert told.count("FAIL") == len(red)
    assert told.count("what to do:") >= len(red)


def test_doctor_tells_of_a_restore_that_waits(machine: Machine) -> None:
    machine.good("restore", machine.archive.name, "--yes")
    (waiting,) = [finding for finding in machine.json("doctor")["findings"] if finding["name"] == "restore"]
    assert waiting["ok"] is None
    assert "commit" in waiting["remedy"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_a_job_in_good_order(machine: Machine, number: signal.Signals) -> None:
    machine.archive.unlink()
    machine.configure(server={"version_command": ["sh", "-c", f"touch {machine.root}/begun; sleep 60"]})
    process = subprocess.Popen(
        [SCRIPT, "backup", "--config", str(machine.config_file)], stderr=subprocess.PIPE, text=True, cwd=machine.root
    )
    with process:
        wait_for((machine.root / "begun").exists)
        process.send_signal(number)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"{number.name}: stopping in good order" in told
    assert f"error: stopped by {number.name} before it was done" in told
    assert list(machine.target.iterdir()) == []
    machine.configure()
    machine.good("backup")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def at_terminal(machine: Machine) -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        environment = clean_environment(DEVICEON_BACKUP_CONFIG=str(machine.config_file))
        started.append(Terminal([SCRIPT, *arguments], environment))
        return started[-1]

    yield start
    for terminal in started:
        with terminal.process:
            terminal.process.kill()


def test_on_a_terminal_a_restore_shows_its_plan_and_asks(
    machine: Machine, at_terminal: Callable[..., Terminal]
) -> None:
    machine.wreck()
    terminal = at_terminal("restore", machine.archive.name)
    terminal.answer("Type yes", "yes\n")
    code, stdout = terminal.finish()
    assert code == 0, terminal.shown
    assert f"replace {machine.tree}" in stdout
    assert stdout.endswith("\nRestore successfully\n")
    assert machine.is_as_before()
    terminal = at_terminal("commit")
    terminal.answer("Type yes", "no\n")
    assert terminal.finish()[0] == 130
    assert "removed FOR GOOD" in terminal.shown
    assert "type yes to go ahead" in terminal.shown
    terminal = at_terminal("rollback")
    terminal.answer("Type yes", "YES\n")
    assert terminal.finish()[0] == 0
    assert not machine.is_as_before()


@pytest.mark.parametrize("answer", ["\n", "y\n", "no\n", "\x04", "\x03"])
def test_without_a_yes_nothing_is_touched(machine: Machine, at_terminal: Callable[..., Terminal], answer: str) -> None:
    machine.wreck()
    terminal = at_terminal("restore", machine.archive.name)
    terminal.answer("Type yes", answer)
    if answer == "\x03":
        terminal.press_until_it_ends(answer)
    code, stdout = terminal.finish()
    assert code == 130, terminal.shown
    assert "Restore successfully" not in stdout
    assert not machine.is_as_before()
    assert machine.run("commit", "--yes").returncode == 8, "nothing was begun"


def test_on_a_terminal_obstacles_end_it_before_the_question(
    machine: Machine, at_terminal: Callable[..., Terminal]
) -> None:
    terminal = at_terminal("restore", machine.archive.name, "--server-version", "5.2.4")
    code, stdout = terminal.finish()
    assert code == 3
    assert "SERVER_VERSION" in stdout
    assert "Type yes" not in terminal.shown
