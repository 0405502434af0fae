"""The wheel and the source distribution, reproducible: the same commit gives the same bytes.

Built from an export of a commit, in a directory of its own, with times, modes, owners and order that depend on the
commit alone. The wheel is built from the source distribution, so that one is known to be whole.

    python -m release.distribution DIRECTORY
"""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def commit_time(root: Path = ROOT) -> int:
    """Return when HEAD was committed, as a UNIX time."""
    return int(_run(["git", "log", "-1", "--format=%ct"], root))


def build(out: Path, *, root: Path = ROOT) -> tuple[Path, Path]:
    """Build both from HEAD of `root` into `out`; return the source distribution and the wheel."""
    epoch = commit_time(root)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="release-") as name:
        work = Path(name)
        _unpack(io.BytesIO(subprocess.check_output(["git", "archive", "HEAD"], cwd=root)), work / "tree", epoch)
        made = work / "made" / _backend("build_sdist", work / "tree", work / "made", epoch)
        source = out / made.name
        source.write_bytes(packed(made, epoch))
        _unpack(io.BytesIO(gzip.decompress(source.read_bytes())), work / "again", epoch)
        (tree,) = (work / "again").iterdir()
        wheel = out / _backend("build_wheel", tree, out.resolve(), epoch)
    return source, wheel


def packed(archive: Path, epoch: int) -> bytes:
    """Return a tar.gz with the same files, in the order of their names, and nothing of who packed it where and when."""
    content = io.BytesIO()
    with tarfile.open(archive) as old, tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda each: each.name):
            if member.isfile():
                file = old.extractfile(member)
                assert file is not None
                add(new, member.name, file.read(), executable=bool(member.mode & 0o100), epoch=epoch)
    return gzip.compress(content.getvalue(), mtime=epoch)


def add(archive: tarfile.TarFile, name: str, content: bytes, *, executable: bool, epoch: int) -> None:
    """Add a file to a tar archive with nothing of this machine."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(content), epoch, 0o755 if executable else 0o644
    archive.addfile(info, io.BytesIO(content))


def _unpack(archive: io.BytesIO, directory: Path, epoch: int) -> None:
    with tarfile.open(fileobj=archive) as opened:
        opened.extractall(directory, filter="data")
    for path in directory.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        os.utime(path, (epoch, epoch))


def _backend(hook: str, tree: Path, out: Path, epoch: int) -> str:
    """Have setuptools build; return the name of the file."""
    out.mkdir(exist_ok=True)
    call = f"import sys; from setuptools import build_meta; print(build_meta.{hook}(sys.argv[1]))"
    environment = os.environ | {
        "SOURCE_DATE_EPOCH": str(epoch),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
    }
    done = subprocess.run(
        [sys.executable, "-c", call, str(out)],
        cwd=tree,
        env=environment,
        umask=0o022,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{hook} failed:\n{done.stderr}")
    return done.stdout.splitlines()[-1]


def _run(command: list[str], directory: Path) -> str:
    return subprocess.check_output(command, cwd=directory, text=True).strip()


if __name__ == "__main__":
    for built in build(Path(sys.argv[1])):
        print(built)
