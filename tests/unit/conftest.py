"""What tests of the command line share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.cli.options import Shared
from tests.laid_out_service import LaidOut, laid_out_service


@pytest.fixture
def service(tmp_path: Path) -> Iterator[LaidOut]:
    """Answer as the service would, with what the test lays out."""
    with laid_out_service(tmp_path / "service.sock") as found:
        yield found


@pytest.fixture
def somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have somebody there to be asked, as at a terminal."""
    monkeypatch.setattr(Shared, "interactive", property(lambda shared: not shared.json))
