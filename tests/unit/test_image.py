"""The container image's recipe: the linter finds nothing, and its facts are those of the project."""

from __future__ import annotations

import fnmatch
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

from service.config import ConfigFile, ServiceSettings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions(name: str) -> list[str]:
    return [line.removeprefix(name).strip() for line in INSTRUCTIONS if line.startswith(f"{name} ")]


def test_the_linter_finds_nothing() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    result = subprocess.run([linter, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (result.stdout, result.returncode) == ("", 0)


def test_it_has_the_version_and_starts_the_program_of_the_project() -> None:
    assert f"VERSION={PROJECT['version']}" in instructions("ARG")
    [entry] = instructions("ENTRYPOINT")
    assert entry.strip('[]"').split('", "') == ["/usr/bin/tini", "-s", "--", *PROJECT["scripts"]]


def test_the_base_is_named_by_the_digest_of_a_day_that_the_page_tells() -> None:
    [base] = [line.removeprefix("BASE=") for line in instructions("ARG") if line.startswith("BASE=")]
    assert re.fullmatch(r"debian:bookworm-20\d{6}-slim@sha256:[0-9a-f]{64}", base)
    assert f"| `BASE` | `{base}` |" in (ROOT / "docs/CONTAINER.md").read_text()
    assert instructions("FROM") == ["${BASE} AS builder", "${BASE}"]
    [debian] = [run for run in instructions("RUN") if "POSTGRESQL_CLIENTS" in run]
    assert "apt-get upgrade -y" in debian, "what Debian has mended since that day"


def test_it_runs_as_a_number_that_owns_state_and_socket_where_the_service_looks_for_them() -> None:
    assert instructions("USER") == ["10001:10001"]
    [accounts] = [run for run in instructions("RUN") if "useradd" in run]
    assert "useradd --uid 10001 --gid 10001 " in accounts
    state, socket = ConfigFile.model_fields["state_dir"].default, ServiceSettings.model_fields["socket"].default
    assert f"install -d -m 0700 -o 10001 -g 10001 {state};" in accounts
    assert f"install -d -m 0750 -o 10001 -g 10001 {socket.parent}" in accounts
    assert f'"{socket}"' in (ROOT / "packaging/image/healthcheck.py").read_text()


def test_what_it_copies_is_there_and_is_sent_to_the_builder() -> None:
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        source for line in instructions("COPY") if not line.startswith("--from") for source in shlex.split(line)[:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(source == one or fnmatch.fnmatch(source, f"{one}/*") for one in let_in), source


def test_python_packages_come_from_the_locks_and_nothing_else() -> None:
    commands = [command for run in instructions("RUN") for command in run.split(";") if "/bin/pip " in command]
    assert len(commands) == 4
    for command in commands:
        assert "--require-hashes" in command or "--no-deps" in command
    assert {name for command in commands for name in re.findall(r"--requirement (\S+)", command)} == {
        "requirements-build.txt",
        "requirements.txt",
    }
    chosen = re.findall(r'more="(?:\$\{more\} )?--requirement (\S+)"', DOCKERFILE)
    assert chosen == ["requirements-portal.txt", "requirements-sftp.txt"]


def test_it_keeps_the_locales_of_the_languages_that_the_portal_speaks() -> None:
    kept = set(re.findall(r"! -name '([a-z]+)\*?\.dat'", DOCKERFILE))
    spoken = {"root", "en", *(path.stem.partition("_")[0] for path in (ROOT / "service/portal/locale").glob("*.po"))}
    assert kept == spoken


def test_it_has_the_libraries_that_reach_a_tpm() -> None:
    importlib.import_module("tpm2_pytss")
    loaded = set(re.findall(r"/libtss2-([a-z0-9]+)\.so", Path("/proc/self/maps").read_text()))
    assert "esys" in loaded
    installed = set(re.findall(r"libtss2-([a-z]+?)(?:-?[0-9][0-9.-]*)? ", DOCKERFILE))
    assert loaded <= installed
    assert "libtss2-tcti-device0" in DOCKERFILE
