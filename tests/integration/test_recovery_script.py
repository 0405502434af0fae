"""recovery.sh on a real PostgreSQL server and TPM: from an archive and connection settings alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml

from demo.postgresql_server import PostgresqlServer
from demo.software_tpm import SoftwareTpm
from service.backup import backup
from service.progress import Progress
from service.sealing import age
from service.settings import load
from tests.at_terminal import Terminal

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
    identity, recipient = age.generate()
    (workspace / "recovery key.txt").write_text(identity)
    tree.mkdir()
    target.mkdir()
    (tree / "Server_Config.xml").write_text("<config/>")
    await own_postgresql.execute("CREATE DATABASE deviceon")
    await own_postgresql.execute("CREATE TABLE device AS SELECT generate_series(1, 5) AS id", database="deviceon")
    config = {
        "server": {"version": "5.3.12"},
        "target": {"url": f"file://{target}"},
        "state_dir": str(workspace / "state"),
        "sealing": {"tcti": software_tpm.tcti, "recovery": [recipient]},
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


@pytest.fixture
def at_terminal(wrecked: Wrecked) -> Iterator[Callable[..., Terminal]]:
    """Run the script on a terminal, with a TPM and a state directory and nothing else known."""
    started: list[Terminal] = []

    def start(*arguments: str, tpm: SoftwareTpm | None = None, **environment: str) -> Terminal:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "DEVICEON_"))}
        surroundings = kept | {"PATH": f"{PROGRAMS}:{SYSTEM}", "TERM": "xterm", "COLUMNS": "120"} | environment
        started.append(Terminal([str(SCRIPT), *arguments, *wrecked.options(tpm)], surroundings))
        return started[-1]

    yield start
    for terminal in started:
        with terminal.process:
            terminal.process.kill()


async def test_on_a_terminal_all_that_is_missing_is_asked_for_until_it_is_right(
    wrecked: Wrecked, at_terminal: Callable[..., Terminal]
) -> None:
    terminal = at_terminal(PGHOST="127.0.0.1", PGPORT="1")
    terminal.answer("Path of the archive", "/no/such/Backup.zip\n")
    terminal.answer("Path of the archive", f"'{wrecked.archive.parent}'\n")
    terminal.answer("Which one? Its number", "7\n")
    terminal.answer("Which one? Its number", "1\n")
    terminal.answer("Installed version of the server", "5.2.4\n")
    terminal.answer("Name another PostgreSQL server", "y\n")
    terminal.answer("PostgreSQL host", f"{wrecked.server.host}\n")
    terminal.answer("Port", f"{wrecked.server.port}\n")
    terminal.answer("Superuser", f"{wrecked.server.user}\n")
    terminal.answer("Password", f"{wrecked.server.password}\n")
    terminal.answer("Installed version of the server, if it was mistyped", "5.3.12\n")
    terminal.answer("Type yes", "yes\n")
    code, stdout = terminal.finish()
    assert code == 0, terminal.shown
    assert stdout.endswith("\nRestore successfully\n")
    assert f"commit --state-dir {wrecked.directory}/new-state" in stdout
    assert await wrecked.rows() == [1, 2, 3, 4, 5]
    assert wrecked.tree() == ["Server_Config.xml"]
    shown = terminal.shown
    assert shown.index("DeviceOn 5.3.12") < shown.index("Installed version"), "what the archive is of is shown before"
    assert "sealed to" in shown
    assert "archive's key: the archive can be opened" in shown
    assert "SERVER_UNREACHABLE" in shown
    assert "SERVER_VERSION" in shown
    assert wrecked.server.password not in shown + stdout


async def test_on_a_terminal_nothing_is_touched_without_a_yes(
    wrecked: Wrecked, at_terminal: Callable[..., Terminal]
) -> None:
    terminal = at_terminal("--archive", str(wrecked.archive), **wrecked.environment)
    terminal.answer("Type yes", "no\n")
    code, stdout = terminal.finish()
    assert (code, stdout) == (130, "")
    assert await wrecked.rows() == []
    assert wrecked.tree() == ["rubbish"]


def test_another_tpm_is_explained_and_the_rest_is_looked_at_all_the_same(
    wrecked: Wrecked, at_terminal: Callable[..., Terminal]
) -> None:
    with SoftwareTpm() as another:
        terminal = at_terminal(str(wrecked.archive), tpm=another, **wrecked.environment)
        terminal.answer("File of the recovery key", "\n")
        terminal.answer("type q to give up", "q\n")
        code, stdout = terminal.finish()
    assert (code, stdout) == (5, "")
    assert "TPM_WRONG" in terminal.shown
    assert "not looked at: the archive has to be opened first" in terminal.shown
    assert "PostgreSQL 15" in terminal.shown, "one run tells all that is missing"
    assert "Nothing was touched" in terminal.shown


async def test_when_the_tpm_does_not_open_it_the_recovery_key_is_asked_for(
    wrecked: Wrecked, at_terminal: Callable[..., Terminal]
) -> None:
    key = wrecked.directory / "recovery key.txt"
    with SoftwareTpm() as another:
        terminal = at_terminal(str(wrecked.archive), tpm=another, **wrecked.environment)
        terminal.answer("File of the recovery key", "/no/such/key\n")
        terminal.answer("type q to give up", "\n")
        terminal.answer("File of the recovery key", "-\n")
        terminal.answer("Recovery key or passphrase", f"{key.read_text().strip()}\n")  # once: it is held
        terminal.answer("Signer that the recovery kit names", "\n")
        terminal.answer("Go ahead in spite of ORIGIN_NOT_PROVEN", "y\n")
        terminal.answer("Type yes", "yes\n")
        code, stdout = terminal.finish()
    assert code == 0, terminal.shown
    assert "SECRETS_TO_REISSUE" in stdout, "the report is of other hardware"
    assert stdout.endswith("\nRestore successfully\n")
    assert await wrecked.rows() == [1, 2, 3, 4, 5]
    assert "and a recovery key" in terminal.shown
    assert key.read_text().strip() not in terminal.shown + stdout


async def test_the_signer_of_the_recovery_kit_is_typed_in_place_of_going_ahead_without_it(
    wrecked: Wrecked, at_terminal: Callable[..., Terminal]
) -> None:
    key = ["--recovery-key", str(wrecked.directory / "recovery key.txt")]
    with SoftwareTpm() as another:
        terminal = at_terminal(str(wrecked.archive), *key, tpm=another, **wrecked.environment)
        for wrong in ("KEY 7Q4F", "KEY AAAA-AAAA-AAAA-AAAA"):
            terminal.answer("Signer that the recovery kit names", f"{wrong}\n")
            if len(wrong) < 10:
                terminal.answer("type q to give up", "\n")
        found = re.search(r"it is signed by (KEY \S+),", terminal.shown)
        assert found, terminal.shown
        terminal.answer("Signer that the recovery kit names", f"{found[1]}\n")
        terminal.answer("Type yes", "yes\n")
        code, stdout = terminal.finish()
    assert (code, stdout.endswith("\nRestore successfully\n")) == (0, True), terminal.shown
    assert "Go ahead in spite of ORIGIN_NOT_PROVEN" not in terminal.shown
    assert await wrecked.rows() == [1, 2, 3, 4, 5]


async def test_a_script_gives_the_recovery_key_as_a_file(wrecked: Wrecked) -> None:
    key = ["--recovery-key", str(wrecked.directory / "recovery key.txt")]
    options = ["--yes", *wrecked.options(), "--tcti", "device:/dev/there-is-no-tpm", *key]
    assert recover_as(wrecked, *options).returncode == 3, "nothing proves where the archive comes from"
    result = recover_as(wrecked, *options, "--allow", "ORIGIN_NOT_PROVEN")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("\nRestore successfully\n")
    assert await wrecked.rows() == [1, 2, 3, 4, 5]


def test_paths_are_understood_as_terminals_and_file_managers_write_them(wrecked: Wrecked) -> None:
    (home := wrecked.directory / "home").mkdir()
    (home / wrecked.archive.name).symlink_to(wrecked.archive)
    escaped = str(wrecked.archive).replace(" ", "\\ ").replace("'", "\\'")
    for said in (escaped, f"file://{quote(str(wrecked.archive))}", f'"~/{wrecked.archive.name}"'):
        result = recover_as(wrecked, answer=f"{said}\n", DEVICEON_BACKUP_SERVER_VERSION="5.2.4", HOME=str(home))
        assert result.returncode == 3, said + result.stderr
        assert "SERVER_VERSION" in result.stderr, "it was opened, and looked at"


def test_a_restore_that_still_keeps_the_state_before_it_is_told_first(wrecked: Wrecked) -> None:
    assert recover_as(wrecked).returncode == 0
    again = recover_as(wrecked)
    assert again.returncode == 8
    assert "still keeps the state before it" in again.stderr
    assert "Checking what a restore needs" not in again.stderr


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ("\n", 2, "no path was given"),
        ("", 2, "no path was given"),
        ("   \n", 2, "no path was given"),
        ("/no/such/Backup.zip\n", 4, "there is no file /no/such/Backup.zip"),
        ("/dev/null\n", 4, "/dev/null is not a file"),
        ("/usr\n", 4, "/usr is a directory without any archive"),
        ("/etc/passwd\n", 2, "passwd is not the name of an archive"),
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


def test_the_program_is_found_in_the_path_then_in_opt_then_in_the_environment_beside(
    copy: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "Backup 1.zip"
    project = copy.parents[2]
    recorder(project / ".venv/bin/deviceon-backup", "beside")
    recorder(tmp_path / "bin/deviceon-backup", "path")
    installed = recorder(tmp_path / "opt/deviceon-backup/bin/deviceon-backup", "opt")
    copy.write_text(copy.read_text().replace("/opt/deviceon-backup/", f"{tmp_path}/opt/deviceon-backup/"))
    for path, name in ((f"{tmp_path}/bin:{SYSTEM}", "path"), (SYSTEM, "opt"), (SYSTEM, "beside")):
        if name == "beside":
            installed.unlink()
        result = recover(str(archive), "--pg-host", "a b", script=copy, PATH=path)
        assert result.stdout == f"{name}|recover|{archive}|--pg-host|a b|"
        assert result.returncode == 42, "the exit code is passed on"


def test_without_an_installed_program_the_source_beside_is_run(copy: Path, tmp_path: Path) -> None:
    archive = tmp_path / "Backup_20260101_0000Z.zip"
    archive.write_bytes(b"no archive")
    for package in ("service", "storage_backends"):
        (copy.parents[2] / package).symlink_to(ROOT / package)
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python3"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    state = f"--state-dir={tmp_path / 'state'}"
    result = recover(
        str(archive), state, script=copy, PATH=f"{tmp_path}/bin:{SYSTEM}", DEVICEON_BACKUP_SERVER_VERSION="1"
    )
    assert result.returncode == 6, result.stderr


def test_what_the_script_itself_needs_is_told_with_a_remedy(copy: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "dirname", "printf"):
        (programs / name).symlink_to(f"/usr/bin/{name}")

    def told(python: str = "") -> str:
        if python:
            (programs / "python3").write_text(f"#!/bin/sh\n{python}\n")
            (programs / "python3").chmod(0o755)
        result = recover(script=copy, PATH=str(programs))
        assert (result.returncode, result.stdout) == (1, "")
        assert "what to do: " in result.stderr
        return result.stderr

    assert "Copy the whole project" in told()
    (copy.parents[2] / "service").symlink_to(ROOT / "service")
    assert "apt-get install python3" in told()
    assert "Python 3.9.2 is too old" in told('[ "$1" = -c ] && exit 1; echo Python 3.9.2')
    assert "pip' install" in told(f'exec /usr/bin/env PYTHONPATH= "{sys.base_prefix}/bin/python3" -I "$@"')


def test_the_script_explains_itself() -> None:
    result = recover("--help")
    assert result.returncode == 0
    assert "Usage: recovery.sh" in result.stdout
    assert "PGPASSWORD" in result.stdout


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_shellcheck_has_nothing_to_say(shell: str) -> None:
    subprocess.run(["shellcheck", f"--shell={shell}", str(SCRIPT)], check=True)


def test_in_a_container_the_program_there_is_run(copy: Path, tmp_path: Path) -> None:
    recorder(tmp_path / "bin/docker", "docker")
    result = recover("/a b.zip", script=copy, PATH=f"{tmp_path}/bin:{SYSTEM}", DEVICEON_BACKUP_CONTAINER="box")
    assert result.stdout == "docker|exec|-i|box|deviceon-backup|recover|/a b.zip|"


def test_the_script_for_windows_runs_the_same_command() -> None:
    """It was run with Wine's cmd; there is no Windows here."""
    content = (TOOLS / "recovery.bat").read_bytes()
    assert content.count(b"\r\n") == content.count(b"\n"), "cmd needs CR LF"
    text = content.decode("ascii")
    assert text.count(" recover %*") == 3
    labels = {line[1:].strip() for line in text.splitlines() if line.startswith(":")}
    assert set(re.findall(r"goto (\w+)", text)) == labels
