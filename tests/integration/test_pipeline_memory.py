"""Memory follows chunk size, lanes and cores; never the size of the data nor how slow the other side is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.integration import pipeline_memory

MIB = 1 << 20
CORES = os.cpu_count() or 1
CHUNK = pipeline_memory.CHUNK_BYTES // MIB
LANES = pipeline_memory.PARALLEL
UNUSED = 40
"""MiB that the allocator may keep, and code that is loaded on the way."""


def grown(directory: Path, what: str, chunks: int) -> float:
    command = [sys.executable, "-m", "tests.integration.pipeline_memory", str(directory), what, str(chunks)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return float(done.stdout)


def test_memory_stays_within_the_formula_whatever_the_data(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    chunks = 90  # 360 MiB that do not shrink
    bounds = {
        "pack": CHUNK * (3 * LANES + 3 * CORES + 1),
        "verify": CHUNK * 2 * (CORES + 4),
        "read": CHUNK * 4 * LANES,
    }
    for what, bound in bounds.items():
        peak = grown(tmp_path, what, chunks)
        record_property("counted", f"{what} of 360 MiB grew by {peak:.0f} MiB (bound {bound} + {UNUSED})")
        assert peak < bound + UNUSED
