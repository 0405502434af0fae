"""The Debian package's scripts: what a removal takes away, and what it leaves. `make debproof` runs all of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

DEBIAN = Path(__file__).parents[2] / "packaging/debian"


def removed(root: Path, *arguments: str) -> str:
    """Run postrm on a machine whose root directory is `root`, as dpkg does after it has removed its files."""
    return subprocess.run(
        ["/bin/sh", "-c", _below(root), "postrm", *arguments], check=True, capture_output=True, text=True
    ).stderr


def _below(root: Path) -> str:
    """Return postrm with its paths below a directory, where it knows of no systemd."""
    script = (DEBIAN / "postrm").read_text()
    for directory in ("/opt/", "/etc/", "/var/", "/run/"):
        script = script.replace(f" {directory}", f" {root}{directory}")
    return script


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path in (
        "opt/deviceon-backup/lib/python3.11/site-packages/service/__pycache__/late.pyc",
        "run/deviceon-backup/service.lock",
        "etc/deviceon-backup/config.yaml",
        "var/lib/deviceon-backup/state.db",
    ):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    return tmp_path


def dpkg(root: Path, *arguments: str | Path) -> str:
    """Have dpkg work on the machine below `root`; scripts are run as they are, with their paths below it."""
    command = ["dpkg", "--force-not-root,script-chrootless,bad-path", f"--log={root}/log", f"--root={root}"]
    done = subprocess.run([*command, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Build a package of the same shape as the real one, with a program of one module."""
    tree = tmp_path / "package"
    program = tree / "opt/deviceon-backup"
    (program / "lib/python3.11/__pycache__").mkdir(parents=True)
    (program / "lib/python3.11/module.py").touch()
    (program / "lib/python3.11/__pycache__/module.pyc").touch()
    (program / "lib64").symlink_to("lib")
    (tree / "DEBIAN").mkdir(mode=0o755)
    (tree / "DEBIAN/postrm").write_text(_below(tmp_path / "machine"))
    (tree / "DEBIAN/postrm").chmod(0o755)
    (tree / "DEBIAN/control").write_text(
        "Package: deviceon-backup\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.com>\nDescription: a\n"
    )
    subprocess.run(["dpkg-deb", "--build", "-Znone", tree, tmp_path / "a.deb"], check=True, capture_output=True)
    return tmp_path / "a.deb"


@pytest.fixture
def machine(tmp_path: Path, package: Path) -> Path:
    """Give a machine with the package, on which Python has compiled a module more."""
    machine = tmp_path / "machine"
    for directory in ("info", "updates", "triggers"):
        (machine / "var/lib/dpkg" / directory).mkdir(parents=True)
    (machine / "var/lib/dpkg/status").touch()
    (machine / "run/deviceon-backup").mkdir(parents=True)
    dpkg(machine, "--install", package)
    (machine / "opt/deviceon-backup/lib/python3.11/__pycache__/late.pyc").touch()
    return machine


def test_a_removal_leaves_nothing_of_the_program(machine: Path) -> None:
    assert "stays" not in dpkg(machine, "--remove", "deviceon-backup")
    assert not (machine / "opt/deviceon-backup").exists()
    assert not (machine / "run/deviceon-backup").exists()


def test_a_removal_leaves_what_others_have_put_beside_the_program_and_says_so(machine: Path) -> None:
    (machine / "opt/deviceon-backup/archive.zip").write_bytes(b"all there is")
    assert "stays" in dpkg(machine, "--remove", "deviceon-backup")
    assert [path.name for path in (machine / "opt/deviceon-backup").iterdir()] == ["archive.zip"]


def test_archives_that_somebody_keeps_beside_the_program_outlive_a_removal(root: Path) -> None:
    archive = root / "opt/deviceon-backup/archives/Backup_20261128_0200Z.zip"
    archive.parent.mkdir()
    archive.write_bytes(b"all there is")
    assert "stays" in removed(root, "remove")
    assert archive.read_bytes() == b"all there is"
    assert not (root / "opt/deviceon-backup/lib").exists()


@pytest.mark.parametrize("action", ["upgrade", "failed-upgrade", "abort-install", "abort-upgrade", "disappear"])
def test_nothing_is_taken_away_by_what_is_no_removal(root: Path, action: str) -> None:
    before = sorted(root.rglob("*"))
    removed(root, action)
    assert sorted(root.rglob("*")) == before


def test_a_purge_leaves_configuration_and_state_and_says_so(root: Path) -> None:
    told = removed(root, "purge")
    for left in ("etc/deviceon-backup", "var/lib/deviceon-backup"):
        assert f"{root / left} is left as it is" in told
    assert (root / "etc/deviceon-backup/config.yaml").exists() and (root / "var/lib/deviceon-backup/state.db").exists()
