"""Memory follows chunk size, lanes and cores; never the size of the data nor how slow the other side is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from storage_backends.s3.options import IN_FLIGHT_BYTES
from storage_backends.s3.parts import FIRST_BYTES
from tests import s3_servers
from tests.integration import pipeline_memory

MIB = 1 << 20
CORES = os.cpu_count() or 1
CHUNK = pipeline_memory.CHUNK_BYTES // MIB
LANES = pipeline_memory.PARALLEL
UNUSED = 40
"""MiB that the allocator may keep, and code that is loaded on the way."""
UNUSED_S3 = 20
"""The same: more of the code is loaded before."""


def grown(target: Path, what: str, chunks: int) -> float:
    command = [sys.executable, "-m", "tests.integration.pipeline_memory", str(target), what, str(chunks)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return float(done.stdout)


def test_memory_stays_within_the_formula_whatever_the_data(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    chunks = 90  # 360 MiB that do not shrink
    bounds = {
        "pack": CHUNK * (3 * LANES + min(CORES, LANES) + 3),
        "verify": CHUNK * 2 * (CORES + 4),
        "read": CHUNK * 4 * LANES,
    }
    for what, bound in bounds.items():
        peak = grown(tmp_path, what, chunks)
        record_property("counted", f"{what} of 360 MiB grew by {peak:.0f} MiB (bound {bound} + {UNUSED})")
        assert peak < bound + UNUSED


def test_an_upload_to_s3_adds_its_parts_in_flight_and_no_more(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """With the settings that a user has who gives none, and a line that is slower than the source."""
    chunks = 60
    options = s3_servers.ceph_options(tls=True)
    del options["part_bytes"], options["parts_in_flight"]
    target = tmp_path / "target.json"
    target.touch(0o600)
    target.write_text(
        json.dumps({"url": f"s3://{s3_servers.BUCKET}/{s3_servers.new_prefix()}", "storage_options": options})
    )
    bounds = {
        "pack": CHUNK * (3 * LANES + min(CORES, LANES) + 3) + (IN_FLIGHT_BYTES + 2 * FIRST_BYTES) // MIB,
        "verify": CHUNK * 2 * (CORES + 4),
    }
    for what, bound in bounds.items():
        peak = grown(target, what, chunks)
        record_property("counted", f"{what} of 240 MiB on S3 grew by {peak:.0f} MiB (bound {bound} + {UNUSED_S3})")
        assert peak < bound + UNUSED_S3
