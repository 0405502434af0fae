"""What was measured on: the machine and the versions of all programs, as lines for the document."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

PROGRAMS = "/usr/bin"
"""Where the Debian packages put what is measured: another `aws` may come first in a user's PATH."""
_PROGRAMS = {
    "PostgreSQL": ["postgres", "--version"],
    "swtpm (the TPM)": ["swtpm", "--version"],
    "zstd": ["zstd", "--version"],
    "age": ["age", "--version"],
    "restic": ["restic", "version"],
    "borg": ["borg", "--version"],
    "Ceph": ["radosgw", "--version"],
    "Samba": ["smbd", "--version"],
    "smbclient": ["smbclient", "--version"],
    "aws": ["aws", "--version"],
    "rclone": ["rclone", "version"],
}
_NAME = 'PRETTY_NAME="(.*)"'
_LIBRARIES = ("aiobotocore", "asyncpg", "cryptography", "isal", "smbprotocol", "uvloop", "zstandard")


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def facts(programs: Path) -> dict[str, str]:
    """Return names and values; `programs` is the directory of PostgreSQL's programs."""
    path = f"{programs}:{PROGRAMS}:{os.environ['PATH']}"
    versions = {name: _version(command, path) for name, command in _PROGRAMS.items()}
    return {
        "Processor": _matched(Path("/proc/cpuinfo"), r"model name\s*: (.*)"),
        "Cores": str(cores()),
        "Memory": f"{int(_matched(Path('/proc/meminfo'), r'MemTotal: *([0-9]+)')) / 1e6:.1f} GB",
        "System": f"{_matched(Path('/etc/os-release'), _NAME)}, Linux {platform.release()}",
        "Python": platform.python_version(),
        "deviceon-backup": version("deviceon-backup"),
        "Libraries": ", ".join(f"{library} {version(library)}" for library in _LIBRARIES),
        **versions,
    }


def _version(command: list[str], path: str) -> str:
    try:
        result = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "not installed"
    found = re.search(r"v?(\d+(\.\d+)+)", result.stdout)
    return found[1] if found else result.stdout.strip()


def _matched(path: Path, pattern: str) -> str:
    found = re.search(pattern, path.read_text()) if path.exists() else None
    return found[1] if found else "0"
