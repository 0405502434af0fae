"""A real service, and a portal before it that tests share; who changes either starts his own."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.portal.visit import PortalProcess
from tests.service_process import START_SECONDS, ServiceProcess


def small_service(directory: Path, **more: Any) -> ServiceProcess:
    """Describe a service that backs up a small tree to a local directory, without a TPM."""
    directory.mkdir(exist_ok=True)
    for name in ("etc", "archives"):
        (directory / name).mkdir(exist_ok=True)
    (directory / "etc" / "server.conf").write_text("port = 80\n" * 10)
    document: dict[str, Any] = {
        "server": {"version": "5.4.1"},
        "target": {"url": f"file://{directory}/archives"},
        "sealing": {"mode": "off"},
        "sources": [{"type": "tree", "path": str(directory / "etc")}],
    }
    return ServiceProcess(directory, document | more)


def wait_until_ready(service: ServiceProcess, *, set_up: bool = True) -> None:
    """Return when it takes jobs; when it answers, if it is not `set_up` yet."""
    question = b'{"jsonrpc":"2.0","id":1,"method":"system.info"}\n'
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(service.socket))
            connection.sendall(question)
            with connection.makefile("rb") as lines:
                if json.loads(lines.readline())["result"]["not_ready"] is None or not set_up:
                    return
        assert time.monotonic() < deadline, service.log
        time.sleep(0.02)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """Give a running service."""
    with small_service(tmp_path_factory.mktemp("service")) as process:
        wait_until_ready(process)
        yield process


@pytest.fixture(scope="session")
def portal(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PortalProcess]:
    """Give a portal that takes tokens."""
    with PortalProcess(tmp_path_factory.mktemp("portal"), service.socket) as process:
        yield process
