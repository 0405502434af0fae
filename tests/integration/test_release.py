"""What a release is made of: the same bytes from the same commit, nothing missing, nothing else, and no false word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from release import audit, bill, distribution, licences
from release.steps import Release, Stop

ROOT = Path(__file__).parents[2]
VERSION = "0.1.0"


def git(*arguments: str, at: Path = ROOT) -> str:
    return subprocess.check_output(["git", *arguments], cwd=at, text=True)


def tracked() -> set[str]:
    return set(git("ls-tree", "-r", "--name-only", "-z", "HEAD").strip("\0").split("\0"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return distribution.build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone that is a commit ahead: its `make` does nothing, since the checks of the checks are elsewhere."""
    directory = tmp_path_factory.mktemp("elsewhere") / "a clone"
    git("clone", "--quiet", "--no-hardlinks", str(ROOT), str(directory))
    for name, value in (("user.name", "A tester"), ("user.email", "tester@example.com")):
        git("config", name, value, at=directory)
    (directory / "Makefile").write_text("check test image:\n\t@echo made $@\n")
    git("commit", "--quiet", "--all", "--message", "Have make do nothing", at=directory)
    return directory


def test_the_same_commit_gives_the_same_bytes_in_another_place_time_zone_umask_and_language(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    directory = tmp_path / "another clone"
    git("clone", "--quiet", "--no-hardlinks", str(ROOT), str(directory))
    environment = os.environ | {"TZ": "Asia/Taipei", "LC_ALL": "C", "SOURCE_DATE_EPOCH": "1", "PYTHONPATH": "."}
    subprocess.run(
        [sys.executable, "-m", "release.distribution", str(tmp_path / "out")],
        cwd=directory,
        env=environment,
        umask=0o077,
        check=True,
        capture_output=True,
    )
    for path in built:
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_wheel_has_what_is_needed_at_run_time_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == {name for name in tracked() if name.startswith(("service/", "storage_backends/"))}
    assert {"service/py.typed", "service/cli/runbooks.md", "service/portal/templates/base.html"} <= names


def test_the_source_distribution_has_all_that_is_tracked(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    made = {name for name in members if name in {"PKG-INFO", "setup.cfg"} or ".egg-info/" in name}
    assert set(members) - made == tracked()
    assert {(member.uid, member.gid, member.uname, member.gname) for member in members.values()} == {(0, 0, "", "")}
    assert {member.mode for member in members.values()} == {0o644, 0o755}
    assert members["scripts/release"].mode == 0o755


def test_the_wheel_finds_its_files_where_it_is_installed(built: tuple[Path, Path], tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*pip, "--target", str(tmp_path / "there"), str(built[1])], check=True)
    call = "import service; assert 'there' in service.__file__; from service.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", call, "explain", "TPM_WRONG"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "there")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("TPM_WRONG\n")


def test_the_bill_of_materials_names_every_pin_with_its_hashes_and_is_the_same_twice(tmp_path: Path) -> None:
    for name in ("one", "two"):
        bill.write(tmp_path / name)
    text = (tmp_path / "one").read_text()
    assert text == (tmp_path / "two").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    components = {each["name"].lower(): each for each in json.loads(text)["components"]}
    assert set(components) == set(bill.pins()) and len(components) > 50
    for name, requirement in bill.pins().items():
        told = {one["content"] for each in components[name]["externalReferences"] for one in each.get("hashes", [])}
        assert told == {word.partition("sha256:")[2] for word in requirement.split() if "sha256:" in word}
        assert f"=={components[name]['version']}" in requirement


def test_every_lock_of_what_runs_is_in_the_bill() -> None:
    known = {f"requirements{which}.txt" for which in ("-bench", "-build", "-dev")} | set(bill.LOCKS)
    assert {path.name for path in ROOT.glob("requirements*.txt")} == known


def library(name: str, licence: str) -> dict[str, Any]:
    return {"Name": name, "Version": "1", "License": licence, "URL": "https://example.com", "LicenseText": "text"}


def test_a_licence_that_nobody_has_looked_at_is_refused() -> None:
    special = [library(name, licence) for name, (licence, _) in licences.SPECIAL.items()]
    assert licences.refused([*special, library("good", "MIT License; Apache-2.0")]) == []
    (told,) = licences.refused([*special, library("new", "AGPL-3.0")])
    assert told.startswith("new 1 is AGPL-3.0")
    (told,) = licences.refused([*special[1:], library(special[0]["Name"], "Something else")])
    assert "look at it again" in told
    (told,) = licences.refused(special[1:])
    assert told == f"{special[0]['Name']} is a special case and is not used any more"


def test_a_library_that_is_shipped_and_was_not_looked_at_is_told() -> None:
    found = licences.installed()
    assert licences.not_seen(found) == []
    (told,) = licences.not_seen([each for each in found if each["Name"] != "aiohttp"])
    assert told.startswith("aiohttp is pinned and not installed here")
    assert len(licences.not_seen([])) >= 60


AUDITS: list[tuple[Any, str, str]] = [
    (None, "not asked", "nothing was looked up"),
    ({"dependencies": []}, "not asked", "NOT looked up"),
    ({"dependencies": [{"name": "a", "skip_reason": "not found"}]}, "not asked", "1 of 1 libraries: they were NOT"),
    (
        {"dependencies": [{"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": ""}]},
        "not asked",
        "1 of 2",
    ),
    ({"dependencies": [{"name": "a", "version": "1", "vulns": []}]}, "clean", "1 libraries, none known"),
    (
        {
            "dependencies": [
                {"name": "a", "version": "1", "vulns": [{"id": "X-1", "fix_versions": ["2"]}]},
                {"name": "b", "skip_reason": ""},
            ]
        },
        "vulnerable",
        "a 1: X-1, mended in 2",
    ),
]


@pytest.mark.parametrize(("answer", "outcome", "said"), AUDITS)
def test_an_audit_says_clean_only_when_every_library_was_looked_up(answer: Any, outcome: str, said: str) -> None:
    found, told = audit.judge(answer)
    assert found == outcome
    assert said in "\n".join(told)


def test_an_audit_that_ends_says_one_of_three_things() -> None:
    """Whatever this network reaches."""
    done = subprocess.run(
        [sys.executable, "-m", "release.audit"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode in audit.CODES.values() and done.stdout.startswith("audit: "), done.stderr
    assert ("none known" in done.stdout) == (done.returncode == 0)


def test_a_rehearsal_builds_everything_says_what_is_missing_and_makes_no_tag(
    clone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "audit", lambda: ("not asked", ["nobody answers"]))
    release = Release(VERSION, root=clone, without=frozenset({"test", "image"}))
    release.run()
    names = {path.name for path in release.out.iterdir()}
    assert names == {
        "SHA256SUMS",
        f"deviceon-backup-{VERSION}-licences.txt",
        f"deviceon-backup-{VERSION}.cdx.json",
        f"deviceon-backup-{VERSION}.tgz",
        f"deviceon_backup-{VERSION}-py3-none-any.whl",
        f"deviceon_backup-{VERSION}.tar.gz",
    }
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=release.out, check=True)
    with tarfile.open(release.out / f"deviceon-backup-{VERSION}.tgz") as chart:
        assert {"deviceon-backup/Chart.yaml", "deviceon-backup/files/alerts.yaml"} <= set(chart.getnames())
    said = capsys.readouterr().out
    for what in (
        "nobody looked for known vulnerabilities",
        "make test",
        "make image",
        "nothing is signed",
        "CHANGELOG",
    ):
        assert f"NOT DONE: {next(left for left in release.left if what in left)}" in said
    assert git("tag", "--list", at=clone) == git("tag", "--list")
    with pytest.raises(Stop, match="no release, since"):
        Release(VERSION, root=clone, for_real=True, left=["something"])._tag()


def test_a_release_stops_at_changes_another_version_and_a_tag_that_is_there(clone: Path) -> None:
    (clone / "left-behind").write_text("")
    with pytest.raises(Stop, match="not committed"):
        Release(VERSION, root=clone).run()
    (clone / "left-behind").unlink()
    with pytest.raises(Stop, match=r"pyproject.toml says 0.1.0, not 9.9.9"):
        Release("9.9.9", root=clone).run()
    with pytest.raises(Stop, match="is no version"):
        Release("v1", root=clone).run()
    git("tag", f"v{VERSION}", at=clone)
    with pytest.raises(Stop, match="is there already"):
        Release(VERSION, root=clone).run()
    git("tag", "--delete", f"v{VERSION}", at=clone)


def test_a_release_leaves_nothing_out() -> None:
    for arguments in (["--for-real", "--without", "test"], ["--sign", "gpg"]):
        done = subprocess.run(
            [ROOT / "scripts/release", VERSION, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2 and "error:" in done.stderr
