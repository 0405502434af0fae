"""The wheel, as pipx and uv install it: into an environment of its own, with the program and all that it needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("service", "storage_backends")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it from a copy: a build leaves things where it is done."""
    directory = tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, directory)
    build = ["-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([sys.executable, *build, "--wheel-dir", directory / "dist", directory], check=True)
    [built] = (directory / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """Install it into a fresh environment, which finds its dependencies in this one; return where its programs are."""
    environment = wheel.parent.parent / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    install = ["-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    subprocess.run([sys.executable, *install], check=True)
    [packages] = environment.glob("lib/python3*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin"


def run(*command: str | Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=True).stdout


def test_everything_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        within = {name for name in file.namelist() if ".dist-info/" not in name}
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    assert within == {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}


def test_the_program_runs_from_the_wheel_and_not_from_the_source(installed: Path) -> None:
    number = run(installed / "deviceon-backup", "version")
    assert run(installed / "deviceon-backup", "--version") == number
    where = run(installed / "python", "-c", "import service, storage_backends; print(service.__file__)")
    assert where.startswith(str(installed.parent))


def test_the_installed_program_tells_the_published_schema(installed: Path) -> None:
    assert run(installed / "deviceon-backup", "serve", "--schema") == (ROOT / "docs/socket-schema.json").read_text()
