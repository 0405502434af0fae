"""File systems that really hang: the kernel holds whoever touches them. Both need root, as mounting does."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def dead_mount(directory: Path) -> Iterator[Path]:
    """Mount what nobody serves: a FUSE file system without its program, like a network mount without its server.

    Every access waits until the block ends, and then fails.
    """
    directory.mkdir()
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
    if _libc.mount(b"dead", os.fsencode(directory), b"fuse", 0, options):
        code = ctypes.get_errno()
        os.close(fuse)
        raise OSError(code, os.strerror(code), "mounting FUSE")
    try:
        yield directory
    finally:
        os.close(fuse)  # the kernel now fails what waits
        subprocess.run(["umount", "--lazy", directory], check=True)


class Disk:
    """A small ext4 of its own on `directory`, which can be frozen: writing to it then waits in the kernel (state D)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._frozen = False

    def freeze(self) -> None:
        """Let writes wait from now on. Reading goes on."""
        subprocess.run(["fsfreeze", "--freeze", self.directory], check=True)
        self._frozen = True

    def thaw(self) -> None:
        """Let what waits go on; fine when it is not frozen."""
        if self._frozen:
            subprocess.run(["fsfreeze", "--unfreeze", self.directory], check=True)
            self._frozen = False


@contextmanager
def disk(directory: Path) -> Iterator[Disk]:
    """Make and mount a disk of 64 MiB."""
    directory.mkdir()
    image = directory.with_suffix(".image")
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, directory], check=True)
    made = Disk(directory)
    try:
        yield made
    finally:
        made.thaw()
        subprocess.run(["umount", "--lazy", directory], check=True)
