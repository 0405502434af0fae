"""States and archives that every earlier version made go on with the present code; a newer state is left alone.

The fixtures are `tests/vectors/state-N`; `tests/vectors/state.py` says how they were made.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from demo.software_tpm import SoftwareTpm
from service.cli.app import command_line
from service.state.database import FILE_NAME, MIGRATIONS
from tests.scoreboard import counted
from tests.vectors.state import FILES, IDENTITY, PLACE, RECOVERY, SETTINGS

ROOT = Path(__file__).parents[2]
READER = ROOT / "tools/System Recovery/open_archive.py"
VECTORS = ROOT / "tests/vectors"
VERSIONS = sorted(int(path.name.removeprefix("state-")) for path in VECTORS.glob("state-*"))


@dataclass(slots=True)
class Upgraded:
    """A machine of an earlier version: its state, its TPM and its archives, and the present program."""

    version: int
    root: Path
    config: Path

    @property
    def database(self) -> Path:
        return self.root / "state" / FILE_NAME

    @property
    def archive(self) -> Path:
        return next((self.root / "archives").glob("Backup_*.zip"))

    def run(self, *words: str, code: int = 0) -> str:
        done = CliRunner().invoke(command_line, ["--config", str(self.config), "--quiet", *words])
        assert done.exit_code == code, done.output
        return done.stdout

    def ask(self, *words: str, code: int = 0) -> Any:
        return json.loads(self.run(*words, "--json", code=code))


@pytest.fixture(params=VERSIONS)
def upgraded(request: pytest.FixtureRequest) -> Iterator[Upgraded]:
    with tempfile.TemporaryDirectory(prefix="upgrade-") as name:
        root = Path(name)
        kept = VECTORS / f"state-{request.param}"
        for part in ("state", "archives"):
            shutil.copytree(kept / part, root / part)
        shutil.copytree(kept / "tpm", root / "tpm" / "state")
        (root / "etc").mkdir()
        (root / "etc" / "server.conf").write_text("port 80\n")
        with SoftwareTpm(root / "tpm") as tpm:
            document = {
                "server": {"version": "5.3.12"},
                "target": {"url": f"file://{root}/archives"},
                "state_dir": str(root / "state"),
                "service": {"socket": str(root / "s.sock")},
                "sealing": {"mode": "tpm", "tcti": tpm.tcti, "recovery": [RECOVERY]},
                "sources": [{"type": "tree", "path": str(root / "etc")}],
            }
            config = root / "config.yaml"
            config.write_text(yaml.safe_dump(document))
            yield Upgraded(request.param, root, config)


def test_every_version_before_the_present_one_has_a_fixture_and_no_other() -> None:
    assert VERSIONS[: len(MIGRATIONS)] == list(range(len(MIGRATIONS)))
    assert VERSIONS[-1] <= len(MIGRATIONS)
    for version in VERSIONS:
        file = VECTORS / f"state-{version}" / "state" / FILE_NAME
        assert file.exists() == (version > 0)
        if version:
            with sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True) as database:
                assert database.execute("PRAGMA user_version").fetchone() == (version,)
            database.close()


def test_history_settings_and_evidence_of_an_earlier_version_are_there(upgraded: Upgraded) -> None:
    if upgraded.version == 0:
        assert upgraded.ask("job", "list")["jobs"] == []
        return
    before = json.loads((VECTORS / f"state-{upgraded.version}" / "made.json").read_text())["commands"]
    asked = {line.split()[0] for line in before}
    jobs = {job["kind"]: job["state"] for job in upgraded.ask("job", "list")["jobs"]}
    assert set(jobs) >= asked & {"backup", "verify", "drill", "selftest"}
    assert set(jobs.values()) == {"succeeded"}
    settings = upgraded.ask("settings", "show")["settings"]
    assert settings["schedule"] | SETTINGS["schedule"] == settings["schedule"]
    assert settings["retention"]["keep_last"] == 7
    with sqlite3.connect(upgraded.database) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        rows = database.execute("SELECT target, name, evidence FROM archives").fetchall()
    database.close()
    evidence = "restorable" if "drill" in asked else "verified"
    assert (f"file://{PLACE}/archives", upgraded.archive.name, evidence) in rows


def test_an_archive_of_an_earlier_version_opens_on_its_tpm_and_gives_every_file_back(upgraded: Upgraded) -> None:
    name = upgraded.archive.name
    assert upgraded.ask("verify", name)["authenticated"] is True
    upgraded.run("extract", name, "--to", str(upgraded.root / "out"))
    found = {path.name: path for path in (upgraded.root / "out").rglob("*") if path.is_file()}
    for file, text in FILES.items():
        assert found[Path(file).name].read_text() == text
    with sqlite3.connect(found["grafana.db"]) as database:
        assert database.execute("SELECT title FROM dashboard").fetchall() == [("devices",)]
    database.close()


def test_backups_go_on_with_the_next_number_and_holds_are_kept(upgraded: Upgraded) -> None:
    old = upgraded.archive.name
    upgraded.run("selftest")
    made = upgraded.ask("backup")
    archives = {entry["name"]: entry for entry in upgraded.ask("list")["archives"]}
    assert archives[made["name"]]["seq"] > archives[old]["seq"]
    if upgraded.version:
        assert archives[old]["hold"]["reason"] == "a vector"
        upgraded.run("delete", old, "--yes", code=8)
        assert (upgraded.root / "archives" / old).exists()


@pytest.mark.parametrize("version", VERSIONS)
def test_the_stand_alone_reader_reads_archives_of_every_version(version: int, tmp_path: Path) -> None:
    (archive,) = (VECTORS / f"state-{version}" / "archives").glob("Backup_*.zip")
    key = tmp_path / "key.txt"
    key.write_text(IDENTITY + "\n")
    command = [sys.executable, str(READER)]
    if version < 2:  # before there were recovery keys: only the TPM has its key, and the reader says so
        done = subprocess.run([*command, "list", str(archive)], capture_output=True, text=True, check=True)
        assert "5.3.12" in done.stdout
        return
    out = tmp_path / "out"
    subprocess.run([*command, "extract", str(archive), str(out), "--recovery-key", str(key)], check=True)
    content = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert all(text.encode() in content for text in FILES.values())


def contents(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def test_a_state_of_a_newer_version_is_refused_with_a_hint_and_left_as_it_was(tmp_path: Path) -> None:
    state = tmp_path / "state"
    shutil.copytree(VECTORS / f"state-{VERSIONS[-1]}" / "state", state)
    with sqlite3.connect(state / FILE_NAME) as database:
        database.execute("CREATE TABLE something_new (x TEXT)")
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    database.close()
    before = contents(state)
    document = {
        "server": {"version": "5.3.12"},
        "target": {"url": f"file://{tmp_path}/archives"},
        "state_dir": str(state),
        "service": {"socket": str(tmp_path / "s.sock")},
        "sealing": {"mode": "off"},
        "sources": [{"type": "tree", "path": str(VECTORS)}],
    }
    (tmp_path / "archives").mkdir()
    machine = Upgraded(len(MIGRATIONS) + 1, tmp_path, tmp_path / "config.yaml")
    machine.config.write_text(yaml.safe_dump(document))
    machine.run("serve", code=1)
    for command in ("backup", "status"):
        error = machine.ask(command, code=1)["error"]
        assert error["code"] == "STATE"
        assert "newer version" in error["message"] and "Install that version again" in error["hint"]
    assert contents(state) == before
    assert list((tmp_path / "archives").iterdir()) == []


def test_an_upgrade_that_is_cut_off_leaves_the_state_of_before_and_is_done_again(
    tmp_path: Path, record_property: Any
) -> None:
    """Every statement of every migration is killed once; what is found then is a whole version."""
    killed = 0
    for version in range(1, len(MIGRATIONS)):
        for statement in range(1, 100):
            state = tmp_path / f"{version}-{statement}"
            shutil.copytree(VECTORS / f"state-{version}" / "state", state)
            cut = [sys.executable, "-c", CUT_OFF.format(state=str(state), statement=statement)]
            code = subprocess.run(cut, cwd=ROOT, check=False).returncode
            if code == 0:
                assert statement > 2, "nothing was killed"
                break
            assert code == 9
            killed += 1
            assert _version(state) == version
            subprocess.run([sys.executable, "-c", OPEN.format(state=str(state))], cwd=ROOT, check=True)
            assert _version(state) == len(MIGRATIONS)
    record_property("counted", counted(killed, "in migrations", killed=killed))


def _version(state: Path) -> int:
    with sqlite3.connect(state / FILE_NAME) as database:
        (version,) = database.execute("PRAGMA user_version").fetchone()
    database.close()
    return int(version)


OPEN = "from pathlib import Path; from service.state import Database; Database.open(Path({state!r})).close()"
CUT_OFF = """
import os, sqlite3
from pathlib import Path
from service.state import database

class Cut(sqlite3.Connection):
    left = {statement}

    def execute(self, text, *values):
        if text.strip().startswith(("CREATE", "ALTER", "PRAGMA user_version =")):
            Cut.left -= 1
            if Cut.left == 0:
                os._exit(9)
        return super().execute(text, *values)

real = sqlite3.connect
database.sqlite3.connect = lambda *a, **more: real(*a, factory=Cut, **more)
database.Database.open(Path({state!r}))
"""
