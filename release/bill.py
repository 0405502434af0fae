"""The bill of materials: every library that is shipped with the service, with its version and the hashes of its files.

CycloneDX 1.6 in JSON, from the locks of what runs (the extras, too), checked against its schema while it is made.

    python -m release.bill FILE
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from release.distribution import ROOT, commit_time

LOCKS = ("requirements.txt", "requirements-portal.txt", "requirements-sftp.txt")
_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==(?:[^\\\n]|\\\n)*", re.M)


def pins(root: Path = ROOT) -> dict[str, str]:
    """Return what the locks of what runs pin, by name: the requirement with its hashes."""
    found = {}
    for lock in LOCKS:
        for match in _PIN.finditer((root / lock).read_text()):
            found[match[1].lower()] = match[0]
    return dict(sorted(found.items()))


def write(out: Path, *, root: Path = ROOT) -> None:
    """Write the bill. The same commit gives the same bytes."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as merged:
        merged.write("\n".join(pins(root).values()) + "\n")
        merged.flush()
        command = [str(Path(sys.executable).parent / "cyclonedx-py"), "requirements", merged.name, "--pyproject"]
        command += [str(root / "pyproject.toml"), "--spec-version", "1.6", "--of", "JSON", "--output-reproducible"]
        environment = os.environ | {"SOURCE_DATE_EPOCH": str(commit_time(root)), "PYTHONWARNINGS": "ignore"}
        subprocess.run([*command, "--validate", "-o", str(out)], check=True, env=environment)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
