"""Many small files: the service beside GNU tar, each as the command that a user would type.

`make_tree` makes the bytes. The `*_command` functions return argument vectors, to be run and measured (wall, CPU,
memory) from outside; an `Installation` holds what the service needs around its own two. Ours goes the whole way:
SHA-256, zstd, AES-GCM, ZIP and fsync, and after a backup reads the archive back; before a restore's exchange the copy
is durable. tar does none of that. tar with `--xattrs --acls` writes the pax format, as the service does.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import yaml

SMALLEST, LARGEST = 100, 8192
_FILES_IN_A_DIRECTORY = 60
_DEPTH = 5
_OWNERS = ((0, 0), (0, 0), (0, 0), (33, 33), (101, 42))
_WORDS = "server listen timeout log level path enable allow deny user group port address default include option"


def make_tree(directory: Path, files: int) -> None:
    """Make the same tree each time: `files` regular files of 100 B to 8 KB (about 1.8 KB on average), like /etc.

    Beside them, for a hundred files: two directories, four symbolic links, half a hard link; one file in a hundred
    has an extended attribute, one in two hundred an ACL. As root, files have several owners.
    """
    chosen = random.Random(20)
    text = _text(chosen)
    directory.mkdir(parents=True)
    places, deepest = [directory], len(directory.parts) + _DEPTH
    owners = _OWNERS if os.geteuid() == 0 else ((os.geteuid(), os.getegid()),)
    for number in range(files):
        if number % _FILES_IN_A_DIRECTORY == 0 and number:
            above = chosen.choice(places)
            above = above if len(above.parts) < deepest else directory
            places.append(above / f"{_word(chosen)}-{number // _FILES_IN_A_DIRECTORY}.d")
            places[-1].mkdir(mode=0o755)
        path = places[-1] / f"{_word(chosen)}-{number:06d}.conf"
        _make_file(path, chosen, text)
        os.chown(path, *chosen.choice(owners))
        if number % 100 == 0:
            os.setxattr(path, "user.origin", b"package")
        if number % 200 == 1:
            os.setxattr(path, "system.posix_acl_access", _acl(chosen.randrange(1000, 1010)))
        if number % 25 == 3:
            path.with_suffix(".link").symlink_to(path.name)
        if number % 200 == 7:
            os.link(path, path.with_suffix(".hard"))
        os.utime(path, ns=(0, 1_700_000_000_000_000_000 + number * 1_234_567_891))
    for number, place in enumerate(reversed(places)):
        os.utime(place, ns=(0, 1_690_000_000_000_000_000 + number))


def _text(chosen: random.Random) -> bytes:
    words = _WORDS.split()
    lines = (f"{chosen.choice(words)}.{chosen.choice(words)} = {chosen.getrandbits(40):x}\n" for _ in range(40_000))
    return "".join(lines).encode()


def _word(chosen: random.Random) -> str:
    return chosen.choice(_WORDS.split())


def _make_file(path: Path, chosen: random.Random, text: bytes) -> None:
    size = int(SMALLEST * (LARGEST / SMALLEST) ** chosen.random())
    at = chosen.randrange(len(text) - size)
    path.write_bytes(text[at : at + size])
    path.chmod(chosen.choice((0o644, 0o644, 0o644, 0o640, 0o600, 0o755)))


def _acl(user: int) -> bytes:
    entries = ((0x01, 6, 2**32 - 1), (0x02, 4, user), (0x04, 4, 2**32 - 1), (0x10, 6, 2**32 - 1), (0x20, 4, 2**32 - 1))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def tar_backup_command(tree: Path, out: Path) -> list[str]:
    """Read with tar and zstd, as a user would type it."""
    return _shell(f"tar --xattrs --acls -C {quote(str(tree))} -cf - . | zstd -q -f -1 -T0 -o {quote(str(out))}")


def tar_restore_command(archive: Path, into: Path) -> list[str]:
    """The way back; `into` is an empty directory."""
    return _shell(f"zstd -q -d -c {quote(str(archive))} | tar --xattrs --acls -C {quote(str(into))} -xpf -")


def _shell(line: str) -> list[str]:
    return ["bash", "-o", "pipefail", "-c", line]


def backup_command(config: Path) -> list[str]:
    """Back up, and read the archive back."""
    return [*_service(config), "backup"]


def restore_command(config: Path, archive: Path) -> list[str]:
    """Stage, check, make durable, and exchange. The configured tree may be there (it is kept beside) or not."""
    return [*_service(config), "restore", str(archive), "--yes"]


def _service(config: Path) -> list[str]:
    return [sys.executable, "-m", "service", "--quiet", "--config", str(config)]


@dataclass(frozen=True, slots=True)
class Installation:
    """The service's configuration for one tree, with its target and state, in a directory of its own.

    `tcti` reaches the TPM to seal with. A backup can be run once a minute and a restore once, but for `renew`, which
    forgets the earlier runs.
    """

    directory: Path
    tree: Path
    tcti: str

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.directory / "config.yaml"

    @property
    def archives(self) -> Path:
        """The target: a local directory."""
        return self.directory / "archives"

    def archive(self) -> Path:
        """The archive that the last backup made."""
        return max(self.archives.glob("Backup_*.zip"))

    def renew(self) -> None:
        """Forget earlier runs: no archives, no state."""
        for path in (self.directory / "state", self.archives):
            shutil.rmtree(path, ignore_errors=True)
        self.archives.mkdir(parents=True)
        config = {
            "server": {"version": "1.0.0"},
            "target": {"url": f"file://{self.archives}"},
            "state_dir": str(self.directory / "state"),
            "sealing": {"mode": "tpm", "tcti": self.tcti},
            "sources": [{"type": "tree", "path": str(self.tree)}],
        }
        self.config.write_text(yaml.safe_dump(config))
