"""The licences of every library that is shipped with the service: a report, and which of them are allowed.

Allowed is what asks for nothing but its text to be passed on, or what concerns changes of the library itself only. A
licence that is not in the list is looked at by somebody, and is put there with a reason or the library is not used.

    python -m release.licences [REPORT]
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from release.bill import pins

ALLOWED = {
    "0BSD",
    "Apache Software License",
    "Apache-2.0",
    "BSD License",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "MIT License",
    "MIT-0",
    "PSF-2.0",
    "Python Software Foundation License",
}
SPECIAL = {
    "certifi": ("Mozilla Public License 2.0 (MPL 2.0)", "a list of certificates, shipped unchanged; its source is it"),
    "paramiko": (
        "LGPL-2.1",
        "an extra, imported as it is and replaceable by whoever runs it; not in the image by default",
    ),
    "pyrage": ("UNKNOWN", "its metadata name none; its file LICENSE is the MIT licence"),
}
"""What is not in the list, and why it is used all the same. Another licence than the one written here is refused."""


def installed() -> list[dict[str, Any]]:
    """Return name, version, licence and its text of what the locks of what runs pin and this environment has."""
    command = [str(Path(sys.executable).parent / "pip-licenses"), "--from=mixed", "--format=json", "--with-system"]
    command += ["--with-license-file", "--no-license-path", "--with-urls", "--packages", *pins()]
    found: list[dict[str, Any]] = json.loads(subprocess.check_output(command, text=True))
    return sorted(found, key=lambda each: str(each["Name"]).lower())


def not_seen(libraries: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each library that is shipped here and not among those that were looked at."""
    seen = {canonicalize_name(library["Name"]) for library in libraries}
    needed = [Requirement(pinned.partition("\\")[0].partition(" --hash")[0]) for pinned in pins().values()]
    return [
        f"{each.name} is pinned and not installed here, so nobody has seen its licence: make setup"
        for each in needed
        if canonicalize_name(each.name) not in seen and (each.marker is None or each.marker.evaluate())
    ]


def refused(libraries: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each licence that is not allowed, and for each special case that is none any more."""
    problems = []
    for library in libraries:
        name, licence = library["Name"].lower(), library["License"]
        if name in SPECIAL:
            if licence != SPECIAL[name][0]:
                problems.append(f"{name} was {SPECIAL[name][0]} and is {licence} now: look at it again")
        elif not set(re.split(r"; | AND | OR ", licence)) <= ALLOWED:
            problems.append(
                f"{name} {library['Version']} is {licence}, which is not in the list of release/licences.py"
            )
    gone = set(SPECIAL) - {library["Name"].lower() for library in libraries}
    return problems + [f"{name} is a special case and is not used any more" for name in sorted(gone)]


def report(libraries: list[dict[str, Any]]) -> str:
    """Return the report: every library with its licence, then the texts."""
    lines = ["Libraries that are shipped with DeviceOn Backup, and their licences", ""]
    for library in libraries:
        reason = SPECIAL.get(library["Name"].lower(), ("", ""))[1]
        lines.append(f"{library['Name']} {library['Version']}: {library['License']}{f' ({reason})' if reason else ''}")
    for library in libraries:
        lines += ["", "=" * 80, f"{library['Name']} {library['Version']}, {library['URL']}", "", library["LicenseText"]]
    return "\n".join(line.rstrip() for line in "\n".join(lines).splitlines()) + "\n"


def main() -> None:
    """Check, and write the report when a file is named."""
    libraries = installed()
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(report(libraries))
    problems = refused(libraries) + not_seen(libraries)
    print("\n".join(problems) if problems else f"licences: {len(libraries)} libraries, all allowed")
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
