"""The gate to a TPM: one operation at a time, each waited for up to its deadline, and nobody after one that hangs."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import Any

import pytest

from demo.software_tpm import SoftwareTpm
from service.errors import TpmUnavailable
from service.sealing.tpm import TpmGate, chip, describe, read_pin
from service.sealing.tpm.chip import Chip
from service.sealing.tpm.faults import TpmTimeout


async def test_what_an_operation_returns_or_raises_comes_back_at_once(software_tpm: SoftwareTpm) -> None:
    gate = TpmGate(software_tpm.tcti, deadline=4)
    began = time.monotonic()
    assert await gate.run(lambda _: threading.current_thread().name) == "tpm"
    assert await gate.run(lambda _: threading.current_thread().daemon) is True
    for error in (ValueError("of the work"), SystemExit("of the work")):
        with pytest.raises(type(error), match="of the work"):
            await gate.run(lambda _, error=error: raised(error))  # type: ignore[misc]
    assert time.monotonic() - began < 3
    assert repr(gate) == f"TpmGate('{software_tpm.tcti}')"


def raised(error: BaseException) -> None:
    raise error


async def test_an_operation_that_hangs_is_given_up_and_nobody_goes_in_after_it(software_tpm: SoftwareTpm) -> None:
    gate = TpmGate(software_tpm.tcti, deadline=0.2)
    hanging = threading.Event()
    with pytest.raises(TpmTimeout, match=r"has not answered for 0\.2 seconds"):
        await gate.run(lambda _: hanging.wait(5))
    hanging.set()
    with pytest.raises(TpmTimeout):
        await gate.run(lambda _: None)


async def test_a_cancelled_operation_is_waited_for(software_tpm: SoftwareTpm) -> None:
    gate = TpmGate(software_tpm.tcti)
    inside, on = threading.Event(), threading.Event()

    def work(_: Chip) -> bool:
        inside.set()
        return on.wait(5)

    task = asyncio.create_task(gate.run(work))
    after = asyncio.create_task(gate.run(lambda _: on.is_set()))
    await asyncio.to_thread(inside.wait, 5)
    for _ in range(2):
        task.cancel()
        assert not (await asyncio.wait({task, after}, timeout=0.05))[0]
    on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await after is True


async def test_a_cancelled_operation_that_hangs_is_cancelled_and_nobody_goes_in_after_it(
    software_tpm: SoftwareTpm,
) -> None:
    gate = TpmGate(software_tpm.tcti, deadline=0.2)
    hanging = threading.Event()
    task = asyncio.create_task(gate.run(lambda _: hanging.wait(5)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    hanging.set()
    with pytest.raises(TpmTimeout):
        await gate.run(lambda _: None)


async def test_a_tpm_is_asked_again_for_half_of_the_time_and_with_the_owners_password(
    software_tpm: SoftwareTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the TPM then says comes back before the deadline, which would say that it hangs."""
    given: list[dict[str, Any]] = []
    operate = chip.operate

    def noted(*call: Any, **said: Any) -> object:
        given.append(said)
        return operate(*call, **said)

    monkeypatch.setattr(chip, "operate", noted)
    assert await TpmGate(software_tpm.tcti, owner_auth=b"owner").run(lambda _: "result") == "result"
    assert given == [{"owner_auth": b"owner", "budget": 30.0}]


# Where there is no libtss2


async def test_a_machine_without_the_tpm_software_stack_is_told_what_to_install(
    software_tpm: SoftwareTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("service.sealing.tpm.chip")
    monkeypatch.delitem(sys.modules, "service.sealing.tpm.chip")
    monkeypatch.setitem(sys.modules, "tpm2_pytss", None)
    told = await describe(TpmGate(software_tpm.tcti))
    assert "software stack cannot be loaded" in told["problem"]
    assert "libtss2-esys-3.0.2-0" in told["hint"]
    with pytest.raises(TpmUnavailable) as caught:
        await read_pin(TpmGate(software_tpm.tcti))
    assert isinstance(caught.value.__cause__, ImportError)
