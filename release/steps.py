"""A release, step by step: `scripts/release VERSION`. docs/RELEASING.md says what a person does before and after.

Without --for-real it is a rehearsal: everything is checked and built into build/release, nothing is tagged, and what a
machine cannot do (an image without root, an audit without its database) is told and does not end it.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from release import audit, bill, distribution, licences
from release.distribution import ROOT, add, commit_time

SIGNERS = {
    "minisign": ["minisign", "-S", "-s", "{key}", "-m", "SHA256SUMS"],
    "cosign": ["cosign", "sign-blob", "--yes", "--key", "{key}", "--output-signature", "SHA256SUMS.sig", "SHA256SUMS"],
    "gpg": ["gpg", "--batch", "--armor", "--detach-sign", "--local-user", "{key}", "SHA256SUMS"],
}


class Stop(Exception):
    """Why there is no release."""


@dataclass(slots=True)
class Release:
    """One release or its rehearsal. What is built lies in `out`."""

    version: str
    root: Path = ROOT
    for_real: bool = False
    without: frozenset[str] = frozenset()
    signer: str = ""
    key: str = ""
    left: list[str] = field(default_factory=list)
    """What was not done, in a sentence each."""

    @property
    def out(self) -> Path:
        return self.root / "build" / "release"

    def run(self) -> None:
        """Do every step. Raises Stop at the first that fails."""
        steps: list[tuple[str, Callable[[], None]]] = [
            ("the tree is clean", self._clean),
            ("the version is the same everywhere", self._versions),
            ("make check", lambda: self._make("check")),
            ("make test", lambda: self._optional("test", lambda: self._make("test"))),
            ("known vulnerabilities", self._audit),
            ("wheel and source distribution", self._distribution),
            (
                "bill of materials",
                lambda: bill.write(self.out / f"deviceon-backup-{self.version}.cdx.json", root=self.root),
            ),
            ("licences", self._licences),
            ("Helm chart", self._chart),
            ("container image", lambda: self._optional("image", self._image)),
            ("checksums", self._checksums),
            ("signature", self._sign),
            ("tag", self._tag),
        ]
        for number, (what, step) in enumerate(steps, 1):
            print(f"== {number}/{len(steps)} {what}", flush=True)
            step()

    def _clean(self) -> None:
        if changed := self._git("status", "--porcelain"):
            raise Stop(f"there are changes that are not committed:\n{changed}")
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)

    def _versions(self) -> None:
        if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", self.version):
            raise Stop(f"{self.version} is no version: MAJOR.MINOR.PATCH, and perhaps a1, b1 or rc1")
        for file, pattern in {
            "pyproject.toml": r'^version = "(.+)"$',
            "Dockerfile": r"^ARG VERSION=(.+)$",
            "helm/deviceon-backup/Chart.yaml": r"^version: (.+)$",
            "helm/deviceon-backup/Chart.yaml ": r'^appVersion: "(.+)"$',
            "examples/kubernetes/umbrella/Chart.yaml": r"^    version: (.+)$",
        }.items():
            found = re.findall(pattern, (self.root / file.strip()).read_text(), re.M)
            if found != [self.version]:
                raise Stop(f"{file.strip()} says {', '.join(found)}, not {self.version}")
        if not re.search(rf"^## {re.escape(self.version)} - \d{{4}}-\d\d-\d\d$", self._changes(), re.M):
            self._missing(f'CHANGELOG.md has no section "## {self.version} - YYYY-MM-DD"')
        if self._git("tag", "--list", self.tag):
            raise Stop(f"the tag {self.tag} is there already")

    @property
    def tag(self) -> str:
        return f"v{self.version}"

    def _changes(self) -> str:
        return (self.root / "CHANGELOG.md").read_text()

    def _audit(self) -> None:
        outcome, said = audit.audit()
        print("\n".join(said))
        if outcome == "vulnerable":
            raise Stop(
                "a library is known to be vulnerable: take another version (make lock), or say why it is no matter"
            )
        if outcome == "not asked":
            self._missing("nobody looked for known vulnerabilities (make audit, where its database is reached)")

    def _distribution(self) -> None:
        source, wheel = distribution.build(self.out, root=self.root)
        print(f"{source.name}, {wheel.name}")

    def _licences(self) -> None:
        libraries = licences.installed()
        if problems := licences.refused(libraries) + licences.not_seen(libraries):
            raise Stop("\n".join(problems))
        (self.out / f"deviceon-backup-{self.version}-licences.txt").write_text(licences.report(libraries))

    def _chart(self) -> None:
        tracked = self._git("ls-files", "helm/deviceon-backup").splitlines()
        tracked = [name for name in tracked if not Path(name).name.startswith(".")]  # as .helmignore says
        content, epoch = io.BytesIO(), commit_time(self.root)
        with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name in sorted(tracked):
                add(archive, name.removeprefix("helm/"), (self.root / name).read_bytes(), executable=False, epoch=epoch)
        (self.out / f"deviceon-backup-{self.version}.tgz").write_bytes(gzip.compress(content.getvalue(), mtime=epoch))

    def _image(self) -> None:
        if os.geteuid() != 0:
            return self._missing("the image was not built: that needs root")
        return self._make("image")

    def _checksums(self) -> None:
        lines = [
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(self.out.iterdir())
        ]
        (self.out / "SHA256SUMS").write_text("".join(lines))
        print("".join(lines), end="")

    def _sign(self) -> None:
        if not self.signer:
            return self._missing("nothing is signed: --sign minisign|cosign|gpg --key KEY signs SHA256SUMS")
        command = [word.format(key=self.key) for word in SIGNERS[self.signer]]
        if shutil.which(command[0]) is None:
            raise Stop(f"{command[0]} is not installed")
        return self._run(command, self.out)

    def _tag(self) -> None:
        if not self.for_real:
            print(f"rehearsal: {self.tag} is not made")
            return
        if self.left:
            raise Stop("no release, since\n  " + "\n  ".join(self.left))
        self._run(["git", "tag", "--annotate", "--message", f"DeviceOn Backup {self.version}", self.tag], self.root)
        print(f"made; publish with: git push origin {self.tag}")

    def _make(self, target: str) -> None:
        self._run(["make", target], self.root)

    def _optional(self, name: str, step: Callable[[], None]) -> None:
        if name in self.without:
            self._missing(f"left out: make {name}")
        else:
            step()

    def _missing(self, what: str) -> None:
        print(f"NOT DONE: {what}")
        self.left.append(what)

    def _run(self, command: list[str], directory: Path) -> None:
        if subprocess.run(command, cwd=directory, check=False).returncode:
            raise Stop(f"failed: {' '.join(command)}")

    def _git(self, *arguments: str) -> str:
        return subprocess.check_output(["git", *arguments], cwd=self.root, text=True).strip()


def main(arguments: list[str] | None = None) -> None:
    """Read the arguments and do it."""
    parser = argparse.ArgumentParser(prog="scripts/release", description="Check, build and tag a release.")
    parser.add_argument("version", help="what pyproject.toml, the Dockerfile, the chart and CHANGELOG.md say")
    parser.add_argument("--for-real", action="store_true", help="make the tag; without, it is a rehearsal")
    parser.add_argument("--without", action="append", default=[], choices=["test", "image"], help="in a rehearsal only")
    parser.add_argument("--sign", choices=sorted(SIGNERS), default="", help="the program that signs SHA256SUMS")
    parser.add_argument("--key", default="", help="its key: a file, or for gpg an id")
    given = parser.parse_args(arguments)
    if given.for_real and given.without:
        parser.error("a release leaves nothing out")
    if bool(given.sign) != bool(given.key):
        parser.error("--sign and --key go together")
    release = Release(
        given.version, for_real=given.for_real, without=frozenset(given.without), signer=given.sign, key=given.key
    )
    try:
        release.run()
    except (Stop, OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"STOPPED: {error}") from None
    print(f"\n{'released' if given.for_real else 'rehearsed'}: {release.out}")
    for what in release.left:
        print(f"  not done: {what}")
