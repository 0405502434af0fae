"""The disk that forgets (`tests.power_cut_disk`) as tests use it: mounted, armed, cut, switched on again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class PowerCutDisk:
    """A disk that is mounted on `root`."""

    def __init__(self, root: Path, process: subprocess.Popen[str]) -> None:
        self.root = root
        self._process = process

    def arm(self, *, victim: int = 0, cut_at: int = 0, fail_sync_at: int = 0) -> None:
        """Count from now on. Before change `cut_at` kill the process `victim` and take no more; or fail one fsync."""
        self._do("arm", victim=victim, cut_at=cut_at, fail_sync_at=fail_sync_at)

    def counted(self) -> dict[str, int]:
        """Return the changes and the fsyncs since it was armed."""
        return self._do("count")

    def cut(self, seed: int) -> dict[str, Any]:
        """Cut the power and switch on again. Tells how many changes and files lost something, and what fsync failed."""
        return self._do("cut", seed=seed)

    def save(self) -> None:
        """Remember the disk as it is, everything durable."""
        self._do("save")

    def load(self) -> None:
        """Be the disk again that was remembered."""
        self._do("load")

    def _do(self, do: str, **given: object) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **given}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@contextmanager
def power_cut_disk(root: Path) -> Iterator[PowerCutDisk]:
    """Mount an empty disk on a new directory; it is unmounted after the block."""
    root.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.power_cut_disk", str(root)],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "{}\n"
        yield PowerCutDisk(root, process)
    finally:
        process.communicate()  # it ends when its input does
