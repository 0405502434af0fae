"""recovery.sh on a real PostgreSQL server and TPM: from an archive and connection settings alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from demo.postgresql_server import PostgresqlServer
from demo.software_tpm import SoftwareTpm
from service.backup import backup
from service.progress import Progress
from service.settings import load

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools/System Recovery"
SCRIPT = TOOLS / "recovery.sh"
PROGRAMS = sysconfig.get_path("scripts")
SYSTEM = "/usr/bin:/bin"

Completed = subprocess.CompletedProcess[str]


def recover(*arguments: str, answer: str = "", script: Path = SCRIPT, **environment: str) -> Completed:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "DEVICEON_"))}
    return subprocess.run(
        [str(script), *arguments],
        env=kept | {"PATH": f"{PROGRAMS}:{SYSTEM}"} | environment,
        input=answer,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def recover_as(wrecked: Wrecked, *options: str, answer: str = "", **changes: str) -> Completed:
    """Run the script with all that the wrecked server needs; `answer` or the archive's path as an argument."""
    arguments = [] if answer else [str(wrecked.archive)]
    environment = wrecked.environment | changes
    return recover(*arguments, *(options or wrecked.options()), answer=answer, script=SCRIPT, **environment)


@dataclass
class Wrecked:
    """A server with an archive of what it was, and everything live destroyed. Its configuration is gone, too."""

    server: PostgresqlServer
    directory: Path
    archive: Path
    tpm: SoftwareTpm

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PGHOST": self.server.host,
            "PGPORT": str(self.server.port),
            "PGUSER": self.server.user,
            "PGPASSWORD": self.server.password,
            "DEVICEON_BACKUP_SERVER_VERSION": "5.3.12",
        }

    def options(self, tpm: SoftwareTpm | None = None) -> list[str]:
        return ["--tcti", (tpm or self.tpm).tcti, "--state-dir", str(self.directory / "new-state")]

    async def rows(self) -> list[int]:
        found = await self.server.fetch("SELECT to_regclass('public.device')::text AS name", database="deviceon")
        if found[0]["name"] is None:
            return []
        return [row["id"] for row in await self.server.fetch("SELECT id FROM device ORDER BY id", database="deviceon")]

    def tree(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "etc").iterdir())


@pytest.fixture
async def wrecked(
    own_postgresql: PostgresqlServer, software_tpm: SoftwareTpm, workspace: Path
) -> AsyncIterator[Wrecked]:
    tree, target = workspace / "etc", workspace / "it's a disk"
    tree.mkdir()
    target.mkdir()
    (tree / "Server_Config.xml").write_text("<config/>")
    await own_postgresql.execute("CREATE DATABASE deviceon")
    await own_postgresql.execute("CREATE TABLE device AS SELECT generate_series(1, 5) AS id", database="deviceon")
    config = {
        "server": {"version": "5.3.12"},
        "target": {"url": f"file://{target}"},
        "state_dir": str(workspace / "state"),
        "sealing": {"tcti": software_tpm.tcti},
        # Other names than the defaults: the script must find them in the archive.
        "sources": [own_postgresql.source_settings(name="main-db"), {"type": "tree", "name": "etc", "path": str(tree)}],
    }
    (workspace / "config.yaml").write_text(yaml.safe_dump(config))
    result = await backup(load(workspace / "config.yaml"), progress=Progress())
    (workspace / "config.yaml").unlink()
    await own_postgresql.execute("DROP TABLE device", database="deviceon")
    (tree / "Server_Config.xml").unlink()
    (tree / "rubbish").write_text("x")
    yield Wrecked(own_postgresql, workspace, target / result.name, software_tpm)


async def test_it_asks_for_the_path_and_ends_with_exactly_the_promised_words(wrecked: Wrecked) -> None:
    result = recover_as(wrecked, answer=f'  "{wrecked.archive}"  \n')
    assert result.returncode == 0, result.stderr
    assert "Path of the archive: " in result.stderr
    assert "rollback" in result.stderr.split("Path of the archive")[0], "what will happen is explained first"
    assert result.stdout.endswith("\nRestore successfully\n")
    assert await wrecked.rows() == [1, 2, 3, 4, 5]
    assert wrecked.tree() == ["Server_Config.xml"]
    assert wrecked.server.password not in result.stdout + result.stderr
    kept = b"".join(path.read_bytes() for path in (wrecked.directory / "new-state").rglob("*") if path.is_file())
    assert kept
    assert wrecked.server.password.encode() not in kept


async def test_a_refused_restore_passes_its_exit_code_on_and_touches_nothing(wrecked: Wrecked) -> None:
    with SoftwareTpm() as another:
        foreign = recover_as(wrecked, *wrecked.options(another))
    cases = [
        (5, foreign),
        (3, recover_as(wrecked, DEVICEON_BACKUP_SERVER_VERSION="5.2.4")),
        (2, recover_as(wrecked, DEVICEON_BACKUP_SERVER_VERSION="")),
        (3, recover_as(wrecked, PGPASSWORD="wrong")),
    ]
    damaged = bytearray(wrecked.archive.read_bytes())
    damaged[len(damaged) * 2 // 3] ^= 1
    wrecked.archive.write_bytes(damaged)
    cases.append((6, recover_as(wrecked)))
    for code, result in cases:
        assert result.returncode == code, result.stderr
        assert "error: " in result.stderr
        assert "Restore successfully" not in result.stdout
        assert wrecked.server.password not in result.stdout + result.stderr
    assert await wrecked.rows() == []
    assert wrecked.tree() == ["rubbish"]


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ("\n", 2, "no path was given"),
        ("", 2, "no path was given"),
        ("   \n", 2, "no path was given"),
        ("/no/such/Backup.zip\n", 4, "there is no file /no/such/Backup.zip"),
        ("/tmp\n", 4, "/tmp is not a file"),
        ("$(touch /tmp/never); '\"\n", 4, "there is no file"),
    ],
)
def test_a_wrong_path_is_told_before_anything_is_begun(answer: str, code: int, words: str) -> None:
    result = recover(answer=answer)
    assert result.returncode == code
    assert words in result.stderr
    assert "what to do: " in result.stderr
    assert result.stdout == ""


def recorder(path: Path, name: str) -> Path:
    """Make a program that prints its name and arguments, and exits 42."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nprintf '%s|' {name} \"$@\"\nexit 42\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the script in a project directory of its own, with blanks in its name."""
    tools = tmp_path / "a project/tools/System Recovery"
    tools.mkdir(parents=True)
    return Path(shutil.copy(SCRIPT, tools))


def test_the_program_is_found_in_the_path_first_then_in_the_environment_beside(copy: Path, tmp_path: Path) -> None:
    archive = tmp_path / "Backup 1.zip"
    archive.touch()
    project = copy.parents[2]
    recorder(project / ".venv/bin/deviceon-backup", "beside")
    recorder(tmp_path / "bin/deviceon-backup", "path")
    for path, name in ((f"{tmp_path}/bin:{SYSTEM}", "path"), (SYSTEM, "beside")):
        result = recover(str(archive), "--pg-host", "a b", script=copy, PATH=path)
        assert result.stdout == f"{name}|restore|--yes|--pg-host|a b|--|{archive}|"
        assert result.returncode == 42, "the exit code is passed on"


def test_options_alone_still_ask_for_the_path_and_home_is_understood(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "b.zip").touch()
    recorder(tmp_path / "bin/deviceon-backup", "path")
    result = recover("--quiet", answer="'~/b.zip'\n", script=copy, PATH=f"{tmp_path}/bin:{SYSTEM}", HOME=str(tmp_path))
    assert result.stdout == f"path|restore|--yes|--quiet|--|{tmp_path}/b.zip|"


def test_without_an_installed_program_the_source_beside_is_run(copy: Path, tmp_path: Path) -> None:
    archive = tmp_path / "Backup_1.zip"
    archive.write_bytes(b"no archive")
    for package in ("service", "storage_backends"):
        (copy.parents[2] / package).symlink_to(ROOT / package)
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python3"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    result = recover(str(archive), script=copy, PATH=f"{tmp_path}/bin:{SYSTEM}", DEVICEON_BACKUP_SERVER_VERSION="1")
    assert result.returncode == 6, result.stderr


def test_without_any_program_it_says_how_to_install_it(copy: Path, tmp_path: Path) -> None:
    archive = tmp_path / "b.zip"
    archive.touch()
    result = recover(str(archive), script=copy, PATH=SYSTEM)
    assert result.returncode == 1
    assert "pip install" in result.stderr


def test_the_script_explains_itself() -> None:
    result = recover("--help")
    assert result.returncode == 0
    assert "Usage: recovery.sh" in result.stdout
    assert "PGPASSWORD" in result.stdout


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_shellcheck_has_nothing_to_say(shell: str) -> None:
    subprocess.run(["shellcheck", f"--shell={shell}", str(SCRIPT)], check=True)


def test_the_script_for_windows_runs_the_same_command() -> None:
    content = (TOOLS / "recovery.bat").read_bytes()
    assert content.count(b"\r\n") == content.count(b"\n"), "cmd needs CR LF"
    text = content.decode("ascii")
    assert text.count("restore --yes%options% -- ") == 3
    assert "Path of the archive: " in text
