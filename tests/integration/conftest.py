"""What tests of a real TPM share: a foreign implementation on it, and a storage key that makes it quick."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.software_tpm import SoftwareTpm
from tests.integration.tpm_wire import Tools, TpmClock


@pytest.fixture
def tools(software_tpm: SoftwareTpm, tmp_path: Path) -> Tools:
    """Give tpm2-tools on the TPM."""
    return Tools(software_tpm.tcti, tmp_path / "tools")


@pytest.fixture
def tpm(software_tpm: SoftwareTpm, tools: Tools) -> SoftwareTpm:
    """Give a TPM with a storage key that needs no deriving, so that tests are quick."""
    tools.persist("0x81000001", "-G", "ecc")
    return software_tpm


@pytest.fixture
def tpm_clock(monkeypatch: pytest.MonkeyPatch) -> TpmClock:
    """Give the clock by which a TPM is tried again."""
    from service.sealing.tpm import chip  # noqa: PLC0415  (tests without a TPM do not need its library)

    clock = TpmClock()
    monkeypatch.setattr(chip, "time", clock)
    return clock
