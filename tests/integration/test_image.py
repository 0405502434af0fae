"""The container image's health check, asked about a real service."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.service_process import ServiceProcess

SCRIPT = Path(__file__).parents[2] / "packaging/image/healthcheck.py"


def check(socket: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", SCRIPT],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"DEVICEON_BACKUP_SOCKET": str(socket)},
    )


async def test_a_service_that_answers_is_healthy_and_one_that_is_gone_is_not(tmp_path: Path) -> None:
    document = {
        "server": {"version": "5.3.12"},
        "target": {"url": (tmp_path / "archives").as_uri()},
        "sealing": {"mode": "off"},
        "sources": [{"type": "tree", "path": str(tmp_path)}],
    }
    (tmp_path / "archives").mkdir()
    with ServiceProcess(tmp_path, document) as service:
        async with service.client(ready=False):
            pass
        healthy = check(service.socket)
        assert (healthy.returncode, healthy.stderr) == (0, "")
        service.kill()
        assert check(service.socket).returncode == 1
        assert "No such file" in check(tmp_path / "none").stderr
